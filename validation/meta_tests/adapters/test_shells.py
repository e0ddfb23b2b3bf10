"""A GPU that wrappers believe in: what it answers, that all is put back, and that the suite does not believe in it.

In this process Triton interprets; the compiled kernels are in processes of their own.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from validation.adapters import shells
from validation.cases.tensors import Arguments
from validation.compiled.counters.gpus import GPUS
from validation.device import select
from validation.device.private import torch_function_off
from validation.judge.structure import GuardedAllocations, call_guarded
from validation.meta_tests.device.test_executed import HEAD, KERNEL, judged

GPU = torch.device("cuda", 0)
# Not typed.
_cuda: Any = torch.cuda
_Library: Any = torch.library.Library
PLACES = (torch, torch.cuda, torch.accelerator, torch.library, torch.library.Library, torch.version, Tensor)


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    select(gpu=False)


def _state() -> list[dict[str, Any]]:
    return [dict(vars(place)) for place in PLACES]


def _kernel() -> None:
    """What `torch.library.wrap_triton` is given."""


ANSWERS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "x.is_cuda": (lambda x: x.is_cuda, True),
    "x.is_cpu": (lambda x: x.is_cpu, False),
    "x.device": (lambda x: x.device, GPU),
    "x.get_device()": (lambda x: x.get_device(), 0),
    "a parameter's device": (lambda x: torch.nn.Parameter(x).device, GPU),
    "meta stays": (lambda _: (torch.empty(1, device="meta").device.type, torch.empty(1, device="meta").is_cuda),
                   ("meta", False)),
    "is_available": (lambda _: torch.cuda.is_available(), True),
    "device_count": (lambda _: torch.cuda.device_count(), 1),
    "current_device": (lambda _: torch.cuda.current_device(), 0),
    "set_device": (lambda x: torch.cuda.set_device(x.device), None),
    "synchronize": (lambda _: torch.cuda.synchronize(), None),
    "get_device_name": (lambda x: torch.cuda.get_device_name(x.device), "NVIDIA H100"),
    "get_device_capability": (lambda _: torch.cuda.get_device_capability(), (9, 0)),
    "multi_processor_count": (lambda x: torch.cuda.get_device_properties(x.device).multi_processor_count, 132),
    "warp_size": (lambda _: torch.cuda.get_device_properties(torch.cuda.current_device()).warp_size, 32),
    "is_bf16_supported": (lambda _: torch.cuda.is_bf16_supported(), True),
    "current_stream": (lambda _: torch.cuda.current_stream().cuda_stream, 0),
    "default_stream": (lambda _: torch.cuda.default_stream().synchronize(), None),
    "get_device_module": (lambda x: torch.get_device_module(x.device), torch.cuda),
    "accelerator.is_available": (lambda _: torch.accelerator.is_available(), True),
    "accelerator.device_count": (lambda _: torch.accelerator.device_count(), 1),
    "current_accelerator": (lambda _: torch.accelerator.current_accelerator(), torch.device("cuda")),
    "current_device_index": (lambda _: torch.accelerator.current_device_index(), 0),
    "accelerator.synchronize": (lambda _: torch.accelerator.synchronize(), None),
    "torch.version.cuda": (lambda _: int(str(torch.version.cuda).partition(".")[0]) >= 12, True),
    "wrap_triton": (lambda _: torch.library.wrap_triton(_kernel) is _kernel, True),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_it_answers_as_on_a_gpu_and_not_outside(name: str) -> None:
    ask, expected = ANSWERS[name]
    before = _state()
    with shells.as_on_gpu():
        got = ask(torch.ones(2))
    assert got == expected
    assert _state() == before


GUARDS: tuple[Callable[[Tensor], Any], ...] = (
    lambda x: torch.cuda.device(x.device),
    lambda x: torch.cuda.device(x.device.index),
    lambda x: _cuda.device_of(x),
    lambda _: torch.cuda.stream(torch.cuda.current_stream()),
    lambda x: torch.accelerator.device_index(x.device.index),
)


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_of_a_device_guards_nothing(guard: Callable[[Tensor], Any]) -> None:
    with shells.as_on_gpu():
        x = torch.ones(2)
        with guard(x):
            assert torch.equal(x + 1, torch.full((2,), 2.0))


MADE: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda _: torch.empty(2, device="cuda"),
    lambda _: torch.empty(2, device="cuda:0"),
    lambda x: torch.zeros(2, device=x.device),
    lambda _: torch.tensor([1.0], device=0),
    lambda x: torch.empty_like(x, device=torch.device("cuda")),
    lambda x: x.new_empty(3, device=x.device),
    lambda x: x.to("cuda"),
    lambda x: x.to(x.device, torch.float16),
    lambda x: x.to(0),
    lambda x: x.to(device="cuda"),
    lambda x: x.cuda(),
    lambda x: torch.arange(3, device=x.device),
)


@pytest.mark.parametrize("make", MADE)
def test_what_is_made_on_the_gpu_lies_in_main_memory(make: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(2)
    with shells.as_on_gpu():
        made = make(x)
        assert made.device == GPU
    assert made.device.type == "cpu"


def test_a_move_to_where_a_tensor_is_copies_nothing() -> None:
    x = torch.ones(2)
    with shells.as_on_gpu():
        assert x.to("cuda") is x
        assert x.cuda() is x
        assert x.to(x.device).data_ptr() == x.data_ptr()
        assert x.to(torch.float16).dtype is torch.float16


def test_it_is_put_back_after_an_exception_and_by_the_last_of_several() -> None:
    before = _state()
    with pytest.raises(ZeroDivisionError), shells.as_on_gpu():
        raise ZeroDivisionError
    with shells.as_on_gpu():
        with shells.as_on_gpu():
            assert torch.cuda.is_available()
        assert torch.cuda.is_available()
        assert torch.ones(1).is_cuda
    assert _state() == before


def test_tensors_of_another_thread_do_not_change() -> None:
    seen = []
    with shells.as_on_gpu():
        thread = threading.Thread(target=lambda: seen.append(torch.ones(1).is_cuda))
        thread.start()
        thread.join()
    assert seen == [False]


def test_nothing_changes_where_no_gpu_is_believed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "target", lambda: None)
    before = _state()
    with shells.as_on_gpu():
        assert _state() == before
        assert not torch.ones(1).is_cuda


@pytest.mark.parametrize("gpu", GPUS[::-1], ids=lambda gpu: gpu.name)
def test_the_properties_are_those_of_the_target(gpu: Any) -> None:
    first = next(one for one in GPUS if one.target == gpu.target)
    found = shells.properties(gpu.target)
    assert f"sm_{found.major}{found.minor}" == gpu.target
    assert (found.name, found.multi_processor_count) == (f"NVIDIA {first.name}", first.sms)
    assert found.shared_memory_per_block_optin == {"sm_80": 163, "sm_90": 227, "sm_100": 227}[gpu.target] * 1024


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="target: 'gfx942', expected one of sm_100, sm_80, sm_90"):
        shells.properties("gfx942")


@pytest.fixture
def library() -> Iterator[Any]:
    made = _Library("shells_test", "FRAGMENT")
    yield made
    made._destroy()


def _on(x: Tensor) -> Tensor:
    assert x.is_cuda, x.device
    return x + 1


def _off(x: Tensor) -> Tensor:
    return x - 1


@pytest.mark.parametrize("order", [("CUDA",), ("CUDA", "CPU"), ("CPU", "CUDA")])
def test_an_operator_for_cuda_runs_as_on_a_gpu(library: Any, order: tuple[str, ...]) -> None:
    name = "_".join(("op", *order)).lower()
    with shells.as_on_gpu():
        library.define(f"{name}(Tensor x) -> Tensor")
        for key in order:
            library.impl(name, _on if key == "CUDA" else _off, key)

    def candidate(x: Tensor) -> Any:
        return getattr(torch.ops.shells_test, name)(x)

    x = torch.ones(3)
    with shells.as_on_gpu():
        assert torch.equal(candidate(x), torch.full((3,), 2.0))
    result, _ = call_guarded(shells.on_gpu(candidate), Arguments({"x": x}, {"x": x}, {}))
    assert torch.equal(result, torch.full((3,), 2.0))


def test_a_custom_op_runs_as_on_a_gpu() -> None:
    with shells.as_on_gpu():

        @torch.library.custom_op("shells_test::custom", mutates_args=(), device_types="cuda")
        def custom(x: Tensor) -> Tensor:
            return _on(x)

    x = torch.ones(3)
    result, _ = call_guarded(shells.on_gpu(custom.__call__), Arguments({"x": x}, {"x": x}, {}))
    assert torch.equal(result, torch.full((3,), 2.0))


def test_an_implementation_for_cuda_does_not_replace_torchs_own_on_the_cpu() -> None:
    with shells.as_on_gpu():
        library = _Library("aten", "IMPL")
        library.impl("sinc", _off, "CUDA")
    try:
        assert torch.equal(torch.sinc(torch.zeros(1)), torch.ones(1))
    finally:
        library._destroy()


def test_the_judges_guards_see_where_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = GuardedAllocations._run, []

    def watched(self: Any, func: Any, args: Any, kwargs: Any) -> Any:
        seen.append((func.overloadpacket, x.device.type))
        return run(self, func, args, kwargs)

    def candidate(x: Tensor) -> Tensor:
        # torch's old constructor comes to the guards with the mode on.
        y = torch.empty(x.shape, device=x.device) + torch.Tensor([0.0])
        assert y.is_cuda
        return y.copy_(x)

    x = torch.ones(3)
    monkeypatch.setattr(GuardedAllocations, "_run", watched)
    result, _ = call_guarded(shells.on_gpu(candidate), Arguments({"x": x}, {"x": x}, {}))
    assert result.device.type == "cpu"
    assert torch.ops.aten.lift_fresh in [op for op, _ in seen]
    assert {where for _, where in seen} == {"cpu"}


def test_an_error_in_torch_is_told_with_the_candidates_line() -> None:
    from validation.ops import tracebacks

    with pytest.raises(RuntimeError) as raised, shells.as_on_gpu():
        torch.ones(2).view(3)
    assert f"in {__file__}, line " in tracebacks.of_error(raised.value)


def test_the_decorator_keeps_the_signature() -> None:
    import inspect

    def op(x: Tensor, *, inplace: bool = False) -> bool:
        return x.is_cuda and not inplace

    wrapped = shells.on_gpu(op)
    assert inspect.signature(wrapped, follow_wrapped=False) == inspect.signature(op)
    assert wrapped(torch.ones(1))
    with torch_function_off():
        assert not op(torch.ones(1))


def test_packages_without_their_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "outer_shell" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("import nowhere_to_be_found\n")
    (inner / "kernel.py").write_text("from missing_shell.platforms import here\n")
    import importlib
    import sys

    with monkeypatch.context() as patched:
        patched.setattr(sys, "modules", dict(sys.modules))
        shells.package(tmp_path, "outer_shell", "outer_shell.inner")
        shells.stub("missing_shell")
        shells.stub("missing_shell.platforms", here=7)
        kernel = importlib.import_module("outer_shell.inner.kernel")
        assert kernel.here == 7
        assert sys.modules["outer_shell"].inner.kernel is kernel


def test_a_decorator_that_does_nothing() -> None:
    assert shells.undecorated(_on) is _on
    assert shells.undecorated()(_on) is _on
    assert shells.undecorated("name", device="cuda")(_on) is _on


# Compiled: a wrapper as it ships, which takes nothing but a GPU.
SHIPPED = HEAD.replace(
    "    y = torch.empty_like(x)\n",
    """\
    if not x.is_cuda or x.device.type != "cuda":
        raise RuntimeError(f"rms_norm runs on CUDA tensors, got one on {x.device}")
    if torch.cuda.get_device_capability(x.device) != CAPABILITY:
        raise RuntimeError("another GPU than the one of import")
    assert x.device == weight.device == triton.runtime.driver.active.get_active_torch_device()
    properties = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())
    assert properties["multiprocessor_count"] == SMS, properties
    y = torch.empty(x.shape, dtype=x.dtype, device="cuda")
