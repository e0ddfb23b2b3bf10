"""Kernels in CUDA C++, judged as compiled: NVRTC makes their PTX without a GPU, and the CPU executes it.

An op file makes a kernel once, and its ops launch it on torch's tensors::

    from validation.adapters import cuda_cpp

    _rms_norm = cuda_cpp.kernel(SOURCE, "rms_norm<__nv_bfloat16>")

    def rms_norm(x, weight=None, eps=1e-6, *, casting_mode="float32"):
        y = torch.empty_like(x)
        _rms_norm[x.shape[0], 256](x, weight, y, x.shape[-1], eps)
        return y

``validate parity --ops FILE --compiled`` judges it (docs/cuda-cpp.md). Under Triton's interpreter and on a GPU a launch
raises `CannotExpress`.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from validation.adapters import nvrtc
from validation.compiled.ptx import executing
from validation.compiled.ptx.launch import Launch, check_grid
from validation.compiled.ptx.shared import static_bytes
from validation.device.private import torch_function_off
from validation.errors import CannotExpress, UsageError

# Of a block, and of its axes x, y, z (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
MOST_THREADS, MOST_OF_AXES = 1024, (1024, 1024, 64)
# Shared memory of a block in bytes, by target (there).
MOST_SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}
# PTX's types of parameters, the number's kind in Python and the type as `Launch` calls it.
_INTEGERS = {"8": "i8", "16": "i16", "32": "i32", "64": "i64"}
_FLOATS = {"f32": "fp32", "f64": "fp64"}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def kernel(source: str | Path, name: str, options: Sequence[str] = ()) -> "Kernel":
    """A kernel of CUDA C++.

    Where PTX is executed it is compiled at once; elsewhere only its launches fail.

    Args:
        source: CUDA C++, or a file of it. Lines are counted in that file, or in the caller's if the text stands there.
        name: the kernel as C++ names it; of a template one instance, ``rms_norm<float, 4>``.
        options: NVRTC's, such as ``--fmad=false`` or ``--include-path=FOLDER``.

    Raises:
        UsageError: the file cannot be read; NVRTC is not installed, or rejects the source.
    """
    caller = inspect.currentframe()
    assert caller is not None
    if isinstance(source, Path):
        try:
            text, place = source.read_text(), (str(source.resolve()), 1)
        except OSError as error:
            raise UsageError(f"cuda_cpp.kernel: source={source}: {error.strerror}, expected a file") from error
    else:
        text, place = source, _place(source, caller.f_back, name)
    made = Kernel(f'#line {place[1]} "{place[0]}"\n{text}', name, tuple(options))
    target = executing.target()
    if target is not None:
        made.compiled(target)
    return made


def _place(source: str, caller: FrameType | None, name: str) -> tuple[str, int]:
    """File and line of a text: in the caller's file, if it stands there once."""
    file = Path(caller.f_code.co_filename) if caller else Path()
    if file.is_file():
        text = file.read_text()
        if source and text.count(source) == 1:
            return str(file.resolve()), text[: text.index(source)].count("\n") + 1
    return f"{_base(name)}.cu", 1


def _base(name: str) -> str:
    """``rms_norm`` of ``norms::rms_norm<float, 4>``."""
    return name.partition("<")[0].rpartition("::")[2].strip()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of CUDA C++; `kernel` makes it.

    ``k[grid, block](*arguments)`` launches it, and so does ``k[grid, block, shared_bytes](*arguments)`` with dynamic
    shared memory. Grid and block are a number or up to three, x first. An argument is a tensor (its first element's
    address) or None (a null pointer), an int, a bool or a float; its C++ type says how it is passed.
    """

    source: str
    name: str
    options: tuple[str, ...]

    def compiled(self, target: str) -> nvrtc.Compiled:
        """As compiled for a target.

        Raises:
            UsageError: NVRTC is not installed, or rejects the source.
        """
        return nvrtc.compiled(self.source, self.name, target, self.options)

    def __getitem__(self, configuration: tuple[Any, ...]) -> "Configured":
        """The kernel with a grid, a block and, if it is given, the bytes of dynamic shared memory."""
        if not isinstance(configuration, tuple) or len(configuration) not in (2, 3):
            raise TypeError(f"{self.name}[{configuration!r}], expected [grid, block] or [grid, block, shared_bytes]")
        grid, block, *rest = configuration
        return Configured(self, _sizes("grid", grid), _sizes("block", block), *map(int, rest))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters, as the source has them; empty if it cannot be told."""
        text = _COMMENT.sub(" ", self.source)
        for match in re.finditer(rf"\b{re.escape(_base(self.name))}\s*\(", text):
            if "__global__" in re.split(r"[;{}]", text[: match.start()])[-1]:
                names = [re.search(r"(\w+)\s*(?:\[\s*\])?\s*$", one) for one in _arguments(text[match.end() :])]
                return tuple(found[1] for found in names if found)
        return ()


