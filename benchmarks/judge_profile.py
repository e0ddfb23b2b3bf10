"""Where a sweep's time goes: truth and candidate, against what judging adds to them.

    python benchmarks/judge_profile.py [--ops MODULE] [--profile NAME] [OP ...]
    python benchmarks/judge_profile.py --whole [--profile NAME] [OP ...]

The first form sweeps each op as ``validate parity`` does and prints, for each and in all, seconds by stage: ``drawing``
(the pool of compile keys, the corners and the free cases), ``inputs`` (making the tensors), ``truth`` (the reference
in float64 and in the working dtype, and the error bound), ``candidate`` (one call), ``judge`` (memory, values,
statistics), ``same bits`` (further calls), ``bad input`` (calls that must be refused) and ``rest`` (records, corners,
the op's tier); the ratio of judge and same bits to inputs, truth and candidate; and milliseconds per case.

With ``--whole`` it runs one ``pytest -m parity`` and splits its wall-clock time: until the first test begins
(interpreter, imports, collection), tests, and the time after them (report). Both forms also print the processor time,
which is steadier on a busy machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

STAGES = ("drawing", "inputs", "truth", "candidate", "judge", "same bits", "bad input", "rest")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default="fused_ops")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("names", nargs="*", metavar="OP")
    arguments = parser.parse_args()
    if arguments.whole:
        _whole(arguments)
    else:
        _by_stage(arguments)


def _by_stage(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    import torch

    torched = time.perf_counter()
    from validation.device import select
    from validation.executor import InProcess
    from validation.ops import load_op_set
    from validation.parity.plan import Plan
    from validation.parity.profiles import profile_named
    from validation.parity.sweep import Sweep

    device = select(gpu=False)
    ops = load_op_set(arguments.ops)
    profile = profile_named(arguments.profile)
    print(f"import torch {torched - start:.2f}s, the suite and the ops {time.perf_counter() - torched:.2f}s")
    torch.set_num_threads(1)
    print(f"{'':40}" + "".join(f"{stage:>11}" for stage in STAGES) + f"{'judging / rest':>16}{'ms a case':>11}")
    total: Counter[str] = Counter()
    for op in arguments.names or ops.functions:
        seconds: Counter[str] = Counter()
        began = time.perf_counter()
        drawn = list(Plan.of(op, device, profile, 0).cases())
        seconds["drawing"] = time.perf_counter() - began
        # The sweep draws the same cases again, from a cache.
        began, cases = time.perf_counter(), len(drawn)
        for record in Sweep(InProcess(ops, device), profile, 0).of_op(op):
            seconds.update({name: n for name, n in record.seconds.items() if name in STAGES})
            if record.check == "bad input":
                seconds["bad input"] += record.seconds["total"]
        seconds["rest"] = time.perf_counter() - began - sum(n for name, n in seconds.items() if name != "drawing")
        seconds["cases"] = cases
        total += seconds
        _print(op, seconds)
    _print("all", total)
    print(f"{total['cases']} cases, processor time {time.process_time():.1f}s with start")


def _print(name: str, seconds: Counter[str]) -> None:
    judging = seconds["judge"] + seconds["same bits"]
    rest = seconds["inputs"] + seconds["truth"] + seconds["candidate"]
    a_case = 1000 * sum(seconds[stage] for stage in STAGES) / seconds["cases"]
    stages = "".join(f"{seconds[stage]:10.2f}s" for stage in STAGES)
    print(f"{name:40}{stages}{judging / rest:16.2f}{a_case:11.1f}", flush=True)


def _whole(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "parity", f"--junitxml={junit}"]
        command += ["--profile", arguments.profile, "--out", str(Path(folder, "run")), f"--ops={arguments.ops}"]
        command += [word for name in arguments.names for word in ("--op", name)]
        before, began, began_at = os.times(), time.perf_counter(), time.time()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
        wall, after = time.perf_counter() - began, os.times()
        records = Path(folder, "run", "records.jsonl").read_text().splitlines()
        cases = sum('"level": "op"' in line for line in records)
        stamp = Path(folder, "run", "environment.json").stat().st_mtime - began_at
        tests = sum(float(case.get("time", 0)) for case in ET.parse(junit).iter("testcase"))
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"pytest -m parity --profile {arguments.profile}: {cases} cases, {wall:.1f}s, processor {processor:.1f}s")
    print(f"  until the first case {stamp:6.1f}s   tests {tests:6.1f}s   after them {wall - stamp - tests:6.1f}s")
    print(f"  a 1000 cases {1000 * wall / cases:14.1f}s   processor {1000 * processor / cases:.1f}s")


if __name__ == "__main__":
    main()
