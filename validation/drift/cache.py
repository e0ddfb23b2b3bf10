"""The band on disk: the distances of one prompt's replays, each saved as soon as it is sampled.

A file's name is the hash of everything that decides the distances: the checkpoint's content, the prompt with its
seed, the dtype, the device, the versions and the code of the replays; after a change it is not found. It holds the
digest of the truth's latents, against which the truth is checked each time it is sampled again, and the replays by
kind and number; their count is not part of the key, so more may be added later. Files are replaced whole; a damaged
one is reported and made again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from validation.chains.replay import KINDS, Kind
from validation.errors import UsageError

FORMAT = 1


def hash_latents(latents: Sequence[Tensor]) -> str:
    """A digest of the bits of a trajectory."""
    digest = hashlib.sha256()
    for t in latents:
        digest.update(f"{t.dtype} {list(t.shape)}\n".encode())
        digest.update(t.contiguous().numpy().tobytes())
    return digest.hexdigest()


class PromptBand:
    """The distances of one prompt's replays, read from a file and written to it one by one.

    Attributes:
        path: the file.
        truth: digest of the truth's latents; "" until `begin`.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], progress: Callable[[str], None] = lambda _text: None
    ) -> None:
        """Read the file, if there is a valid one.

        Args:
            folder: where all such files are.
            identity: everything that decides the distances, as JSON values.
            progress: called with a line of text if the file is damaged.
        """
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = folder / "bands" / f"{key[:32]}.json"
        self.identity = dict(identity)
        self.truth = ""
        self._kept: dict[Kind, dict[int, list[float]]] = {kind: {} for kind in KINDS}
        if not self.path.exists():
            return
        try:
            self._read(json.loads(self.path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            progress(f"the cached band {self.path} is damaged ({type(error).__name__}: {error}), making it again")
            self.truth, self._kept = "", {kind: {} for kind in KINDS}

    def begin(self, latents: Sequence[Tensor]) -> bool:
        """Take the truth's latents; False if the file's distances were to another truth, and are dropped."""
        digest = hash_latents(latents)
        same = self.truth in ("", digest)
        if not same:
            self._kept = {kind: {} for kind in KINDS}
        self.truth = digest
        return same

    def get(self, kind: Kind, number: int) -> list[float] | None:
        """A replay's distances step by step; None if there are none."""
        return self._kept[kind].get(number)

    def put(self, kind: Kind, number: int, distances: Sequence[float]) -> None:
        """Keep a replay's distances in memory and on disk.

        Raises:
            UsageError: the file cannot be written.
        """
        self._kept[kind][number] = list(distances)
        replays = {kind: {str(n): kept for n, kept in sorted(of.items())} for kind, of in self._kept.items()}
        content = {"format": FORMAT, "identity": self.identity, "truth": self.truth, "replays": replays}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({**content, "digest": _digest(content)}) + "\n")
            temporary.replace(self.path)
        except OSError as error:
            raise UsageError(
                f"--cache: cannot write {self.path}: {error.strerror}, expected a writable folder"
            ) from error

    def _read(self, content: dict[str, Any]) -> None:
        digest = content.pop("digest")
        if digest != _digest(content):
            raise ValueError("its digest is another")
        if content["format"] != FORMAT or content["identity"] != json.loads(json.dumps(self.identity)):
            raise ValueError("it is of something else")
        for kind in KINDS:
            self._kept[kind] = {int(n): [float(d) for d in kept] for n, kept in content["replays"][kind].items()}
        self.truth = content["truth"]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
