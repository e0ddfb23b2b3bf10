"""Where a sweep's time goes: truth and candidate, against what judging adds to them.

    python benchmarks/judge_profile.py [--ops MODULE] [--cases N] [OP ...]

Prints, for each op and in all, wall-clock seconds by stage: ``inputs`` (making the tensors),
``truth`` (the reference in float64 and in the working dtype, and the error bound), ``candidate`` (one call),
``judge`` (memory, values, statistics) and ``same bits`` (further calls); and the ratio of the last two to the
first three.
"""

import argparse
import warnings
from collections import Counter

from validation.device import select

STAGES = ("inputs", "truth", "candidate", "judge", "same bits")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default="fused_ops")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("names", nargs="*", metavar="OP")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(triton|numpy)\.")
    device = select(gpu=False)
    from validation import parity
    from validation.cases.strategies import cases
    from validation.ops import load_op_set

    ops = load_op_set(arguments.ops)
    total: Counter[str] = Counter()
    print(f"{'':40}" + "".join(f"{stage:>11}" for stage in STAGES) + f"{'judging / rest':>16}")
    for op in arguments.names or ops.functions:
        seconds: Counter[str] = Counter()
        for case in parity.draw_cases(cases(parity.signature_of(op)), seed=0, count=arguments.cases):
            seconds.update(parity.run(case, ops, device).seconds)
        total += seconds
        _print(op, seconds)
    _print("all", total)


def _print(name: str, seconds: Counter[str]) -> None:
    judging = seconds["judge"] + seconds["same bits"]
    rest = seconds["inputs"] + seconds["truth"] + seconds["candidate"]
    print(f"{name:40}" + "".join(f"{seconds[stage]:10.2f}s" for stage in STAGES) + f"{judging / rest:16.2f}")


if __name__ == "__main__":
    main()
