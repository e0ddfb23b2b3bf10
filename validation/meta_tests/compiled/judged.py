"""The suite's own judge on compiled kernels: in a process without Triton's interpreter.

echo '{"target": "sm_90", "cases": [...]}' | python -m validation.meta_tests.compiled.judged
"""

import json
import sys

import fused_ops
from validation.cases.case import Case
from validation.compiled.ptx.executing import executing
from validation.judge.calls import as_callers_do
from validation.judge.verdict import judge_call


def main() -> None:
    """Print a line of JSON for each case: status, reason, violations and the number of its launches."""
    request = json.load(sys.stdin)
    for case in map(Case.from_json, request["cases"]):
        with executing(request["target"]) as runs:
            verdict = judge_call(case, as_callers_do(case, getattr(fused_ops, case.op)), "cpu")
        line = [verdict.status.value, verdict.reason, [str(v) for v in runs.violations], runs.launches]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
