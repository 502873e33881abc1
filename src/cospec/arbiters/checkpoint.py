"""Checkpoints of trained arbiters: a folder, checked before anything is allocated for it.

A folder has ``config.json`` (feature spec with its version and hash, policy, operating points, the
pair and data it was trained on, measured results), ``model.safetensors`` and a model card. It may
come from a stranger: sizes that the config claims are compared with the header of the weights, so
that reading takes no more memory than the file has bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from cospec import settings
from cospec.arbiters.guard import NUM_BUCKETS
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.arbiters.record import CARD, FILES
from cospec.errors import ArbiterError, CheckpointError, ConfigError
from cospec.features import KINDS, saved_features
from cospec.results import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from cospec.features import ScalarFeatures
    from cospec.results import Json

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_BLOCK_LENGTH = 1024
"""Largest block length that a checkpoint may record for its training."""
_MAX_CONFIG_BYTES = 2**25
_FLOATS = ("F16", "BF16", "F32", "F64")
_OTHERS = ("kinds", "prompt_profile")
"""Tensors beside the weights of the policy."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    config: Json
    features: ScalarFeatures
    policy: Policy
    prompt_profile: Tensor | None
    """Profile of `PromptGuard`; None if the checkpoint has none."""


def write_checkpoint(
    folder: Path, policy: Policy, more: Mapping[str, Tensor], config: Json, card: str
) -> None:
    """Write a checkpoint; weights first, so that a folder with a config is whole.

    Args:
        folder: Folder to write, made if it does not exist. If it holds an arbiter with another
            policy, the other files of that one are removed.
        policy: The network.
        more: Tensors other than the policy's weights, `_OTHERS`.
        config: Rest of ``config.json``.
        card: Text of README.md; empty for none.
    """
    tensors = {f"policy.{k}": v.contiguous() for k, v in policy.state_dict().items()}
    data = save(tensors | dict(more))
    digest = hashlib.sha256(data).hexdigest()
    document = {"cospec_arbiter": FORMAT} | config | {"weights_sha256": digest}
    text = json.dumps(document, indent=1)  # which may fail: nothing is replaced before
    folder.mkdir(parents=True, exist_ok=True)
    weights, part = folder / WEIGHTS, folder / f"{WEIGHTS}.part"
    part.write_bytes(data)
    # A folder without a config holds files of this very arbiter: training writes its list of
    # problems first.
    if (folder / CONFIG).exists() and not _has_policy(weights, policy):
        for name in set(FILES) - {CONFIG, WEIGHTS}:
            (folder / name).unlink(missing_ok=True)
    part.replace(weights)
    if card:
        write_text(folder / CARD, card)
    write_text(folder / CONFIG, text + "\n")


