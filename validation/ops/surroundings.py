"""Process-wide torch state that a candidate may change: restored after each call, and reported.

Truth, baseline and inputs are computed in the candidate's own process. With denormals flushed, the float64 truth reads
float16's smallest numbers as 0, like the candidate that asked for it, and calls it right; with bfloat16 as the default
dtype the inputs are rounded before any op sees them (a fault that shows in 180 of 211 cases showed in 11).
"""

import contextlib
import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from validation.device.private import disable_current_modes

_SMALLEST, _ONE = 5e-324, 1.0


def _folder() -> str | None:
    """The working directory; None if it is gone."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _change_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _set_device(device: torch.device) -> None:
    # None removes the device mode; "cpu" would leave one that slows every call.
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _seeds() -> tuple[bytes, ...]:
    """The state of torch's default generators, whose next numbers a sampled model takes."""
    with disable_current_modes():  # in a fake tensor mode a state would be fake
        states = [torch.get_rng_state()]
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            states += torch.cuda.get_rng_state_all()
        return tuple(state.numpy().tobytes() for state in states)


def _set_seeds(states: tuple[bytes, ...]) -> None:
    with disable_current_modes():
        first, *others = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states)
        torch.set_rng_state(first)
        if others:
            torch.cuda.set_rng_state_all(others)


def _numpy_seed() -> tuple[Any, ...]:
    kind, key, *rest = np.random.get_state()
    return kind, np.asarray(key).tobytes(), *rest


def _set_numpy_seed(state: tuple[Any, ...]) -> None:
    kind, key, *rest = state
    np.random.set_state((kind, np.frombuffer(key, dtype=np.uint32), *rest))


_backends: Any = torch.backends

# The parts of torch that have a float32 precision of their own; "none" means that of all.
_PRECISIONS = {
    "all": _backends,
    "cuda.matmul": _backends.cuda.matmul,
    "cudnn.conv": _backends.cudnn.conv,
    "cudnn.rnn": _backends.cudnn.rnn,
    "mkldnn.matmul": _backends.mkldnn.matmul,
    "mkldnn.conv": _backends.mkldnn.conv,
    "mkldnn.rnn": _backends.mkldnn.rnn,
}


def _precisions() -> dict[str, str]:
    return {name: part.fp32_precision for name, part in _PRECISIONS.items()}


