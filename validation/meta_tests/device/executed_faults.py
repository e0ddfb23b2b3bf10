"""The planted faults that only compiled kernels show, judged in a process without the interpreter."""

import json
from collections import Counter
from itertools import islice

NAMES = (
    "exchange without a barrier",
    "false max_constancy",
    "false multiple_of",
    "in place between programs",
    "rsqrt of a subnormal",
    # Seen under the interpreter too.
    "row mask missing",
    "weight read by whole blocks",
)

# Corners of the case that a fault is caught in, for a sweep that would come to it late: the 201st case, after 24 s.
FIRST = {"in place between programs": ("values=tiny", "shift=indexed", "x: offset 1")}


def main() -> None:
    """Print as JSON the status and reason of each fault's record, and how many right cases end in each status."""
    from validation.device import select
    from validation.executor import InProcess
    from validation.faults import load, matrix
    from validation.faults.compiled import RightExchange
    from validation.ops import OpSet
    from validation.parity.one_case import judge_case
    from validation.parity.plan import Plan
    from validation.parity.profiles import PROFILES

    device, quick = select(compiled="sm_90"), PROFILES["quick"]
    load()
    found = {}
    for name in NAMES:
        record = matrix.judge(name, device, quick, 0, first_kill=True, first=FIRST.get(name, ()))
        found[name] = [record.status, record.reason]
    right = InProcess(OpSet("right", {"scale_shift": RightExchange().scale_shift}, "right"), device)
    cases = islice(Plan.of("scale_shift", device, quick, 1).cases(), 0, None, 8)
    statuses = Counter(judge_case(planned.case, right).status for planned in cases)
    print(json.dumps({**found, "right": statuses}))
