"""Level one: is the op right, for every shape, layout, dtype and value regime?

`run` judges one case, `sweep` an op. The command line, pytest and the nightly job all come through here.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import seed as hypothesis_seed

from validation.cases.case import Case
from validation.cases.chooser import VALUES
from validation.cases.corners import Corner, corners_of, declared_corners
from validation.cases.errors import BadCall, bad_calls, good_case
from validation.cases.pool import Pool, draw_settings
from validation.cases.pool import draw_cases as draw_cases
from validation.cases.signature import Signature
from validation.cases.strategies import cases
from validation.cases.tensors import materialise
from validation.cases.workloads import Workload, workloads
from validation.device import Device
from validation.device.threads import one_thread
from validation.errors import CannotExpress, UsageError
from validation.executor.isolation import LIMIT_SECONDS, Death, IsolatedOpSet, isolated_by_default
from validation.files import FIXTURES
from validation.judge import calls, fingerprint, same_bits, structure
from validation.judge.verdict import absent, expect, judge_call
from validation.ops import OpSet, check_op_name, reference_op, surroundings, tracebacks
from validation.options import DEFAULT_OPS, repeat_line
from validation.parity import tiers
from validation.parity.xfail import XFail
from validation.record import Level, Record
from validation.verdict import TIERS, Status, Tier, Verdict

REGRESSIONS = FIXTURES / "regressions"

SHORT_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

# How a candidate in a process of its own may end it, and how often before the rest of an op is left: of its cases,
# and then of the calls that it must refuse.
DEATHS = frozenset({Status.TIMEOUT, Status.CRASHED})
MAX_DEATHS = 5

# Between two lines on the progress of an op.
PROGRESS_SECONDS = 30.0

# The most that shrinking one failure may take, in seconds.
SHRINK_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """How many cases an op gets.

    Attributes:
        name: quick, default or nightly.
        per_corner: cases forced into each declared corner.
        free: cases drawn freely besides.
    """

    name: str
    per_corner: int
    free: int


PROFILES = {p.name: p for p in (Profile("quick", 1, 60), Profile("default", 2, 200), Profile("nightly", 10, 10_000))}


def profile_named(name: str) -> Profile:
    """The profile of that name; UsageError if there is none."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}, expected one of: {', '.join(PROFILES)}")
    return PROFILES[name]


def signature_of(op: str) -> Signature:
    """The signature of the reference op of that name."""
    return Signature.of(op, reference_op(op))


def default_tier(ops: OpSet) -> str | None:
    """The tier an op set is held to where none is asked for: ``lossless`` for our own fused ops."""
    return "lossless" if ops.origin == "fused_ops" else None


def check_fits(case: Case, device: str) -> None:
    """UsageError where the reference op does not take a case: one written by hand, or of another release."""
    try:
        with one_thread():
            arguments = materialise(case, device)
            arguments.kwargs |= absent(case, arguments.kwargs)
            expect(case, arguments, device)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"case: {case.op} does not take it: {type(error).__name__}: {_one_line(error)}") from error


def run(case: Case, ops: OpSet, device: Device, corners: tuple[Corner, ...] = ()) -> Record:
    """Judge one case.

    Args:
        case: what to feed.
        ops: the op set that provides the candidate.
        device: where.
        corners: those declared for the op, to note which the case reaches.

    Raises:
        UsageError: the op set lacks the op. A case that the op's reference does not take raises what that raises:
            `check_fits` tells before.
    """
    if case.op not in ops:
        raise UsageError(f"{ops.name} does not provide {case.op}, expected one of: {', '.join(ops.functions)}")
    start = time.perf_counter()
    if isinstance(ops, IsolatedOpSet):
        judgement = ops.judge(case)
    else:
        judgement = judge_call(case, calls.as_callers_do(case, ops[case.op]), device.torch)
    repro = repro_command(case, ops, device)
    return _record(case, ops, judgement, time.perf_counter() - start, corners_of(case, corners), repro)


