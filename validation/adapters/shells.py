"""A GPU that wrappers believe in, where their kernels run without one.

A wrapper asks for a GPU before it launches its kernel. Where kernels are compiled and their PTX is executed on the CPU
(`--compiled`), the registry imports every op set, and makes every call of its functions, inside `as_on_gpu`: an op file
whose wrapper says ``assert x.is_cuda`` is judged as it is. What wrappers in use ask, by reading them:

* Liger-Kernel 0.8.5: ``torch.cuda.is_available`` while it is imported, ``X.device.type`` ("xpu" takes other launch
  options), ``get_device_properties(x.device).multi_processor_count``, ``get_device_capability``.
* FlagGems 5.0.2: while it is imported, ``device_count``, ``get_device_properties(0).major`` (its tables of tuned
  configurations) and ``get_device_name``; in a call ``torch.cuda.device(x.device)`` and ``current_device``. Its
  launcher keeps compiled kernels and launches them itself (`validation.compiled.ptx.executing`).
* flash-attn 2.8.3 (``ops/triton``): ``get_device_properties(current_device()).warp_size`` while it is imported;
  ``torch.cuda.device(x.device.index)``, ``torch.library.wrap_triton`` and a ``custom_op`` around the launch.
* vllm-omni 0.30.0 (``diffusion/layers``): ``x.is_cuda``, ``x.is_cpu``, ``x.device.type``, ``q.device == k.device``,
  ``torch.accelerator.device_index(q.device.index)``, operators registered for CUDA.
* sglang 0.5.23 (``kernels/ops/diffusion``): ``x.is_cuda``, ``torch.get_device_module``, ``get_device_properties``,
  ``torch.version.cuda``.
* Triton's tutorials: ``driver.active.get_active_torch_device()`` and ``driver.active.utils.get_device_properties``.

Inside, every tensor in main memory says ``cuda:0``, also one that the wrapper made without ``device=`` or moved to the
CPU: a launch on such a tensor, which fails on a GPU, is not seen. What is made with ``device=x.device`` or
``device="cuda"`` lies in main memory, and ``.cuda()`` leaves a tensor there. There are no streams to create, no events
and no CUDA graphs: they raise torch's own errors.

A `TorchFunctionMode` gives these answers, in the thread that entered it; operations reach the judge's guards below it
unchanged, on the CPU, where they are. `torch.cuda` and its kin are functions that are put back at the end.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from validation.compiled.counters.gpus import GPUS, Gpu
from validation.compiled.ptx import executing
from validation.device.private import torch_function_off, torch_function_on, triton_module

__all__ = ["Properties", "as_it_is", "as_on_gpu", "on_gpu", "package", "properties", "stub", "target", "undecorated"]

P = ParamSpec("P")
R = TypeVar("R")

# The GPU that is believed in under Triton's interpreter, which compiles for none.
INTERPRETED_TARGET = "sm_90"

_GPU = torch.device("cuda", 0)
# Namespaces of PyTorch's own operations: an implementation for CUDA in one of these must not replace the CPU's.
_OWN = ("aten", "prims", "prim", "_")


def target() -> str | None:
    """The GPU that is believed in: the target whose PTX is executed; sm_90 under Triton's interpreter; else None."""
    if executing.target() is not None:
        return executing.target()
    # Not imported here: Triton decides at its import whether it interprets.
    interpreted = "triton" in sys.modules and _triton("triton.knobs").runtime.interpret
    return INTERPRETED_TARGET if interpreted else None


@dataclasses.dataclass(frozen=True)
class Properties:
    """The answer of ``torch.cuda.get_device_properties``, as far as `validation.compiled.counters.gpus` knows the GPU.

    Attributes:
        name: of the product. major, minor: its compute capability.
        multi_processor_count: SMs. warp_size: threads of a warp.
        max_threads_per_multi_processor, regs_per_multiprocessor, shared_memory_per_multiprocessor: of an SM; bytes of
            shared memory.
        shared_memory_per_block, shared_memory_per_block_optin: bytes that a CTA gets, and that it can ask for
            (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
    """

    name: str
    major: int
    minor: int
    multi_processor_count: int
    shared_memory_per_multiprocessor: int
    shared_memory_per_block_optin: int
    shared_memory_per_block: int = 48 * 1024
    warp_size: int = 32
    max_threads_per_multi_processor: int = 2048
    regs_per_multiprocessor: int = 65_536


