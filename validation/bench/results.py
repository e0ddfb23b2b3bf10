"""Printing and writing results: lines in columns, an error in one line, files that replace old ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from validation.errors import UsageError


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns, the first aligned left, the others right."""
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(size) if n else cell.ljust(size) for n, (cell, size) in enumerate(zip(row, sizes, strict=True))
        )
        for row in cells
    ]


def one_line(error: BaseException) -> str:
    """An error's class and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"


def write_anew(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write texts by file name into a folder, which is created if missing, replacing old files; returns their paths.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}, expected a writable folder") from error
    return [folder / name for name in texts]
