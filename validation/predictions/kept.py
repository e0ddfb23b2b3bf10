"""A prediction as it is kept: of each call the case, and hashes of its inputs, kernels and outputs."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.compiled.ptx.errors import NotExecutedError
from validation.compiled.ptx.parse import parse
from validation.errors import UsageError
from validation.files import write_text

SCHEMA = 1
# An output is hashed in so many parts of about as many elements, so that what differs has a place.
PARTS = 16
VERSIONS = ("torch", "triton", "commit")


@dataclasses.dataclass(frozen=True)
class Output:
    """An output: its dtype, its shape, and the SHA-256 of each part of its bytes, in order, as 16 hex digits."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]

    @classmethod
    def of(cls, t: Tensor) -> Self:
        """The hashes of a tensor; NaN counts as its bits."""
        chunks = as_bytes(t).tensor_split(PARTS)
        return cls(str(t.dtype).removeprefix("torch."), tuple(t.shape), tuple(map(_digest, chunks)))


@dataclasses.dataclass(frozen=True)
class Call:
    """A call.

    Attributes:
        op, workload: the op, and the name of the workload.
        case: what was called.
        inputs: a hash of each tensor argument, by name.
        kernels: a hash of each kernel that was launched, in order: of its instructions, not of paths and lines.
        outputs: what it gave.
        unknown: why its bits are not predicted; "" if they are. It has no outputs then.
    """

    op: str
    workload: str
    case: Case
    inputs: Mapping[str, str]
    kernels: tuple[str, ...]
    outputs: tuple[Output, ...]
    unknown: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self) | {"case": json.loads(self.case.to_json())}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` made."""
        outputs = tuple(Output(one["dtype"], tuple(one["shape"]), tuple(one["parts"])) for one in data["outputs"])
        case = Case.from_json(json.dumps(data["case"]))
        inputs, kernels = dict(data["inputs"]), tuple(data["kernels"])
        made = cls(data["op"], data["workload"], case, inputs, kernels, outputs, data["unknown"])
        if case.op != made.op or inputs.keys() != case.tensors.keys():
            raise ValueError(f"a call of {made.op} with a case of {case.op} and inputs {', '.join(inputs) or 'none'}")
        if not made.unknown and not (outputs and kernels and all(len(one.parts) == PARTS for one in outputs)):
            raise ValueError(f"a call of {made.op} without outputs of {PARTS} parts, or without kernels")
        return made


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The calls of an op set, for a target.

    Attributes:
        target: for which the kernels were compiled.
        ops: the op set, as ``--ops`` names it.
        versions: of torch and Triton, and the commit.
        calls: in order.
    """

    target: str
    ops: str
    versions: Mapping[str, str]
    calls: Sequence[Call]

    def write(self, path: Path) -> None:
        """Write JSON, a call a line.

        Raises:
            UsageError: the file cannot be written.
        """
        head = {"schema": SCHEMA, "target": self.target, "ops": self.ops, "versions": dict(self.versions)}
        lines = ",\n".join(json.dumps(call.to_dict()) for call in self.calls)
        write_text(path, json.dumps(head)[:-1] + ', "calls": [\n' + lines + "\n]}\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            UsageError: it cannot be read, or has another form.
        """
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']}, expected {SCHEMA}")
            calls = [Call.from_dict(one) for one in data["calls"]]
            versions = {name: str(data["versions"][name]) for name in VERSIONS}
            return cls(str(data["target"]), str(data["ops"]), versions, calls)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            raise UsageError(
                f"{path}: {type(error).__name__}: {error}, expected what validate predict wrote"
            ) from error


def inputs_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A hash of each tensor's elements, by name."""
    return {name: _digest(as_bytes(t)) for name, t in tensors.items()}


def as_bytes(t: Tensor) -> Tensor:
    """A tensor's elements in order, as bytes on the CPU; of an expanded dimension one element."""
    distinct = [slice(0, 1) if stride == 0 else slice(None) for stride in t.stride()]
    return t[tuple(distinct)].detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _digest(content: Tensor) -> str:
    return hashlib.sha256(content.numpy().data).hexdigest()[:16]


@cache
def hash_of(ptx: str) -> str:
    """A hash of a kernel's instructions and constants, without paths and lines; of its text if it cannot be parsed."""
    try:
        kernel = parse(ptx)
    except NotExecutedError:
        return "text " + hashlib.sha256(ptx.encode()).hexdigest()[:16]
    read: Iterable[object] = (
        kernel.threads,
        sorted(kernel.constants.items()),
        [(one.guard, one.negated, one.opcode, one.operands) for one in kernel.instructions],
        sorted(kernel.labels.items()),
    )
    return hashlib.sha256(repr([*read]).encode()).hexdigest()[:16]
