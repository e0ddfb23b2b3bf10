"""Op level: each op of the op set, on generated cases, against its reference."""

import pytest

from validation.parity import sweep as parity
from validation.plugin import check
from validation.session import Session


@pytest.mark.parity
def test_parity(op_name: str, validation_session: Session) -> None:
    s = validation_session
    check(
        s,
        parity.parity(
            s.ops, (op_name,), s.device, profile=s.profile, seed=s.options.seed, require=s.require, xfail=s.xfail
        ),
    )
