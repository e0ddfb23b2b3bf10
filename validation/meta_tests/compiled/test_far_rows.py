"""No fused op leaves its tensors beyond 2^31 elements, judged by addresses alone; with 32-bit row offsets each does."""

import json
from pathlib import Path

from validation.forking.forked import start_call
from validation.forking.server import Order
from validation.ops import reference_op_names

ROOT = Path(__file__).parents[3]


def far_rows(*arguments: str) -> dict[str, list[str]]:
    """The violations that `far_rows` prints, by op."""
    order = Order("validation.meta_tests.compiled.far_rows", "main", arguments, str(ROOT), {})
    found = json.loads(start_call(order, without=("TRITON_INTERPRET",)).output().splitlines()[-1])
    assert [*found] == [*reference_op_names()]
    return dict(found)


def test_every_op_stays_in_its_tensors_beyond_2_to_the_31_elements() -> None:
    assert not any(far_rows().values())


def test_row_offsets_of_32_bits_are_found_in_every_op() -> None:
    for op, violations in far_rows("--narrow").items():
        assert any(v.startswith("OUT_OF_BOUNDS_WRITE") for v in violations), op
        assert any("bytes before" in v and "_launch.py:" in v for v in violations), op
