"""Kernels in CUDA C++: what NVRTC makes of them is executed and judged; planted faults are named with their line."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from validation.adapters import CannotExpress, cuda_cpp, nvrtc
from validation.cases.case import Case
from validation.compiled.ptx.errors import NotExecutedError, Violation
from validation.compiled.ptx.launch import Launch, run_launch
from validation.compiled.ptx.machine import Outcome
from validation.compiled.ptx.sass import contracted, opcodes_of
from validation.device import select
from validation.errors import UsageError
from validation.executor import InProcess
from validation.meta_tests import in_a_fork
from validation.ops import load_op_set
from validation.parity.one_case import judge_case
from validation.verdict import Status

FILE = Path(__file__).with_name("cuda_cpp_ops.py")
OPS = FILE.read_text()
OPS_OF = ("rms_norm", "layer_norm_scale_shift", "qk_norm")
BARRIER = "    __syncthreads();  // all partial sums are there\n"
ALIGNED = "    if rows.data_ptr() % 16 or rows.stride(0) % V:\n        V = 1\n"
# The last line of the kernel of heads.
HEADS = 'wide(weight[i]));\n    }\n}\n"""\n'


def tensor(name: str, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    strides = [int(torch.Size(shape[n + 1 :]).numel()) for n in range(len(shape))]
    return {name: {"shape": [*shape], "dtype": dtype, "strides": strides, "offset": 0, "storage": name}}


def case(op: str = "rms_norm", width: int = 1000) -> str:
    tensors = tensor("x", 3, width) | tensor("weight", width)
    flags: dict[str, Any] = {"eps": 1e-6, "casting_mode": "float32"}
    if op == "layer_norm_scale_shift":
        tensors = tensor("x", 1, 3, width, dtype="bfloat16") | tensor("shift", 1, width) | tensor("scale", 1, width)
    if op == "qk_norm":
        tensors = tensor("q", 1, 3, 2, width) | tensor("k", 1, 3, 3, width, dtype="bfloat16")
        tensors, flags = tensors | tensor("q_weight", width), flags | {"inplace": False}
    return json.dumps({"op": op, "tensors": tensors, "flags": flags, "values": "normal", "seed": 0})


def judged(folder: Path, ops: str, *cases: str) -> tuple[int, str]:
    """Exit status and output of ``validate repro`` on an op file."""
    (folder / "mine.py").write_text(ops)
    arguments = ("repro", *cases, "--ops", "mine.py", "--compiled", "--races")
    done = in_a_fork.run("run_cli", *arguments, folder=folder, interpreted=False)
    return done.returncode, done.stdout + done.stderr


def changed(*changes: tuple[str, str]) -> str:
    """The op file with some texts replaced, each of which it has once."""
    ops = OPS
    for old, new in changes:
        assert ops.count(old) == 1, old
        ops = ops.replace(old, new)
    return ops


def line_of(ops: str, text: str) -> int:
    return next(n for n, line in enumerate(ops.splitlines(), 1) if text in line)


def test_right_kernels_pass(tmp_path: Path) -> None:
    cases = case(), case(width=101), case("layer_norm_scale_shift"), case("qk_norm", 60)
    status, output = judged(tmp_path, OPS, *cases)
    assert (status, output.count("PASSED (")) == (0, 4), output
    assert "ptxas" not in output


def test_a_barrier_left_out_is_a_race(tmp_path: Path) -> None:
    ops = changed((BARRIER, ""))
    status, output = judged(tmp_path, ops, case())
    assert (status, "rms_norm  mine  fp32  RACE\n" in output) == (1, True), output
    assert "RACE in rms_norm<float, float, 4>, " in output
    assert f"mine.py:{line_of(ops, 'partial[lane] : 0.0f')} in mine.py:" in output


def test_shared_memory_that_no_thread_has_written_is_told_where_it_is_read(tmp_path: Path) -> None:
    ops = changed(("lane < warps ? partial[lane] : 0.0f", "partial[lane]"))
    status, output = judged(tmp_path, ops, case())
    assert (status, "UNINITIALISED_READ in rms_norm<float, float, 4>, " in output) == (1, True), output
    assert f"mine.py:{line_of(ops, 'return warp_sum(partial[lane])')} in mine.py:" in output


def test_faults_of_three_kernels_are_told_each_with_its_line(tmp_path: Path) -> None:
    ops = changed(
        (ALIGNED, ""),
        (" = sqrtf(block_sum(squares) / width", " = sqrtf(block_sum(squares) / ((width + 31) / 32 * 32)"),
        (HEADS, HEADS.replace("weight[i]", "weight[i + 1]")),
    )
    cases = case(width=1001), case("layer_norm_scale_shift", 1001), case("qk_norm", 60)
    status, output = judged(tmp_path, ops, *cases)
    assert status == 1
    misaligned, padded, outside = (output[output.index(f"{op}  mine") :] for op in OPS_OF)
    assert "MISALIGNED in rms_norm<float, float, 4>, " in misaligned.partition("\nrepeat: ")[0], output
    assert f"mine.py:{line_of(ops, 'const Pack<T, V> pack =')}: ld.global" in misaligned.partition("\nrepeat: ")[0]
    assert padded.startswith("layer_norm_scale_shift  mine  bf16  INCORRECT_NUMERICAL\n"), output
    assert "OUT_OF_BOUNDS_READ in head_norm<float, float>, " in outside
    assert f"mine.py:{line_of(ops, 'weight[i + 1]')}: ld.global" in outside
    assert "0 bytes behind the end of q_weight (60,)" in outside


def test_the_interpreter_is_told_that_it_has_no_cuda() -> None:
    device = select(gpu=False)
    record = judge_case(Case.from_json(case()), InProcess(load_op_set(str(FILE)), device))
    assert record.status is Status.NOT_EXPRESSED
    assert "rms_norm<float, float, 4> is CUDA C++, which is judged as compiled alone: --compiled" in record.reason


def test_a_fallback_from_what_is_not_executed_is_no_result(tmp_path: Path) -> None:
    launch = '    launch(rows, weight, y, rows.stride(0), D, eps, casting_mode == "input")\n'
    caught = f"""\
    try:
    {launch}
    except Exception:
        import reference_ops
        return reference_ops.rms_norm(x, weight, eps)
"""
    ops = changed((BARRIER, f"{BARRIER}    __threadfence();\n"), (launch, caught))
    status, output = judged(tmp_path, ops, case())
    assert (status, "rms_norm  mine  NOT_EXECUTED\n" in output) == (1, True), output
    assert f"mine.py:{line_of(ops, '__threadfence')}" in output


def test_what_nvrtc_rejects_ends_the_command_with_its_message(tmp_path: Path) -> None:
    ops = """\
from reference_ops import rms_norm
from validation.adapters import cuda_cpp
kernel = cuda_cpp.kernel("__global__ void k(int n) { m = n; }", "k")
"""
    status, output = judged(tmp_path, ops, case())
    assert status == 2
    assert 'mine.py(3): error: identifier "m" is undefined' in output


def test_without_nvrtc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(UsageError, match=r"pip install nvidia-cuda-nvrtc$"):
        nvrtc.library()


SMALL = """
#include <cuda_bf16.h>
__device__ float doubled(float v) { return 2.0f * v; }

__global__ void other(float* y) { y[0] = 1.0f; }

__global__ void fused(float* y) { y[0] = y[1] * y[2] + y[3]; }

// every thread: its number /* as the hardware counts */, its block's number, and the block's size
__global__ void numbered(int* __restrict__ y, const int per_block /* threads, (all axes) */) {
    const int n = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * blockIdx.y;
    y[block * per_block + n] = threadIdx.x + 64 * threadIdx.y + 4096 * threadIdx.z + (block << 20);
}

__global__ void __launch_bounds__(64) bounded(float* y) { y[threadIdx.x] = 1.0f; }

__global__ void two(float* y, int extra) {
    __shared__ float first[8];
    __shared__ float second[24];
    first[threadIdx.x % 8 + extra] = 1.0f;
    second[threadIdx.x % 24] = 2.0f;
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x % 8] + second[threadIdx.x % 24];
}

__global__ void dynamic(float* y, int at) {
    __shared__ float first[3];
    extern __shared__ float4 rest[];
    first[threadIdx.x % 3] = 1.0f;
    rest[threadIdx.x + at] = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
    __syncthreads();
    y[threadIdx.x] = first[0] + rest[threadIdx.x + at].w;
}

__device__ float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};

__global__ void looked_up(float* y) { y[threadIdx.x] = table[threadIdx.x % 4]; }

__global__ void remembered(float* y) { y[threadIdx.x] = table[threadIdx.x % 4]++; }

__global__ void typed(float* y, double d, float f, long long l, bool b, short s) {
    y[threadIdx.x] = doubled(float(d + l + b + s) + f);
}
"""


def launched(name: str, configuration: tuple[Any, ...], *arguments: Any, races: bool = False) -> Outcome:
    launch = cuda_cpp.kernel(SMALL, name)[configuration].launch("sm_90", arguments)
    return run_launch(launch, races=races)


@pytest.mark.parametrize("block", [(8, 4, 2), (64,), (4, 16), (1, 2, 32)])
def test_threads_and_blocks_are_numbered_as_launched(block: tuple[int, ...]) -> None:
    y = torch.zeros(6, 64, dtype=torch.int32)
    assert not launched("numbered", ((3, 2), block), y, 64)
    X, Y, _ = (*block, 1, 1)[:3]
    n = torch.arange(64, dtype=torch.int32)
    threads = n % X + 64 * (n // X % Y) + 4096 * (n // (X * Y))
    assert torch.equal(y, threads + (torch.arange(6, dtype=torch.int32)[:, None] << 20))


def test_parameters_are_named_as_in_the_source() -> None:
    assert cuda_cpp.kernel(SMALL, "numbered").parameters == ("y", "per_block")
    assert cuda_cpp.kernel(OPS, "head_norm<float, float>").parameters[:3] == ("x", "weight", "y")
    assert cuda_cpp.kernel(SMALL, "doubled").parameters == ()  # no kernel


def test_a_parameter_takes_the_type_that_the_source_gives_it() -> None:
    y = torch.zeros(32)
    assert not launched("typed", (1, 32), y, 0.5 - (1 << 40), 2, 1 << 40, True, -3)
    assert set(y.tolist()) == {1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2), r"typed\[.*\]: 2 arguments, expected 6"),
        ((torch.zeros(1), torch.zeros(1), 1.0, 1, 1, 1), r"d is a Tensor, expected a float"),
        ((torch.zeros(1), 1.0, 1.0, 1.5, 1, 1), r"l is a float, expected an int of 64 bits or a tensor"),
        ((torch.zeros(1), 1.0, 1.0, 1, 1, 1 << 16), r"s=65536, expected an integer of 16 bits"),
        ((torch.zeros(1, device="meta"), 1.0, 1.0, 1, 1, 1), r"y is a tensor on meta, expected one on the CPU"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_by_name(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        launched("typed", (1, 32), *arguments)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ((0, 32), "a grid or a block without threads"),
        (((1, 65536), 32), "a grid of .* programs"),
        ((1, 2048), "a block of more than 1024 threads"),
        ((1, (1, 1, 128)), "a block of more than 1024 threads"),
        ((1, 96), r"a block of \(96, 1, 1\) threads, expected at most \(64, 1, 1\), as .*bounded"),
        ((1, 32, 228 << 10), "bytes of shared memory, expected 0 to 232448"),
    ],
)
def test_what_cuda_would_not_launch_is_not_launched(configuration: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        launched("bounded", configuration, torch.zeros(64))


@pytest.mark.parametrize("configuration", [5, (1,), (1, (1, 1, 1, 1)), (1.0, 32)])
def test_a_configuration_of_another_form_is_refused(configuration: Any) -> None:
    with pytest.raises(TypeError, match="expected"):
        launched("bounded", configuration, torch.zeros(64))


def test_a_variable_of_the_module_is_read_but_not_kept_from_launch_to_launch() -> None:
    y = torch.zeros(32)
    assert not launched("looked_up", (1, 32), y)
    assert y.tolist() == [1.0, 2.0, 3.0, 4.0] * 8
    with pytest.raises(NotExecutedError, match=r"remembered\w* writes to table, which would last"):
        launched("remembered", (1, 32), y)


def test_a_block_of_a_part_of_a_warp_is_not_executed() -> None:
    with pytest.raises(NotExecutedError, match="40 threads are no whole warps"):
        launched("bounded", (1, 40), torch.zeros(64))


def one(outcome: Outcome, kind: str) -> Violation:
    (violation,) = [found for found in outcome if found.kind == kind]
    assert violation.source.startswith(f"{Path(__file__)}:"), violation.source
    return violation


def test_what_leaves_a_variable_of_shared_memory_is_out_of_bounds_even_if_another_follows() -> None:
    y = torch.zeros(32)
    assert not launched("two", (1, 32), y, 0, races=True)
    assert y.tolist() == [3.0] * 32
    store = one(launched("two", (1, 32), y, 3), "OUT_OF_BOUNDS_WRITE")
    assert "0 bytes behind the end of first, 32 bytes of shared memory" in store.where
    assert store.count == 12  # three of each eight


def test_dynamic_shared_memory_is_as_large_as_the_launch_says() -> None:
    y = torch.zeros(32)
    assert not launched("dynamic", (1, 32, 512), y, 0, races=True)
    assert y.tolist() == [5.0] * 32
    store = one(launched("dynamic", (1, 32, 512), y, 1), "OUT_OF_BOUNDS_WRITE")
    assert "0 bytes behind the end of rest, 512 bytes of shared memory" in store.where
    assert (store.thread, store.count) == (31, 1)


def lines_of(kernel: cuda_cpp.Kernel) -> Callable[[str], set[str]]:
    made = kernel.compiled("sm_90")
    launch = Launch(made.ptx, (1, 1, 1), (), 0, made.cubin, made.entry, (32, 1, 1))
    instructions = launch.program.kernel.instructions
    return lambda opcode: {one.source for one in instructions if one.opcode.startswith(opcode)}


def test_an_inlined_line_names_the_lines_that_it_was_inlined_into(tmp_path: Path) -> None:
    source = """\
__device__ float inner(float v) { return sqrtf(v); }
__device__ float outer(float v) {
    return inner(v) + 1.0f;
}
__global__ void k(float* y) {
    y[0] = outer(y[0]);
}
"""
    file = tmp_path / "k.cu"
    file.write_text(source)
    sources = lines_of(cuda_cpp.kernel(file, "k"))
    assert sources("sqrt.rn.f32") == {f"{file}:1 in k.cu:3, k.cu:6"}
    assert sources("ld.global") == {f"{file}:6"}
    # A text that does not stand in this file has a name of its own.
    elsewhere = lines_of(cuda_cpp.kernel(source.replace("outer", "next"), "k"))
    assert {one.rpartition("/")[2] for one in elsewhere("ld.global")} == {"k.cu:6"}


def test_the_machine_code_of_one_kernel_of_several_is_read() -> None:
    """`other` has no FMA, and `fused` has one, in PTX and in machine code."""
    for name, count in (("fused", 1), ("other", 0)):
        made = cuda_cpp.kernel(SMALL, name).compiled("sm_90")
        kernel = Launch(made.ptx, (1, 1, 1), (), 0, made.cubin, made.entry, (32, 1, 1)).program.kernel
        assert opcodes_of(made.cubin, made.entry).count("FFMA") == count
        assert contracted(kernel, made.cubin) == ""
    with pytest.raises(RuntimeError, match="nvdisasm shows no 'k' among"):
        opcodes_of(made.cubin, "k")


def test_options_reach_the_compiler() -> None:
    fused = lines_of(cuda_cpp.kernel("__global__ void k(float* y) { y[0] = y[1] * y[2] + y[3]; }", "k"))
    apart = lines_of(
        cuda_cpp.kernel("__global__ void k(float* y) { y[0] = y[1] * y[2] + y[3]; }", "k", ("--fmad=false",))
    )
    assert (len(fused("fma.rn.f32")), len(apart("fma.rn.f32"))) == (1, 0)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"source=.*nowhere.cu: No such file"):
        cuda_cpp.kernel(tmp_path / "nowhere.cu", "k")


def test_a_launch_elsewhere_is_not_expressed() -> None:
    with pytest.raises(CannotExpress, match="--compiled"):
        cuda_cpp.kernel(SMALL, "other")[1, 32](torch.zeros(1))


def test_a_null_pointer_is_passed_as_one_and_reading_it_is_out_of_bounds() -> None:
    assert one(launched("bounded", (1, 32), None), "OUT_OF_BOUNDS_WRITE").count == 32
