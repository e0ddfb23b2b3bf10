"""Op level: each op of the op set, on generated cases, against its reference."""

import pytest

from validation.plugin import check
from validation.session import Session


@pytest.mark.parity
def test_parity(op_name: str, validation_session: Session) -> None:
    check(validation_session, validation_session.sweep.of_ops((op_name,)))
