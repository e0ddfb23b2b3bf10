"""The interpreter's bfloat16: repaired, and the check on it seen to fail where it is not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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
