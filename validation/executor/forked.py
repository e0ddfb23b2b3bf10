"""A forked child of an isolated executor; the fork server imports this module, the children what is in it."""

import torch._dynamo  # noqa: F401  # the first guarded call of a child would import it

from validation.executor import child


def serve(requests: int, replies: int, trace: int) -> None:
    """As `validation.executor.child.serve`."""
    child.serve(requests, replies, trace)
