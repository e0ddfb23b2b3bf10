"""Are launches that follow a plan (`fused_ops._plan`) those that the ops themselves make? In a process of its own.

    python -m validation.meta_tests.launch_plans [--plant] [OP ...]

The ops are called with tensors on the CPU through Triton's own launch path, without compiled kernels and the GPU's
launcher: a kernel is the key under which Triton would look for it, and a launch is noted. Every case (the models'
workloads and drawn ones) is launched by the op itself, by the planned op, and by the planned op once more with new
tensors; so is the case with every tensor one element further on, which changes the alignment, and with every element
twice as far apart. Prints a line for each difference, and for each op how many launches followed a plan. Before that
it makes calls that equal an earlier one except for something that decides whether and what is launched.

With --plant, does the same for one op with each of `FAULTS` planted, and prints how many differences each makes.
"""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from validation.cases import strategies
from validation.cases.case import Case
from validation.cases.pool import draw_cases
from validation.compiled import aot
from validation.compiled.ptx.target import compile_for
from validation.judge.expected import outputs_of
from validation.judge.signature import signature_of
from validation.parity.workloads import workloads

DRAWN = 60

launched: list[tuple[Any, ...]] = []


def note_launches() -> None:
    """Let a launch be noted in `launched` instead of made."""
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    def note(self: Any, *arguments: Any) -> None:
        grid, (stream, function, metadata, _, *_hooks) = arguments[:3], arguments[3:9]
        launched.append((self.hash, grid, stream, function, metadata, arguments[9:]))

    def compile_nothing(self: Any, key: Any, _signature: Any, device: Any, *_: Any) -> Any:
        kernel = CompiledKernel.__new__(CompiledKernel)
        vars(kernel).update(hash=(self.fn.__name__, key), name=self.fn.__name__, src=None, module=0, function=0)
        vars(kernel).update(packed_metadata=(), _run=lambda *arguments: note(kernel, *arguments))
        self.device_caches[device][0][key] = kernel
        return kernel

    compile_for("sm_90")
    JITFunction._do_compile = compile_nothing
    CompiledKernel._init_handles = lambda _self: None