def _record(case: Case, ops: OpSet, judgement: Verdict, seconds: float, corners: list[str], repro: str) -> Record:
    failed = judgement.status.failed
    lines = [
        f"{case.op}  {ops.name}  {SHORT_DTYPE[case.dtype]}  {judgement.status}",
        case.describe(),
        judgement.reason,
        *judgement.lines,
        *([f"called: {calls.described(case)}"] if failed else []),
        f"repeat: {repro}",
    ]
    return Record(
        level=Level.OP,
        subject=case.op,
        op_set=ops.name,
        status=judgement.status,
        check=judgement.check,
        reason=judgement.reason,
        case=case.to_dict(),
        dtype=case.dtype,
        tier=judgement.tier,
        numbers=dict(judgement.numbers),
        seconds={**judgement.seconds, "total": round(seconds, 6)},
        message="\n".join(lines) if failed else "",
        repro=repro,
        corners=corners,
    )


def repro_command(case: Case, ops: OpSet, device: Device) -> str:
    """The command line that judges the case again."""
    return repeat_line(
        "repro",
        case.to_json(),
        ops=None if ops.origin == DEFAULT_OPS else ops.origin,
        **_isolation(ops),
        gpu=not device.interpreted,
    )


def _isolation(ops: OpSet) -> dict[str, Any]:
    """The options that run an op set in a process of its own, or not, as here; None for the default."""
    apart = isinstance(ops, IsolatedOpSet)
    limit = ops.worker.limit if isinstance(ops, IsolatedOpSet) else LIMIT_SECONDS
    return {
        "isolate": None if apart == isolated_by_default(ops.origin) else apart,
        "case_seconds": None if limit == LIMIT_SECONDS else limit,
    }


def sweep(
    op: str,
    ops: OpSet,
    device: Device,
    *,
    profile: Profile,
    seed: int,
    require: str | None = None,
    shrink: bool = True,
    xfail: XFail | None = None,
) -> Iterator[Record]:
    """Judge an op over its whole case space.

    Known regressions first, then the real models' workloads (with few tokens on the CPU, whole on a GPU), then
    every declared corner, then free draws; then, for each kind of failure, the same failure shrunk; then one
    record on a call with parameters that require grad, one on the calls that the op must refuse; last, one record
    for the op: its tier, bias over all cases, corners not reached. After `MAX_DEATHS` cases that hung, crashed or
    lost the accelerator the rest is left, which is a failure whatever the xfail file expects.

    Args:
        op: its name.
        ops: the op set.
        device: where.
        profile: how many cases.
        seed: all cases follow from it.
        require: the tier that the op must reach.
        shrink: whether to shrink failures.
        xfail: failures to expect; those that do not come are failures themselves.
    """
    xfail = xfail or XFail()
    if require is not None and require not in TIERS:
        raise UsageError(f"unknown tier {require!r}, expected one of: {', '.join(TIERS)}")
    command = sweep_command(op, ops, device, profile=profile, seed=seed, require=require, xfail=xfail)
    plan = Plan.of(op, device, profile, seed)
    corners = plan.corners
    done: list[Record] = []
    failed: dict[Status, Planned] = {}
    before = _deaths(ops)
    last_failed: Record | None = None
    for planned in plan.cases():
        record = run(planned.case, ops, device, corners)
        last_failed = record if record.status.failed else last_failed
        done.append(xfail.apply(record))
        if done[-1].status.failed:
            failed.setdefault(record.status, planned)
        yield done[-1]
        if _deaths(ops) - before >= MAX_DEATHS:
            yield _stopped(op, ops, len(done), last_failed or record, command)
            return
    if shrink:
        for status, planned in failed.items():
            if status in DEATHS:  # each attempt costs a new process, or the time limit
                continue
            small = _shrunk(planned, plan, status, ops)
            if small is not None:
                yield small
    if any(record.status is not Status.NOT_EXPRESSED for record in done):
        yield xfail.apply(grad_record(op, ops, device))
        yield xfail.apply(bad_input_record(op, ops, device))
    yield xfail.apply(_summary(op, ops, done, corners, require, command))
    yield from xfail.unused(op, ops.name)


