"""What is not executed, and what a kernel did that it must not do."""

import dataclasses

from validation.errors import NotExecutedError

__all__ = ["NotExecutedError", "Violation"]


@dataclasses.dataclass(frozen=True)
class Violation:
    """What a kernel must not do; one for each instruction, with the first thread that did it.

    Attributes:
        kind: ``OUT_OF_BOUNDS_READ``, ``OUT_OF_BOUNDS_WRITE``, ``MISALIGNED``, ``ASSERTION_FAILED``; where races are
            looked for, ``RACE`` and ``UNINITIALISED_READ`` (of shared memory).
        kernel: the kernel's name.
        opcode: the instruction's exact spelling.
        source: the Python line that it was compiled from, ``path:line``.
        cta: the CTA's number in the grid, x fastest. thread: the thread's number in its CTA.
        count: how many accesses of this instruction did so.
        where: the address in words, such as ``12 bytes past the end of argument 3``; or the assertion's text.
    """

    kind: str
    kernel: str
    opcode: str
    source: str
    cta: int
    thread: int
    count: int
    where: str

    def __str__(self) -> str:
        return (
            f"{self.kind} in {self.kernel}, {self.source}: {self.opcode}, CTA {self.cta} thread {self.thread}, "
            f"{self.where} ({self.count} accesses)"
        )
