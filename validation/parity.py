"""Level one: is the op right, for every shape, layout, dtype and value regime?

`run` judges one case, `sweep` an op. The command line, pytest and the nightly job all come through here.
"""

import contextlib
import dataclasses
import json
import shlex
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis.strategies import SearchStrategy

from validation.cases.case import Case
from validation.cases.corners import Corner, corners_of, declared_corners
from validation.cases.strategies import Signature, cases
from validation.cases.workloads import workloads
from validation.device import Device
from validation.errors import UsageError
from validation.judge import tiers
from validation.judge.verdict import TIERS, Judgement, judge_call
from validation.ops import OpSet, reference_op
from validation.record import Level, Record, Status

REGRESSIONS = Path(__file__).parent.parent / "fixtures" / "regressions"

SHORT_DTYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

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


def run(case: Case, ops: OpSet, device: Device, corners: tuple[Corner, ...] = ()) -> Record:
    """Judge one case.

    Args:
        case: what to feed.
        ops: the op set that provides the candidate.
        device: where.
        corners: those declared for the op, to note which the case reaches.

    Raises:
        UsageError: the op set lacks the op, or the case does not fit the op's signature.
    """
    if case.op not in ops:
        raise UsageError(f"{ops.name} does not provide {case.op}, expected one of: {', '.join(ops.functions)}")
    start = time.perf_counter()
    judgement = judge_call(case, ops[case.op], device.torch)
    return _record(case, ops, judgement, time.perf_counter() - start, corners_of(case, corners))


def _record(case: Case, ops: OpSet, judgement: Judgement, seconds: float, corners: list[str]) -> Record:
    repro = repro_command(case, ops)
    failed = judgement.status.failed
    lines = [
        f"{case.op}  {ops.name}  {SHORT_DTYPE[case.dtype]}  {judgement.status}",
        case.describe(),
        judgement.reason,
        *judgement.lines,
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
        seconds={"total": round(seconds, 6)},
        message="\n".join(lines) if failed else "",
        repro=repro,
        corners=corners,
    )


def repro_command(case: Case, ops: OpSet) -> str:
    """The command line that judges the case again."""
    parts = ["validate", "repro", case.to_json()]
    if ops.origin != "fused_ops":
        parts += ["--ops", ops.origin]
    return shlex.join(parts)


def sweep(
    op: str,
    ops: OpSet,
    device: Device,
    *,
    profile: Profile,
    seed: int,
    require: str | None = None,
    shrink: bool = True,
) -> Iterator[Record]:
    """Judge an op over its whole case space.

    Known regressions first, then the real models' workloads (with few tokens on the CPU, whole on a GPU), then
    every declared corner, then free draws; then, for each kind of failure, the
    same failure shrunk; last, one record for the op: its tier, bias over all cases, corners not reached.

    Args:
        op: its name.
        ops: the op set.
        device: where.
        profile: how many cases.
        seed: all cases follow from it.
        require: the tier that the op must reach.
        shrink: whether to shrink failures.
    """
    if require is not None and require not in TIERS:
        raise UsageError(f"unknown tier {require!r}, expected one of: {', '.join(TIERS)}")
    signature = signature_of(op)
    bfloat16 = not device.bfloat16_problems
    corners = declared_corners(signature, bfloat16=bfloat16)
    real = [(w, w.make(not device.interpreted)) for w in workloads(op)]
    real = [(w, case) for w, case in real if bfloat16 or case.dtype != "bfloat16"]
    corners += tuple(Corner(w.name, {}, lambda case, whole=whole: case == whole) for w, whole in real)  # type: ignore[misc]
    done: list[Record] = []
    failed: dict[Status, tuple[Mapping[str, Any], int]] = {}

    def judged(case: Case, forced: Mapping[str, Any], draw_seed: int) -> Record:
        record = run(case, ops, device, corners)
        done.append(record)
        if record.status.failed:
            failed.setdefault(record.status, (forced, draw_seed))
        return record

    for case in regressions(op):
        if bfloat16 or all(spec.dtype != "bfloat16" for spec in case.tensors.values()):
            yield judged(case, {}, seed)
    # With few tokens the stages of a pyramid are one case.
    for case in {case.to_json(): case for _, case in real}.values():
        yield judged(case, {}, seed)
    for corner in (*(c for c in corners if c.forced), None):
        forced = corner.forced if corner else {}
        draw_seed = zlib.crc32(f"{seed}/{op}/{corner.name if corner else 'free'}".encode())
        count = profile.per_corner if corner else profile.free
        strategy = cases(signature, forced, bfloat16=bfloat16)
        # The first example of a strategy is its simplest; a corner's cases are the ones after it.
        for case in draw_cases(strategy, seed=draw_seed, count=count, skip=1 if corner else 0):
            yield judged(case, forced, draw_seed)
    if shrink:
        for status, (forced, draw_seed) in failed.items():
            strategy = cases(signature, forced, bfloat16=bfloat16)
            small = _shrunk(strategy, draw_seed, max(profile.per_corner + 1, profile.free), status, ops, device)
            if small is not None:
                yield run(small, ops, device, corners)
    yield _summary(op, ops, done, corners, require, seed)