def _deaths(ops: OpSet) -> int:
    """How often the op set has ended its process so far."""
    return ops.worker.deaths if isinstance(ops, IsolatedOpSet) else 0


@dataclasses.dataclass(frozen=True)
class Planned:
    """A case of a sweep, and how to draw others like it.

    Attributes:
        case: the case.
        forced: the choices that its corner asks for.
        key: its compile key, with `forced` among it; empty for cases that are not drawn.
    """

    case: Case
    forced: Mapping[str, Any]
    key: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep feeds an op.

    Attributes:
        signature: the op's.
        corners: those that must be reached.
        pool: the compile keys of all drawn cases.
        device, profile, seed: as `sweep` takes them.
    """

    signature: Signature
    corners: tuple[Corner, ...]
    pool: Pool
    device: Device
    profile: Profile
    seed: int

    @classmethod
    def of(cls, op: str, device: Device, profile: Profile, seed: int) -> "Plan":
        """The plan for an op."""
        signature, bfloat16 = signature_of(op), not device.bfloat16_problems
        corners = declared_corners(signature, bfloat16=bfloat16, gpu=not device.interpreted)
        corners += tuple(
            Corner(w.name, {}, lambda case, whole=whole: case == whole)  # type: ignore[misc]
            for w, whole in _real(op, device)
        )
        corners += _same_bits_corners(signature, device)
        return cls(signature, corners, _pool(signature, corners, bfloat16, seed, profile.free), device, profile, seed)

    @property
    def bfloat16(self) -> bool:
        """Whether bfloat16 can be judged."""
        return not self.device.bfloat16_problems

    def cases(self) -> Iterator[Planned]:
        """All cases, in order; made as they are asked for."""
        for case in regressions(self.signature.op):
            if self.bfloat16 or all(spec.dtype != "bfloat16" for spec in case.tensors.values()):
                yield Planned(case, {}, {})
        # With few tokens the stages of a pyramid are one case.
        for case in {case.to_json(): case for _, case in _real(self.signature.op, self.device)}.values():
            yield Planned(case, {}, {})
        for corner in self.corners:
            if corner.forced:
                for turn, (forced, count) in enumerate(shares(corner, self.profile, self.signature)):
                    key = self.pool.of_corner(corner, forced, turn)
                    for case in self._drawn(corner.name, {**key, **forced}, count):
                        yield Planned(_made_due(case, corner, self.device), forced, key)
        # As many of each key, of the first keys one more.
        keys = tuple(itertools.islice(self.pool.open(), self.profile.free))
        for i, key in enumerate(keys):
            for case in self._drawn(f"free {i}", key, (self.profile.free + len(keys) - 1 - i) // len(keys)):
                yield Planned(_made_due(case, None, self.device), {}, key)

    def _drawn(self, label: str, forced: Mapping[str, Any], count: int) -> tuple[Case, ...]:
        seed = zlib.crc32(f"{self.seed}/{self.signature.op}/{label}".encode())
        return _drawn(self.signature, tuple(forced.items()), self.bfloat16, seed, count)


def _real(op: str, device: Device) -> list[tuple[Workload, Case]]:
    """The workloads of an op: whole on a GPU, with few tokens on the CPU; no bfloat16 where it cannot be judged."""
    made = [(workload, workload.make(not device.interpreted)) for workload in workloads(op)]
    return [(w, case) for w, case in made if not device.bfloat16_problems or case.dtype != "bfloat16"]


@functools.lru_cache(maxsize=16)  # the planted faults of an op share it
def _cached_pool(
    signature: Signature,
    wanted: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...],
    bfloat16: bool,
    seed: int,
    free: int,
) -> Pool:
    asked = [(name, dict(forced)) for name, forced in wanted]
    return Pool.draw(signature, asked, seed, bfloat16=bfloat16, cases=free)


def _pool(signature: Signature, corners: tuple[Corner, ...], bfloat16: bool, seed: int, free: int) -> Pool:
    """The pool of a sweep; what the first case of each corner is forced to is what the corner's key must have."""
    wanted = tuple((c.name, tuple({**telling(signature), **c.forced}.items())) for c in corners if c.forced)
    return _cached_pool(signature, wanted, bfloat16, seed, free)


