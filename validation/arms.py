"""Finished arms on disk, so that a run that was interrupted goes on where it stopped.

They are kept while a run is going and removed at its end: a later run measures again. A file is used only if every
file that Python had loaded when the arm was finished (op set, kernels, model, libraries) is still the same.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from validation.errors import UsageError
from validation.models.shape_pipeline import Shape


class ArmStore:
    """The arms of one run.

    Attributes:
        folder: of its files.
        resumed: arms that were found.
    """

    def __init__(self, cache: Path, identity: Mapping[str, Any]) -> None:
        """identity: everything but the code that decides the arms, op set included, as JSON values."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = cache / "arms" / key[:32]
        self.resumed = 0

    def get(self, name: str) -> Shape | None:
        """The latents and the field of a finished arm; None if there is none, or code has changed since."""
        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                if about["code"] != _digest(about["files"]):
                    return None
                latents = [file.get_tensor(f"latents {step}").clone() for step in range(about["steps"])]
                field = file.get_tensor("field").numpy().copy() if about["field"] else None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        self.resumed += 1
        measured = {key: about[key] for key in ("seconds", "peak_bytes", "calls", "forwards")}
        return Shape(latents, field, **measured)

    def put(self, name: str, shape: Shape) -> None:
        """Keep a finished arm.

        Raises:
            UsageError: the file cannot be written.
        """
        files = _loaded_files()
        about = {
            "files": files,
            "code": _digest(files),
            "steps": len(shape.latents),
            "field": shape.field is not None,
            "seconds": shape.seconds,
            "peak_bytes": shape.peak_bytes,
            "calls": shape.calls,
            "forwards": shape.forwards,
        }
        tensors = {f"latents {step}": latents.contiguous() for step, latents in enumerate(shape.latents)}
        if shape.field is not None:
            tensors["field"] = torch.from_numpy(np.ascontiguousarray(shape.field))
        path = self.folder / f"{name}.safetensors"
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, {"about": json.dumps(about)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"--cache: cannot write {path}: {error}, expected a writable folder") from error

    def clear(self) -> None:
        """Remove them: the run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _loaded_files() -> list[str]:
    """The files of all modules that are loaded."""
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return sorted({name for name in names if isinstance(name, str) and Path(name).is_file()})


def _digest(files: list[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        status = Path(name).stat()
        digest.update(f"{name} {_mark(name, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _mark(name: str, size: int, modified: int) -> str:
    """The content of a Python file; of others, such as compiled modules, size and time."""
    return hashlib.sha256(Path(name).read_bytes()).hexdigest() if name.endswith(".py") else f"{size} {modified}"
