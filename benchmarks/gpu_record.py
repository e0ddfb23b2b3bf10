"""What only a GPU can show, in one command, kept as a record.

    python benchmarks/gpu_record.py [--minutes N] [--steps NAME ...] [--op NAME ...] [--profile NAME] [--out FOLDER]
    python benchmarks/gpu_record.py --list [...]

Runs its parts one after the other, each in a process of its own that may take `--limit` seconds (570):

    predictions  ``validate confirm --gpu``: which of the bits that were predicted without a GPU hold
    parity       ``validate parity --gpu``, op by op: the declared corners, every real workload whole, offsets past
                 2^31 elements, a side stream, replay of a CUDA graph; truth in float64 on the GPU
    faults       ``validate faults --gpu``, op by op: the planted faults, those that only a GPU shows among them
    ops          ``validate bench ops --gpu``, op by op, and one table and picture of all of them
    denoise      ``validate bench denoise --gpu``, model by model: the fused arms with their drift; torch.compile alone,
                 and its drift
    memcheck     the quick profile under ``compute-sanitizer --tool memcheck``, with PyTorch's caching allocator
                 off, so that an access past a tensor's end is past an allocation's end
    racecheck    the same under ``--tool racecheck``: shared memory

and after each part writes ``gpu-<date>.json`` to FOLDER (default ``benchmarks/results``): environment, and of each
part the command, exit status (124: it was stopped), seconds and the end of what it printed. Called again, it goes on
with the parts that have not passed at this commit by the same command (`--again`: with all of them; what is not
committed is not known to it); `--minutes` ends it after so long. `--list` prints the parts and runs nothing.

Exit status 0 where all parts asked for have passed, 1 where one failed, 2 without a GPU, 3 where some are to do yet or
could not be run: where compute-sanitizer (CUDA toolkit) is not on the PATH its parts are recorded as not run.
"""

import argparse
import dataclasses
import datetime as dt
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import reference_ops
from validation.device import select
from validation.errors import UsageError
from validation.record import Environment

OF_AN_OP = ("parity", "faults", "ops", "memcheck", "racecheck")
STEPS = ("predictions", *OF_AN_OP[:3], "denoise", *OF_AN_OP[3:])
PROFILES = ("quick", "default", "nightly")
FUSED_ARMS = {
    "helios": ("#24059", "all sites", "compact", "CUDA graph"),
    "hunyuan3d": ("#24287", "all sites", "CUDA graph"),
}
DECODES = {"helios": "2", "hunyuan3d": "1"}  # a shape's field has 57 million points: some 1.9e15 operations in float32
RESULTS = Path(__file__).resolve().parent / "results"
PREDICTIONS = Path(__file__).resolve().parent / "predictions" / "fused_ops-sm_90.json"
STOPPED = 124


@dataclasses.dataclass(frozen=True)
class Part:
    """A process to run.

    Attributes:
        name: unique in the record.
        command: its command line.
        environment: variables that it adds to the environment.
        folder: its run folder, which must be new: leftovers of an earlier run are deleted.
    """

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    folder: Path | None = None


def parts(steps: Sequence[str], ops: Sequence[str], profile: str, scratch: Path, out: Path) -> Iterator[Part]:
    """The parts of these steps for these ops; results of single ops go to ``scratch``, all others to ``out``."""
    validate = (sys.executable, "-m", "validation")

    def of_op(step: str, op: str) -> Part:
        name, folder = f"{step} {op}", scratch / f"{step}-{op}"
        run = ("--out", str(folder))
        sweep = ("parity", "--gpu", "--op", op, *run, "--profile")
        match step:
            case "faults":
                return Part(name, (*validate, "faults", *sweep[1:], profile), folder=folder)
            case "ops":
                return Part(name, (*validate, "bench", "ops", "--gpu", "--op", op, *run))
            case "memcheck" | "racecheck":
                tool = ("compute-sanitizer", "--tool", step, "--error-exitcode", "7", "--target-processes", "all")
                uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
                return Part(name, (*tool, *validate, *sweep, "quick"), uncached, folder)
        return Part(name, (*validate, *sweep, profile), folder=folder)

    for step in steps:
        if step == "predictions":
            named = (word for op in ops for word in ("--op", op)) if [*ops] != [*reference_ops.OP_NAMES] else ()
            yield Part(step, (*validate, "confirm", str(PREDICTIONS), "--gpu", *named))
        if step in OF_AN_OP:
            yield from (of_op(step, op) for op in ops)
        if step == "ops":
            timed = (str(path) for op in ops for path in sorted((scratch / f"ops-{op}").glob("*.json")))
            yield Part("ops table", (*validate, "bench", "ops", "--out", str(out), "--merge", *timed))
        for model in FUSED_ARMS if step == "denoise" else ():
            bench = (*validate, "bench", "denoise", "--gpu", "--model", model, "--out", str(out))
            fused = (word for arm in FUSED_ARMS[model] for word in ("--arm", arm))
            yield Part(f"denoise {model}", (*bench, "--profile", "--decodes", DECODES[model], *fused))
            compiled = (*bench, "--arm", "torch.compile", "--decodes", "0")
            yield Part(f"denoise {model} torch.compile", (*compiled, "--drift", "none"))
            # A separate part, since compiling the whole model leaves too little of a part's time.
            small = ("--tiny", "--rounds", "1", "--steps", "1", "--drift", "embedded")
            yield Part(f"denoise {model} torch.compile, its drift", (*compiled, *small))


