"""What the failing cases of a sweep have in common and the passing ones lack: a feature of a case, or two, in words."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from validation.cases.case import FLOAT_DTYPES, Case, TensorSpec
from validation.cases.corners.corner import heads, main, rows
from validation.cases.roles import ACTIVATIONS, ANGLES, MODULATIONS
from validation.judge.calls import Call
from validation.record import Record
from validation.verdict import Status

# Of the cases with the feature, at least this share fails.
LEAST_SHARE = 0.75
# A chance of less than this that some feature covers all failing cases, if they were drawn at random.
CHANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Shared:
    """A feature that all failing cases have, or two.

    Attributes:
        words: ``D is no power of two``.
        failing: how many cases fail.
        with_it: how many passing cases have it.
        passing: how many pass.
        status: of the failing cases, if others fail in another way; None: all that fail.
    """

    words: str
    failing: int
    with_it: int
    passing: int
    status: Status | None = None

    @property
    def sentence(self) -> str:
        """The feature with its counts."""
        what = "fails" if self.status is None else str(self.status)
        counts = f"{self.failing} of {self.failing} failing cases and {self.with_it} of {self.passing} passing ones"
        return f"{what} only where {self.words} ({counts})"


def shared(records: Iterable[Record]) -> Shared | None:
    """The feature that best tells the failing cases of an op from the passing ones; None if none does.

    Cases that were not judged, or tell too little, do not count. If all failing cases share nothing, those of the most
    common status may.
    """
    judged = [record for record in records if record.status.failed or record.status is Status.PASSED]
    failing = [record for record in judged if record.status.failed]
    if len(failing) in (0, len(judged)):
        return None
    found = {id(record): dict(_features(Case.from_dict(record.case))) for record in judged}
    passing = [found[id(record)] for record in judged if not record.status.failed]
    best = _best([found[id(record)] for record in failing], passing)
    status = Counter(record.status for record in failing).most_common(1)[0][0]
    if best is None and any(record.status is not status for record in failing):
        best = _best([found[id(record)] for record in failing if record.status is status], passing)
        return best and dataclasses.replace(best, status=status)
    return best


# A feature holds, or is a number whose size may decide.
Feature = bool | int
Features = dict[str, Feature]


def _best(failing: Sequence[Features], passing: Sequence[Features]) -> Shared | None:
    names = dict.fromkeys(name for features in (*failing, *passing) for name in features)
    tests = [test for name in names for test in _tests(name, failing, passing)]
    pairs = ((f"{a} and {b}", have & having) for (a, have), (b, having) in itertools.combinations(tests, 2))
    tried = len(names)
    for some in (tests, pairs):  # two features only where none tells enough alone
        words, have = min(some, key=lambda test: len(test[1]), default=("", frozenset()))
        enough = len(failing) >= LEAST_SHARE * (len(failing) + len(have))
        if words and enough and _chance(len(failing), len(have), len(passing)) * tried < CHANCE:
            return Shared(words, len(failing), len(have), len(passing))
        tried = len(names) ** 2
    return None


def _chance(failing: int, with_it: int, passing: int) -> float:
    """The chance that all failing cases are among those with a feature, if they were drawn at random."""
    return math.comb(failing + with_it, failing) / math.comb(failing + passing, failing)


def _tests(name: str, failing: Sequence[Features], passing: Sequence[Features]) -> Iterator[tuple[str, frozenset[int]]]:
    """The words of what all failing cases have, and which passing ones have it."""
    values = [features.get(name, False) for features in failing]
    others = dict(enumerate(features.get(name, False) for features in passing))
    if all(v is True for v in values):
        yield name, frozenset(n for n, v in others.items() if v is True)
    if any(isinstance(v, bool) for v in values):
        return  # no number, or none in some failing case
    known = {n: v for n, v in others.items() if not isinstance(v, bool)}
    low, high = min(values), max(values)
    below, above = [v for v in known.values() if v < low], [v for v in known.values() if v > high]
    if below:
        yield f"{name} > {max(below)}", frozenset(n for n, v in known.items() if v >= low)
    if above:
        yield f"{name} < {min(above)}", frozenset(n for n, v in known.items() if v <= high)


def _features(case: Case) -> Iterator[tuple[str, Feature]]:
    """Features of a case by their words, the simplest first; one that a case lacks is False."""
    x, width = main(case), main(case).shape[-1]
    yield f"the dtype is {case.dtype}", True
    for dtype in FLOAT_DTYPES:
        yield f"the dtype is not {dtype}", case.dtype != dtype
    yield from ((f"{name}={value!r}", True) for name, value in case.flags.items())
    yield "D", width
    yield ("D is a power of two" if width & (width - 1) == 0 else "D is no power of two"), True
    yield ("D is odd" if width % 2 else "D is even"), True
    for n in (8, 16):
        yield (f"D is no multiple of {n}" if width % n else f"D is a multiple of {n}"), True
    yield "the number of rows", rows(case)
    if len(x.shape) > 2:
        yield "B", x.shape[0]
        yield "L", x.shape[1]
        yield "B == L", x.shape[0] == x.shape[1]
    if "q" in case.tensors or "cos" in case.tensors:
        yield "H", heads(case)
        if "cos" in case.tensors:
            yield "rotary dims", 2 * case.tensors["cos"].shape[-1]
            rotated = width // heads(case) if case.op.startswith("split") and heads(case) else width
            yield "only some channels are rotated", 2 * case.tensors["cos"].shape[-1] < rotated
    if "k" in case.tensors:
        yield "k has another shape than q", case.tensors["k"].shape != x.shape
    yield f"values={case.values}", True
    form = Call.of(case)
    yield "defaults are left out of the call", form.defaults_left_out
    yield "arguments are passed by position", form.by_position
    yield "all values are literal", bool(case.literals)
    names = {name.partition(".")[0] for name in case.tensors}
    for name in ("weight", "bias", "gate", "q_weight", "k_weight"):
        yield (f"{name} is given" if name in names else f"{name} is not given"), True
    owners = Counter(spec.storage for spec in case.tensors.values())
    for name, spec in case.tensors.items():
        yield from _features_of(case, name, spec)
        yield f"{name} shares its memory with another", owners[spec.storage] > 1


def _features_of(case: Case, name: str, spec: TensorSpec) -> Iterator[tuple[str, Feature]]:
    if name not in ACTIVATIONS:
        yield f"{name} is {spec.dtype}", True
        yield f"{name} has another dtype than the activations", spec.dtype != case.dtype
        if name.partition(".")[0] in MODULATIONS and not name.endswith(".index"):
            yield re.sub(r"=\d+", "", case.form(name).replace(" ", " is ", 1)), True
        if name in ANGLES:
            yield (f"{name} is of each batch item" if len(spec.shape) > 2 else f"{name} is of all batch items"), True
    yield f"{name} is not contiguous", not spec.contiguous
    yield f"{name} has an offset", spec.offset > 0
    yield f"{name} does not begin at 16 bytes", bool(spec.offset * spec.torch_dtype.itemsize % 16)
    yield f"{name} has columns apart", bool(spec.shape) and spec.shape[-1] > 1 and spec.strides[-1] > 1
    if len(spec.shape) > 1:
        yield (
            f"{name} has rows apart",
            spec.shape[-2] > 1 and spec.strides[-2] > spec.shape[-1] * max(spec.strides[-1], 1),
        )
    zero = any(stride == 0 and size > 1 for size, stride in zip(spec.shape, spec.strides, strict=True))
    yield f"{name} has stride 0", zero