def seen(op: Callable[..., Any], case: Case) -> Any:
    """The launches and results of an op's call on new tensors, with names in place of tensors."""
    arguments = aot.unwritten(case)
    launched.clear()
    with torch.no_grad():
        results = outputs_of(op(**arguments.kwargs))
    named = [*arguments.tensors.items()] + [(f"result {n}", y) for n, y in enumerate(results)]

    def name(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next((label for label, t in named if t is value), "a tensor of neither")
        if isinstance(value, tuple):
            return tuple(map(name, value))
        return (type(value).__name__, getattr(value, "value", value))

    returned = [(name(y), y.shape, y.dtype, y.stride(), y.storage_offset()) for y in results]
    return [name(launch) for launch in launched], returned


def _further_on(case: Case) -> Case:
    tensors = {name: dataclasses.replace(spec, offset=spec.offset + 1) for name, spec in case.tensors.items()}
    return dataclasses.replace(case, tensors=tensors)


def _further_apart(case: Case) -> Case:
    tensors = {
        name: dataclasses.replace(spec, offset=2 * spec.offset, strides=tuple(2 * stride for stride in spec.strides))
        for name, spec in case.tensors.items()
    }
    return dataclasses.replace(case, tensors=tensors)


followed: list[None] = []


def count_followed() -> None:
    """Note in `followed` each call that follows a plan."""
    from fused_ops import _plan

    follow = _plan._follow

    def counting(plan: _plan.Plan, tensors: list[Tensor]) -> Any:
        followed.append(None)
        return follow(plan, tensors)

    _plan._follow = counting


@functools.cache
def _cases(name: str) -> list[Case]:
    drawn = draw_cases(strategies.cases(signature_of(name)), seed=0, count=DRAWN)
    return [*(workload.make(False) for workload in workloads(name)), *drawn]


def differences(name: str, ops: Any) -> Iterator[str]:
    """Differences of an op's launches; the last line has the number of cases and of launches that followed a plan."""
    planned = getattr(ops, name)
    before = len(followed)
    for made in _cases(name):
        for case in (made, _further_on(made), _further_apart(made)):
            expected = seen(inspect.unwrap(planned), case)
            for turn in ("first", "second"):
                last = len(followed)
                found = seen(planned, case)
                if found != expected:
                    yield f"{name}, {turn} call: {case.to_json()}\n  {found}\n  expected {expected}"
                elif turn == "second" and expected[0] and len(followed) == last:
                    yield f"{name}, second call followed no plan: {case.to_json()}"
    yield f"{name}: {len(_cases(name))} cases, {len(followed) - before} of {6 * len(_cases(name))} followed a plan"


def raised(op: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The class and the message of the error that a call raises; "" if it returns."""
    try:
        op(*arguments, **options)
    except (TypeError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Subclass(Tensor):
    """A tensor of another class."""


def particulars(ops: Any) -> Iterator[str]:
    """Faults of calls that equal an earlier one in almost everything."""
    x, row, other = torch.randn(1, 3, 16), torch.randn(16), torch.randn(16)

    def launches(op: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        launched.clear()
        op(*arguments, **options)
        return [launch[-1] for launch in launched]

    def wrong(what: str, holds: object) -> Iterator[str]:
        if not holds:
            yield f"wrong: {what}"

    for turn in range(2):  # earlier launches must decide nothing
        for some in (x[0], x[0, :2], x[0, :2].bfloat16(), x[0, :2, :8]):
            kernels = []
            for op in (inspect.unwrap(ops.layer_norm), ops.layer_norm):
                (launch,) = launches(op, some)
                kernels.append([launched[0][:2], *(value for value in launch if not isinstance(value, tuple))])
            yield from wrong(f"{some.dtype} {list(some.shape)}, {turn}", kernels[0] == kernels[1])
        (together,) = launches(ops.scale_shift, x, row, row)
        (apart,) = launches(ops.scale_shift, x, row, other)
        yield from wrong(f"one tensor twice, {turn}", together[1][0] is row and together[2][0] is row)
        yield from wrong(f"two tensors, {turn}", apart[1][0] is row and apart[2][0] is other)
        for constant in (0.0, -0.0):
            (launch,) = launches(ops.scale_shift, x, row, row, constant)
            yield from wrong(f"a constant of {constant}", repr(constant) in [repr(value) for value in launch])
        yield from wrong("a row for a row", raised(ops.rms_norm, x, row, 1) == "")
        yield from wrong("eps as a bool", "TypeError: rms_norm: eps is a bool" in raised(ops.rms_norm, x, row, True))
        packed = torch.randn(2, 4, 3, 8)
        q, k, _ = packed.unbind(2)
        yield from wrong("interleaved", raised(ops.qk_norm, q, k, None, None, inplace=True) == "")
        late = packed.as_strided(q.shape, q.stride(), 4)
        yield from wrong("overlap", "overlap" in raised(ops.qk_norm, q, late, None, None, inplace=True))
        memory = torch.randn(40)
        weights = memory[:8], memory[8:16]
        for weight, refused in ((weights[0], False), (memory[20:28], True)):
            target = memory[16:40].view(3, 8)
            says = raised(ops.qk_norm, target, torch.randn(3, 8), weight, None, inplace=True)
            yield from wrong(f"a weight in what is written: {says}", ("overlap" in says) == refused)
        yield from wrong("no grad required", raised(ops.rms_norm, x, row) == "")
        grown = torch.randn(1, 3, 16, requires_grad=True)
        with torch.no_grad():
            yield from wrong("no grad mode", raised(ops.rms_norm, grown, row) == "")
        yield from wrong("grad", "NotImplementedError" in raised(ops.rms_norm, grown, row))
        before = len(followed)
        yield from wrong("a subclass", raised(ops.rms_norm, x.as_subclass(Subclass), row) == "")
        yield from wrong("a subclass's own way", len(followed) == before)
    kept = torch.randn(1, 5, 16)
    gone = weakref.ref(kept), weakref.ref(ops.rms_norm(kept, row)), weakref.ref(ops.rms_norm(kept, row))
    del kept
    launched.clear()
    yield from wrong("tensors are kept", all(reference() is None for reference in gone))


IGNORED = {"dtype": 0, "shape": 1, "strides": 2, "grad": 4, "alignment": 5}
FAULTS = (*IGNORED, "results like the first", "distance", "one tensor for two", "zeros alike")


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """Plant a fault in the plans, until the end of the ``with`` block."""
    from fused_ops import _plan

    known = dict(vars(_plan))
    looked_at, follow = _plan._looked_at, _plan._follow
    if fault in IGNORED:
        _plan._looked_at = lambda t: tuple(part for n, part in enumerate(looked_at(t)) if n != IGNORED[fault])
    elif fault == "results like the first":
        _plan._follow = lambda plan, tensors: follow(plan._replace(new=(0,) * len(plan.new)), tensors)
    elif fault == "distance":
        _plan._lie_apart = lambda plan, tensors: bool(plan and tensors)
    elif fault == "one tensor for two":
        _plan.set = lambda ids: [*ids]  # type: ignore[attr-defined]
    else:
        assert fault == "zeros alike"
        _plan.float = None  # type: ignore[attr-defined]
        _plan._PLAIN |= {float}
    try:
        yield
    finally:
        vars(_plan).clear()
        vars(_plan).update(known)


def main(*argv: str) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("ops", nargs="*", metavar="OP")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    note_launches()
    count_followed()
    import fused_ops
    from fused_ops import _plan

    names = arguments.ops or fused_ops.OP_NAMES
    for fault in FAULTS if arguments.plant else ():
        with planted(fault):
            ops = SimpleNamespace(
                **{name: _plan.planned(inspect.unwrap(getattr(fused_ops, name))) for name in fused_ops.OP_NAMES}
            )
            lines = [*particulars(ops), *(line for name in names for line in differences(name, ops))]
        print(f"{fault}: {len(lines) - len(names)}", flush=True)
    if not arguments.plant:
        for line in (*particulars(fused_ops), *(line for name in names for line in differences(name, fused_ops))):
            print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
