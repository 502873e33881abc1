"""Failures of the machine, as a sentence that says what to do: a full disk, too little memory."""

from __future__ import annotations

import errno

from cospec.errors import is_out_of_memory

_KEPT = {
    **dict.fromkeys(
        ("audit", "bench", "calibrate", "demo", "eval"),
        "What is finished is kept with --json FILE, and the same command resumes it.",
    ),
    "reproduce": "What is finished is kept, and the same command resumes it.",
    "train": "Finished rounds are kept in the folder --out, and the same command resumes there.",
}
"""Sentence on resuming after an interruption, by verb; other verbs cannot resume."""
_OTHER = " Other settings are another run, and need another file or folder."
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


def sentence_for(error: BaseException, verb: str = "") -> str | None:
    """Return what to do about a failure of the machine; None if the failure is ours.

    Args:
        error: The failure.
        verb: Verb of the command that failed.
    """
    kept = f" {_KEPT[verb]}" if verb in _KEPT else ""
    if isinstance(error, OSError) and error.errno in _FULL | _CLOSED | _IN_THE_WAY:
        where = error.filename or "the output"
        if error.errno in _IN_THE_WAY:
            return f"{where}: {error.strerror}; name another file or folder.{kept}"
        if error.errno in _FULL:
            return f"no space is left for {where}: free some, or write to another disk.{kept}"
        return f"{where} cannot be written or read ({error.strerror}): choose another folder."
    if is_out_of_memory(error):
        return (
            "out of memory: pass a smaller --batch-size, a smaller -k or fewer --max-new-tokens, "
            "or load the models with --dtype bfloat16; cospec info --target T --draft D tells what "
            f"they take.{kept}{kept and _OTHER}"
        )
    return None
