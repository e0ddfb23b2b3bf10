"""``pytest -n N``: the ops are spread over processes, and there is still one run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from validation.device import gpu_of_worker
from validation.record import Level, read_run
from validation.run_plan import RunState

ROOT = Path(__file__).parent.parent.parent

# A right op, and a wrong one that takes the mean of absolute values. Each reports the worker that called it.
OPS = """
import os
from pathlib import Path

import reference_ops

WORKER = Path(__file__).with_name(os.environ.get("PYTEST_XDIST_WORKER", "no worker"))


def rms_norm(x, weight=None, eps=1e-6, *, casting_mode="float32"):
    WORKER.touch()
    return reference_ops.rms_norm(x, weight, eps, casting_mode=casting_mode)


def layer_norm(x, weight=None, bias=None, eps=1e-6):
    WORKER.touch()
    y = (x - x.abs().mean(-1, keepdim=True)) * (x.float().var(-1, keepdim=True, correction=0) + eps).rsqrt()
    return y.to(x.dtype)
"""


def test_the_workers_records_make_one_run(tmp_path: Path) -> None:
    module, out = tmp_path / "my_ops.py", tmp_path / "run"
    module.write_text(OPS)
    command = [sys.executable, "-m", "pytest", "validation/test_parity.py", "-n", "2", "--validate-ops", str(module)]
    command += [
        "--no-validate-isolate",
        "--validate-profile",
        "quick",
        "--validate-out",
        str(out),
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert done.stdout.count("report: ") == 1
    assert [(tmp_path / name).exists() for name in ("gw0", "gw1", "no worker")] == [True, True, False]
    environment, records = read_run(out)
    assert "-n 2" in environment.command
    state = RunState.read(out)
    assert state.plan is not None
    assert set(state.plan.ops) == {"layer_norm", "rms_norm"}
    assert state.closed == len(records)
    summaries = {r.subject: r for r in records if r.level is Level.RUN and r.check != "bad input"}
    assert set(summaries) == {"layer_norm", "rms_norm"}
    for op, summary in summaries.items():
        judged = [r for r in records if r.level is Level.OP and r.subject == op]
        assert len(judged) >= summary.numbers["cases"] > 60  # type: ignore[operator]
    assert not any(r.status.failed for r in records if r.subject == "rms_norm" and r.level is Level.OP)
    assert any(r.status.failed for r in records if r.subject == "layer_norm")
    assert list((out / "failures").glob("layer_norm-*.json"))
    assert (out / "report.html").exists()


def test_each_worker_has_a_gpu_of_its_own_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5a, 0")
    assert [gpu_of_worker(n) for n in range(4)] == ["3", "GPU-5a", "0", "3"]


def test_a_gpu_is_pinned_before_cuda_is_touched() -> None:
    # In a separate process: torch looks for GPUs only once.
    code = "from validation.device import pin_gpu; pin_gpu('7'); import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "7", done.stderr
