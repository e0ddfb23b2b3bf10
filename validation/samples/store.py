"""Finished arms on disk, so that an interrupted run continues where it stopped.

They are kept during a run and removed at its end: a later run measures again. A file is used only if every file that
Python had loaded when the arm was finished (op set, kernels, model, libraries) is unchanged.
"""

import functools
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from validation.errors import UsageError
from validation.ops import OpSet

T = TypeVar("T")

TAKEN = "taken from the run that was interrupted"

# Python's own modules and installed packages; our own may be edited, and a user's op file may go, during a run.
_INSTALLED = tuple({f"{prefix}{os.sep}" for prefix in (sys.prefix, sys.base_prefix)})

MEASURED = ("seconds", "peak_bytes", "calls", "forwards")


class ArmStore:
    """The arms of one run.

    Attributes:
        folder: where its files are.
    """

    def __init__(self, cache: Path, identity: Mapping[str, Any], ops: OpSet) -> None:
        """Compute the folder's name; nothing is read or written yet.

        Args:
            cache: folder of all stores.
            identity: everything except op set and code that decides the arms, as JSON values.
            ops: the candidate. A relative path names different files in different folders, so its files are part of
                the key. Functions made on the fly have no name by which another process could recognise them: with
                such, nothing is kept unless the op set's origin names it (``MODULE:NAME``).
        """
        functions = ops.functions.values()
        local = any("<locals>" in getattr(function, "__qualname__", "<locals>") for function in functions)
        self._keeps = ":" in ops.origin or not local
        modules = (sys.modules.get(getattr(function, "__module__", "")) for function in functions)
        files = {str(getattr(module, "__file__", None)) for module in modules}
        identity = {**identity, "candidate": [ops.name, ops.origin, *sorted(files)]}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = cache / "arms" / key[:32]

    def get(self, name: str, make: Callable[..., T]) -> T | None:
        """A finished arm; None if there is none, or if code has changed since.

        Args:
            name: the name given to `put`.
            make: called with the latents, the decoded array or None, and the ``measured`` values by name.
        """
        path = self.folder / f"{name}.safetensors"
        if not self._keeps:
            return None
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                if about["code"] != _digest({name: Path(name).stat() for name in about["files"]}):
                    return None
                latents = [file.get_tensor(f"latents {step}").clone() for step in range(about["steps"])]
                decoded = file.get_tensor("decoded").numpy().copy() if about["decoded"] else None
            return make(latents, decoded, **about["measured"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def put(
        self, name: str, arm: Any, decoded: npt.NDArray[Any] | None = None, measured: Sequence[str] = MEASURED
    ) -> None:
        """Keep a finished arm, with the first rung's array, which was decoded on the device.

        Args:
            name: the name for `get`.
            arm: a `Sample`, or another object with latents.
            decoded: an array or None.
            measured: names of its attributes to keep, which are JSON values.

        Raises:
            UsageError: the file cannot be written.
        """
        if not self._keeps:
            return
        statuses = _loaded_files()
        about = {
            "files": list(statuses),
            "code": _digest(statuses),
            "steps": len(arm.latents),
            "decoded": decoded is not None,
            "measured": {key: getattr(arm, key) for key in measured},
        }
        tensors = {f"latents {step}": latents.contiguous() for step, latents in enumerate(arm.latents)}
        if decoded is not None:
            tensors["decoded"] = torch.from_numpy(np.ascontiguousarray(decoded))
        path = self.folder / f"{name}.safetensors"
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, {"about": json.dumps(about)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"--cache: cannot write {path}: {error}, expected a writable folder") from error

    def clear(self) -> None:
        """Remove the arms at the end of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _loaded_files() -> dict[str, os.stat_result]:
    """The files of all loaded modules, in order, with their status; that of installed ones when first asked."""
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    found = {}
    for name in sorted({name for name in names if isinstance(name, str)}):
        status = (_first_status if name.startswith(_INSTALLED) else _status)(name)
        if status is not None:
            found[name] = status
    return found


def _status(name: str) -> os.stat_result | None:
    try:
        status = os.stat(name)  # noqa: PTH116  # thousands of files: to make each a Path takes longer
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


_first_status = functools.cache(_status)


def _digest(statuses: Mapping[str, os.stat_result]) -> str:
    marks = (f"{name} {_mark(name, of.st_size, of.st_mtime_ns)}\n" for name, of in statuses.items())
    return hashlib.sha256("".join(marks).encode()).hexdigest()


@functools.cache
def _mark(name: str, size: int, modified: int) -> str:
    """A Python file's content; for others, such as compiled modules, their size and time."""
    return hashlib.sha256(Path(name).read_bytes()).hexdigest() if name.endswith(".py") else f"{size} {modified}"
