"""Sample level: whole videos sampled with reference ops and with the op set's."""

import pytest

from validation.plugin import check
from validation.session import Session


@pytest.mark.quality
def test_quality(validation_session: Session) -> None:
    check(validation_session, validation_session.quality())
