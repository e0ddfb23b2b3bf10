"""One launch of a compiled kernel: its arguments as PTX takes them, and its run over a memory of its own."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
from torch import Tensor

from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.machine import Outcome, run
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.program import Program, program

# Of a grid's axes x, y and z (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)

# A parameter of each type of Triton's signatures, as the bits that PTX reads.
_SCALARS: Mapping[str, Callable[[Any], Any]] = {
    "i1": lambda v: np.uint8(bool(v)),
    "i8": lambda v: np.uint8(v & 0xFF), "u8": lambda v: np.uint8(v & 0xFF),
    "i16": lambda v: np.uint16(v & 0xFFFF), "u16": lambda v: np.uint16(v & 0xFFFF),
    "i32": lambda v: np.uint32(v & 0xFFFFFFFF), "u32": lambda v: np.uint32(v & 0xFFFFFFFF),
    "i64": lambda v: np.uint64(v & 0xFFFFFFFFFFFFFFFF), "u64": lambda v: np.uint64(v & 0xFFFFFFFFFFFFFFFF),
    "fp32": lambda v: np.float32(v).view(np.uint32), "fp64": lambda v: np.float64(v).view(np.uint64),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch, compiled but not made.

    Attributes:
        ptx: of the kernel.
        grid: programs in x, y and z.
        arguments: name, Triton's type and value of each parameter of the PTX, but for the scratch pointers at its end.
        shared_bytes: shared memory of a program.
        cubin: its machine code.
        entry, block: of a kernel of CUDA C++, as `validation.compiled.ptx.parse.parse` takes them.
        name: the kernel's name in the source, if PTX has another.
    """

    ptx: str
    grid: tuple[int, int, int]
    arguments: tuple[tuple[str, str, Any], ...]
    shared_bytes: int
    cubin: bytes = dataclasses.field(default=b"", repr=False)
    entry: str = ""
    block: tuple[int, int, int] | None = None
    name: str = ""

    @classmethod
    def of(cls, kernel: Any, bound: Mapping[str, Any], grid: Any) -> Self:
        """The launch of a kernel that Triton compiled, with its arguments by name.

        Args:
            kernel: Triton's compiled kernel.
            bound: the arguments by the kernel's parameter names.
            grid: one to three numbers of programs, or a function of the arguments that gives them.

        Raises:
            RuntimeError: the grid is larger than CUDA allows.
        """
        sizes = tuple(grid(bound) if callable(grid) else grid)
        check_grid(sizes)
        flat = [
            one
            for (name, type_), value in zip(kernel.src.signature.items(), bound.values(), strict=True)
            for one in _flat(name, type_, value)
        ]
        return cls(kernel.asm["ptx"], (*sizes, 1, 1)[:3], tuple(flat), kernel.metadata.shared, kernel.asm["cubin"])

    @property
    def program(self) -> Program:
        """The kernel, bound.

        Raises:
            NotExecutedError: something in it is not executed.
        """
        return program(self.ptx, self.entry, self.block)

    @property
    def programs(self) -> int:
        """How many there are."""
        return math.prod(self.grid)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensor behind each pointer, by the name of the parameter.

        Raises:
            NotExecutedError: there is none.
        """
        return {name: _tensor_behind(name, one) for name, _, one in self.arguments if hasattr(one, "data_ptr")}


def check_grid(sizes: tuple[int, ...]) -> None:
    """Check the numbers of programs of a launch, x first.

    Raises:
        RuntimeError: they are more than CUDA allows.
    """
    if any(size > most for size, most in zip(sizes, MOST_PROGRAMS, strict=False)):
        raise RuntimeError(f"a grid of {sizes} programs, expected at most {MOST_PROGRAMS}: CUDA does not launch it")


def run_launch(
    launch: Launch,
    *,
    approximation: Approximation | None = None,
    races: bool = False,
    ctas: Iterable[int] | None = None,
    backwards: bool = False,
    known: Iterable[tuple[str, Tensor]] = (),
) -> Outcome:
    """Run a launch, or some of its CTAs, and write its results into its tensors.

    Args:
        launch: the launch.
        approximation: what ``.approx`` gives; by default the value, rounded.
        races: look for races too, which takes longer; not where a storage is sparse (`Memory.sparse`).
        ctas: run these alone.
        backwards: as in `validation.compiled.ptx.machine.run`.
        known: name and tensor of further elements that may be accessed, where they lie in a storage of an argument.

    Raises:
        NotExecutedError: something in it is not executed.
    """
    bound, parameters, memory = bound_launch(launch, known)
    outcome = run(
        bound,
        launch.grid,
        parameters,
        memory,
        shared_bytes=launch.shared_bytes,
        approximation=approximation,
        races=races and not memory.sparse,
        ctas=ctas,
        backwards=backwards,
    )
    memory.write_back()
    return outcome


def bound_launch(
    launch: Launch, known: Iterable[tuple[str, Tensor]] = (), *, addresses_alone: bool = False
) -> tuple[Program, list[Any], Memory]:
    """A launch's program, the bits of each parameter, and its memory: what `validation.compiled.ptx.machine.run` takes.

    Args:
        launch: the launch.
        known: as in `run_launch`.
        addresses_alone: as in `Memory`.

    Raises:
        NotExecutedError: something in it is not executed.
    """
    bound = launch.program
    tensors = launch.tensors
    memory = Memory(tensors.items(), known, addresses_alone=addresses_alone)
    parameters = [
        np.uint64(memory.address(tensors[name]) + value.data_ptr() - tensors[name].data_ptr())
        if name in tensors
        else _scalar(type_, value)
        for name, type_, value in launch.arguments
    ]
    # Triton appends two pointers to scratch memory; a kernel that used them would access what is no argument's.
    missing = len(bound.kernel.parameters) - len(parameters)
    if missing not in (0, 1, 2):
        raise NotExecutedError(f"{bound.kernel.name} has {missing} parameters more than the launch has arguments")
    parameters += [np.uint64(0)] * missing
    return bound, parameters, memory


def _tensor_behind(name: str, value: Any) -> Tensor:
    """The tensor that an argument is, or that it wraps: of `triton.reinterpret`, or of a class that a library made."""
    if isinstance(value, Tensor):
        return value
    for held in getattr(value, "__dict__", {}).values():
        if isinstance(held, Tensor):
            storage = held.untyped_storage()
            if 0 <= value.data_ptr() - storage.data_ptr() <= storage.nbytes():
                return held
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise NotExecutedError(f"{name} is a {kind}, which holds no tensor of the memory at its address")


def _scalar(type_: str, value: Any) -> Any:
    if type_ not in _SCALARS:
        raise NotExecutedError(f"a kernel with an argument of type {type_} is not executed")
    return _SCALARS[type_](value)


def _flat(name: str, type_: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    """The parameters of an argument: a tuple is one for each of its values, a constant none."""
    if isinstance(type_, tuple):
        fields = getattr(value, "_fields", range(len(type_)))
        for field, inner, one in zip(fields, type_, value, strict=True):
            yield from _flat(f"{name}.{field}", inner, one)
    elif type_ != "constexpr":
        yield name, type_, value