def properties(target: str) -> Properties:
    """The properties of the first GPU of `GPUS` that runs a target.

    Raises:
        ValueError: there is none.
    """
    gpu: Gpu | None = next((gpu for gpu in GPUS if gpu.target == target), None)
    if gpu is None:
        raise ValueError(f"target: {target!r}, expected one of {', '.join(sorted({gpu.target for gpu in GPUS}))}")
    major, minor = divmod(int(target.removeprefix("sm_")), 10)
    name = f"NVIDIA {gpu.name}"
    # The system keeps 1 KB of an SM's shared memory for each CTA.
    return Properties(name, major, minor, gpu.sms, gpu.shared, gpu.shared - 1024)


def _in_main_memory(device: Any) -> Any:
    """Where a device that a wrapper names lies: the CPU, if it names a GPU or an index."""
    if isinstance(device, torch.device):
        return "cpu" if device.type == "cuda" else device
    if isinstance(device, str):
        return "cpu" if device.partition(":")[0] == "cuda" else device
    return "cpu" if isinstance(device, int) and not isinstance(device, bool) else device


def _device(t: Tensor, *_: Any) -> torch.device:
    return _GPU if t.device.type == "cpu" else t.device


# Attributes are read by method wrappers, which compare and hash by what they read.
_read: Any = {name: inspect.getattr_static(Tensor, name) for name in ("device", "is_cuda", "is_cpu")}
_ANSWERS: Mapping[Any, Callable[..., Any]] = {
    _read["device"].__get__: _device,
    _read["is_cuda"].__get__: lambda t, *_: _device(t).type == "cuda",
    _read["is_cpu"].__get__: lambda *_: False,
    Tensor.get_device: lambda t: 0 if _device(t).type == "cuda" else t.get_device(),
    Tensor.cuda: lambda t, *_, **__: t,
}


class _OnGpu(TorchFunctionMode):
    """Tensors in main memory that say ``cuda:0``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        answer = _ANSWERS.get(func)
        if answer is not None:
            return answer(*args, **kwargs)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _in_main_memory(kwargs["device"])}
        if func is Tensor.to and len(args) > 1:
            args = (args[0], _in_main_memory(args[1]), *args[2:])
        return func(*args, **kwargs)


class _Guard:
    """A ``with`` block that changes nothing: of a device, or of the default stream."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Stream:
    """The default stream, on which all work is done when a call returns."""

    cuda_stream = stream_id = 0
    device = _GPU

    def synchronize(self) -> None:
        """Return at once."""

    def wait_stream(self, _stream: object) -> None:
        """Return at once."""


def _constant(value: R) -> Callable[..., R]:
    return lambda *_, **__: value


def _inside(function: Callable[P, R]) -> Callable[P, R]:
    """The body of a registered operation, which PyTorch calls below the modes of its caller, with the mode on again."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _entered.depth:
            return function(*args, **kwargs)
        with torch_function_on(), _mode:
            return function(*args, **kwargs)

    return call


def _registering(impl: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.library.Library.impl`, by which a library's implementation for CUDA is the one on the CPU.

    One that it has for the CPU too gives way, whichever comes first. PyTorch's own stay as they are.
    """

    @functools.wraps(impl)
    def register(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> Any:
        module = str(getattr(fn, "__module__", ""))
        # `custom_op` registers a function of its own, around the library's.
        if self.ns in _OWN or (module.startswith("torch.") and not module.startswith("torch._library.")):
            return impl(self, op_name, fn, dispatch_key, **options)
        key, name = dispatch_key or self.dispatch_key, (self.ns, str(op_name).rpartition("::")[2])
        if key == "CUDA":
            _for_cuda.add(name)
            key = "CPU"
        elif key == "CPU" and name in _for_cuda:
            key = "CUDA"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)  # it overrides
            return impl(self, op_name, _inside(fn), key, **options)

    return register


@functools.cache
def _constants(target: str) -> tuple[tuple[Any, str, Any], ...]:
    """Object, attribute and value of each thing that a wrapper asks torch."""
    return tuple(_constants_of(target))


def _constants_of(target: str) -> Iterator[tuple[Any, str, Any]]:
    gpu = properties(target)
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "get_device_name": gpu.name,
        "get_device_capability": (gpu.major, gpu.minor),
        "get_device_properties": gpu,
        "is_bf16_supported": True,
        "current_stream": _Stream(),
        "default_stream": _Stream(),
    }
    yield from ((torch.cuda, name, _constant(value)) for name, value in answers.items())
    for guard in ("device", "device_of", "stream"):
        yield torch.cuda, guard, _Guard
    yield torch, "get_device_module", _constant(torch.cuda)
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_accelerator": torch.device("cuda"),
        "current_device_index": 0,
        "synchronize": None,
    }
    yield from ((torch.accelerator, name, _constant(value)) for name, value in answers.items())
    yield torch.accelerator, "device_index", _Guard
    yield torch.library, "wrap_triton", lambda kernel: kernel
    yield torch.library.Library, "impl", _registering(torch.library.Library.impl)
    # The toolkit of the assembler that makes the machine code.
    yield torch.version, "cuda", torch.version.cuda or triton_module("triton.knobs").nvidia.ptxas.version