def _arguments(text: str) -> Iterator[str]:
    """What is between commas, up to the closing parenthesis."""
    depth, start = 0, 0
    for n, character in enumerate(text):
        if depth == 0 and character in ",)":
            if text[start:n].strip():
                yield text[start:n]
            start = n + 1
            if character == ")":
                return
        depth += (character in "(<[{") - (character in ")>]}")


def _sizes(what: str, value: Any) -> tuple[int, int, int]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"{what}={value!r}, expected an int or one to three of them")
    return (*sizes, 1, 1)[0], (*sizes, 1, 1)[1], (*sizes, 1, 1)[2]


@dataclasses.dataclass(frozen=True)
class Configured:
    """A kernel with a grid, a block and the bytes of its dynamic shared memory: calling it launches it."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0

    def __call__(self, *arguments: Any) -> None:
        """Launch the kernel on tensors of the CPU, and wait for it.

        Raises:
            CannotExpress: PTX is not executed in this process.
            RuntimeError: CUDA would not launch it: a grid or block without threads or too large, too much memory.
            TypeError: an argument does not fit its parameter, or there are more or fewer of them.
            NotExecutedError: the kernel does what is not executed.
        """
        target = executing.target()
        if target is None:
            raise CannotExpress(f"{self.kernel.name} is CUDA C++, which is judged as compiled alone: --compiled")
        with torch_function_off():  # a tensor of the candidate's says cuda:0 (`validation.adapters.shells`)
            with executing.refusals_noted():
                launch = self.launch(target, arguments)
            executing.execute(launch)

    def launch(self, target: str, arguments: Sequence[Any]) -> Launch:
        """The launch for a target; what is raised is that of a call."""
        where = f"{self.kernel.name}[{self.grid}, {self.block}, {self.shared_bytes}]"
        if min(*self.grid, *self.block) < 1:
            raise RuntimeError(f"{where}: a grid or a block without threads, which CUDA does not launch")
        check_grid(self.grid)
        if math.prod(self.block) > MOST_THREADS or any(n > m for n, m in zip(self.block, MOST_OF_AXES, strict=True)):
            raise RuntimeError(f"{where}: a block of more than {MOST_THREADS} threads or {MOST_OF_AXES} along its axes")
        made = self.kernel.compiled(target)
        unbound = Launch(made.ptx, self.grid, (), 0, made.cubin, made.entry, self.block, self.kernel.name)
        bound = unbound.program.kernel
        shared = static_bytes(bound.shared) + self.shared_bytes
        if not 0 <= self.shared_bytes <= shared <= MOST_SHARED[target]:
            raise RuntimeError(f"{where}: {shared} bytes of shared memory, expected 0 to {MOST_SHARED[target]}")
        types = [type_ for type_, _ in bound.parameters]
        if len(types) != len(arguments):
            raise TypeError(f"{where}: {len(arguments)} arguments, expected {len(types)}")
        names = self.kernel.parameters
        if len(names) != len(types):
            names = tuple(f"argument {n}" for n in range(len(types)))
        passed = tuple(map(_passed, names, types, arguments))
        return dataclasses.replace(unbound, arguments=passed, shared_bytes=shared)


def _passed(name: str, type_: str, value: Any) -> tuple[str, str, Any]:
    """A parameter of a launch: its name, its type as `Launch` calls it and its value."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise TypeError(f"{name} is a tensor on {value.device}, expected one on the CPU, where PTX is executed")
    bits = int(type_[1:])
    if bits == 64 and type_[0] != "f" and (value is None or isinstance(value, Tensor)):
        return (name, "*", value) if value is not None else (name, "i64", 0)
    if type_ in _FLOATS and isinstance(value, (int, float)):
        return name, _FLOATS[type_], value
    if type_[0] != "f" and isinstance(value, int):
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise TypeError(f"{name}={value}, expected an integer of {bits} bits")
        return name, _INTEGERS[str(bits)], int(value)
    expected = "a float" if type_[0] == "f" else f"an int of {bits} bits" + (" or a tensor" if bits == 64 else "")
    raise TypeError(f"{name} is a {type(value).__qualname__}, expected {expected} (.{type_} in PTX)")
