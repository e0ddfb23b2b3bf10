"""Calls that an op must refuse: bad input, made from the op's signature alone.

Each is a right call with one thing spoiled. A wrong size is always too large, never too small: an op that
accepts it reads memory that exists.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from validation.cases.case import Case, TensorSpec
from validation.cases.roles import ACTIVATIONS, ANGLES, MODULATIONS, ROWS
from validation.cases.signature import Signature

B, L, H, D = 2, 6, 2, 16


@dataclasses.dataclass(frozen=True)
class BadCall:
    """One call to refuse.

    Attributes:
        name: the defect, as reports print it.
        arguments: the error must name one of them.
        case: the call, with spoiled shapes, dtypes or memory.
        change: spoils the keyword arguments further, once they are tensors.
        grad: call with grad mode on.
        looks: refusing it needs a look at values, which on a GPU would synchronise: tried under the interpreter alone.
    """

    name: str
    arguments: tuple[str, ...]
    case: Case
    change: Callable[[dict[str, Any]], None] | None = None
    grad: bool = False
    looks: bool = False


def good_case(signature: Signature) -> Case:
    """The right call that all bad calls are made from, with every tensor argument given; float32, regime normal."""
    heads = signature.family in ("qk", "rotary")
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(ACTIVATIONS, (B, L, H, D) if heads else (B, L, D)),
        **dict.fromkeys(MODULATIONS, (B, L, D)),
        **dict.fromkeys(ROWS, (D,)),
        **dict.fromkeys(ANGLES, (L, D // 2)),
    }
    if signature.family == "split_rotary":
        shapes |= {"x": (B, L, H * D), **dict.fromkeys(ANGLES, (B, H, L, D // 2))}
    tensors = {name: _contiguous(name, shapes[name]) for name in signature.names if name in shapes}
    return Case(signature.op, tensors, {}, "normal", 0)


def bad_calls(signature: Signature) -> Iterator[BadCall]:
    """All bad calls of an op."""
    good = good_case(signature)
    yield from _wrong_shapes(signature, good)
    yield from _wrong_types(signature, good)
    for name in good.tensors:
        yield BadCall(f"{name} requires grad", (name,), good, _replaced(name, _with_grad), grad=True)
    if "inplace" in signature:
        yield from _overlapping(good)


def _contiguous(name: str, shape: tuple[int, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype, torch.empty(shape, device="meta").stride(), 0, name)


def _with(good: Case, **tensors: TensorSpec | None) -> Case:
    """A case with some tensors replaced, or left out if None."""
    changed = {**good.tensors, **tensors}
    return dataclasses.replace(good, tensors={name: spec for name, spec in changed.items() if spec is not None})


def _in_place(case: Case) -> Case:
    return dataclasses.replace(case, flags={"inplace": True})


def _reshaped(good: Case, **shapes: tuple[int, ...]) -> Case:
    return _with(good, **{name: _contiguous(name, shape) for name, shape in shapes.items()})


def _wrong_shapes(signature: Signature, good: Case) -> Iterator[BadCall]:
    main = "q" if "q" in signature else "x"
    # A norm's x, and q and k without angles, may have any rank of their own but 0.
    free = signature.family == "norm" or (signature.family == "qk" and "cos" not in signature)
    for name, spec in good.tensors.items():
        shape = spec.shape
        if name in ACTIVATIONS:
            rank: tuple[int, ...] = () if free else (*shape, 1)
        else:
            rank = (1, 1, *shape, 1)
        yield BadCall(f"{name} of rank {len(rank)}", _blamed(name, main, good), _reshaped(good, **{name: rank}))
        if name in ROWS:
            yield BadCall(f"{name} of one element", (name,), _reshaped(good, **{name: (1,)}))
        if name != main:
            wider = (*shape[:-1], shape[-1] + 1)
            yield BadCall(f"{name} one channel too wide", _blamed(name, main, good), _reshaped(good, **{name: wider}))
    if not free:
        # The other tensors fit a batch of one.
        one = {n: s.shape[1:] for n, s in good.tensors.items() if n in ACTIVATIONS}
        one |= dict.fromkeys(signature.modulations, (D,))
        one |= {n: (1, *s.shape[1:]) for n, s in good.tensors.items() if len(s.shape) == 4 and n in ANGLES}
        names = " and ".join(n for n in one if n in ACTIVATIONS)
        yield BadCall(f"{names} without a batch", (*one,), _reshaped(good, **one))
    for name in signature.modulations:
        for label, shape in (
            ("[B+1, D]", (B + 1, D)),
            ("[L, D]", (L, D)),  # one row a token is [1, L, D]
            ("[B, L+1, D]", (B, L + 1, D)),
            ("[B, F, 1, D], F does not divide L", (B, 4, 1, D)),
            ("[B, F, 2, D]", (B, 2, 2, D)),
        ):
            yield BadCall(f"{name} {label}", (name,), _reshaped(good, **{name: shape}))
        yield from _wrong_index(name, good)
    if "residual" in signature:
        yield BadCall("residual of another length", ("residual", "x"), _reshaped(good, residual=(B, L + 1, D)))
    if "cos" in signature:
        longer = {n: (*s.shape[:-2], L + 1, s.shape[-1]) for n, s in good.tensors.items() if n in ANGLES}
        yield BadCall("cos and sin of another length", ("cos", "sin"), _reshaped(good, **longer))
        beyond = {n: (*s.shape[:-1], s.shape[-1] + 1) for n, s in good.tensors.items() if n in ANGLES}
        yield BadCall("cos and sin of more than head_dim", ("cos", "sin", "x"), _reshaped(good, **beyond))
    empty = {n: (*s.shape[:-1], 0) for n, s in good.tensors.items()}
    yield BadCall("D = 0", tuple(good.tensors), _reshaped(good, **empty))


def _blamed(name: str, main: str, good: Case) -> tuple[str, ...]:
    """The arguments that an error may name if a tensor does not fit: an activation's misfit may show in any other."""
    return (*good.tensors,) if name in (main, "k") else (name, main, "sin" if name == "cos" else name)


