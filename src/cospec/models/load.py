"""Loading from the Hugging Face hub, a folder or a GGUF file.

The only file that calls ``from_pretrained``.

Only safetensors and GGUF are read unless the caller insists: a pickled checkpoint can run any code.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from cospec.errors import CheckpointError, ConfigError, MissingExtraError, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32", "bfloat16", "float16"}
_FOR_TOKENIZERS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
"""Arguments of ``from_pretrained`` that apply to a tokenizer as well as to its model."""
SPREADS = ("balanced", "sequential")
"""Ways to spread the layers of a model over all GPUs, as ``device_map`` of transformers."""


def load_model(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    allow_pickle: bool = False,
    **kwargs: Any,  # Any: whatever transformers' from_pretrained takes
) -> PreTrainedModel:
    """Load a causal language model; arguments as in `ModelPair.from_pretrained`.

    Raises:
        CheckpointError: The checkpoint is missing, corrupt or pickled, or it needs a package that
            is not installed.
        ConfigError: There is no such device here.
        MissingExtraError: The model is to be spread over devices, and accelerate is missing.
    """
    arguments = _locate(source) | {"dtype": as_dtype(dtype), "output_loading_info": True}
    if device in SPREADS:
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device is {device!r}, which spreads the layers over GPUs, and there is none "
                "here; pass cpu, or run where there are GPUs."
            )
        kwargs["device_map"] = device
    has_accelerate = importlib.util.find_spec("accelerate") is not None
    if "device_map" not in kwargs:
        place = as_device(device)
        if place.type == "cuda" and has_accelerate:  # else the whole model is in CPU memory first
            kwargs["device_map"] = {"": place}
    elif not has_accelerate:
        raise MissingExtraError("accelerate, which spreads a model over devices,", "spread")
    if "gguf_file" not in arguments:
        # None would fall back to pickle where there are no safetensors.
        arguments["use_safetensors"] = None if allow_pickle else True
    with _explained(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(**arguments, **kwargs)  # a pair
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(
            f"{source} lacks {len(info['missing_keys'])} tensors, such as {missing}, which would "
            "be random; pass a complete checkpoint of a causal language model."
        )
    if "device_map" not in kwargs:
        torch.nn.Module.to(model, place)  # transformers hides its signature
    return model


def load_tokenizer(
    source: str | Path,
    **kwargs: Any,  # Any: whatever transformers' from_pretrained takes
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: It is missing or damaged, or needs a package that is not installed.
    """
    kept = {k: v for k, v in kwargs.items() if k in _FOR_TOKENIZERS}
    arguments = _locate(source)
    with _explained(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**arguments, **kept)
    return tokenizer


def as_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """A torch dtype from its name, or "auto".

    Raises:
        ConfigError: The name is not allowed.
    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        allowed = ", ".join(sorted(_DTYPES))
        raise ConfigError(f"dtype is {dtype!r}; allowed are auto, {allowed}.")
    result: torch.dtype = getattr(torch, dtype)
    return result


def as_device(device: str | torch.device) -> torch.device:
    """A torch device from its name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
        torch.empty(0, device=result)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device is {str(device)!r}, which is not usable here: {error}") from None
    return result


def _locate(source: str | Path) -> dict[str, Any]:  # Any: arguments of from_pretrained
    """Locate a checkpoint, as arguments of ``from_pretrained``."""
    path = Path(os.path.expanduser(source))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"there is no file {source}; pass a GGUF file that exists.")
        _require_gguf()
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    looks_like_path = path.is_absolute() or str(source).startswith((".", "~"))
    if looks_like_path or path.exists():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{source} holds no config.json; pass the folder of a Hugging Face checkpoint, a "
                ".gguf file, or a hub id."
            )
        return {"pretrained_model_name_or_path": str(path)}
    return {"pretrained_model_name_or_path": str(source)}


def _require_gguf() -> None:
    try:
        import accelerate  # noqa: F401, PLC0415
        import gguf  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("the reader of GGUF files", "gguf") from error


@contextmanager
def _explained(source: str | Path) -> Iterator[None]:
    """Turn errors of checkpoint readers into clear messages; out of memory stays as it is."""
    try:
        yield
    except ImportError as error:
        raise CheckpointError(
            f"{source} needs a package that is not installed: {error} -- install it, or pass a "
            "checkpoint that needs none, such as one that is not quantized."
        ) from error
    except Exception as error:  # the parsers of damaged files raise all kinds
        if is_out_of_memory(error):
            raise
        raise _unreadable(source, error) from error


def _unreadable(source: str | Path, error: Exception) -> CheckpointError:
    advice, reason = "restore the checkpoint, or pass another", str(error)
    if not Path(os.path.expanduser(source)).exists():
        name = "models--" + str(source).replace("/", "--")
        cached = Path(constants.HF_HUB_CACHE) / name
        advice = "check the hub id and the connection: what is not cached has to be downloaded"
        reason = reason.partition("\n")[0]
        if cached.is_dir():
            advice = f"if its cache is damaged, delete {cached}, and it is downloaded again"
    return CheckpointError(
        f"cannot load {source}: {type(error).__name__}: {reason} -- {advice}; only safetensors and "
        "GGUF are read: pickled weights (.bin, .pt) need --allow-pickle (allow_pickle=True) and "
        "run whatever code they hold."
    )
