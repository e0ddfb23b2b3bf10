"""Makes Triton compile for a target without such a device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from validation.device.private import triton_module

# Triton's description of each target: backend, architecture, threads of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# Those whose PTX is executed.
EXECUTED = tuple(name for name in TARGETS if name.startswith("sm_"))


class Driver:
    """Triton's driver for a target without a device: enough to compile."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        """The ``GPUTarget`` to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """The index of the only device."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """The default stream."""
        return 0

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """What times the configurations of an autotuned kernel: all alike, without a launch. The first one is taken."""
        return lambda _call, *, quantiles: [0.0 for _ in quantiles]

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie that a kernel can reach."""
        return torch.device("cpu")


def compile_for(target: str) -> None:
    """Make Triton compile for a target of `TARGETS` from now on, without such a device."""
    gpu = triton_module("triton.backends.compiler").GPUTarget(*TARGETS[target])
    triton_module("triton.runtime.driver").driver.set_active(Driver(gpu))
