"""A case: everything that one call of an op needs, as JSON (`tensors` makes its tensors).

Values come from a generator keyed by the case's seed and the tensor's name, so a case is small and the same
on every machine. Tensors of up to `MAX_LITERALS` elements may have their values written out instead, so
that Hypothesis can shrink them.
"""

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from validation.cases import values
from validation.cases.roles import MODULATIONS
from validation.errors import UsageError

MAX_LITERALS = 64

INTEGER_DTYPES = {"int32": torch.int32, "int64": torch.int64}
FLOAT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES = FLOAT_DTYPES | INTEGER_DTYPES


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements of its storage a tensor spans, from its first to its last; 0 if it is empty."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if math.prod(shape) else 0


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor's shape, dtype and place in memory.

    Attributes:
        shape: its sizes.
        dtype: torch's name, ``bfloat16``.
        strides: in elements; 0 for an expanded dimension.
        offset: distance of its first element from the start of its storage, in elements.
        storage: tensors with the same storage name share memory (packed q and k; chunks of a modulation).
    """

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...]
    offset: int
    storage: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a `torch.dtype`."""
        return DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        """Count of elements, expanded ones counted as often as they appear."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """The number of storage elements that it needs, its offset included."""
        return self.offset + extent(self.shape, self.strides)

    @property
    def contiguous(self) -> bool:
        """True if its elements lie one after another in row-major order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def layout(self) -> str:
        """Its place in memory in words; "" if it is contiguous from the start of its storage.

        ``row stride 5128``, ``last stride 2``, ``stride 0 over dimension 1``; the strides themselves if no word fits.
        """
        words = [] if self.contiguous or not self.numel else [self._stride_words()]
        return " ".join(words + ([f"offset {self.offset}"] if self.offset else []))

    def _stride_words(self) -> str:
        expanded = [d for d, (n, s) in enumerate(zip(self.shape, self.strides, strict=True)) if s == 0 and n > 1]
        wide = [(n, s) for n, s in zip(self.shape[:-1], self.strides[:-1], strict=True) if n > 1 and s > 0]
        rows_even = all(s == n * inner for (_, s), (n, inner) in itertools.pairwise(wide))
        last = self.strides[-1] if self.shape[-1] > 1 else 1
        if not rows_even or last == 0:
            return f"strides {self.strides}"
        words = [f"stride 0 over dimension {d}" for d in expanded]
        if last != 1:
            words.append(f"last stride {last}")
        if wide and wide[-1][1] != self.shape[-1] * last:
            words.append(f"row stride {wide[-1][1]}")
        return " ".join(words)


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        op: the op's name.
        tensors: by argument name; an `IndexedRows` argument has two, ``scale.table`` and ``scale.index``.
            Absent arguments are not passed, or passed as None if the signature has no default.
        flags: the other arguments: eps, casting_mode, inplace, interleaved, scale_constant.
        values: the value regime of the activations, one of `values.REGIMES`.
        seed: the generators' seed.
        literals: values written out, by tensor name, in row-major order.
    """

    op: str
    tensors: Mapping[str, TensorSpec]
    flags: Mapping[str, Any]
    values: str
    seed: int
    literals: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The working dtype: x's, or q's."""
        return self.tensors["x" if "x" in self.tensors else "q"].dtype

    @property
    def casting_mode(self) -> str:
        """``float32`` or ``input``; ``float32`` if the op has no such argument."""
        mode: str = self.flags.get("casting_mode", "float32")
        return mode

    def to_dict(self) -> dict[str, Any]:
        """The case as an object that JSON can hold."""
        data: dict[str, Any] = {
            "op": self.op,
            "tensors": {
                name: {
                    "shape": list(spec.shape),
                    "dtype": spec.dtype,
                    "strides": list(spec.strides),
                    "offset": spec.offset,
                    "storage": spec.storage,
                }
                for name, spec in self.tensors.items()
            },
            "flags": dict(self.flags),
            "values": self.values,
            "seed": self.seed,
        }
        if self.literals:
            data["literals"] = {name: [_number_out(v) for v in vs] for name, vs in self.literals.items()}
        return data

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read the output of `to_dict`.

        Raises:
            UsageError: it is no case; the message names the entry, its value and the expected value.
        """
        _expect(isinstance(data, dict), "case", type(data).__name__, "an object")
        for key in ("op", "tensors", "flags", "values", "seed"):
            _expect(key in data, "case", f"no {key!r}", f"an entry {key!r}")
        unknown = set(data) - {"op", "tensors", "flags", "values", "seed", "literals"}
        _expect(not unknown, "case", f"entries {sorted(unknown)}", "only op, tensors, flags, values, seed, literals")
        _expect(isinstance(data["op"], str), "op", data["op"], "a name")
        _expect(data["values"] in values.REGIMES, "values", data["values"], f"one of {', '.join(values.REGIMES)}")
        _expect(_is_int(data["seed"], 0), "seed", data["seed"], "an integer >= 0")
        _expect(isinstance(data["flags"], dict), "flags", data["flags"], "an object")
        for name, value in data["flags"].items():
            finite = not isinstance(value, float) or math.isfinite(value)
            _expect(finite, f"flags.{name}", value, "a number that is finite")
        _expect(isinstance(data["tensors"], dict), "tensors", data["tensors"], "an object")
        tensors = {name: _read_spec(name, spec) for name, spec in data["tensors"].items()}
        _expect("x" in tensors or "q" in tensors, "tensors", sorted(tensors), "x, or q and k, among them")
        _check_storages(tensors)
        literals = data.get("literals", {})
        _expect(isinstance(literals, dict), "literals", literals, "an object")
        read = {}
        for name, numbers in literals.items():
            _expect(name in tensors, f"literals.{name}", "no tensor of that name", f"one of {sorted(tensors)}")
            fits = isinstance(numbers, list) and len(numbers) == tensors[name].numel
            _expect(fits, f"literals.{name}", numbers, f"a list of {tensors[name].numel} numbers")
            read[name] = tuple(_number_in(f"literals.{name}", v) for v in numbers)
        return cls(data["op"], tensors, data["flags"], data["values"], data["seed"], read)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a line of JSON.

        Raises:
            UsageError: it is no JSON, or no case.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UsageError(
                f"case: not JSON ({error}): {text[:80]!r}, expected what a report's repro line holds"
            ) from error
        return cls.from_dict(data)

    def describe(self) -> str:
        """One line for failure messages.

        ``x[3, 769, 5120] bfloat16 row stride 5128, scale [B,F=3,1,D] float32, eps=1e-06 values=normal seed=41``:
        modulation is named by its form, and a dtype is printed if it is not the working dtype.
        """
        owners: dict[str, list[str]] = {}
        for name, spec in self.tensors.items():
            owners.setdefault(spec.storage, []).append(name)
        parts = []
        for name, spec in self.tensors.items():
            if name.endswith(".index"):
                continue
            words = [self.form(name)]
            if name in ("x", "q") or spec.dtype != self.dtype:
                words.append(spec.dtype)
            if name.endswith(".table"):
                words.append(f"{self.tensors[name.replace('.table', '.index')].dtype} index")
            words += [spec.layout] if spec.layout else []
            first, *others = owners[spec.storage]
            words += [f"in one buffer with {' and '.join(others)}"] if others and name == first else []
            parts.append(" ".join(words))
        flags = " ".join(f"{name}={value}" for name, value in self.flags.items())
        return f"{', '.join(parts)}, {flags} values={self.values} seed={self.seed}".replace(",  ", ", ")

    def form(self, name: str) -> str:
        """A tensor's name and shape; for modulation, the form instead of the shape: ``scale [B,F=3,1,D]``."""
        argument, _, part = name.partition(".")
        spec = self.tensors[name]
        x = self.tensors.get("x")
        if argument not in MODULATIONS or x is None or len(x.shape) != 3:
            return f"{name}[{', '.join(map(str, spec.shape))}]"
        batch, length, _ = x.shape
        if part == "table":
            form = f"[{'B,' if len(spec.shape) == 3 else ''}n={spec.shape[-2]},D]"
            return f"{argument} IndexedRows {form}"
        match len(spec.shape):
            case 0:
                form = "scalar"
            case 1:
                form = "[D]" if spec.shape == x.shape[-1:] else "[1]"
            case 2:
                form = "[B,D]"
            case 3:
                outer = zip(spec.shape, (batch, length), "BL", strict=False)
                form = f"[{','.join(letter if n == full > 1 else '1' for n, full, letter in outer)},D]"
            case _:
                form = f"[B,F={spec.shape[1]},1,D]"
        return f"{argument} {form}"


