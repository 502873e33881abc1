"""The settings that each arbiter is tried with on the tune split: one table, as many for each.

A benchmark in which one rule is tuned and the next is not measures the tuning. Every rule with
settings has `NUM_TRIES` of them here, from strict to bold, the released constants among them, and
a trained arbiter has as many thresholds.
"""

from __future__ import annotations

NUM_TRIES = 5

GRIDS: dict[str, tuple[str, ...]] = {
    "random": tuple(f"rate={r}" for r in (0.05, 0.1, 0.2, 0.35, 0.5)),
    "gap": tuple(f"max_gap={g}" for g in (0.25, 0.5, 1, 2, 4)),
    "agreement": tuple(f"min_share={s}" for s in (0.97, 0.93, 0.9, 0.8, 0.6)),
    "fly": (
        "window=6,min_entropy=0.6",
        "window=6,min_entropy=0.3",
        "window=4,min_entropy=0.3",
        "window=2,min_entropy=0.3",
        "window=2,min_entropy=0.1",
    ),
    "typical": (
        "threshold=0.36,alpha=0.6",
        "threshold=0.2,alpha=0.45",
        "threshold=0.09,alpha=0.3",
        "threshold=0.04,alpha=0.2",
        "threshold=0.01,alpha=0.1",
    ),
    "mars": tuple(f"theta={t}" for t in (0.98, 0.95, 0.9, 0.8, 0.7)),
    "top_k": tuple(f"k=10,delta={d}" for d in (0.1, 0.2, 0.4, 0.6, 0.8)),
    "top_k_ratio": tuple(f"k=3,ratio={r}" for r in (0.9, 0.7, 0.5, 0.3, 0.1)),
    "sglang": (
        "threshold_single=1,threshold_acc=1",
        "threshold_single=0.5,threshold_acc=1",
        "threshold_single=0.3,threshold_acc=1",
        "threshold_single=0.15,threshold_acc=1",
        "threshold_single=1,threshold_acc=0.5",
    ),
    "bild": tuple(f"fallback=0.6,rollback={r}" for r in (0.7, 1, 2, 3, 5)),
    "cascade_chow": tuple(f"alpha={a}" for a in (0.05, 0.1, 0.2, 0.35, 0.5)),
    "chow_average": tuple(f"min_log_q={x}" for x in (-0.01, -0.02, -0.05, -0.1, -0.2)),
    "cascade_diff": tuple(f"alpha={a}" for a in (-0.2, 0, 0.1, 0.2, 0.5)),
    "cascade_opt": tuple(f"alpha={a}" for a in (-0.2, 0, 0.2, 0.5, 1)),
    "fsd_js": tuple(f"threshold={t}" for t in (0.05, 0.1, 0.2, 0.4, 0.6)),
    "fsd_kl": tuple(f"threshold={t}" for t in (0.1, 0.2, 0.4, 0.8, 1.6)),
    "judi": tuple(f"threshold={t}" for t in (0.1, 0.3, 0.5, 0.9, 1.4)),
    "csd": (
        "frequency=6,ratio=0.3",
        "frequency=6,ratio=0.1",
        "frequency=6,ratio=0.01",
        "frequency=3,ratio=0.01",
        "frequency=1,ratio=0.01",
    ),
    "mentored": tuple(f"max_kl={d}" for d in (0.05, 0.1, 0.15, 0.2, 0.4)),
    "cosd": (
        "alpha=0.95,beta=0.2",
        "alpha=0.9,beta=0.5",
        "alpha=0.7,beta=0.5",
        "alpha=0.5,beta=0.5",
        "alpha=0.3,beta=0.5",
    ),
    "ensemble": tuple(f"draft_weight={w}" for w in (0.1, 0.2, 0.3, 0.4, 0.5)),
}
"""By rule: its settings, from strict to bold. Rules without settings have none to try."""

THRESHOLDS: tuple[str, ...] = tuple(f"threshold={t}" for t in (0.9, 0.8, 0.7, 0.5, 0.3))
"""Settings to try for every trained arbiter."""
