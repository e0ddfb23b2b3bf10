"""Check that an op refuses a bad call as it must: with the argument named, and before it writes."""

import re

import torch

from validation.cases.errors import BadCall
from validation.cases.tensors import materialise
from validation.errors import CannotExpress, NotExecutedError
from validation.judge import structure
from validation.ops import Op, surroundings, tracebacks


def not_refused(bad: BadCall, candidate: Op, device: str) -> str:
    """Describe what a candidate did with a bad call; "" if it refused it.

    A refusal is a TypeError, a ValueError or a NotImplementedError whose message names the argument, raised before
    anything is written.
    """
    arguments = materialise(bad.case, device)
    if bad.change:
        bad.change(arguments.kwargs)
    words = "accepted"
    try:
        with torch.set_grad_enabled(bad.grad), structure.GuardedAllocations(), surroundings.kept():
            candidate(**arguments.kwargs)
    except (TypeError, ValueError, NotImplementedError) as error:
        named = any(re.search(rf"\b{name}\b", tracebacks.said(error)) for name in bad.arguments)
        expected = " or ".join(bad.arguments)
        words = "" if named else f"{type(error).__name__} without the name of {expected}: {_one_line(error)}"
    except CannotExpress:
        words = ""
    except NotExecutedError:  # it went as far as a launch
        pass
    except BaseException as error:  # whatever a candidate raises
        if tracebacks.is_interrupt(error):
            raise
        words = f"{type(error).__name__}, expected a TypeError, ValueError or NotImplementedError: {_one_line(error)}"
    written = next(filter(None, structure.inputs_changed(arguments)), "")
    return words or (f"refused, but only after writing to memory: {written}" if written else "")


def _one_line(error: BaseException) -> str:
    return tracebacks.said(error)[:120]
