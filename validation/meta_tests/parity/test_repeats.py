"""A fault of few calls: a sweep makes as many calls as it says, and each of them shows the fault."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from validation.cases.errors import good_case
from validation.device import Device, select
from validation.executor import InProcess
from validation.faults.right import RightOps
from validation.judge.signature import signature_of
from validation.judge.verdict import judge_call
from validation.ops import OpSet
from validation.parity import repeats
from validation.parity.profiles import PROFILES
from validation.parity.repeats import chance
from validation.parity.sweep import Sweep
from validation.record import Level, Record
from validation.verdict import Status

OP = "layer_norm"


@pytest.fixture(scope="module")
def device() -> Device:
    return select(gpu=False)


class Wrong:
    """A right `layer_norm` with one wrong element in some calls, which no seed of the sweep decides."""

    def __init__(self, wrong_at: Callable[[int], bool]) -> None:
        self.calls = 0
        self.wrong_at = wrong_at
        self.right = RightOps()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        y: Tensor = self.right.layer_norm(*args, **kwargs)
        if y.numel() and self.wrong_at(self.calls):
            element = y.view(-1)[int.from_bytes(os.urandom(4)) % y.numel()]
            # Nothing like a rounding; what is inf or NaN becomes a number.
            element.copy_(torch.where(element.isfinite(), -2.0 * element + 1.0, 0.0))
        return y


def swept(candidate: Wrong, device: Device, profile: str) -> list[Record]:
    executor = InProcess(OpSet("wrong in few calls", {OP: candidate}, ""), device)
    return list(Sweep(executor, PROFILES[profile], 0, shrink=False).of_op(OP))


@functools.cache
def swept_right(profile: str) -> tuple[list[Record], dict[str, int], int]:
    """The records of a right candidate's sweep, its calls when each kind of record came, and its calls in all.

    Two tests ask for the default sweep, of 3 s of processor time.
    """
    candidate = Wrong(lambda _: False)
    executor = InProcess(OpSet("wrong in few calls", {OP: candidate}, ""), select(gpu=False))
    records, calls = [], {}
    for record in Sweep(executor, PROFILES[profile], 0, shrink=False).of_op(OP):
        records.append(record)
        calls[record.check] = candidate.calls
    return records, calls, candidate.calls


def test_a_profile_says_what_its_calls_are_worth() -> None:
    assert chance(0) == 0.0
    assert chance(300) == pytest.approx(0.633, abs=1e-3)
    calls = PROFILES["default"].calls
    assert chance(calls) >= 0.9 > chance(calls - 1)
    # The free draws of a nightly sweep alone are more.
    assert chance(PROFILES["nightly"].free) > 1.0 - 1e-14


@pytest.mark.parametrize("profile", ["quick", "default"])
def test_a_sweep_makes_the_calls_that_it_counts(profile: str, device: Device) -> None:
    records, _, made = swept_right(profile)
    summary = records[-1]
    assert summary.status is Status.PASSED
    counted = int(summary.numbers["calls"] or 0)
    # Not counted: empty tensors, and the calls that check refusals.
    assert counted <= made
    assert counted >= PROFILES[profile].calls
    assert summary.numbers["chance_of_one_in_300"] == pytest.approx(1.0 - (299 / 300) ** counted, abs=1e-4)
    again = [record for record in records if record.check == "repeated calls"]
    assert len(again) == (profile == "default")
    if again:
        cases = [r for r in records if r.level is Level.OP]
        before = repeats.calls_of(cases, InProcess(OpSet("", {}, ""), device))
        assert before + int(again[0].numbers["repeated_calls"] or 0) == counted


def test_every_300th_call_wrong_is_caught_whichever_is_the_first(device: Device) -> None:
    phase = int.from_bytes(os.urandom(4)) % 300
    records = swept(Wrong(lambda call: call % 300 == phase), device, "default")
    failed = [record for record in records if record.status.failed]
    assert failed
    assert all(record.status is Status.NOT_REPRODUCIBLE for record in failed), [r.reason for r in failed]
    assert all(re.search(r"gives? other bits", record.message) for record in failed)


def test_a_fault_of_the_repeats_alone_is_caught(device: Device) -> None:
    calls = swept_right("default")[1]["repeated calls"]
    # The same calls in the same order: the last of the repeats is wrong.
    records = swept(Wrong(lambda call: call == calls), device, "default")
    (failed,) = [record for record in records if record.status.failed]
    assert failed.check == "repeated calls"
    assert failed.status is Status.NOT_REPRODUCIBLE
    assert "with the same arguments gives other bits: 1 of " in failed.reason
    assert "validate parity --op layer_norm" in failed.repro
    assert "--seed 0" in failed.repro


def test_a_failed_case_is_called_again_before_it_is_reported() -> None:
    case = good_case(signature_of(OP))
    negated = judge_call(case, lambda **kwargs: -RightOps().layer_norm(**kwargs), "cpu")
    assert negated.status is Status.INCORRECT_NUMERICAL
    assert negated.lines[-1] == "a second call gives the same bits"
    once = judge_call(case, Wrong(lambda call: call == 1), "cpu")
    assert once.status is Status.NOT_REPRODUCIBLE
    assert once.reason.startswith("repeat: a second call gives other bits: 1 of ")
    assert "; the first call: " in once.reason
