"""Digests of source files: a run, and the processes that it starts, must judge one version of an op set."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from validation.errors import UsageError
from validation.files import PACKAGE
from validation.ops.registry import OpSet

# The suite and the reference ops.
SUITE = frozenset({PACKAGE, PACKAGE.parent / "reference_ops"})


def source_digests(ops: OpSet) -> dict[str, str]:
    """SHA-256 of each Python file of an op set, by its path.

    These are the files of the loaded modules that lie in the folder of the op set or below: of the .py file, or of the
    package of the module, that ``--ops`` names, or else of the functions' own modules. Installed packages and the
    suite's own files are left out.
    """
    folders = {folder for function in ops.functions.values() if (folder := _home(function)) is not None}
    if ops.origin.endswith(".py"):
        folders.add(Path(ops.origin).resolve().parent)
    files = {
        Path(file).resolve()
        for module in list(sys.modules.values())
        if isinstance(file := getattr(module, "__file__", None), str) and file.endswith(".py")
    }
    near = (
        file for file in sorted(files) if not folders.isdisjoint(file.parents) and "site-packages" not in file.parts
    )
    own = {_file(function) for function in ops.functions.values()}
    return {str(file): _digest(file) for file in near if file in own or SUITE.isdisjoint(file.parents)}


def _file(function: object) -> Path | None:
    file = getattr(sys.modules.get(str(getattr(function, "__module__", ""))), "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _home(function: object) -> Path | None:
    """The folder of a function's package; None if its module has no file, or is a part of Python or torch."""
    module = sys.modules.get(str(getattr(function, "__module__", "")))
    file = getattr(sys.modules.get(module.__name__.partition(".")[0], module), "__file__", None) if module else None
    if not isinstance(file, str) or module is None or module.__name__.partition(".")[0] in ("torch", "builtins"):
        return None
    return Path(file).resolve().parent


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return "cannot be read"


def check_unchanged(digests: Mapping[str, str]) -> None:
    """Raise UsageError if a file has another digest than at the start, and name it."""
    for path, digest in digests.items():
        if _digest(Path(path)) != digest:
            raise UsageError(
                f"--ops: {path} was edited since the run began, and the process that ran it ended: a new one would "
                "mix two versions, expected the file as it was; start the run again"
            )


def suite_digest() -> str:
    """SHA-256 of the suite's own Python files and the reference ops, tests left out."""
    digest = hashlib.sha256()
    for folder in sorted(SUITE):
        for file in sorted(folder.rglob("*.py")):
            name = file.relative_to(PACKAGE.parent)
            if "meta_tests" not in name.parts:
                digest.update(f"{name} {_digest(file)}\n".encode())
    return digest.hexdigest()
