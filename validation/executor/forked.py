"""A forked child of an isolated executor; the fork server imports this module, the children what is in it."""

from validation.device.private import dynamo
from validation.executor import child

dynamo()  # the first guarded call of a child would import it


def serve(requests: int, replies: int, trace: int) -> None:
    """As `validation.executor.child.serve`."""
    child.serve(requests, replies, trace)