def _set_precisions(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if _PRECISIONS[name].fp32_precision != value:
            _PRECISIONS[name].fp32_precision = value


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # after one of `_PRECISIONS` was set, which this older setting cannot express
        return "mixed"


def _set_matmul_precision(value: str) -> None:
    if value != "mixed":
        torch.set_float32_matmul_precision(value)


# Flags of CUDA's libraries; TF32 is one of `_PRECISIONS`.
_FLAGS: Mapping[str, tuple[Any, ...]] = {
    "cudnn": (_backends.cudnn, "enabled", "benchmark", "deterministic"),
    "cuda.matmul": (
        _backends.cuda.matmul,
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    ),
}


def _flags() -> dict[str, bool]:
    return {f"{part}.{name}": getattr(where, name) for part, (where, *names) in _FLAGS.items() for name in names}


def _set_flags(values: Mapping[str, bool]) -> None:
    for name, value in values.items():
        part, _, flag = name.rpartition(".")
        setattr(_FLAGS[part][0], flag, value)


# How each part of autocast is read and set.
_AUTOCAST: Mapping[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "on the CPU": (partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
    "on CUDA": (partial(torch.is_autocast_enabled, "cuda"), partial(torch.set_autocast_enabled, "cuda")),
    "dtype on the CPU": (partial(torch.get_autocast_dtype, "cpu"), partial(torch.set_autocast_dtype, "cpu")),
    "dtype on CUDA": (partial(torch.get_autocast_dtype, "cuda"), partial(torch.set_autocast_dtype, "cuda")),
    "cache of cast weights": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
}


def _autocast() -> dict[str, Any]:
    return {name: read() for name, (read, _) in _AUTOCAST.items()}


def _set_autocast(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        _AUTOCAST[name][1](value)


def _shown(before: Any, now: Any) -> tuple[str, str]:
    """Both values as text; of mappings the entries that differ."""
    if isinstance(before, Mapping):
        differ = [name for name in before if before[name] != now[name]]
        before, now = (", ".join(f"{name} {value[name]}" for name in differ) for value in (before, now))
    return str(before).removeprefix("torch."), str(now).removeprefix("torch.")


@dataclasses.dataclass(frozen=True)
class _Setting:
    """A part of the state: how to read it, set it, and say that it has changed, with both values or without."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    words: str


_SETTINGS = {
    "dtype": _Setting(
        torch.get_default_dtype, torch.set_default_dtype, "torch's default dtype is {now}, it was {before}"
    ),
    "device": _Setting(torch.get_default_device, _set_device, "torch's default device is {now}, it was {before}"),
    "flushes": _Setting(
        lambda: _SMALLEST * _ONE == 0.0, torch.set_flush_denormal, "denormal numbers are{not_} flushed to 0"
    ),
    "folder": _Setting(_folder, _change_folder, "the working directory is {now}, it was {before}"),
    "grad": _Setting(torch.is_grad_enabled, torch.set_grad_enabled, "grad mode is{not_} on"),
    # In this order: to set the first sets some of the others.
    "matmul": _Setting(
        _matmul_precision, _set_matmul_precision, "torch's float32 matmul precision is {now}, it was {before}"
    ),
    "precisions": _Setting(_precisions, _set_precisions, "torch's float32 precision (TF32) is {now}, it was {before}"),
    "flags": _Setting(_flags, _set_flags, "flags of torch.backends are {now}, they were {before}"),
    "deterministic": _Setting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
        "torch's deterministic algorithms are {now} (on, warnings only), they were {before}",
    ),
    "autocast": _Setting(_autocast, _set_autocast, "autocast is {now}, it was {before}"),
    "threads": _Setting(
        torch.get_num_threads, torch.set_num_threads, "torch computes with {now} threads, it did with {before}"
    ),
    "seeds": _Setting(_seeds, _set_seeds, "the state of torch's default random generator changed"),
    "numpy": _Setting(_numpy_seed, _set_numpy_seed, "the state of NumPy's random generator changed"),
    "random": _Setting(random.getstate, random.setstate, "the state of Python's random generator changed"),
}


# What ``with`` blocks set, and put back.
_SCOPED = ("grad", "autocast")


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """A snapshot of the state that a call may change.

    Attributes:
        values: torch's default dtype and device, whether this thread treats denormal numbers as 0, the working
            directory, grad mode, the precision of float32 arithmetic, flags of CUDA's libraries, deterministic
            algorithms, autocast, the number of threads, the state of the default random generators of torch, NumPy and
            Python; by the names of `_SETTINGS`.
    """

    values: Mapping[str, Any]

    @classmethod
    def now(cls) -> "Surroundings":
        """Take a snapshot of this thread."""
        return cls({name: setting.read() for name, setting in _SETTINGS.items()})

    def difference(self, other: "Surroundings") -> str:
        """Describe how a later snapshot differs from this one; "" if it does not."""
        words = []
        for name, setting in _SETTINGS.items():
            before, now = self.values[name], other.values[name]
            if before != now:
                was, shown = _shown(before, now)
                words.append(setting.words.format(before=was, now=shown, not_="" if now else " no longer"))
        return "; ".join(words)

    def put_back(self, other: "Surroundings", *, scoped: bool = True) -> None:
        """Restore the parts of this snapshot that differ in ``other``, the current one.

        Without ``scoped`` leave grad mode and autocast, which ``with`` blocks around the snapshot have put back since.
        """
        for name, setting in _SETTINGS.items():
            if other.values[name] != self.values[name] and (scoped or name not in _SCOPED):
                setting.write(self.values[name])


@dataclasses.dataclass
class Kept:
    """The finding of `kept` at its end.

    Attributes:
        changed: describes the changes; "" if there were none.
    """

    changed: str = ""


@contextlib.contextmanager
def kept() -> Iterator[Kept]:
    """Put the surroundings back at the end of the ``with`` block, whether or not it raises."""
    before, found = Surroundings.now(), Kept()
    try:
        yield found
    finally:
        after = Surroundings.now()
        if after != before:
            found.changed = before.difference(after)
            before.put_back(after)
