"""Process-wide state that a candidate changes is restored and reported, and does not affect the truth."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference_ops
from validation.cases.case import Case, TensorSpec
from validation.device import select
from validation.executor import InProcess
from validation.ops import OpSet, load_op_set, surroundings
from validation.ops.surroundings import Surroundings
from validation.parity.one_case import judge_case
from validation.record import Record
from validation.verdict import Status

backends: Any = torch.backends
SMALLEST_HALF = 2.0**-24


def case_of(values: tuple[float, ...]) -> Case:
    """A case of residual + x in float16."""
    shape = (1, 1, len(values))
    tensors = {name: TensorSpec(shape, "float16", (len(values), len(values), 1), 0, name) for name in ("residual", "x")}
    flags = {"casting_mode": "float32"}
    literals = {"residual": values, "x": (0.0,) * len(values)}
    return Case("residual_gate_add", tensors, flags, "normal", 0, literals)


def judged(function: Callable[..., Any], values: tuple[float, ...] = (1.0, SMALLEST_HALF)) -> Record:
    ops = OpSet("mine", {"residual_gate_add": function}, "mine.py")
    return judge_case(case_of(values), InProcess(ops, select(gpu=False)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: torch.set_default_dtype(torch.bfloat16), "torch's default dtype is bfloat16, it was float32"),
        (lambda: torch.set_default_device("meta"), "torch's default device is meta, it was cpu"),
        (lambda: torch.set_flush_denormal(True), "denormal numbers are flushed to 0"),
        (lambda: os.chdir("/"), "the working directory is /, it was "),
        (lambda: torch.set_float32_matmul_precision("medium"), "float32 matmul precision is medium, it was highest"),
        (
            lambda: torch.use_deterministic_algorithms(True),
            "(True, False) (on, warnings only), they were (False, False)",
        ),
        (lambda: torch.set_autocast_enabled("cpu", True), "autocast is on the CPU True, it was on the CPU False"),
        (lambda: torch.set_autocast_dtype("cpu", torch.float16), "autocast is dtype on the CPU torch.float16, "),
        (lambda: torch.set_autocast_enabled("cuda", True), "autocast is on CUDA True, "),
        (lambda: torch.set_autocast_cache_enabled(False), "autocast is cache of cast weights False, "),
        (lambda: torch.set_grad_enabled(True), "grad mode is on"),
        (lambda: setattr(backends.cuda.matmul, "allow_tf32", True), "(TF32) is cuda.matmul tf32, "),
        (lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"), "(TF32) is cuda.matmul tf32, it was "),
        (
            lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
            "is cudnn.conv ieee, it was cudnn.conv ",
        ),
        (lambda: setattr(backends.cudnn, "benchmark", True), "cudnn.benchmark True, they were cudnn.benchmark F"),
        (lambda: setattr(backends.cudnn, "deterministic", True), "torch.backends are cudnn.deterministic True"),
        (
            lambda: setattr(backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
            "allow_bf16_reduced_precision_reduction False, they were ",
        ),
        (np.random.rand, "the state of NumPy's random generator changed"),
        (random.random, "the state of Python's random generator changed"),
        (lambda: torch.set_num_threads(2), "torch computes with 2 threads, it did with 1"),
        (lambda: torch.manual_seed(7), "the state of torch's default random generator changed"),
        (lambda: torch.rand(1), "the state of torch's default random generator changed"),
    ],
)
def test_what_a_call_changes_fails_it_and_is_put_back(change: Callable[[], Any], says: str) -> None:
    def changing(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = reference_ops.residual_gate_add(*args, **kwargs)
        change()
        return y

    before = Surroundings.now()
    record = judged(changing)
    assert (record.status, record.check) == (Status.STATE_CHANGED, "surroundings")
    assert says in record.reason
    assert Surroundings.now() == before
    # The default device is unset: "cpu" as default device would be a mode.
    assert torch.utils._device.CURRENT_DEVICE is None


def test_it_is_put_back_after_a_call_that_raises() -> None:
    def raising(*_: Any, **__: Any) -> Tensor:
        torch.set_flush_denormal(True)
        raise ArithmeticError

    before = Surroundings.now()
    assert judged(raising).status is Status.RUNTIME_ERROR
    assert Surroundings.now() == before


def test_flushed_denormals_show_in_the_numbers_too() -> None:
    """They did not show while the mode was also on for the truth."""

    def flushing(residual: Tensor, x: Tensor, gate: Any = None, **kwargs: Any) -> Tensor:
        y: Tensor = reference_ops.residual_gate_add(residual, x, gate, **kwargs)
        return torch.where(y.abs() < torch.finfo(torch.float16).tiny, torch.zeros_like(y), y)

    assert judged(flushing).status is Status.INCORRECT_NUMERICAL
    assert judged(reference_ops.residual_gate_add).status is Status.PASSED


def test_a_folder_that_is_gone_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with surroundings.kept() as around:
        pass
    assert around.changed == ""


def test_what_an_import_changes_is_put_back_with_a_warning(tmp_path: Path) -> None:
    """With bfloat16 as the default dtype the inputs would be rounded before an op sees them."""
    file = tmp_path / "mine.py"
    file.write_text("import torch\ntorch.set_default_dtype(torch.bfloat16)\n\ndef rms_norm(*_):\n    pass\n")
    before = Surroundings.now()
    with pytest.warns(UserWarning, match=r"mine.py: torch's default dtype is bfloat16, it was float32; put back"):
        load_op_set(str(file))
    assert Surroundings.now() == before
