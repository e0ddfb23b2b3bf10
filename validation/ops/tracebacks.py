"""Find the line of a candidate that raised, hung or crashed: the innermost frame of its own."""

import importlib.util
import signal
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb

from validation.errors import Terminated

# File, line, function.
Frame = tuple[str, int, str]

_SUITE = Path(__file__).resolve().parents[1]
# Packages of the suite that hold candidates.
_CANDIDATES = tuple(f"{_SUITE / name}/" for name in ("adapters", "controls", "faults", "meta_tests"))
# Every torch function that a candidate calls goes through this one.
_SHELLS = str(_SUITE / "adapters" / "shells.py")
# Found, not imported: Triton may only be imported after the interpreter is selected.
_LIBRARIES = tuple(
    f"{Path(spec.origin).resolve().parent}/"
    for spec in map(importlib.util.find_spec, ("torch", "triton", "numpy"))
    if spec is not None and spec.origin is not None
)
_STANDARD = f"{sysconfig.get_path('stdlib')}/"


def of_suite(file: str) -> bool:
    """Whether a file belongs to the suite and holds no candidate."""
    return file == _SHELLS or (file.startswith(f"{_SUITE}/") and not file.startswith(_CANDIDATES))


def _of_a_library(file: str) -> bool:
    standard = file.startswith(_STANDARD) and "-packages/" not in file  # site-packages may lie inside
    return standard or file.startswith(("<frozen ", *_LIBRARIES))


def place(frames: Iterable[Frame]) -> str:
    """The candidate's place, as the end of a message: ``, in mine.py, line 12, in rms_norm``; "" if it has no frame.

    Args:
        frames: a stack, innermost frame first. Frames of the suite, Python's library, torch, Triton and NumPy are
            skipped.
    """
    for file, line, function in frames:
        if not of_suite(file) and not _of_a_library(file):
            return f", in {file}, line {line}, in {function}"
    return ""


def is_interrupt(error: BaseException) -> bool:
    """Whether somebody pressed Ctrl-C or sent SIGTERM; if SIGINT is ignored, a candidate raised the former itself."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return isinstance(error, Terminated) or (isinstance(error, KeyboardInterrupt) and not ignored)


def said(error: BaseException) -> str:
    """An exception's text on one line; the text may be the candidate's own code, and raise itself."""
    try:
        return " ".join(str(error).split())
    except Exception as second:
        return f"(no text: its __str__ raised {type(second).__name__})"


def of_error(error: BaseException) -> str:
    """`place` for a raised exception."""
    frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in walk_tb(error.__traceback__)]
    return place(reversed(frames))
