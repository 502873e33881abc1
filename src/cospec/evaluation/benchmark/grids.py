"""Settings to try for each arbiter on the tune split: one table, with as many for each.

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
    "fly": tuple(
        f"window={w},min_entropy={h}" for w, h in ((6, 0.6), (6, 0.3), (4, 0.3), (2, 0.3), (2, 0.1))
    ),
    "typical": tuple(
        f"threshold={t},alpha={a}"
        for t, a in ((0.36, 0.6), (0.2, 0.45), (0.09, 0.3), (0.04, 0.2), (0.01, 0.1))
    ),
    "mars": tuple(f"theta={t}" for t in (0.98, 0.95, 0.9, 0.8, 0.7)),
    "top_k": tuple(f"k=10,delta={d}" for d in (0.1, 0.2, 0.4, 0.6, 0.8)),
    "top_k_ratio": tuple(f"k=3,ratio={r}" for r in (0.9, 0.7, 0.5, 0.3, 0.1)),
    "sglang": tuple(
        f"threshold_single={s},threshold_acc={a}"
        for s, a in ((1, 1), (0.5, 1), (0.3, 1), (0.15, 1), (1, 0.5))
    ),
    "bild": tuple(f"fallback=0.6,rollback={r}" for r in (0.7, 1, 2, 3, 5)),
    "cascade_chow": tuple(f"alpha={a}" for a in (0.05, 0.1, 0.2, 0.35, 0.5)),
    "chow_average": tuple(f"min_log_q={x}" for x in (-0.01, -0.02, -0.05, -0.1, -0.2)),
    "cascade_diff": tuple(f"alpha={a}" for a in (-0.2, 0, 0.1, 0.2, 0.5)),
    "cascade_opt": tuple(f"alpha={a}" for a in (-0.2, 0, 0.2, 0.5, 1)),
    "fsd_js": tuple(f"threshold={t}" for t in (0.05, 0.1, 0.2, 0.4, 0.6)),
    "fsd_kl": tuple(f"threshold={t}" for t in (0.1, 0.2, 0.4, 0.8, 1.6)),
    "judi": tuple(f"threshold={t}" for t in (0.1, 0.3, 0.5, 0.9, 1.4)),
    "csd": tuple(
        f"frequency={f},ratio={r}" for f, r in ((6, 0.3), (6, 0.1), (6, 0.01), (3, 0.01), (1, 0.01))
    ),
    "mentored": tuple(f"max_kl={d}" for d in (0.05, 0.1, 0.15, 0.2, 0.4)),
    "cosd": tuple(
        f"alpha={a},beta={b}"
        for a, b in ((0.95, 0.2), (0.9, 0.5), (0.7, 0.5), (0.5, 0.5), (0.3, 0.5))
    ),
    "ensemble": tuple(f"draft_weight={w}" for w in (0.1, 0.2, 0.3, 0.4, 0.5)),
}
"""Settings of each rule, from strict to bold. Rules without settings have none to try."""

THRESHOLDS: tuple[str, ...] = tuple(f"threshold={t}" for t in (0.9, 0.8, 0.7, 0.5, 0.3))
"""Settings to try for every trained arbiter."""