""",
).replace("    kernel[(x.shape[0],)]", "    with torch.cuda.device(x.device):\n        kernel[(x.shape[0],)]")
AT_IMPORT = """
assert torch.cuda.is_available() and torch.version.cuda
CAPABILITY = torch.cuda.get_device_capability()
SMS = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
assert SMS == {sms}
"""


@pytest.mark.parametrize("gpu", [GPUS[0], GPUS[3]], ids=lambda gpu: gpu.target)
def test_a_wrapper_that_takes_nothing_but_a_gpu_is_judged_as_it_is(tmp_path: Path, gpu: Any) -> None:
    head = SHIPPED + AT_IMPORT.format(sms=gpu.sms)
    status, output = judged(tmp_path, KERNEL, options=("--compiled", gpu.target), head=head)
    assert (status, "PASSED (lossless)" in output) == (0, True), output


def test_a_wrapper_that_asks_for_another_gpu_fails(tmp_path: Path) -> None:
    head = SHIPPED + AT_IMPORT.format(sms=GPUS[1].sms).replace(
        "get_device_capability()", "get_device_capability()[::-1]"
    )
    status, output = judged(tmp_path, KERNEL, head=head)
    assert (status, "raised RuntimeError: another GPU than the one of import" in output) == (1, True), output


# A launcher of a library's own: it keeps the compiled kernel, and launches it without Triton.
KEPT = HEAD.replace("    kernel[(x", "    kept = kernel[(x").replace(
    "    return y\n", "    y.fill_(0.0)\n    kept[(x.shape[0], 1, 1)](x, weight, y, x.shape[-1], eps)\n    return y\n"
)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (KEPT, "PASSED (lossless)"),
        (KEPT.replace("x.shape[-1], eps)\n    return", "x.shape[-1])\n    return"),
         "TypeError: kernel was launched again with 4 arguments, expected one for each of its 6 parameters"),
    ],
    ids=["right", "too few"],
)  # fmt: skip
def test_a_kernel_that_a_launcher_kept_is_launched_again(tmp_path: Path, head: str, expected: str) -> None:
    status, output = judged(tmp_path, KERNEL, head=head)
    assert (status, expected in output) == (0 if "PASSED" in expected else 1, True), output


def test_a_kept_kernel_is_not_launched_after_its_launches_ended() -> None:
    from types import SimpleNamespace

    from validation.compiled.ptx import executing
    from validation.errors import NotExecutedError

    compiled = SimpleNamespace(name="add", src=SimpleNamespace(signature={"x": "*fp32", "N": "constexpr"}))
    kept = executing.Kernel(compiled, lambda *_: None)
    assert kept.name == "add"
    with pytest.raises(NotExecutedError, match="add is launched again after the launches it was compiled for"):
        kept[(1, 1, 1)](torch.ones(1))