def _expect(holds: bool, entry: str, came: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"case: {entry} is {came!r}, expected {expected}")


def _is_int(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _read_spec(name: str, data: Any) -> TensorSpec:
    _expect(isinstance(data, dict), f"tensors.{name}", data, "an object")
    missing = {"shape", "dtype", "strides", "offset", "storage"} - set(data)
    _expect(not missing, f"tensors.{name}", f"without {sorted(missing)}", "shape, dtype, strides, offset, storage")
    for key in ("shape", "strides"):
        fits = isinstance(data[key], list) and all(_is_int(n, 0) for n in data[key])
        _expect(fits, f"tensors.{name}.{key}", data[key], "a list of integers >= 0")
    rank = len(data["shape"])
    _expect(len(data["strides"]) == rank, f"tensors.{name}.strides", data["strides"], f"{rank} of them, as in shape")
    _expect(data["dtype"] in DTYPES, f"tensors.{name}.dtype", data["dtype"], f"one of {', '.join(DTYPES)}")
    _expect(_is_int(data["offset"], 0), f"tensors.{name}.offset", data["offset"], "an integer >= 0")
    _expect(isinstance(data["storage"], str), f"tensors.{name}.storage", data["storage"], "a name")
    spec = TensorSpec(tuple(data["shape"]), data["dtype"], tuple(data["strides"]), data["offset"], data["storage"])
    _expect(spec.extent < 2**34, f"tensors.{name}", f"{spec.extent} elements of storage", "fewer than 2^34")
    return spec


def _check_storages(tensors: Mapping[str, TensorSpec]) -> None:
    dtypes: dict[str, str] = {}
    for name, spec in tensors.items():
        first = dtypes.setdefault(spec.storage, spec.dtype)
        _expect(first == spec.dtype, f"tensors.{name}.dtype", spec.dtype, f"{first}, that of storage {spec.storage!r}")


def _number_out(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _number_in(entry: str, value: Any) -> float:
    if value in ("inf", "-inf", "nan") or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        with contextlib.suppress(OverflowError):  # an integer of more than 308 digits
            return float(value)
    raise UsageError(f"case: {entry} has {value!r}, expected numbers or 'inf', '-inf', 'nan'")
