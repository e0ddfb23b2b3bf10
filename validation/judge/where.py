"""Describe in words which elements of an output are wrong."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# The smallest tile whose ragged end is worth naming: below it any tail looks like one.
SMALLEST_BLOCK = 8

RAGGED = "the last, ragged block"

# The share of the wrong elements that a displacement must explain.
EXPLAINED = 0.9
# The neighbour's value is another number if it is so many times further than both places allow: noise that leaves the
# budget by a little must not be a neighbour's value where the two are nearly one.
CLEARLY = 4.0
# The fewest such elements of which it is said; how likely their agreement may be by chance, and the number of places
# from which that chance is taken.
SEVERAL, BY_CHANCE, PLACES = 4, 1e-6, 4096


def describe(wrong: Tensor, frames: int = 0) -> str:
    """The pattern of wrong elements: batch items, frames, tokens, rows, columns; "" if nothing stands out.

    Args:
        wrong: bool, the output's shape; the last dimension is called columns, all before it rows.
        frames: the number of frames that the tokens (dimension 1 of 3) form, 0 if they form none.
    """
    if wrong.dim() == 0 or not bool(wrong.any()):
        return ""
    if bool(wrong.all()):
        return "every element is wrong"
    table = wrong.reshape(-1, wrong.shape[-1])
    rows, columns = _indices(table.any(1), "row"), _indices(table.any(0), "column")
    outer = []
    if wrong.dim() > 2 and RAGGED not in rows:  # if ragged, the tiles span rows, and the rows say enough
        outer = [_dimension(wrong, 0, "batch item"), _dimension(wrong, 1, "token")]
        if frames > 1:
            per_frame = wrong.reshape(wrong.shape[0], frames, -1, wrong.shape[-1])
            outer[1:] = [_dimension(per_frame, 1, "frame"), _dimension(per_frame, 2, "token of a frame")]
    patterns = outer if any(outer) else [rows]
    return "; ".join(p for p in (*patterns, columns) if p)


def lines(wrong: Tensor, frames: int = 0) -> tuple[str, ...]:
    """`describe` as the lines of a message: one, or none."""
    words = describe(wrong, frames)
    return (words,) if words else ()


def _dimension(wrong: Tensor, axis: int, name: str) -> str:
    return _indices(wrong.any(dim=[d for d in range(wrong.dim()) if d != axis]), name)


def _plural(name: str) -> str:
    noun, space, rest = name.partition(" of ")
    return f"{noun}s{space}{rest}"


def _indices(hit: Tensor, name: str) -> str:
    """Describe which indices along one dimension are hit; "" if all are."""
    count, wrong = hit.numel(), hit.nonzero().flatten()
    if len(wrong) == count or count < 2:
        return ""
    low, high, names = int(wrong[0]), int(wrong[-1]), _plural(name)
    if len(wrong) == high - low + 1 and high == count - 1:
        if low == 1:
            return f"only {names} > 0 of {count} are wrong"
        ragged = _ends_ragged(low, count)
        if len(wrong) == 1:
            return f"only {name} {low} of {count} is wrong: {RAGGED if ragged else 'the last'}"
        return f"only {names} >= {low} of {count} are wrong: {RAGGED if ragged else f'a tail of {count - low}'}"
    if len(wrong) == 1:
        return f"only {name} {low} of {count} is wrong"
    if len(wrong) == high - low + 1:
        return f"only {names} {f'<= {high}' if low == 0 else f'{low} to {high}'} of {count} are wrong"
    steps = torch.diff(wrong)
    if len(wrong) > 2 and bool((steps == steps[0]).all()):
        return f"every {_ordinal(int(steps[0]))} {name} is wrong, from {low}"
    if len(wrong) * 4 <= count:
        return f"{len(wrong)} of {count} {names} are wrong"
    return ""


def _ends_ragged(low: int, count: int) -> bool:
    """Whether [low, count) may be the remainder after whole blocks of a power of two."""
    block = low & -low  # the largest that divides low
    return block >= SMALLEST_BLOCK and count - low < block


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def index_text(index: Sequence[int]) -> str:
    """``[2, 511, 77]``."""
    return "[" + ", ".join(map(str, index)) + "]"


def place(index: Sequence[int], shape: Sequence[int], frames: int = 0) -> str:
    """An index in words: ``batch item 2 of 3, token 511 of 769, column 77 of 5120``.

    Args:
        index: one element's index.
        shape: its tensor's shape; with four dimensions, the third is heads.
        frames: as in `describe`.
    """
    rank = len(shape)
    names = {1: [], 2: ["row"], 3: ["batch item", "token"], 4: ["batch item", "token", "head"]}.get(rank)
    if names is None:
        names = [f"dimension {d}" for d in range(rank - 1)]
    words = [f"{name} {i} of {n}" for name, i, n in zip([*names, "column"], index, shape, strict=True)]
    if frames > 1 and rank == 3:
        words.insert(1, f"frame {index[1] // (shape[1] // frames)} of {frames}")
    return ", ".join(words)


def displaced(output: Tensor, truth: Tensor, allowed: Tensor, wrong: Tensor) -> tuple[str, ...]:
    """Say that the wrong elements hold a neighbour's values; empty if they do not, or may do so by chance.

    Nearly all of them must, and among those whose neighbour is clearly another number, so many that the agreement would
    come about with a chance of less than `BY_CHANCE` if the neighbour's place said no more than any other place does.

    Args:
        output: the candidate's output.
        truth: float64, the output's shape.
        allowed: float64, the output's shape: how far from the truth counts as equal.
        wrong: bool, the output's shape.
    """
    names = ["row", "column"] if output.dim() < 3 else ["batch item", "token", *["head"] * (output.dim() - 3), "column"]
    for axis, name in enumerate(names[-output.dim() :]):
        for step in (1, -1):
            if output.shape[axis] < 3:
                continue
            there, room = truth.roll(-step, axis), allowed.roll(-step, axis)
            same = (output.double() - there).abs() <= room
            # If the tensor repeats along the axis, every element equals its neighbour: only new values count.
            new = wrong & ((truth - there).abs() > CLEARLY * torch.maximum(allowed, room))
            agree, telling = int((same & new).sum()), int(new.sum())
            if float((same & wrong).sum()) < EXPLAINED * float(wrong.sum()) or agree < EXPLAINED * telling:
                continue
            if telling >= SEVERAL and _log_chance(
                agree, telling, _share_elsewhere(output, truth, allowed, new)
            ) < math.log(BY_CHANCE):
                return (f"they hold what belongs one {name} {'further' if step > 0 else 'before'}",)
    return ()


def _share_elsewhere(output: Tensor, truth: Tensor, allowed: Tensor, which: Tensor) -> float:
    """The share of the elements in question that agree with the truth of other places, drawn at random; never 0."""
    values = output.double()[which][:PLACES]
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(truth.numel(), (PLACES // max(len(values), 1) + 1, len(values)), generator=generator)
    places = places.to(truth.device)
    agree = (values - truth.flatten()[places]).abs() <= allowed.flatten()[places]
    return (float(agree.sum()) + 1.0) / (agree.numel() + 1.0)


def _log_chance(agree: int, of: int, share: float) -> float:
    """An upper bound of the log of the chance that so many of so many agree, each with that chance (Chernoff)."""
    rate = agree / of
    if rate <= share:
        return 0.0
    against = (1.0 - rate) * math.log((1.0 - rate) / (1.0 - share)) if rate < 1.0 else 0.0
    return -of * (rate * math.log(rate / share) + against)