def regressions(op: str) -> Iterator[Case]:
    """The confirmed failures of the past, kept in ``fixtures/regressions/``, for one op.

    A run writes what failed into its folder (`save_failure`). Once a failure is understood and its cause is
    mended, its file is copied to ``fixtures/regressions/`` under a name that says what was wrong: from then on
    it is judged first in every run, whatever the seed.

    Raises:
        UsageError: a file there is no such file, its op does not exist or does not take the case; it names the file
            and the entry.
    """
    for path in sorted(REGRESSIONS.glob("*.json")):
        case = read_case(path)
        try:
            check_op_name(case.op)
        except UsageError as error:
            raise UsageError(f"{path}: case: op: {error}") from error
        if case.op == op:
            _check_kept(path, case.to_json())
            yield case


@functools.cache  # the planted faults of an op share them
def _check_kept(path: Path, text: str) -> None:
    try:
        check_fits(Case.from_json(text), "cpu")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def read_case(path: Path) -> Case:
    """The case of `read_failure`."""
    return read_failure(path)[0]


def read_failure(path: Path) -> tuple[Case, str]:
    """A case from a file: a failure or a regression, as `save_failure` writes them, or a case alone.

    Returns:
        The case, and what ``--ops`` named when it failed; "" where the file does not say.

    Raises:
        UsageError: naming the file, and what is wrong with it.
    """
    try:
        data = json.loads(path.read_text())
        kept = data if isinstance(data, dict) and "case" in data else {"case": data}
        return Case.from_dict(kept["case"]), str(kept.get("ops", ""))
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}, expected the JSON text of a case or a file that holds it"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}), expected a case, or an object with a case") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def save_failure(folder: Path, record: Record, ops: str) -> Path:
    """Write a failed case to ``failures/<op>-<status>.json`` below a run's folder; `read_failure` reads it.

    One file for each op and status, with the smallest of those cases: the shrunk one, where there is one. With it
    goes what ``--ops`` named.
    """
    path = folder / "failures" / f"{record.subject}-{record.status.lower()}.json"
    data = {"op_set": record.op_set, "ops": ops, "status": record.status, "reason": record.reason, "case": record.case}
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if not path.exists() or _elements(record.case) <= _elements(json.loads(path.read_text())["case"]):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def _elements(case: Mapping[str, Any]) -> int:
    return sum(math.prod(spec["shape"]) for spec in case["tensors"].values())


def telling(signature: Signature) -> dict[str, Any]:
    """Choices that make every row tell.

    Of zeros, modulated by zeros or by a row expanded over the batch, any row looks like any other: with these
    left free in both of a corner's two cases, 7 of 60 sweeps missed a ``[B, D]`` row taken for a token's.
    """
    return {"values": "normal", **{f"{name}.layout": "contiguous" for name in signature.modulations}}


def shares(corner: Corner, profile: Profile, signature: Signature) -> tuple[tuple[Mapping[str, Any], int], ...]:
    """What to force in a corner's cases, and in how many. In the first every row tells."""
    first, count = {**telling(signature), **corner.forced}, profile.per_corner // (1 + corner.sparse)
    return ((first, 1), (corner.forced, count - 1)) if count > 1 else ((first, 1),)


