"""Where kernels run, chosen once per process, and what it needs from torch and Triton."""

from validation.device.selection import Device, gpu_of_worker, pin_gpu, select

__all__ = ["Device", "gpu_of_worker", "pin_gpu", "select"]
