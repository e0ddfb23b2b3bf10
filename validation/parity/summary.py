"""One record on an op over all its cases: its tier, its bias, the corners not reached."""

import dataclasses
from collections import Counter

from validation.cases.case import Case
from validation.cases.corners import Corner
from validation.judge import fingerprint
from validation.judge.oracle import FORMULAS
from validation.judge.verdict import WRONG_TRUTH
from validation.ops import OpSet
from validation.parity import tiers
from validation.parity.repeats import ONE_IN, chance
from validation.parity.shared import shared
from validation.record import Level, Record
from validation.verdict import UNREACHED, Status, Tier

# An op judged on fewer cases is not called passed: half of a quick sweep's corners are more.
FEWEST_CASES = 30


def summary(
    op: str,
    ops: OpSet,
    done: list[Record],
    corners: tuple[Corner, ...],
    require: Tier | None,
    command: str,
    calls: int = 0,
    out_of_reach: tuple[str, ...] = (),
) -> Record:
    """The record of an op, made from its cases' records.

    Args:
        op: its name.
        ops: the op set that was judged.
        done: the records of all its cases.
        corners: the declared corners.
        require: the tier that the op must reach; None: any.
        command: the command line that repeats the sweep.
        calls: how many calls were judged or compared.
        out_of_reach: names of corners that this device has no memory or no time for.
    """
    drawn = {name for record in done for name in record.corners}
    judged = {name for record in done if record.status.judged for name in record.corners}
    of_slow = {name for record in done if record.status in UNREACHED for name in record.corners} - judged
    missed = [corner.name for corner in corners if corner.name not in drawn]
    unjudged = [corner.name for corner in corners if corner.name in drawn - judged - of_slow]
    not_run = [corner.name for corner in corners if corner.name in of_slow]
    too_slow = sum(record.status is Status.NOT_RUN for record in done)
    passed = [record for record in done if record.status is Status.PASSED]
    unexpressed = Counter(record.reason for record in done if record.status is Status.NOT_EXPRESSED)
    unexecuted = Counter(record.reason for record in done if record.status is Status.NOT_EXECUTED)
    mistrusted = sum(record.status is Status.MISTRUSTED for record in done)
    counting = len(done) - unexpressed.total() - unexecuted.total() - mistrusted - too_slow
    tier = tiers.op_tier(passed)
    failed = sum(record.status.failed for record in done)
    bias = tiers.bias_over_cases(passed)
    numbers: dict[str, float | int | str | None] = {
        "cases": len(done),
        "failed": failed,
        "xfailed": sum(record.status is Status.XFAILED for record in done),
        "not_expressed": unexpressed.total(),
        "mistrusted": mistrusted,
        "not_run": too_slow,
        "not_executed": unexecuted.total(),
        "corners": len(corners),
        "corners_missed": len(missed),
        "corners_not_expressed": len(unjudged),
        "corners_not_run": len(not_run),
        "calls": calls,
        f"chance_of_one_in_{ONE_IN}": round(chance(calls), 4),
        "corners_out_of_reach": len(out_of_reach),
        "mean_rms_ratio": tier.mean_ratio,
        **tier.ratios,
        "formula_elements": sum(int(r.numbers.get("formula_elements") or 0) for r in done),
        "arithmetic_percent": max((float(r.numbers.get("arithmetic_percent") or 0.0) for r in done), default=0.0),
    }
    # Failed cases count too: where a kernel rounds is most of interest if it fails.
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
    if tier.unshown:
        numbers["not_shown"] = 1
    notes = [tier.reason]
    if unexpressed:
        most_common = unexpressed.most_common(1)[0][0]
        most = f"{unexpressed.total()} of {len(done)} cases cannot be expressed, most often: {most_common}"
        notes.append(most)
        if unjudged:
            notes.append(f"corners of such cases alone: {', '.join(unjudged)}")
    if unexecuted:
        most_common = unexecuted.most_common(1)[0][0]
        notes.append(f"{unexecuted.total()} of {len(done)} cases are not executed, most often: {most_common}")
    slow = f"{too_slow} of {len(done)} cases not run on this device, which is too slow for them"
    if too_slow:
        notes.append(slow)
    if not_run or out_of_reach:
        notes.append(f"corners not reached on this device: {', '.join((*not_run, *out_of_reach))}")
    changed = [str(record.numbers["contracted"]) for record in done if "contracted" in record.numbers]
    if changed:
        numbers["contracted"] = len(changed)
        notes.append(
            f"{changed[0]} (in {len(changed)} of {len(done)} cases): a GPU's bits may be others than those judged"
        )
    if op not in FORMULAS:
        notes.append("the reference op alone stands for the truth: there is no formula to compare it with")
    common = shared(done)
    if common is not None:
        numbers["only_where"] = common.sentence
        notes.append(common.sentence)
    status, check, reason = Status.PASSED, "tier", "; ".join(notes)
    wrong_truths = [r for r in done if r.status is Status.REFERENCE_ERROR and r.check == WRONG_TRUTH]
    if wrong_truths:  # nor is the tier known, or the bias over all cases: they are measured against it
        status, check, tier = Status.REFERENCE_ERROR, WRONG_TRUTH, dataclasses.replace(tier, tier=None)
        reason = f"in {len(wrong_truths)} of {len(done)} cases, the first: {wrong_truths[0].reason}"
    elif too_slow == len(done) > 0:
        status, check, reason = Status.NOT_RUN, "runs", slow
    elif unexpressed.total() == len(done) > 0:
        status, check, reason = Status.NOT_EXPRESSED, "runs", most
    elif missed:
        status, check = Status.CORNER_NOT_REACHED, "corners"
        reason = f"{len(missed)} of {len(corners)} declared corners were never reached: {', '.join(missed)}"
    elif fallback := _fallback(done, ops):
        status, check, reason = Status.SILENT_FALLBACK, "launches", fallback
    elif bias:
        status, check, reason = Status.BIASED, "bias over all cases", bias
    elif tier.little and failed:  # its other cases say enough
        tier = dataclasses.replace(tier, tier=None)
    elif require is not None and tier.tier is not None and not tier.tier.meets(require):
        status = Status.INCONCLUSIVE if tier.little else Status.BELOW_REQUIRED_TIER
        reason = f"tier {tier.tier}, expected {require}: {tier.reason}"
    elif counting < FEWEST_CASES or unexpressed.total() + unexecuted.total() > len(done) / 2:
        status, check = Status.INCONCLUSIVE, "too little judged"
        reason = (
            f"too little judged: {counting} of {len(done)} cases count (expected at least {FEWEST_CASES}, and half of "
            f"all), {unexpressed.total()} cannot be expressed, {unexecuted.total()} are not executed, "
            f"{mistrusted} tell too little; {reason}"
        )
    elif require is not None and tier.tier is None:
        status, reason = Status.BELOW_REQUIRED_TIER, f"no tier, expected {require}: {tier.reason}"
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


def _fallback(done: list[Record], ops: OpSet) -> str:
    """Describe cases with elements that launched no kernel though others did or ours must; "" if there are none."""
    judged = [record for record in done if record.numbers.get("elements")]
    without = [record for record in judged if not record.numbers["launches"]]
    if not without or (len(without) == len(judged) and ops.origin != "fused_ops"):
        return ""
    return (
        f"{len(without)} of {len(judged)} cases with elements launched no kernel (expected one in each: an op set "
        f"that launches kernels may not fall back silently): the first is {Case.from_dict(without[0].case).describe()}"
    )
