"""What ``torch.compile`` makes for a GPU, compiled for it and executed on the CPU.

Dynamo traces the function on CPU tensors as ever; its graph is then given to Inductor as one of a GPU, with the fake
tensors there, so that lowerings, fusions and block sizes are those of the target: on the CPU Inductor would, for one,
divide by a constant where it multiplies by the reciprocal for a GPU. The Python code that Inductor writes runs as it
is, but that its buffers lie in main memory, and each Triton kernel in it is launched as
`validation.compiled.ptx.executing` says.

Of the configurations that Inductor would time on a GPU the one is taken whose turn it is. Those that it derives from
the registers of a loaded kernel, or by coordinate descent, are not tried. Operations for which Inductor has no kernel
of its own (matrix products) run in PyTorch on the CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch.fx import GraphModule

from validation.adapters import shells
from validation.compiled.ptx import executing
from validation.compiled.ptx.launch import Launch
from validation.device.private import device_guard_for_cuda, inductor_module


def backend(**config: Any) -> Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]:
    """A backend of ``torch.compile`` for a process in which launches are executed on the CPU.

    Args:
        config: names and values of ``torch._inductor.config``.

    Raises:
        RuntimeError: when the backend is called, if no launches are executed in this process.
    """

    def compile_graph(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        target = executing.target()
        if target is None:
            raise RuntimeError("no launches are executed in this process: call execute_launches first")
        _take_over(target)
        _move_to_gpu(graph)
        fakes = [_on_gpu(one) for one in inputs]
        # Without Inductor's caches on disk: their entries are found by the versions and the device's name alone, and a
        # process that has the GPU would take them for its own. One thread: processes would import the interpreter.
        own = {"compile_threads": 1, "force_disable_caches": True, "triton.autotune_at_compile_time": False}
        compile_fx = inductor_module("torch._inductor.compile_fx").compile_fx
        # Most of Inductor asks its interface of the device, some of it torch.cuda.
        properties = shells.properties(target)
        answers: dict[str, Any] = {
            "get_device_properties": lambda _device=None: properties,
            "get_device_capability": lambda _device=None: (properties.major, properties.minor),
        }
        with patch.multiple(torch.cuda, **answers):
            compiled: Callable[..., Any] = compile_fx(graph, fakes, config_patches={**own, **config})
        return compiled

    return compile_graph


def _on_gpu(given: Any) -> Any:
    """An input of the graph as it is on a GPU, without memory; its sizes are symbols where Dynamo made them so."""
    if not isinstance(given, torch.Tensor):
        return given
    tracing = inductor_module("torch._guards").TracingContext.get()
    context = tracing.tensor_to_context.get(given)
    source = None if context is None else context.tensor_source
    fake = tracing.fake_mode.from_tensor(given, symbolic_context=context, source=source)
    # Dynamo's tensor around a Python float, whose number it remembers, stays with the Python program.
    if fake.item_memo is not None:
        return fake
    with tracing.fake_mode:
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device="cuda")


def _move_to_gpu(graph: GraphModule) -> None:
    """Have the graph make its tensors on the GPU: Dynamo has written the devices of the inputs into it."""
    for node in graph.graph.nodes:
        if str(node.kwargs.get("device", "")) == "cpu":
            node.kwargs = {**node.kwargs, "device": torch.device("cuda")}
        node.args = tuple(torch.device("cuda") if one == torch.device("cpu") else one for one in node.args)
    graph.recompile()


_taken: str | None = None


def _take_over(target: str) -> None:
    """Make Inductor write code for a target of which there is no device, and run its kernels on the CPU.

    Raises:
        RuntimeError: this process compiles for another target.
    """
    global _taken
    if _taken == target:
        return
    if _taken is not None:
        raise RuntimeError(f"Inductor compiles for {_taken} in this process, expected a new process for {target}")
    _register_device(target)
    _register_codegen()
    device_guard_for_cuda()
    # Each kernel's module calls it to find a GPU.
    inductor_module("torch._inductor.runtime.triton_helpers").set_driver_to_gpu = lambda: None
    autotuner = inductor_module("torch._inductor.runtime.triton_heuristics").CachingAutotuner
    autotuner.precompile, autotuner.run = _leave_uncompiled, _run
    _taken = target


def _register_device(target: str) -> None:
    interfaces = inductor_module("torch._dynamo.device_interface")
    properties = shells.properties(target)
    architecture = 10 * properties.major + properties.minor

    base: Any = interfaces.CudaInterface
    worker: Any = base.Worker

    class Interface(base):  # type: ignore[misc]
        """The target, as Inductor asks for it."""

        class Worker(worker):  # type: ignore[misc]
            """The same in a process that compiles."""

            current_device = staticmethod(lambda: 0)
            get_device_properties = staticmethod(lambda _device=None: properties)

        current_device = staticmethod(lambda: 0)
        device_count = staticmethod(lambda: 1)
        get_compute_capability = staticmethod(lambda _device=None: architecture)
        get_device_properties = staticmethod(lambda _device=None: properties)
        is_available = staticmethod(lambda: True)
        is_bf16_supported = staticmethod(lambda **_: True)
        is_triton_capable = staticmethod(lambda _device=None: True)
        raise_if_triton_unavailable = staticmethod(lambda _device=None: None)

    interfaces.get_interface_for_device("cpu")  # registers torch's own, which would replace what is registered before
    for name in ("cuda", "cuda:0"):
        interfaces.register_interface_for_device(name, Interface)
    inductor_module("torch.utils._triton").has_triton.cache_clear()  # asked before, it found no GPU


def _register_codegen() -> None:
    """Inductor's own code for Triton, in a Python program whose memory is the CPU's."""
    common = inductor_module("torch._inductor.codegen.common")
    overrides: Any = common.DeviceOpOverrides
    wrapper: Any = inductor_module("torch._inductor.codegen.wrapper").PythonWrapperCodegen

    class Wrapper(wrapper):  # type: ignore[misc]
        """Writes the Python program."""

        @staticmethod
        def create(is_subgraph: bool, *names: Any) -> Any:
            """One for a graph; torch's own for a graph in it."""
            return wrapper.create(is_subgraph, *names) if is_subgraph else Wrapper()

        def write_header(self) -> None:
            super().write_header()
            self.header.writeline("empty_strided_cuda = empty_strided_cpu")

    class Overrides(overrides):  # type: ignore[misc]
        """Lines of the Python program that speak of a device."""

        def import_get_raw_stream_as(self, name: str) -> str:
            return f"{name} = int"

        def set_device(self, _index: int) -> str:
            return "pass"

        def synchronize(self) -> str:
            return "pass"

        def device_guard(self, _index: int) -> str:
            return "__import__('contextlib').nullcontext()"

    common.init_backend_registration()  # as above: torch's own first
    common.get_device_op_overrides("cuda")
    scheduling = inductor_module("torch._inductor.codegen.triton").TritonScheduling
    common.register_backend_for_device("cuda", scheduling, Wrapper)
    common.register_device_op_overrides("cuda", Overrides())


def _leave_uncompiled(_self: Any, *_: Any, **__: Any) -> None:
    """Compile at the launch, one configuration alone."""


def _run(self: Any, *arguments: Any, stream: Any = None, **keywords: Any) -> None:
    """Launch a kernel of Inductor's in the configuration whose turn it is."""
    del stream
    if keywords:
        raise RuntimeError(f"Inductor launched {self.fn.__name__} with {sorted(keywords)}, expected no keywords")
    kernels = vars(self).setdefault("kernels_of_target", {})
    turn = executing.current().turn % len(self.configs)
    config = self.configs[turn]
    if turn not in kernels:
        kernels[turn] = self._precompile_config(config).kernel
    kernel = kernels[turn]
    values, grid = self._interpret_args_grid(arguments, config)
    # What Triton compiles as a constant (a size of 1) is given too; block sizes, constants by annotation, are not.
    names = [parameter.name for parameter in self.fn.params if not parameter.is_constexpr]
    given = dict(zip(names, values, strict=True))
    bound = {name: given.get(name) for name in kernel.src.signature}
    executing.execute(Launch.of(kernel, bound, grid))
