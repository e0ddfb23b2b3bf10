"""How long calls take on the device, and how long the host is busy with them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


@dataclasses.dataclass(frozen=True)
class Sample:
    """Seconds a call, on the device and on the host."""

    device: float
    host: float


class Timer(Protocol):
    """Times calls.

    Attributes:
        device: the torch device that it times.
        cache_bytes: of the device's last-level cache, which arguments must rotate past.
        measures: what its numbers are, in words.
    """

    device: str
    cache_bytes: int
    measures: str

    def sample(self, call: Callable[[], object], calls: int) -> Sample:
        """Time so many calls as one run."""
        ...


class GpuTimer:
    """CUDA events around a run that was queued while the GPU was kept busy with waiting.

    So the device's time holds no gap in which it waited for the host, and the host's no time in which it waited for
    the device. A run whose start the GPU reached before its last call was queued is thrown away, and repeated
    behind a longer wait.
    """

    device = "cuda"
    measures = "CUDA events on a full queue; host time of queueing a call"
    longest_wait = 2.0  # seconds; a GPU shared with a display may be reset after more

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.wait = 2e-3
        cycles = 20_000_000
        for _ in range(2):  # the first finds the GPU at a low clock
            self.start.record()
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            self.end.record()
            self.end.synchronize()
        self.cycles_per_second = cycles / (self.start.elapsed_time(self.end) * 1e-3)

    def sample(self, call: Callable[[], object], calls: int) -> Sample:
        """Time a run of calls.

        Raises:
            RuntimeError: the host takes longer than `longest_wait` to queue them, or they wait for the device.
        """
        while True:
            torch.cuda.synchronize()
            torch.cuda._sleep(int(self.wait * self.cycles_per_second))  # type: ignore[no-untyped-call]
            self.start.record()
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            host = time.perf_counter() - begin
            queued_in_time = not self.start.query()
            self.end.record()
            self.end.synchronize()
            if queued_in_time:
                return Sample(self.start.elapsed_time(self.end) * 1e-3 / calls, host / calls)
            if self.wait >= self.longest_wait:
                raise RuntimeError(f"{calls} calls took {host:.3g} s to queue, expected less than {self.longest_wait}")
            self.wait = min(max(2 * self.wait, 2 * host), self.longest_wait)


class CpuTimer:
    """Wall-clock time on the CPU: shows that a benchmark runs, and measures nothing of the kernels."""

    device = "cpu"
    cache_bytes = 0
    measures = "wall clock on the CPU: a test of the harness, no measurement"

    def sample(self, call: Callable[[], object], calls: int) -> Sample:
        """Time a run of calls."""
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - begin) / calls
        return Sample(seconds, seconds)
