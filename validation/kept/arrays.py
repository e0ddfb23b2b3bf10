"""Files of tensors, such as latents, and how two of them are compared."""

import dataclasses
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from validation.samples.rung import Measure, Rung, SampleError, as_number
from validation.verdict import Numbers, Series, Status

SUFFIXES = (".npy", ".safetensors", ".pt", ".npz")


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """The tensors of a file by name, on the CPU."""

    tensors: Mapping[str, Tensor]

    def same_bits(self, other: "ArrayFile") -> bool:
        """Whether names, dtypes, shapes and all bits are equal."""
        if self.tensors.keys() != other.tensors.keys():
            return False
        pairs = ((tensor, other.tensors[name]) for name, tensor in self.tensors.items())
        return all(a.dtype == b.dtype and a.shape == b.shape and not int(differing(a, b).sum()) for a, b in pairs)


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Which values differ in any bit, of two tensors of one dtype and shape: bool ``[values]``."""
    size = max(a.element_size(), 1)
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8).reshape(-1, size) for tensor in (a, b)]
    return (bits[0] != bits[1]).any(dim=1)


def read_arrays(path: Path) -> ArrayFile:
    """Read all tensors of a file.

    Raises:
        ValueError: it is missing or damaged, or holds something else than tensors with values.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}, expected arrays")
    try:
        held = _read(path)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        RuntimeError,
        BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{path} is damaged ({reason}), expected arrays of numbers") from error
    tensors = dict(_named("", held))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.numel():
            what = (
                f"an empty tensor {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            )
            raise ValueError(f"{path} holds {what}{f' as {name}' if name else ''}, expected tensors with values")
    if not tensors:
        raise ValueError(f"{path} holds nothing, expected tensors with values")
    return ArrayFile({name or "array": tensor for name, tensor in tensors.items()})


def _read(path: Path) -> Any:
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    held = np.load(path, allow_pickle=False)
    if isinstance(held, np.ndarray):
        return torch.from_numpy(held)
    with held:
        return {name: torch.from_numpy(np.ascontiguousarray(held[name])) for name in held.files}


def _named(name: str, held: Any) -> list[tuple[str, Any]]:
    """Name and value of everything in nested lists and dictionaries."""
    if isinstance(held, Mapping):
        rows = [(str(key), value) for key, value in held.items()]
    elif isinstance(held, list | tuple):
        rows = [(str(n), value) for n, value in enumerate(held)]
    else:
        return [(name, held)]
    return [row for key, value in rows for row in _named(f"{name}.{key}" if name else key, value)]


class ArraysRung(Rung):
    """Tensors of one name, dtype and shape: the worst of all of a file."""

    name = "arrays"
    measures = (
        Measure("array_rms", "difference, RMS, of the spread", "", "low"),
        Measure("array_max", "difference, greatest", "", "low"),
        Measure("array_differing", "values that differ in a bit", "", "low"),
    )

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `Rung.compare`.

        ``array_rms``: RMS of the difference over the standard deviation of the reference's values, as a share
        (infinite if these are all equal). ``array_max``: in the tensor's own units. ``array_differing``: a share. Each
        of the tensor where it is greatest. Values that are NaN or the same infinity in both count as equal.
        """
        a, b = reference.tensors, candidate.tensors
        if a.keys() != b.keys():
            gone, new = (", ".join(sorted(x.keys() - y.keys())) or "none" for x, y in ((a, b), (b, a)))
            reason = f"candidate lacks the arrays: {gone}; and has others: {new}; expected {', '.join(sorted(a))}"
            raise SampleError(Status.INCORRECT_STRUCTURE, self.name, reason)
        rows = {name: _distances(name, a[name], b[name]) for name in a}
        numbers: Numbers = {}
        for n, measure in enumerate(self.measures):
            name = max(rows, key=lambda name: rows[name][n])
            numbers |= {measure.name: rows[name][n], f"{measure.name}_in": name}
        return numbers, {m.name: [row[n] for row in rows.values()] for n, m in enumerate(self.measures)}

    def words(self, numbers: Numbers) -> str:
        """All three measures, and where they are greatest."""
        share = 100 * as_number(numbers["array_differing"])
        return (
            f"difference {numbers['array_rms']:.3g} of the spread (RMS) in {numbers['array_rms_in']}, "
            f"greatest {numbers['array_max']:.3g} in {numbers['array_max_in']}; {share:.3g} % of its values differ"
        )

    def same(self, made: Any) -> str:
        """See `Rung.same`."""
        count = len(made.tensors)
        return "the array is" if count == 1 else f"all {count} arrays are"


def _distances(name: str, a: Tensor, b: Tensor) -> tuple[float, float, float]:
    if a.shape != b.shape:
        reason = f"{name} has the shape {list(b.shape)}, expected {list(a.shape)}"
        raise SampleError(Status.INCORRECT_SHAPE, "arrays", reason)
    if a.dtype != b.dtype:
        raise SampleError(Status.INCORRECT_DTYPE, "arrays", f"{name} is {b.dtype}, expected {a.dtype}")
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.reshape(-1).to(wide), b.reshape(-1).to(wide)
    bad = ~(torch.isfinite(x) & torch.isfinite(y)) & ~((x == y) | (torch.isnan(x) & torch.isnan(y)))
    if count := int(bad.sum()):
        reason = f"{count} of {len(x)} values of {name} are NaN or infinite in one of the two only"
        raise SampleError(Status.INCORRECT_NONFINITE, "finite", reason)
    finite = torch.isfinite(x)
    x, y = x[finite], y[finite]
    share = float(differing(a, b).double().mean())
    if not len(x):
        return 0.0, 0.0, share
    distance = (x - y).abs()
    rms = float(distance.square().mean().sqrt())
    spread = float((x - x.mean()).abs().square().mean().sqrt())
    return rms / spread if spread else math.inf if rms else 0.0, float(distance.max()), share
