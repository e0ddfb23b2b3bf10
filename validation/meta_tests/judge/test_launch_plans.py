"""A launch that follows a plan equals the op's own launch; planted faults are what plans must not overlook."""

from pathlib import Path

from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.meta_tests.launch_plans import DRAWN, FAULTS
from validation.ops import reference_op_names

ROOT = Path(__file__).parents[3]


def compare(*arguments: str) -> list[str]:
    """The lines that `launch_plans` prints."""
    order = Order("validation.meta_tests.launch_plans", "main", arguments, str(ROOT), {})
    return start_call(order, without=("TRITON_INTERPRET",)).output().splitlines()


def test_planned_launches_are_those_of_the_op_itself() -> None:
    """Kernel, grid, every argument and the results of each case, also with other alignments and other strides."""
    lines = compare()
    assert [line.partition(":")[0] for line in lines] == [*reference_op_names()], "\n".join(lines)[:4000]
    for line in lines:
        words = line.split()
        cases, followed = int(words[1]), int(words[3])
        assert cases >= DRAWN
        assert followed > 2 * cases


def test_what_a_plan_overlooks_is_seen() -> None:
    found = {fault: int(count) for fault, _, count in (line.partition(": ") for line in compare("--plant", "qk_norm"))}
    assert [*found] == [*FAULTS]
    assert all(found.values()), found