@functools.cache
def _of_driver(driver: Any, target: str) -> tuple[tuple[Any, str, Any], ...]:
    """The same of what a wrapper asks Triton's driver."""
    gpu = properties(target)
    told = {
        "max_shared_mem": gpu.shared_memory_per_block_optin,
        "max_num_regs": gpu.regs_per_multiprocessor,
        "multiprocessor_count": gpu.multi_processor_count,
        "warpSize": gpu.warp_size,
    }
    utils = SimpleNamespace(get_device_properties=lambda _device: dict(told))
    return (driver, "utils", utils), (driver, "get_active_torch_device", _constant(_GPU))


@functools.cache
def _triton(module: str) -> Any:
    return triton_module(module)  # which takes 3 us to check its names


def _of_triton(target: str) -> tuple[tuple[Any, str, Any], ...]:
    if executing.target() is not None:
        return _of_driver(_triton("triton.runtime.driver").driver.active, target)
    # The judge's count of launches may have replaced it since.
    executor = _triton("triton.runtime.interpreter").GridExecutor
    return ((executor, "__call__", _without_mode(executor.__call__)),)


def _without_mode(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch_function_off():
            return function(*args, **kwargs)

    return call


@dataclasses.dataclass
class _Entered:
    """How often, in all threads, and what is put back when the last one leaves."""

    depth: int = 0
    kept: tuple[tuple[Any, str, Any], ...] = ()


_ABSENT = object()
# Namespace and name of each operator whose implementation for CUDA was registered.
_for_cuda: set[tuple[str, str]] = set()
_mode = _OnGpu()
_entered, _lock = _Entered(), threading.Lock()


def _begin(target: str) -> None:
    with _lock:
        _entered.depth += 1
        if _entered.depth == 1:
            answers = (*_constants(target), *_of_triton(target))
            _entered.kept = tuple((where, name, vars(where).get(name, _ABSENT)) for where, name, _ in answers)
            for where, name, value in answers:
                setattr(where, name, value)


def _end() -> None:
    with _lock:
        _entered.depth -= 1
        if not _entered.depth:
            _put_back(_entered.kept)
            _entered.kept = ()


def _put_back(kept: Iterable[tuple[Any, str, Any]]) -> None:
    for where, name, value in kept:
        if value is not _ABSENT:
            setattr(where, name, value)
        elif name in vars(where):
            delattr(where, name)


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Answer as on the GPU of `target` in this ``with`` block; nothing changes where `target` is None.

    Blocks may lie one inside another. It costs 20 us of processor time, and 2 to 3 for each use of a tensor inside; a
    launch that is executed on the CPU takes milliseconds.
    """
    believed = target()
    if believed is None:
        yield
        return
    _begin(believed)
    try:
        with _mode:
            yield
    finally:
        _end()


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """Undo `as_on_gpu` in this ``with`` block, for code that would use the GPU itself, as Dynamo does.

    No other thread may be inside `as_on_gpu`.
    """
    with torch_function_off(), _lock:
        answers = [(where, name, vars(where).get(name, _ABSENT)) for where, name, _ in _entered.kept]
        _put_back(_entered.kept)
    try:
        with torch_function_off():
            yield
    finally:
        with _lock:
            _put_back(answers)


def on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called inside `as_on_gpu`; its signature stays."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with as_on_gpu():
            return function(*args, **kwargs)

    with contextlib.suppress(TypeError, ValueError):  # a builtin has none
        vars(call)["__signature__"] = inspect.signature(function, follow_wrapped=False)
    return call


def package(root: Path, *names: str) -> None:
    """Make packages whose modules are found in their folders and whose ``__init__`` does not run.

    For a package whose ``__init__`` imports what is not installed. They stay in ``sys.modules``.

    Args:
        root: the folder that holds the outermost package.
        names: full names, outer ones first: ``a.b`` finds its modules in ``root/a/b``.
    """
    for name in names:
        _put(name, ModuleType(name)).__path__ = [str(root.joinpath(*name.split(".")))]


def stub(name: str, **members: Any) -> ModuleType:
    """Make a module of these members alone, in place of one that is not installed. It stays in ``sys.modules``."""
    module = _put(name, ModuleType(name))
    vars(module).update(members)
    return module


def _put(name: str, module: ModuleType) -> ModuleType:
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


def undecorated(*args: Any, **options: Any) -> Any:
    """A decorator, with or without options, that does nothing."""
    if len(args) == 1 and callable(args[0]) and not options:
        return args[0]
    return lambda function: function
