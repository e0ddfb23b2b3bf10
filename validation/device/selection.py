"""Selects where the kernels run, once per process: interpreted or compiled on the CPU, or on a GPU."""

import dataclasses
import gc
import os
from typing import Any

from validation.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Device:
    """A chosen device.

    Attributes:
        name: ``interpreter``, ``sm_90, executed on the CPU``, or the GPU's name.
        torch: the torch device string, ``cpu`` or ``cuda``.
        bfloat16_problems: what is wrong with the interpreter's bfloat16 conversions; unless it is empty,
            bfloat16 cannot be judged.
        compiled: the target for which kernels are compiled, whose PTX runs on the CPU; None elsewhere.
        races: whether races are looked for in every case, where kernels are compiled for the CPU to execute.
    """

    name: str
    torch: str
    bfloat16_problems: tuple[str, ...] = ()
    compiled: str | None = None
    races: bool = False

    @property
    def gpu(self) -> bool:
        """True where kernels run on a GPU."""
        return self.torch == "cuda"

    @property
    def kind(self) -> str:
        """``interpreter``, ``compiled`` or ``gpu``."""
        return "gpu" if self.gpu else "interpreter" if self.compiled is None else "compiled"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `select`, and the options of the command line, that give this device."""
        return {"gpu": self.gpu, "compiled": self.compiled, "races": self.races}


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


def select(gpu: bool = False, compiled: str | None = None, races: bool = False) -> Device:
    """Choose the device of this process; must be called before any kernel is imported.

    On the CPU, limits torch to one thread, and has Triton compile for a target or interpret; repairs the interpreter's
    bfloat16 conversion, and checks the repair against torch.

    Args:
        gpu: run on the GPU.
        compiled: compile for this target and execute the PTX on the CPU.
        races: look for races in every case; with ``compiled``.

    Raises:
        UsageError: ``gpu`` without a usable GPU or with ``compiled``; ``races`` without ``compiled``; ``gpu`` or
            ``compiled`` with the interpreter switched on, or after another device was selected; a target without PTX;
            Triton's interpreter cannot be switched on.
    """
    global _selected
    if gpu and compiled is not None:
        raise UsageError("--compiled: expected no --gpu with it: it executes on the CPU what a GPU would run")
    if races and compiled is None:
        raise UsageError("--races: expected --compiled with it: only what is executed shows its threads")
    if gpu:
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--gpu: torch sees no usable GPU, expected one (leave --gpu out to use the CPU)")
    if _selected is not None:
        if (_selected.gpu, _selected.compiled, _selected.races) != (gpu, compiled, races):
            raise UsageError(f"the device is {_selected.name} already, expected one device a process")
        return _selected
    if gpu:
        if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
            raise UsageError("--gpu: TRITON_INTERPRET is set, expected it unset: kernels would not be compiled")
        _selected = Device(torch.cuda.get_device_name(), "cuda")
    else:
        import torch

        # Cases are small, and idle OpenMP threads spin: with the other core busy, two threads took 76 s for a
        # sampled video, one thread 35 s.
        torch.set_num_threads(1)
        _selected = _interpreted() if compiled is None else _executed(compiled, races)
    # torch and Triton are imported by now, and stay: the collector need not look through them (8 % of a run's time).
    gc.freeze()
    return _selected


def _interpreted() -> Device:
    from validation.device import interpreter

    try:
        interpreter.enable()
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    return Device("interpreter", "cpu", tuple(interpreter.verify_bfloat16()))


def _executed(target: str, races: bool) -> Device:
    from validation.device import executed

    try:
        executed.enable(target, races=races)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--compiled: {error}") from error
    return Device(f"{target}, executed on the CPU", "cpu", compiled=target, races=races)
