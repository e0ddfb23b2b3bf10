"""The interpreter's bfloat16: repaired, and the check on it seen to fail where it is not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

from validation import interpreter

UNREPAIRED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from validation import interpreter
interpreter.repair = lambda: None
from validation import device
problems = device.select(gpu=False).bfloat16_problems
print(len(problems))
from validation import cli
raise SystemExit(cli.main(["parity", "--op", "layer_norm_scale_shift", "--profile", "quick", "--out", {out!r}]))
"""


def test_repaired_conversions_agree_with_torch_on_every_pattern() -> None:
    assert interpreter.verify_bfloat16() == []


def test_narrowing_agrees_with_torch_on_random_bits() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 2_000_000, dtype=np.uint32)
    values = torch.from_numpy(bits.view(np.float32).copy())
    ours = torch.from_numpy(interpreter.float32_to_bfloat16(bits).view(np.int16)).view(torch.bfloat16)
    expected = values.to(torch.bfloat16)
    same = (ours.view(torch.int16) == expected.view(torch.int16)) | (ours.isnan() & expected.isnan())
    assert bool(same.all())


def test_truncating_conversion_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "float32_to_bfloat16", lambda bits: (bits >> np.uint32(16)).astype(np.uint16))
    problems = interpreter.verify_bfloat16()
    # Every lower half above the tie, and ties on odd numbers, must have been noticed.
    assert any("0x8000" in problem for problem in problems)
    assert any("0xffff" in problem for problem in problems)


def test_where_the_repair_is_missing_bfloat16_is_not_judged_and_the_run_fails(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", UNREPAIRED.format(out=str(out))], capture_output=True, text=True)
    assert int(done.stdout.split()[0]) > 0, done.stderr
    assert done.returncode == 1, done.stderr
    assert "BFLOAT16_NOT_JUDGED" in done.stdout
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    dtypes = {record["dtype"] for record in records if record["level"] == "op"}
    assert dtypes == {"float32", "float16"}


def test_fma_rounds_once() -> None:
    from validation._interpreter_kernels import fused_multiply_add

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4096, generator=generator)
    z = -(x * y)  # what is left is the product's rounding error, which two roundings lose
    got = torch.empty(4096)
    fused_multiply_add[(1,)](x, y, z, got, 4096)
    assert torch.equal(got.double(), x.double() * y.double() + z.double())
    assert bool((got != 0).any())


def test_remembered_types_and_tensors_are_what_triton_makes() -> None:
    """Each twice, so that the second comes from memory; the originals are below the wrappers."""
    interpreter.enable()
    block, tensor = tl.block_type, tl.tensor
    elements = [tl.float32, tl.bfloat16, tl.int1, tl.int64, tl.pointer_type(tl.float16), tl.pointer_type(tl.float32)]
    for element in elements:
        for shape in ([4], [8, 16], [tl.constexpr(8), 16], tl.tuple([2, 1])):
            for _ in range(2):
                made, plain = block(element, shape), block.__new__(block)
                block.__init__.__wrapped__(plain, element, shape)
                assert str(vars(made)) == str(vars(plain))
                assert made.element_ty is element
                got, wanted = tensor("handle", made), tensor.__new__(tensor)
                tensor.__init__.__wrapped__(wanted, "handle", plain)
                assert vars(got).keys() == vars(wanted).keys()
                assert {name: str(value) for name, value in vars(got).items()} == {
                    name: str(value) for name, value in vars(wanted).items()
                }
                assert got.type is made
        numpy_dtype = triton_interpreter._get_np_dtype
        assert numpy_dtype(element) == numpy_dtype.__wrapped__(element) == numpy_dtype(element)
    with pytest.raises(ValueError, match="power of 2"):
        block(tl.float32, [3])


@triton.jit
def _sum_of_two(x, y):  # type: ignore[no-untyped-def]
    tl.store(y, tl.load(x) + tl.load(x + 1))


def test_an_overflow_wraps_as_it_did_before_its_check_was_left_out() -> None:
    interpreter.enable()
    y = torch.zeros(1, dtype=torch.int32)
    _sum_of_two[(1,)](torch.tensor([2**31 - 1, 2], dtype=torch.int32), y)
    assert y.item() == -(2**31) + 1