def run(part: Part, limit: float) -> dict[str, Any]:
    """Run a part, stop it after ``limit`` seconds, and return its outcome for the record."""
    done: dict[str, Any] = {"command": [*part.command], "environment": dict(part.environment)}
    if shutil.which(part.command[0]) is None:
        return done | {"status": None, "reason": f"{part.command[0]} is not on the PATH"}
    if part.folder is not None:
        shutil.rmtree(part.folder, ignore_errors=True)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(
            part.command,
            env=os.environ | dict(part.environment),
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children too, which may hang on the GPU
            process.wait()
            status = STOPPED
        seconds = round(time.perf_counter() - start, 1)
        printed.seek(0)
        return done | {"status": status, "seconds": seconds, "printed": printed.read()[-6000:]}


def go_on(
    path: Path,
    environment: dict[str, Any],
    asked: Callable[[], Iterator[Part]],
    *,
    limit: float,
    until: float,
    again: bool = False,
) -> int:
    """Run the parts that have not passed at this commit, writing the record after each; returns the exit status.

    Args:
        path: the record's; it is created if missing.
        environment: this call's; its commit decides what counts as done.
        asked: makes the parts, in order; each is made once those before it have run.
        limit: seconds that a part may take.
        until: the `time.monotonic` at which no part may run any more.
        again: whether to run parts that have already passed.
    """
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    known, to_do = record["parts"], []
    record["environment"], commit = environment, environment["commit"].rstrip("+")
    for part in asked():
        last = known.get(part.name, {})
        same = (last.get("commit"), last.get("command")) == (commit, [*part.command])
        if same and last["status"] == 0 and not again:
            continue
        left = until - time.monotonic()
        if left <= 0:
            to_do.append(part.name)
            continue
        done = run(part, min(limit, left)) | {"commit": commit}
        if done["status"] == STOPPED and left < limit:
            to_do.append(part.name)
            continue
        known[part.name] = done
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps({"part": part.name} | {k: v for k, v in done.items() if k != "printed"}), flush=True)
        print(done.get("printed", ""), flush=True)
    if to_do:
        print(f"to do yet, by the same command: {', '.join(to_do)}")
        return 3
    statuses = [known[part.name]["status"] for part in asked()]
    return 1 if any(statuses) else 3 if None in statuses else 0


def main() -> int:
    """Run the parts, write the record, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="of the record and the results")
    choices: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    ops, steps = reference_ops.OP_NAMES, STEPS
    parser.add_argument("--op", choices=ops, default=ops, help="these ops alone (default: all)", **choices)
    parser.add_argument("--steps", choices=steps, default=steps, help="these parts alone (default: all)", **choices)
    parser.add_argument("--profile", choices=PROFILES, default="default", help="how many cases an op gets")
    parser.add_argument("--list", action="store_true", help="print the parts, with their commands; needs no GPU")
    parser.add_argument("--limit", type=float, default=570, help="seconds a part (default: 570)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this call (default: no limit)")
    parser.add_argument("--again", action="store_true", help="run parts that have passed too")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    name = f"gpu-{dt.datetime.now(dt.UTC).date().isoformat()}"

    def asked() -> Iterator[Part]:
        return parts(arguments.steps, arguments.op, arguments.profile, arguments.out / name, arguments.out)

    if arguments.list:
        for part in asked():
            print(f"{part.name}: {shlex.join([*(f'{k}={v}' for k, v in part.environment), *part.command])}")
        return 0
    try:
        device = select(gpu=True)
    except UsageError as error:
        print(f"gpu_record: {error}", file=sys.stderr)
        return 2
    environment = Environment.capture(device=device.name, seed=0, profile=arguments.profile)
    path = arguments.out / f"{name}.json"
    status = go_on(
        path,
        dataclasses.asdict(environment),
        asked,
        limit=arguments.limit,
        until=until,
        again=arguments.again,
    )
    print(path)
    return status


if __name__ == "__main__":
    sys.exit(main())
