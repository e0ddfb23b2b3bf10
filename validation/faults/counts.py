"""Wrong past a count: frames, heads and rows that a counter or a table is too small for."""

from typing import Any

import torch
from torch import Tensor

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

NUMERICAL, NONFINITE, NOT_WRITTEN = Status.INCORRECT_NUMERICAL, Status.INCORRECT_NONFINITE, Status.NOT_WRITTEN

QKN, QKR, ROTARY, SPLIT = "qk_norm", "qk_norm_rope", "rotary_embedding", "split_rotary_embedding"


@fault("a table of 64 frames", "layer_norm_scale_shift", "frames past the 64th take its row", NUMERICAL, NONFINITE)
class ATableOf64Frames(RightOps):
    def rows(self, name: str, m: Any, x: Tensor) -> Tensor:
        if isinstance(m, Tensor) and m.dim() == 4:
            m = m[:, torch.arange(m.shape[1], device=m.device).clamp(max=63)]
        return super().rows(name, m, x)


class _OfHeads(RightOps):
    """Some heads are left unwritten."""

    def written(self, out: Tensor) -> Tensor:
        """The numbers of the rows of ``out`` ``[B, S, H, head_dim]`` that are written."""
        raise NotImplementedError

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, interleaved: bool) -> Tensor:
        made = super().rotate(x, cos, sin, self.room(out.shape, out), interleaved=interleaved)
        rows = self.written(made)
        out.flatten(0, -2)[rows] = made.flatten(0, -2)[rows]
        return out


class _HeadsOf16Bits(_OfHeads):
    """A head's number is a signed integer of 16 bits."""

    def written(self, out: Tensor) -> Tensor:
        row = torch.arange(out[..., 0].numel(), device=out.device)
        return row[row % max(out.shape[2], 1) < 2**15]


class _RowsOf18Bits(_OfHeads):
    """A grid of 65,536 programs of four rows: the rows past it are no one's."""

    def written(self, out: Tensor) -> Tensor:
        return torch.arange(min(out[..., 0].numel(), 2**18), device=out.device)


@fault("heads of 16 bits, rotation", ROTARY, "heads past 32767 are left unwritten", NOT_WRITTEN, NUMERICAL)
class HeadsOf16BitsRotated(_HeadsOf16Bits):
    pass


@fault("heads of 16 bits, norm and rotation", QKR, "heads past 32767 are left unwritten", NOT_WRITTEN, NUMERICAL)
class HeadsOf16BitsNormalised(_HeadsOf16Bits):
    pass


@fault("a grid of 65536 tiles", QKR, "of 65536 programs of four rows, all past 262,144 are unwritten", NOT_WRITTEN)
class AGridOf65536Tiles(_RowsOf18Bits):
    pass


@fault(
    "a grid of 65536 tiles, split", SPLIT, "of 65536 programs of four rows, all past 262,144 are unwritten", NOT_WRITTEN
)
class AGridOf65536TilesSplit(_RowsOf18Bits):
    pass


@fault("rows taken from the first 2^18", QKN, "a row's number wraps at 262,144", NUMERICAL, NONFINITE)
class RowsTakenFromTheFirst(RightOps):
    def stored(self, value: Tensor, x: Tensor) -> Tensor:
        y = super().stored(value, x)
        rows = y.flatten(0, -2)
        return rows[torch.arange(len(rows), device=y.device) % 2**18].view(y.shape) if len(rows) > 2**18 else y