def _has_policy(weights: Path, policy: Policy) -> bool:
    """Return whether a file holds the weights of a policy, at the precision of the file."""
    try:
        theirs = load_file(weights)
    except (OSError, SafetensorError):
        return False
    return all(
        (old := theirs.get(f"policy.{name}")) is not None
        and old.shape == value.shape
        and torch.equal(old, value.cpu().to(old.dtype))
        for name, value in policy.state_dict().items()
    )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: The folder is no checkpoint, or is damaged.
        ArbiterError: It was trained on features that this version does not have.
    """
    config = read_config(folder)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            header = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(one.get_shape()) for name, one in header.items()}
            _check_kinds_of_tensors(folder, {k: str(v.get_dtype()) for k, v in header.items()})
            features = _features(folder, config["features"], shapes, file.get_tensor)
            shape = _policy_config(folder, config["policy"], features, shapes)
            profile = _prompt_profile(folder, config, shapes, file.get_tensor)
            tensors = {name: file.get_tensor(name) for name in shapes if name not in _OTHERS}
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise _no_arbiter(folder, error) from None
    if config.get("weights_sha256", digest := _sha256(folder / WEIGHTS)) != digest:
        raise CheckpointError(
            f"{folder}: {WEIGHTS} is not the file that {CONFIG} was written with (its SHA-256 is "
            f"{digest}); {_restore(folder)}copy or download the folder again."
        )
    policy = Policy(len(features.names), shape, num_hidden=features.num_hidden)
    policy.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items()})
    return Checkpoint(config, features, policy.eval(), profile)


def read_config(folder: Path) -> Json:
    """Read ``config.json``, and check all of it that does not depend on the weights.

    Raises:
        CheckpointError: It belongs to no trained arbiter, or is damaged.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"{CONFIG} has more than {_MAX_CONFIG_BYTES} bytes")
        config: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_arbiter(folder, error) from None
    number = config.get("cospec_arbiter") if isinstance(config, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(
            f"{path} was written by a newer version of cospec (format {_short(number)}, this one "
            f"reads {FORMAT}); update it: pip install -U cospec."
        )
    if number != FORMAT:
        raise CheckpointError(
            f"{path} is not of a trained arbiter (cospec_arbiter is not {FORMAT}); pass a folder "
            "that cospec train wrote."
        )
    for key in ("features", "policy", "operating_points", "pair", "training"):
        is_needed = key not in ("pair", "training")
        if not isinstance(config.get(key, None if is_needed else {}), dict):
            raise _damaged(folder, f"{key} is missing, or no object")
    for name, point in config["operating_points"].items():
        if not isinstance(point, dict):
            raise _damaged(folder, f"operating_points.{name} is no object")
        _number(folder, f"operating_points.{name}.threshold", point.get("threshold"), 1.0)
    for key, most in {"max_mismatch_rate": 1e9, "min_prompt_likeness": 1.0}.items():
        value = config.get(key)
        _number(folder, key, 0 if value is None else value, most)
    train = config["training"].get("train", {}) if "training" in config else {}
    if not isinstance(train, dict):
        raise _damaged(folder, "training.train is no object")
    try:
        k = settings.flat(train).get("num_speculative_tokens")
    except RecursionError as error:
        raise _damaged(folder, f"training.train is nested too deeply ({error})") from None
    if k is not None and not (_is_count(k) and 1 <= k <= MAX_BLOCK_LENGTH):
        raise _damaged(
            folder, f"num_speculative_tokens is {_short(k)}; it must be 1 to {MAX_BLOCK_LENGTH}"
        )
    return config


def _check_kinds_of_tensors(folder: Path, dtypes: dict[str, str]) -> None:
    """Refuse weights that are no floats, and kinds of tokens that are no bytes."""
    for name, dtype in {"kinds": "none", **dtypes}.items():
        if dtype not in (("U8",) if name == "kinds" else _FLOATS):
            raise _damaged(folder, f"{_short(name)} (of {WEIGHTS}) has the dtype {dtype}")


def _features(
    folder: Path, saved: Json, shapes: dict[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> ScalarFeatures:
    """Find the features of a checkpoint; the header of the weights tells their number."""
    sizes, width = saved.get("hidden_sizes", [0, 0]), saved.get("embedding_size", 0)
    if not (isinstance(sizes, list) and len(sizes) == 2 and all(map(_is_count, [*sizes, width]))):
        raise _damaged(folder, "features.hidden_sizes or features.embedding_size is no size")
    if not isinstance(saved.get("hash"), str) or not _is_count(saved.get("version", 1)):
        raise _damaged(folder, "features.hash or features.version is missing, or of another kind")
    mean = shapes.get("policy.mean", ())
    num_features = mean[0] if len(mean) == 1 else 0  # a shape with a 0 in it may claim any width
    if max(*sizes, width) > num_features:
        raise _unfit(folder, ["features.hidden_sizes or features.embedding_size"])
    kinds = read("kinds").long()
    if kinds.ndim != 1 or bool((kinds >= len(KINDS)).any()):
        raise _damaged(folder, f"kinds (of {WEIGHTS}) must be a list of numbers below {len(KINDS)}")
    features = saved_features(saved, kinds)
    if features is None:
        raise ArbiterError(
            f"{folder} was trained on other features (spec {_short(saved.get('spec'))}, version "
            f"{saved.get('version', 'not recorded')}, hash {_short(saved['hash'])}) than this "
            "version of cospec has; train it again, or install the version that made it."
        )
    return features


def _policy_config(
    folder: Path, saved: Json, features: ScalarFeatures, shapes: dict[str, tuple[int, ...]]
) -> PolicyConfig:
    """Return the shape of the policy, if the weights have it."""
    try:
        config = settings.from_dict(PolicyConfig, saved, "policy")
    except ConfigError as error:
        raise _damaged(folder, str(error)) from None
    found = {k.removeprefix("policy."): s for k, s in shapes.items() if k not in _OTHERS}
    if config.num_layers > len(found):  # so that no list of them is made
        raise _unfit(folder, ["num_layers"])
    try:
        with torch.device("meta"):  # which allocates nothing
            network = Policy(len(features.names), config, num_hidden=features.num_hidden)
    except (RuntimeError, TypeError):  # no tensor may be as large
        raise _unfit(folder, ["policy"]) from None
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    unlike = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
    if unlike:
        raise _unfit(folder, unlike)
    return config


def _prompt_profile(
    folder: Path, config: Json, shapes: dict[str, tuple[int, ...]], read: Callable[[str], Tensor]
) -> Tensor | None:
    """Read the profile of the prompt guard, if the checkpoint has one."""
    shape = shapes.get("prompt_profile")
    is_guarded = config.get("min_prompt_likeness") is not None
    if shape is None and not is_guarded:
        return None
    if shape != (NUM_BUCKETS,) or not is_guarded:
        raise _unfit(folder, ["min_prompt_likeness and prompt_profile"])
    return read("prompt_profile").float()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(folder: Path, name: str, value: Any, most: float) -> None:  # Any: JSON
    """Refuse a value that is no number from 0 to `most`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= most):
        raise _damaged(folder, f"{name} is {_short(value)}; it must be from 0 to {most:g}")


def _short(value: object) -> str:
    """Return a value as text that does not fill the terminal."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _no_arbiter(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder} is no trained arbiter: {error}; {_restore(folder)}pass a folder that cospec "
        "train wrote."
    )


def _unfit(folder: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the weights do not fit the config ({', '.join(map(_short, names[:3]))}); "
        f"{_restore(folder)}restore the folder, or train the arbiter again."
    )


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / CONFIG} is damaged: {reason}; {_restore(folder)}restore the folder, or train "
        "the arbiter again."
    )


def _restore(folder: Path) -> str:
    """Return advice on a damaged folder of the hub's cache; "" for other folders."""
    if folder.parent.name != "snapshots":
        return ""
    return f"delete {folder.parent.parent}, and it is downloaded again; or "