def _wrong_index(name: str, good: Case) -> Iterator[BadCall]:
    def indexed(index: tuple[int, ...] = (B, L), dtype: str = "int64", table: tuple[int, ...] = (3, D)) -> Case:
        rows, which = _contiguous(f"{name}.table", table), _contiguous(f"{name}.index", index, dtype)
        return _with(good, **{name: None, rows.storage: rows, which.storage: which})

    yield BadCall(f"{name}.index of floats", (name,), indexed(dtype="float32"))
    yield BadCall(f"{name}.index [B, L+1]", (name,), indexed((B, L + 1)))
    yield BadCall(f"{name}.table one channel too wide", (name,), indexed(table=(3, D + 1)))
    yield BadCall(f"{name}.table [B+1, n, D]", (name,), indexed(table=(B + 1, 3, D)))
    yield BadCall(f"{name}.table [1, B, n, D]", (name,), indexed(table=(1, B, 3, D)))
    # In the last token, so that checking only the first is not enough.
    for dtype, row in (("int64", 3), ("int32", 3), ("int64", -1)):

        def outside(m: Any, row: int = row) -> Any:
            index = m.index.clone()
            index[-1, -1] = row
            return type(m)(m.table, index)

        label = f"{name}.index of {dtype} is {row} of 3 rows"
        yield BadCall(label, (name,), indexed(dtype=dtype), _replaced(name, outside), looks=True)


def _wrong_types(signature: Signature, good: Case) -> Iterator[BadCall]:
    main = "q" if "q" in signature else "x"
    for name, spec in good.tensors.items():
        integers = dataclasses.replace(spec, dtype="int32")
        yield BadCall(f"{name} of int32", (name,), _with(good, **{name: integers}))
        yield BadCall(f"{name} is a list", (name,), good, _replaced(name, lambda t: t.tolist()))
        if name != main:
            yield BadCall(f"{name} on another device", (name, main), good, _replaced(name, lambda t: t.to("meta")))
    if "residual" in signature:
        other = dataclasses.replace(good.tensors["residual"], dtype="float16")
        yield BadCall("residual of another dtype than x", ("residual", "x"), _with(good, residual=other))
    for flag, value in (("casting_mode", "float8"), ("eps", -1.0), ("eps", "small"), ("scale_constant", "one")):
        if flag in signature:
            yield BadCall(f"{flag} is {value!r}", (flag,), good, _replaced(flag, lambda _, value=value: value))  # type: ignore[misc]


def _overlapping(good: Case) -> Iterator[BadCall]:
    """Memory that an in-place call may not write to."""
    first = "q" if "q" in good.tensors else "x"
    spec = good.tensors[first]
    if first == "q":
        for label, offset in (("the same tensor", 0), ("overlap by all but one element", 1)):
            shared = dataclasses.replace(spec, offset=offset)
            yield BadCall(f"q and k in place: {label}", ("q", "k"), _in_place(_with(good, k=shared)))
    for name in good.tensors:
        if name not in ("x", "q", "k"):
            inside = dataclasses.replace(good.tensors[name], storage=first)
            yield BadCall(f"{first} in place: over {name}", (first, name), _in_place(_with(good, **{name: inside})))
    expanded = dataclasses.replace(spec, strides=(0, *spec.strides[1:]))
    yield BadCall(f"{first} in place: expanded", (first,), _in_place(_with(good, **{first: expanded})))


def _replaced(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(kwargs: dict[str, Any]) -> None:
        kwargs[name] = change(kwargs.get(name))

    return apply


def _with_grad(t: torch.Tensor) -> torch.Tensor:
    return t.detach().requires_grad_()