@functools.lru_cache(maxsize=512)  # an op's corners and its free draws: the planted faults of an op share them
def _drawn(
    signature: Signature, forced: tuple[tuple[str, Any], ...], bfloat16: bool, seed: int, count: int
) -> tuple[Case, ...]:
    """The cases of a compile key."""
    return tuple(draw_cases(cases(signature, dict(forced), bfloat16=bfloat16), seed=seed, count=count))


class _FoundError(Exception):
    pass


def _shrunk(planned: Planned, plan: Plan, status: Status, ops: OpSet) -> Record | None:
    """The record of the simplest case found that has that status too; None if none was found in time.

    Drawn are cases in which each choice is, three times in four, that of the failed case, else the simplest.
    """
    known: dict[str, Record | None] = {}
    best: list[Record] = []
    deadline = time.monotonic() + SHRINK_SECONDS

    def judged(case: Case) -> Record | None:
        key = case.to_json()
        if key not in known:
            late = time.monotonic() > deadline
            known[key] = None if late else run(case, ops, plan.device, plan.corners)
        return known[key]

    case = planned.case
    hints = {**planned.key, "values": case.values, **{n: case.flags[n] for n in VALUES if n in case.flags}}

    @draw_settings(max(plan.profile.per_corner + 1, plan.profile.free), shrink=True)
    @hypothesis_seed(case.seed)
    @given(cases(plan.signature, planned.forced, bfloat16=plan.bfloat16, hints=hints))
    def check(case: Case) -> None:
        record = judged(case)
        if record is not None and record.status == status:
            best[:] = [record]
            raise _FoundError

    with contextlib.suppress(_FoundError):
        check()
    return best[0] if best else None


def _summary(
    op: str, ops: OpSet, done: list[Record], corners: tuple[Corner, ...], require: str | None, command: str
) -> Record:
    drawn = {name for record in done for name in record.corners}
    judged = {name for record in done if record.status is not Status.NOT_EXPRESSED for name in record.corners}
    missed = [corner.name for corner in corners if corner.name not in drawn]
    unjudged = [corner.name for corner in corners if corner.name in drawn - judged]
    passed = [record for record in done if record.status is Status.PASSED]
    unexpressed = Counter(record.reason for record in done if record.status is Status.NOT_EXPRESSED)
    tier = tiers.op_tier(passed)
    bias = tiers.bias_over_cases(passed)
    numbers: dict[str, float | int | str | None] = {
        "cases": len(done),
        "failed": sum(record.status.failed for record in done),
        "xfailed": sum(record.status is Status.XFAILED for record in done),
        "not_expressed": unexpressed.total(),
        "corners": len(corners),
        "corners_missed": len(missed),
        "corners_not_expressed": len(unjudged),
        "mean_rms_ratio": tier.mean_ratio,
        **tier.ratios,
        "budget_percent": max((float(r.numbers.get("budget_percent") or 0.0) for r in done), default=0.0),
    }
    # Of failed cases too: where a kernel rounds is asked most where it fails.
    fingerprints = [
        (str(r.numbers["fingerprint"]), share, int(r.numbers["elements"] or 0))
        for r in done
        if r.case["flags"].get("casting_mode", "float32") == "float32"
        and (share := float(r.numbers.get("fingerprint_share") or 0.0)) > fingerprint.NAMED
    ]
    rounds = fingerprint.summary(fingerprints)
    if rounds is not None:
        numbers["fingerprint"], numbers["fingerprint_share"] = rounds
        numbers["fingerprint_cases"] = sum(name == rounds[0] for name, _, _ in fingerprints)
    status, check, reason = Status.PASSED, "tier", tier.reason
    if unexpressed:
        most_common = unexpressed.most_common(1)[0][0]
        most = f"{unexpressed.total()} of {len(done)} cases cannot be expressed, most often: {most_common}"
        reason = f"{reason}; {most}"
        if unjudged:
            reason = f"{reason}; corners of such cases alone: {', '.join(unjudged)}"
    if unexpressed.total() == len(done) > 0:
        status, check, reason = Status.NOT_EXPRESSED, "runs", most
    elif missed:
        status, check = Status.CORNER_NOT_REACHED, "corners"
        reason = f"{len(missed)} of {len(corners)} declared corners were never reached: {', '.join(missed)}"
    elif fallback := _fallback(done, ops):
        status, check, reason = Status.SILENT_FALLBACK, "launches", fallback
    elif bias:
        status, check, reason = Status.BIASED, "bias over all cases", bias
    elif require is not None and (tier.tier is None or not Tier(tier.tier).meets(require)):
        status = Status.BELOW_REQUIRED_TIER
        reason = f"tier {tier.tier}, expected {require}: {tier.reason}"
    return Record(
        level=Level.RUN,
        subject=op,
        op_set=ops.name,
        status=status,
        check=check,
        reason=reason,
        tier=tier.tier,
        numbers=numbers,
        message=f"{op}  {ops.name}  {status}\n{reason}\nrepeat: {command}" if status.failed else "",
        repro=command,
    )


