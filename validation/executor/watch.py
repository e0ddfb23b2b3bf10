"""How long a case may take: by the clock on a GPU, by processor time and programs launched under the interpreter.

A kernel of one row a program runs 65,700 programs on the largest cases, in each of several calls. Interpreted they
take 0.2 ms each on an idle processor and several times as long on a busy or slow one: a right kernel is then only too
slow for the device. So under the interpreter time that the process spent waiting for a processor does not count, the
limit grows with the programs, and a case that still launches programs when it ends is `Status.NOT_RUN`. One that
launched none within the limit hangs: `Status.TIMEOUT`.
"""

import dataclasses
import mmap
import os
import time
from pathlib import Path

from validation.device.launches import Counts
from validation.verdict import Status

# What a program adds to the limit: one row of 4 to 1024 columns takes 0.2 ms under the interpreter.
PROGRAM_SECONDS = 0.001
# The limit grows to this many times itself, or an endless loop of launches would never reach it.
MOST_LIMITS = 3.0
# Launches of fewer programs on average are not what makes a case slow: it launches for ever.
MANY_PROGRAMS = 1000
# Between two looks at the process.
POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Overrun:
    """Why a case is not waited for any longer.

    Attributes:
        status: `Status.TIMEOUT` or `Status.NOT_RUN`.
        reason: in words.
    """

    status: Status
    reason: str


class Clock:
    """The limit of a request in seconds of wall-clock time."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._end = time.monotonic() + limit

    def wait(self) -> float:
        """Seconds until the next look."""
        return max(self._end - time.monotonic(), 0.0)

    def overrun(self) -> Overrun | None:
        """Why to wait no longer; None while there is time."""
        if time.monotonic() < self._end:
            return None
        return Overrun(Status.TIMEOUT, f"did not return within {self.limit:g} s")


class Progress:
    """The limit of a case under the interpreter, which its process counts programs for."""

    def __init__(self, pid: int, counts: Counts, limit: float) -> None:
        """Begin to watch.

        Args:
            pid: the process.
            counts: what it launched, from 0.
            limit: seconds, see the module.
        """
        self.limit = limit
        self._pid, self._counts = pid, counts
        self._wall, self._cpu, _ = self._look()
        self._spent = self._since = 0.0  # seconds in all, and at the last new program
        self._programs = 0

    def wait(self) -> float:
        """Seconds until the next look."""
        return min(POLL_SECONDS, self.limit)

    def overrun(self) -> Overrun | None:
        """Why to wait no longer; None while there is time."""
        wall, cpu, running = self._look()
        # It computes or waits; what it waited for a processor does not count.
        self._spent += cpu - self._cpu if running else max(cpu - self._cpu, wall - self._wall)
        self._wall, self._cpu = wall, cpu
        programs, launches = self._counts.programs, self._counts.launches
        new, self._programs = programs > self._programs, programs
        if not new:
            after = f" of the last of {programs:,} programs that it launched" if programs else ""
            late = self._spent - self._since > self.limit
            return Overrun(Status.TIMEOUT, f"did not return within {self.limit:g} s{after}") if late else None
        self._since = self._spent
        if self._spent <= min(self.limit + PROGRAM_SECONDS * programs, MOST_LIMITS * self.limit):
            return None
        so_far = f"{programs:,} programs of {launches:,} launches in {self._spent:.0f} s"
        if programs < MANY_PROGRAMS * launches:
            reason = f"did not return within {self._spent:.0f} s and launches on and on: {so_far}"
            return Overrun(Status.TIMEOUT, reason)
        return Overrun(Status.NOT_RUN, f"not run on this device, too slow for the interpreter: {so_far}")

    def _look(self) -> tuple[float, float, bool]:
        """The time, the processor time of the process, and whether it has a processor or waits for one."""
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended, which the pipe tells
            return time.monotonic(), getattr(self, "_cpu", 0.0), True
        return time.monotonic(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] == "R"


def shared_counts() -> tuple[int, Counts]:
    """The descriptor of counts that a child fills in, and the counts."""
    descriptor = os.memfd_create("counts")
    os.ftruncate(descriptor, mmap.PAGESIZE)
    return descriptor, Counts(descriptor)
