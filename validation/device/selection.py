"""Selects where the kernels run, once per process: Triton's interpreter on the CPU, or a GPU."""

import dataclasses
import gc
import os

from validation.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Device:
    """A chosen device.

    Attributes:
        name: ``interpreter``, or the GPU's name.
        torch: the torch device string, ``cpu`` or ``cuda``.
        bfloat16_problems: what is wrong with the interpreter's bfloat16 conversions; unless it is empty,
            bfloat16 cannot be judged.
    """

    name: str
    torch: str
    bfloat16_problems: tuple[str, ...] = ()

    @property
    def interpreted(self) -> bool:
        """True where kernels run under Triton's interpreter."""
        return self.torch == "cpu"


_selected: Device | None = None


def pin_gpu(gpu: str) -> None:
    """Let this process see only one GPU; must be called before CUDA is initialised.

    Args:
        gpu: as ``CUDA_VISIBLE_DEVICES`` names it.

    Raises:
        UsageError: CUDA is already initialised.
    """
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UsageError(f"GPU {gpu} cannot be pinned: CUDA is in use already, expected it untouched")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def gpu_of_worker(worker: int) -> str:
    """The GPU of a worker, as ``CUDA_VISIBLE_DEVICES`` names it; workers take turns if there are fewer GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        visible = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = visible.split(",")
    return gpus[worker % len(gpus)].strip()


def select(gpu: bool) -> Device:
    """Choose the device of this process; must be called before any kernel is imported.

    Without ``gpu``, enables Triton's interpreter, repairs its bfloat16 conversion, checks the repair
    against torch, and limits torch to one thread.

    Raises:
        UsageError: ``gpu`` without a usable GPU, with the interpreter switched on, or after the other
            device was selected; without ``gpu``, Triton's interpreter cannot be switched on.
    """
    global _selected
    if gpu:
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--gpu: torch sees no usable GPU, expected one (leave --gpu out to use the CPU)")
    if _selected is not None:
        if _selected.interpreted == gpu:
            raise UsageError(f"the device is {_selected.name} already, expected one device a process")
        return _selected
    if gpu:
        if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
            raise UsageError("--gpu: TRITON_INTERPRET is set, expected it unset: kernels would not be compiled")
        _selected = Device(torch.cuda.get_device_name(), "cuda")
    else:
        import torch

        from validation.device import interpreter

        # Cases are small, and idle OpenMP threads spin: with the other core busy, two threads took 76 s for a
        # sampled video, one thread 35 s.
        torch.set_num_threads(1)
        try:
            interpreter.enable()
        except RuntimeError as error:
            raise UsageError(str(error)) from error
        _selected = Device("interpreter", "cpu", tuple(interpreter.verify_bfloat16()))
    # torch and Triton are imported by now, and stay: the collector need not look through them (8 % of a run's time).
    gc.freeze()
    return _selected
