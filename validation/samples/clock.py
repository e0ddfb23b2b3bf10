"""Measure the wall-clock time and the memory of a sampling."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class Clock:
    """Adds up wall-clock seconds by stage; waits for the GPU at each edge."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Begin to time a stage; a GPU first finishes its work."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) - self._now()

    def stop(self, stage: str) -> None:
        """Add the seconds since `start` to its stage."""
        self.seconds[stage] += self._now()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage until the end of the ``with`` block."""
        self.start(stage)
        try:
            yield
        finally:
            self.stop(stage)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # "5" resets the process's high-water mark (VmHWM) to its present memory; see proc(5).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the mark then covers the whole life of the process: an upper bound


def peak_memory(device: torch.device) -> int:
    """The greatest number of bytes held since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(kib) * 1024