def regressions(op: str) -> Iterator[Case]:
    """The confirmed failures of the past, kept in ``fixtures/regressions/``, for one op."""
    for path in sorted(REGRESSIONS.glob("*.json")):
        data = json.loads(path.read_text())
        if data["case"]["op"] == op:
            yield Case.from_dict(data["case"])


def _settings(count: int, *, shrink: bool) -> settings:
    # Our own profiles, explicitly: under CI Hypothesis would swap in its own, with a deadline.
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )


def draw_cases(strategy: SearchStrategy[Case], *, seed: int, count: int, skip: int = 0) -> list[Case]:
    """Count cases drawn from a strategy, the same for the same seed; the first, simplest ``skip`` left out."""
    drawn: list[Case] = []

    @_settings(count + skip, shrink=False)
    @hypothesis_seed(seed)
    @given(strategy)
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn[skip:] or drawn


class _FoundError(Exception):
    pass


def _shrunk(
    strategy: SearchStrategy[Case], seed: int, count: int, status: Status, ops: OpSet, device: Device
) -> Case | None:
    """The simplest case with that status, found from the same draws; None if time ran out before the first."""
    known: dict[str, bool] = {}
    best: list[Case] = []
    deadline = time.monotonic() + SHRINK_SECONDS

    def fails(case: Case) -> bool:
        key = case.to_json()
        if key not in known:
            known[key] = time.monotonic() < deadline and run(case, ops, device).status == status
        return known[key]

    @_settings(count, shrink=True)
    @hypothesis_seed(seed)
    @given(strategy)
    def check(case: Case) -> None:
        if fails(case):
            best[:] = [case]
            raise _FoundError

    with contextlib.suppress(_FoundError):
        check()
    return best[0] if best else None


def _summary(
    op: str, ops: OpSet, done: list[Record], corners: tuple[Corner, ...], require: str | None, seed: int
) -> Record:
    reached = {name for record in done for name in record.corners}
    missed = [corner.name for corner in corners if corner.name not in reached]
    passed = [record for record in done if not record.status.failed]
    tier = tiers.op_tier(passed)
    bias = tiers.bias_over_cases(passed)
    numbers: dict[str, float | int | str | None] = {
        "cases": len(done),
        "failed": len(done) - len(passed),
        "corners": len(corners),
        "corners_missed": len(missed),
        "mean_rms_ratio": tier.mean_ratio,
        "budget_percent": max((float(r.numbers.get("budget_percent") or 0.0) for r in done), default=0.0),
    }
    status, check, reason = Status.PASSED, "tier", tier.reason
    if missed:
        status, check = Status.CORNER_NOT_REACHED, "corners"
        reason = f"{len(missed)} of {len(corners)} declared corners were never reached: {', '.join(missed)}"
    elif bias:
        status, check, reason = Status.BIASED, "bias over all cases", bias
    elif require is not None and (tier.tier is None or TIERS.index(tier.tier) > TIERS.index(require)):
        status = Status.BELOW_REQUIRED_TIER
        reason = f"tier {tier.tier}, expected {require}: {tier.reason}"
    command = shlex.join(["validate", "parity", "--op", op, "--ops", ops.origin, "--seed", str(seed)])
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
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Record]:
    """Sweep several ops of an op set; progress gets a line an op."""
    problem = bfloat16_record(device, ops)
    if problem:
        yield problem
    for n, op in enumerate(names, 1):
        start, count, failed = time.perf_counter(), 0, 0
        progress(f"[{n}/{len(names)}] {op} ...")
        for record in sweep(op, ops, device, profile=profile, seed=seed, require=require):
            count += record.level is Level.OP
            failed += record.status.failed
            yield record
        progress(f"[{n}/{len(names)}] {op}: {count} cases, {failed} failed, {time.perf_counter() - start:.1f} s")