# What shows in the last bit of a sum alone: float32, rows long enough for two orders of adding them up to
# differ, and several of them.
LAST_BIT: Mapping[str, Any] = {
    "dtype": "float32",
    "values": "normal",
    "literals": False,
    "size": "frames",
    "width": "model",
    "rank": 3,
    "heads": 2,
    "k.shape": "same",
}


# What shows in the next call that a casting mode was kept: roundings on the way where it asks for none. It takes a
# weight where nothing else follows a norm, and a shape that no earlier call had.
FLAG_SHOWS: Mapping[str, Any] = {
    **LAST_BIT,
    "size": "ragged",
    "dtype": "float16",
    "casting_mode": "input",
    "affine": "weight",
    "qk.weights": "both",
}


def _same_bits_corners(signature: Signature, device: Device) -> tuple[Corner, ...]:
    """One for each check that compares two calls: the lot that `same_bits.due` draws gives it to few cases."""

    def corner(check: str) -> Corner:
        forced = FLAG_SHOWS if check == "other flags" else LAST_BIT

        def reached(case: Case) -> bool:
            return case.dtype == forced["dtype"] and check in same_bits.due(case, device.torch)

        return Corner(f"{same_bits.CORNER}{check}", forced, reached)

    (example,) = draw_cases(cases(signature, LAST_BIT), seed=0, count=1)
    return tuple(corner(check) for check in same_bits.CHECKS if same_bits.applies(check, example, device.torch))


def _made_due(case: Case, corner: Corner | None, device: Device) -> Case:
    """A case of one of those corners with the next seed for which the corner's check is due.

    Others with the next seed for which only checks are due that cost few kernels (`same_bits.affordable`).
    """
    seeds = (dataclasses.replace(case, seed=case.seed + n) for n in range(10_000))
    if corner is not None and corner.name.startswith(same_bits.CORNER):
        return next(c for c in seeds if corner.reached(c))
    affordable = same_bits.affordable(case)
    return next(c for c in seeds if affordable.issuperset(same_bits.due(c, device.torch)))


def _fallback(done: list[Record], ops: OpSet) -> str:
    """In words: cases with elements that launched no kernel, where others did or ours must; "" if there are none."""
    judged = [record for record in done if record.numbers.get("elements")]
    without = [record for record in judged if not record.numbers["launches"]]
    if not without or (len(without) == len(judged) and ops.origin != "fused_ops"):
        return ""
    return (
        f"{len(without)} of {len(judged)} cases with elements launched no kernel (expected one in each: an op set "
        f"that launches kernels may not fall back silently): the first is {Case.from_dict(without[0].case).describe()}"
    )


