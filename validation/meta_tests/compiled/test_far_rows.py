"""No fused op leaves its tensors beyond 2^31 elements, judged by addresses alone; with 32-bit row offsets each does."""

import json

from validation.meta_tests.compiled.without_interpreter import printed_by
from validation.ops import reference_op_names


def far_rows(*arguments: str) -> dict[str, list[str]]:
    """The violations that `far_rows` prints, by op."""
    found = json.loads(printed_by("far_rows", *arguments)[-1])
    assert [*found] == [*reference_op_names()]
    return dict(found)


def test_every_op_stays_in_its_tensors_beyond_2_to_the_31_elements() -> None:
    assert not any(far_rows().values())


def test_row_offsets_of_32_bits_are_found_in_every_op() -> None:
    for op, violations in far_rows("--narrow").items():
        assert any(v.startswith("OUT_OF_BOUNDS_WRITE") for v in violations), op
        assert any("bytes before" in v and "_launch.py:" in v for v in violations), op
