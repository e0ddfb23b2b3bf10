"""How long calls take on the device, and how long the host is busy with them."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from validation.device.private import cuda_sleep

_COPY_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class CallTime:
    """Seconds a call, on the device and on the host."""

    device: float
    host: float


class Timer(Protocol):
    """Times calls.

    Attributes:
        device: the torch device that it times.
        cache_bytes: size of the device's last-level cache, which the rotated arguments must exceed.
        measures: what its numbers are, in words.
    """

    device: str
    cache_bytes: int
    measures: str

    def sample(self, call: Callable[[], object], calls: int) -> CallTime:
        """Time ``calls`` calls as one run."""
        ...


class GpuTimer:
    """CUDA events around a run that is queued while a wait kernel keeps the GPU busy.

    So the device's time contains no gap in which it waited for the host, and the host's contains no wait for the
    device. A run whose start the GPU reached before its last call was queued is thrown away and repeated behind a
    longer wait.
    """

    device = "cuda"
    measures = "CUDA events on a full queue; host time of queueing a call"
    longest_wait = 2.0  # seconds; after more, a GPU shared with a display may be reset

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.wait = 2e-3
        cycles = 20_000_000
        for _ in range(2):  # the GPU's clock is still low in the first
            self.start.record()
            cuda_sleep(cycles)  # type: ignore[no-untyped-call]
            self.end.record()
            self.end.synchronize()
        self.cycles_per_second = cycles / (self.start.elapsed_time(self.end) * 1e-3)

    def sample(self, call: Callable[[], object], calls: int) -> CallTime:
        """Time a run of calls.

        Raises:
            RuntimeError: the host takes longer than `longest_wait` to queue them, or they wait for the device.
        """
        while True:
            torch.cuda.synchronize()
            cuda_sleep(int(self.wait * self.cycles_per_second))  # type: ignore[no-untyped-call]
            self.start.record()
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            host = time.perf_counter() - begin
            queued_in_time = not self.start.query()
            self.end.record()
            self.end.synchronize()
            if queued_in_time:
                return CallTime(self.start.elapsed_time(self.end) * 1e-3 / calls, host / calls)
            if self.wait >= self.longest_wait:
                raise RuntimeError(f"{calls} calls took {host:.3g} s to queue, expected less than {self.longest_wait}")
            self.wait = min(max(2 * self.wait, 2 * host), self.longest_wait)


class CpuTimer:
    """Wall-clock time on the CPU: shows that a benchmark runs, but does not measure the kernels."""

    device = "cpu"
    cache_bytes = 0
    measures = "wall clock on the CPU: a test of the harness, no measurement"

    def sample(self, call: Callable[[], object], calls: int) -> CallTime:
        """Time a run of calls."""
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - begin) / calls
        return CallTime(seconds, seconds)


def random_pair(numbers: int, device: str) -> tuple[Tensor, Tensor]:
    """Two tensors of random int64 to copy between; zeros may move faster than an op's real data."""
    generator = torch.Generator(device).manual_seed(0)
    source, target = torch.empty(2, numbers, dtype=torch.int64, device=device).random_(generator=generator)
    return source, target


class Marks:
    """Moments on the device's stream, or on the host's clock if the device is the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.at: list[Any] = []

    def mark(self) -> None:
        """Mark the moment at which the device has finished everything queued so far."""
        if self.gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.at.append(event)
        else:
            self.at.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds between neighbouring marks; waits for the device."""
        if not self.gpu:
            return [b - a for a, b in zip(self.at, self.at[1:], strict=False)]
        self.at[-1].synchronize()
        return [1e-3 * a.elapsed_time(b) for a, b in zip(self.at, self.at[1:], strict=False)]


def copy_bandwidth(timer: Timer) -> float:
    """Bytes per second that a copy reads and writes, past the cache."""
    source, target = random_pair(_COPY_BYTES // 8, timer.device)
    return 2 * _COPY_BYTES / statistics.median(timer.sample(lambda: target.copy_(source), 4).device for _ in range(5))