def bad_input_record(op: str, ops: OpSet, device: Device) -> Record:
    """One record on all the calls that an op must refuse (`validation.cases.errors`).

    Refused is a call that raises a TypeError, a ValueError or a NotImplementedError whose message names the
    argument, with nothing written before. A call that ends its process gives the record its status; after
    `MAX_DEATHS` of them the rest is left.
    """
    start = time.perf_counter()
    bad_ones = [bad for bad in bad_calls(signature_of(op)) if device.interpreted or not bad.looks]
    wrong, deaths, tried = [], [], 0
    for bad in bad_ones:
        came = not_refused(bad, ops, device)
        tried += 1
        if isinstance(came, Death):
            deaths.append(came)
            came = came.reason
        if came:
            wrong.append(f"{bad.name}: {came}")
        if len(deaths) == MAX_DEATHS:
            break
    status = deaths[0].status if deaths else Status.BAD_INPUT_ACCEPTED if wrong else Status.PASSED
    reason = f"{len(wrong)} of {tried} bad calls were not refused as they should be"
    if deaths:
        reason = f"{reason}, {len(deaths)} of which hung or crashed; the first {deaths[0].reason}"
    if tried < len(bad_ones):
        reason = f"{reason}; stopped before {len(bad_ones) - tried} more"
    command = sweep_command(op, ops, device)
    lines = [f"{op}  {ops.name}  {status}", reason, *wrong, f"repeat: {command}"]
    return Record(
        level=Level.RUN,
        subject=op,
        op_set=ops.name,
        status=status,
        check="bad input",
        reason=reason if wrong else f"all {tried} bad calls were refused, each naming the argument",
        numbers={"bad_calls": tried, "not_refused": len(wrong)},
        seconds={"total": round(time.perf_counter() - start, 6)},
        message="\n".join(lines) if wrong else "",
        repro=command,
    )


def grad_record(op: str, ops: OpSet, device: Device) -> Record:
    """One record on a call under ``torch.no_grad()`` with ``nn.Parameter``: what a model's own weights are.

    Refused are tensors that require grad with grad mode on alone.
    """
    start = time.perf_counter()
    case = good_case(signature_of(op))
    if isinstance(ops, IsolatedOpSet):
        judgement = ops.judge(case, grad=True)
    else:
        judgement = judge_call(case, calls.requiring_grad(ops[op]), device.torch)
    command = sweep_command(op, ops, device)
    reason = f"called under torch.no_grad() with tensors that require grad: {judgement.reason}"
    return Record(
        level=Level.RUN,
        subject=op,
        op_set=ops.name,
        status=judgement.status,
        check="grad mode off",
        reason=reason,
        seconds={"total": round(time.perf_counter() - start, 6)},
        message=f"{op}  {ops.name}  {judgement.status}\n{reason}\nrepeat: {command}" if judgement.status.failed else "",
        repro=command,
    )


def bad_call(op: str, name: str) -> BadCall:
    """The bad call of that name; UsageError if the op has none."""
    known = {bad.name: bad for bad in bad_calls(signature_of(op))}
    if name not in known:
        raise UsageError(f"{op} has no bad call {name!r}, expected one of: {', '.join(known)}")
    return known[name]


def not_refused(bad: BadCall, ops: OpSet, device: Device) -> str | Death:
    """What a candidate did with a bad call, in words; "" if it refused it; a `Death` if it ended its process."""
    if isinstance(ops, IsolatedOpSet):
        return ops.not_refused(bad.case.op, bad.name)
    arguments = materialise(bad.case, device.torch)
    if bad.change:
        bad.change(arguments.kwargs)
    words = "accepted"
    try:
        with torch.set_grad_enabled(bad.grad), structure.GuardedAllocations(), surroundings.kept():
            ops[bad.case.op](**arguments.kwargs)
    except (TypeError, ValueError, NotImplementedError) as error:
        named = any(re.search(rf"\b{name}\b", tracebacks.said(error)) for name in bad.arguments)
        expected = " or ".join(bad.arguments)
        words = "" if named else f"{type(error).__name__} without the name of {expected}: {_one_line(error)}"
    except CannotExpress:
        words = ""
    except BaseException as error:  # whatever a candidate raises
        if tracebacks.is_interrupt(error):
            raise
        words = f"{type(error).__name__}, expected a TypeError, ValueError or NotImplementedError: {_one_line(error)}"
    written = next(filter(None, structure.inputs_changed(arguments)), "")
    return words or (f"refused, but only after writing to memory: {written}" if written else "")


