"""``python -m validation.controls``: judge correct op sets and count the false alarms; there should be none.

With ``--model helios`` (or hunyuan3d), right and wrong op sets on a sampled model, and how far they lie apart.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from validation import controls
from validation.device import Device, select
from validation.equivalence import MARGIN
from validation.errors import UsageError
from validation.executor import InProcess
from validation.ops import OpSet, check_op_name
from validation.options import DEVICES
from validation.parity.one_case import SHORT_DTYPE
from validation.parity.plan import Plan
from validation.parity.profiles import Profile
from validation.parity.sweep import Sweep
from validation.record import Level, Record
from validation.samples import registry
from validation.samples.request import Request
from validation.verdict import Tier

# Cases per op if --cases is not given.
DEFAULT_CASES = {
    **dict.fromkeys(controls.NAMES, 1_000),
    **dict.fromkeys(("reference", "fused", "torch_native"), 10_000),
    "torch_compile": 300,
}


# The tier that each control must reach: a control differs from the reference path in the order of a sum, or rounds at
# the same places or fewer, so nothing is lost. An op set that loses accuracy only in special rows is rightly `close`,
# such as sums in 32 lanes: for a constant float32 row the reference's mean is exact, and theirs is not.
REQUIRED_TIER = Tier.LOSSLESS


def judge_control(op: str, ops: OpSet, device: Device, *, cases: int, seed: int) -> Iterator[Record]:
    """Sweep one op of a control: each declared corner twice, then free draws up to at least ``cases`` cases.

    Held to `REQUIRED_TIER`.
    """
    profile = Profile("controls", 2, 1)
    forced = len(list(Plan.of(op, device, profile, seed).cases())) - profile.free
    profile = dataclasses.replace(profile, free=max(cases - forced, 1))
    return Sweep(InProcess(ops, device), profile, seed, REQUIRED_TIER, shrink=False).of_op(op)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m validation.controls",
        description="Judges correct op sets, held to lossless. Whatever is flagged is a false alarm. With --model, "
        "correct and wrong op sets on a sampled model: prints how far they lie from the truth, beside the band of "
        "legal roundings.",
        epilog="exit status: 0 every verdict as it must be, 1 a false alarm or a missed fault, 2 usage error",
    )
    parser.add_argument("names", nargs="*", metavar="CONTROL", help=f"of {', '.join(controls.NAMES)} (default: all)")
    parser.add_argument(
        "--cases", type=int, metavar="N", help="cases an op, at least (default: 10000, 1000, or 300 of torch_compile)"
    )
    parser.add_argument("--op", action="append", default=[], metavar="NAME", help="this op only; may be repeated")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="all cases are drawn from it (default: 0)")
    parser.add_argument("--model", choices=registry.names(), help="judge the controls of a sampled model instead")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="with --model: as for validate quality")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="with --model: as for validate quality")
    parser.add_argument("--replays", type=int, default=8, metavar="N", help="with --model: as for validate quality")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="with --model: as for validate quality")
    for option in DEVICES:
        parser.add_argument(f"--{option.name}", **option.keywords())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments) if arguments.model is None else _run_model(arguments)
    except UsageError as error:
        print(f"validation.controls: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    if arguments.cases is not None and arguments.cases < 1:
        raise UsageError(f"--cases: {arguments.cases}, expected an integer >= 1")
    for op in arguments.op:
        check_op_name(op)
    device = select(arguments.gpu, arguments.compiled, arguments.races)
    if device.bfloat16_problems:
        raise UsageError(f"bfloat16 cannot be judged: {'; '.join(device.bfloat16_problems)}")
    alarms = judged = 0
    print(f"{device.name}, torch {torch.__version__}, seed {arguments.seed}")
    print(
        f"{'control':<16}{'op':<40}{'cases':>7}{'alarms':>8}{'seconds':>9}  {'tier':<10}{'arith.':>8}"
        + "".join(f"{f'{kind} {SHORT_DTYPE[dtype]}':>10}" for kind, dtype in MARGIN)
    )
    for name in arguments.names or controls.NAMES:
        ops = controls.op_set(name)
        cases = arguments.cases or DEFAULT_CASES[name]
        for op in arguments.op or ops.functions:
            if op not in ops:
                print(f"{name:<16}{op:<40}  not provided", flush=True)
                continue
            start, count, flagged, columns = time.perf_counter(), 0, [], ""
            for record in judge_control(op, ops, device, cases=cases, seed=arguments.seed):
                count += record.level is Level.OP
                if record.status.failed:
                    flagged.append(record)
                if "mean_rms_ratio" in record.numbers:
                    columns = _columns(record)
            seconds = time.perf_counter() - start
            print(f"{name:<16}{op:<40}{count:>7}{len(flagged):>8}{seconds:>9.1f}  {columns}", flush=True)
            for record in flagged[:3]:
                print(record.message, flush=True)
            alarms += len(flagged)
            judged += count
    print(f"{judged} cases, {alarms} alarms")
    return 1 if alarms else 0


def _columns(summary: Record) -> str:
    """The tier, the largest share of the arithmetic's allowance, the bounds of the RMS and the maximum error by dtype.

    These show how near correct arithmetic comes to the margins of `equivalence`, which define lossless.
    """
    names = (f"upper_{kind}_ratio_{dtype}" for kind, dtype in MARGIN)
    ratios = (summary.numbers.get(name) for name in names)
    ratio_columns = "".join(f"{'-':>10}" if ratio is None else f"{ratio:>10.3f}" for ratio in ratios)
    return f"{summary.tier or '-':<10}{summary.numbers['arithmetic_percent']:>7.0f}%{ratio_columns}"


def _run_model(arguments: argparse.Namespace) -> int:
    if arguments.cases is not None or arguments.op:
        raise UsageError("--cases and --op are of the op level, expected none of them with --model")
    device = select(arguments.gpu, arguments.compiled, arguments.races)
    if device.bfloat16_problems:
        raise UsageError(f"bfloat16 cannot be judged: {'; '.join(device.bfloat16_problems)}")
    from validation.controls import separation

    def progress(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    request = Request(
        device,
        arguments.checkpoint,
        prompts=arguments.prompts,
        seed=arguments.seed,
        replays=arguments.replays,
        cache=arguments.cache,
        progress=progress,
    )
    print(f"{arguments.model} on {device.name}, torch {torch.__version__}, seed {arguments.seed}, held to lossless")
    print(separation.header(arguments.model))
    wrong, expected = [], []
    for found in separation.separate(arguments.model, arguments.names or separation.names(arguments.model), request):
        print(separation.line(found), flush=True)
        expected.append(found.expected)
        if found.expected is False:
            wrong.append(found.name)
    if any(found is None for found in expected):
        print("shown: no verdict is asked for. At unit variance 16 bits hide it from a model; the op level catches it.")
    print(f"{len(wrong)} verdicts are not as they must be{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
