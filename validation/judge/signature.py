"""The arguments of an op, read from its reference op."""

from validation.cases.signature import Signature
from validation.ops import reference_op


def signature_of(op: str) -> Signature:
    """The signature of the reference op of that name; UsageError if there is none."""
    return Signature.of(op, reference_op(op))