def sweep_command(
    op: str,
    ops: OpSet,
    device: Device,
    *,
    profile: Profile | None = None,
    seed: int | None = None,
    require: str | None = None,
    xfail: XFail | None = None,
) -> str:
    """The command line that judges an op again, arguments as of `sweep`."""
    return repeat_line(
        "parity",
        always=("ops", "seed"),
        op=[op],
        ops=ops.origin,
        **_isolation(ops),
        profile=None if profile is None or profile not in PROFILES.values() else profile.name,
        seed=seed,
        require=None if require == default_tier(ops) else require,
        xfail=None if xfail is None else xfail.path,
        gpu=not device.interpreted,
    )


def _one_line(error: BaseException) -> str:
    return tracebacks.said(error)[:120]


def _stopped(op: str, ops: OpSet, cases: int, last: Record, command: str) -> Record:
    """The record that says why an op was judged no further, with the last case that failed; a failure."""
    reason = (
        f"stopped after {cases} cases, {MAX_DEATHS} of which hung, crashed or lost the accelerator; the last "
        f"{last.reason}; the rest is not judged"
    )
    status = last.status if last.status in DEATHS else Status.CRASHED
    message = f"{op}  {ops.name}  {status}\n{reason}\nrepeat: {command}"
    return Record(Level.RUN, op, ops.name, status, "runs", reason, message=message, repro=command)


def bfloat16_record(device: Device, ops: OpSet) -> Record | None:
    """The record that says bfloat16 was not judged, if it cannot be."""
    if not device.bfloat16_problems:
        return None
    reason = "the interpreter's bfloat16 conversion is wrong: " + "; ".join(device.bfloat16_problems)
    return Record(
        level=Level.RUN,
        subject="bfloat16",
        op_set=ops.name,
        status=Status.BFLOAT16_NOT_JUDGED,
        check="interpreter",
        reason=reason,
        message=f"bfloat16  {ops.name}  {Status.BFLOAT16_NOT_JUDGED}\n{reason}",
    )


def parity(
    ops: OpSet,
    names: tuple[str, ...],
    device: Device,
    *,
    profile: Profile,
    seed: int,
    require: str | None,
    xfail: XFail | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Record]:
    """Sweep several ops of an op set; progress gets a line an op, for each death, and every `PROGRESS_SECONDS`."""
    problem = bfloat16_record(device, ops)
    if problem:
        yield problem
    for n, op in enumerate(names, 1):
        start, count, failed = time.perf_counter(), 0, 0
        said = start
        progress(f"[{n}/{len(names)}] {op} ...")
        for record in sweep(op, ops, device, profile=profile, seed=seed, require=require, xfail=xfail):
            count += record.level is Level.OP
            failed += record.status.failed
            now = time.perf_counter()
            if record.level is Level.OP and record.status in DEATHS:
                said = now
                progress(f"[{n}/{len(names)}] {op}: case {count} {record.reason}")
            elif now - said > PROGRESS_SECONDS:
                said = now
                progress(f"[{n}/{len(names)}] {op}: {count} cases, {failed} failed so far, {now - start:.0f} s")
            yield record
        progress(f"[{n}/{len(names)}] {op}: {count} cases, {failed} failed, {time.perf_counter() - start:.1f} s")
