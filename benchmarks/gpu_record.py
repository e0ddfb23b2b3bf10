"""What only a GPU can show of the op catalogue, in one command, kept as a record.

    python benchmarks/gpu_record.py [--out FOLDER] [--op NAME ...] [--profile NAME] [--steps NAME ...]

Runs, each in a process of its own:

    parity       ``validate parity --gpu``: the declared corners, every real workload whole, offsets past 2^31
                 elements, a side stream, replay of a CUDA graph; truth in float64 on the GPU
    no-fusion    the same with ``TRITON_DEFAULT_FP_FUSION=0``: products and sums are not contracted
    faults       ``validate faults --gpu``: the planted faults, those that only a GPU shows among them
    memcheck     the quick profile under ``compute-sanitizer --tool memcheck``, with PyTorch's caching allocator
                 off, so that an access past a tensor's end is past an allocation's end
    racecheck    the same under ``--tool racecheck``: shared memory

and writes ``gpu-<date>.json`` to FOLDER (default ``benchmarks/results``): environment, and of each step the
command, exit status, seconds and the end of what it printed. Exit status 1 where a step failed, 2 without a GPU.
Where compute-sanitizer (CUDA toolkit) is not on the PATH its two steps are recorded as not run, and that is said.
"""

import argparse
import dataclasses
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from validation.device import select
from validation.errors import UsageError
from validation.record import Environment

STEPS = ("parity", "no-fusion", "faults", "memcheck", "racecheck")
RESULTS = Path(__file__).resolve().parent / "results"


def command(step: str, ops: list[str], profile: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command line of a step, and what it adds to the environment."""
    validate = [sys.executable, "-m", "validation", "parity", "--gpu"]
    if step == "faults":
        validate[-2] = "faults"
    checked = step in ("memcheck", "racecheck")
    for op in ops:
        validate += ["--op", op]
    validate += ["--profile", "quick" if checked else profile, "--out", str(folder / step)]
    match step:
        case "no-fusion":
            return validate, {"TRITON_DEFAULT_FP_FUSION": "0"}
        case "memcheck" | "racecheck":
            tool = ["compute-sanitizer", "--tool", step, "--error-exitcode", "7", "--target-processes", "all"]
            return [*tool, *validate], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return validate, {}


def run(step: str, ops: list[str], profile: str, folder: Path) -> dict[str, Any]:
    """Run a step and say what became of it."""
    line, environment = command(step, ops, profile, folder)
    done: dict[str, Any] = {"step": step, "command": line, "environment": environment}
    if shutil.which(line[0]) is None:
        return done | {"status": None, "reason": f"{line[0]} is not on the PATH"}
    start = time.perf_counter()
    result = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
    seconds = round(time.perf_counter() - start, 1)
    return done | {"status": result.returncode, "seconds": seconds, "printed": result.stdout[-6000:]}


def main() -> int:
    """Run the steps, write the record, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--op", action="append", default=[])
    parser.add_argument("--profile", default="default")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args()
    try:
        device = select(gpu=True)
    except UsageError as error:
        print(f"gpu_record: {error}", file=sys.stderr)
        return 2
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        for step in arguments.steps:
            steps.append(run(step, arguments.op, arguments.profile, Path(folder)))
            print(json.dumps({key: value for key, value in steps[-1].items() if key != "printed"}), flush=True)
            print(steps[-1].get("printed", ""), flush=True)
    environment = Environment.capture(device=device.name, seed=0, profile=arguments.profile)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"gpu-{today}.json"
    path.write_text(json.dumps({"environment": dataclasses.asdict(environment), "steps": steps}, indent=1) + "\n")
    print(path)
    return int(any(step["status"] for step in steps))


if __name__ == "__main__":
    sys.exit(main())
