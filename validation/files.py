"""Files and folders: where the fixtures are, whether a path can be written, and writing a file whole or not at all."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation.errors import UsageError

PACKAGE = Path(__file__).resolve().parent
FIXTURES = PACKAGE.parent / "fixtures"


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/fused-op-validation``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fused-op-validation"


def hash_files(paths: Sequence[Path]) -> str:
    """A digest of the names and contents of files, in the order given; a folder stands for all files below it.

    Raises:
        UsageError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            try:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise UsageError(f"cannot read {file}: {error.strerror}, expected a readable file") from error
            digest.update(f"{path.name}/{name} {content}\n".encode())
    return digest.hexdigest()


def require_writable(folder: Path) -> None:
    """Raise UsageError unless the folder can be created or written to; creates nothing."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"cannot write to {folder}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {folder}: {existing} is not writable, expected a writable folder")


def check_writable(path: Path) -> None:
    """Raise UsageError unless a file could be written at that path; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}, expected a writable place") from error
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected a file")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}, expected JSON") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data


def finite_json(value: Any) -> str:
    """JSON text, in which a NaN or an infinity is a text: other readers take neither."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: into a temporary file beside it, which then takes its name.

    Raises:
        UsageError: it cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            # A message can contain a lone surrogate, which UTF-8 cannot encode.
            file.write(text.encode("utf-8", "replace"))
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}, expected a writable folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    data = line.encode("utf-8", "replace") + b"\n"
    try:
        with path.open("ab", buffering=0) as file:
            size, written = file.tell(), 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                with contextlib.suppress(OSError):  # a device has no size
                    file.truncate(size)
                raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}, expected a place with space left") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
