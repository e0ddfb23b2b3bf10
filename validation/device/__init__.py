"""Where kernels run, chosen once a process, and what that needs of torch and Triton."""

from validation.device.selection import Device, gpu_of_worker, pin_gpu, select

__all__ = ["Device", "gpu_of_worker", "pin_gpu", "select"]
