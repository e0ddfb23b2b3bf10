"""The protocol of parent and child: numbered lines of JSON over two pipes; they share nothing else.

Request: ``{"ops", "device", "path"}`` first, which loads the op set; then ``{"case", "grad"}``, ``{"case", "calls"}``
or ``{"op", "bad_call"}``.
``{"printed"}`` in each names the file that takes what the process prints, "" for stderr.
Answer: ``{"answer"}``, ``{"usage_error"}`` or ``{"defect"}``, with the request's number.
"""

import dataclasses
import traceback
from typing import Self

import torch

from validation.executor.base import Death
from validation.verdict import Status


@dataclasses.dataclass(frozen=True)
class Defect:
    """An exception in the child process that the candidate did not raise.

    Attributes:
        trace: its traceback.
        place: the file and line that raised it, formatted as the end of a message.
        accelerator: whether the accelerator raised it.
    """

    trace: str
    place: str
    accelerator: bool

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Describe an exception that was caught."""
        trace = "".join(traceback.format_exception(error))
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        place = f", in {innermost.filename}, line {innermost.lineno}"
        return cls(trace, place, isinstance(error, torch.AcceleratorError))

    @property
    def death(self) -> Death:
        """The verdict on a case that a new process could not judge either."""
        last = self.trace.strip().splitlines()[-1]
        if self.accelerator:
            return Death(Status.CRASHED, f"the accelerator was lost while its results were judged: {last}")
        return Death(Status.CRASHED, f"its result could not be judged: {last}{self.place}")
