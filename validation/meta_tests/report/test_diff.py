"""`validate diff`: each kind of change is planted and named; seconds and memory are no change."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from validation import cli
from validation.diff import Difference, Kind, diff
from validation.record import Environment, Level, Record, Run
from validation.verdict import Status, Tier

ENVIRONMENT = Environment(
    started="2026-01-02T03:04:05Z",
    command="validate run",
    device="interpreter",
    cpu="a processor, 2 cores",
    python="3.11.7",
    torch="2.13.0",
    triton="3.7.1",
    cuda="",
    diffusers="0.42.1",
    commit="0123456789ab",
    seed=0,
    profile="quick",
)


def _op(seed: int, **changes: Any) -> Record:
    spec = {"shape": [2, 3, 4], "dtype": "bfloat16", "strides": [12, 4, 1], "offset": 0, "storage": "x"}
    case = {"op": "layer_norm", "tensors": {"x": spec}, "flags": {"eps": 1e-6}, "values": "normal", "seed": seed}
    numbers: dict[str, float | int | str | None] = {
        "budget_percent": 12.5,
        "rms_ratio": math.nan,
        "max_ratio": math.inf,
        "elements": 24,
        "baseline_peak_mib": 1.0,
    }
    record = Record(
        Level.OP, "layer_norm", "fused_ops", Status.PASSED, "bias", "1 % of the budget", case, "bfloat16",
        Tier.LOSSLESS, numbers, seconds={"truth": 0.1}, corners=["B == L"],
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


SAMPLE = Record(
    Level.SAMPLE, "helios", "fused_ops", Status.PASSED, "floors", "PSNR 50 dB",
    {"model": "helios", "prompt_name": "red-square", "seed": 0, "steps": 6}, "bfloat16", None, {"psnr": 50.0},
    {"psnr_per_frame": [51.0, 50.0, math.inf]}, {"candidate_frames": "artifacts/a.npz", "view": "artifacts/a.png"},
)  # fmt: skip
DRIFT = [
    Record(Level.MODEL, "helios", "fused_ops", Status.PASSED, check, "", {"model": "helios"})
    for check in ("teacher-forced", "band")
]
TIER = Record(Level.RUN, "layer_norm", "fused_ops", Status.PASSED, "tier", "lossless", numbers={"cases": 2})
RECORDS = [_op(0), _op(1), _op(1), _op(2), TIER, SAMPLE, *DRIFT]
FRAMES = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(name: str, records: list[Record], frames: Any = FRAMES, image: bytes = b"png", **about: Any) -> Path:
        made = Run(tmp_path / name, dataclasses.replace(ENVIRONMENT, **about))
        (made.folder / "artifacts").mkdir()
        np.savez_compressed(made.folder / "artifacts" / "a.npz", frames=frames, fps=np.int64(16))
        (made.folder / "artifacts" / "a.png").write_bytes(image)
        for record in records:
            made.add(record)
        return made.folder

    return run


def _changed(position: int, **changes: Any) -> list[Record]:
    records = list(RECORDS)
    records[position] = dataclasses.replace(records[position], **changes)
    return records


def _numbers(record: Record, **changes: Any) -> dict[str, Any]:
    return record.numbers | changes


def _only(old: Path, new: Path) -> Difference:
    found = diff(old, new)
    (difference,) = found.differences
    assert found.counts == {str(difference.kind): 1}
    return difference


def test_equal_runs_differ_in_nothing(write: Write) -> None:
    again = [dataclasses.replace(record, seconds={"truth": 9.0}) for record in RECORDS]
    again[0] = dataclasses.replace(again[0], numbers=_numbers(again[0], baseline_peak_mib=2.0))
    found = diff(write("old", RECORDS), write("new", again, started="later", command="validate parity"))
    assert (found.differences, found.environment, found.records) == ([], {}, (8, 8))
    assert next(found.lines()).endswith("nothing changed")


ULP = math.nextafter(12.5, 13)


@pytest.mark.parametrize(
    ("records", "kind", "what", "says"),
    [
        (_changed(0, status=Status.BIASED), Kind.VERDICT, "status", "verdict PASSED -> BIASED"),
        (_changed(0, tier="close"), Kind.TIER, "tier", "tier lossless -> close"),
        (_changed(0, tier=None), Kind.TIER, "tier", "tier lossless -> none"),
        (_changed(0, check="budget"), Kind.CHECK, "check", "check bias -> budget"),
        (_changed(0, reason="2 %"), Kind.TEXT, "reason", "reason 1 % of the budget -> 2 %"),
        (_changed(0, corners=[]), Kind.CORNERS, "corners", "corners ['B == L'] -> []"),
        (
            _changed(0, numbers=_numbers(_op(0), budget_percent=ULP)),
            Kind.NUMBER,
            "budget_percent",
            "budget_percent 12.5 -> 12.500000000000002 (+1.4e-16 relative)",
        ),
        (_changed(0, numbers=_numbers(_op(0), rms_ratio=1.0)), Kind.NUMBER, "rms_ratio", "rms_ratio nan -> 1.0"),
        (_changed(0, numbers=_numbers(_op(0), elements=24.0)), Kind.NUMBER, "elements", "elements 24 -> 24.0"),
        (_changed(0, numbers=_numbers(_op(0), launches=1)), Kind.NUMBER, "launches", "launches none -> 1"),
        (_changed(4, numbers={}), Kind.NUMBER, "cases", "cases 2 -> none"),
        (
            _changed(5, series={"psnr_per_frame": [51.0, 49.0, math.inf]}),
            Kind.SERIES,
            "psnr_per_frame",
            "series psnr_per_frame [1] 50.0 -> 49.0 (-2.0e-02 relative), first of 1 of 3 that differ",
        ),
        (_changed(5, series={"psnr_per_frame": [51.0]}), Kind.SERIES, "psnr_per_frame", "3 values -> 1 values"),
        (_changed(5, artifacts={"view": "artifacts/a.png"}), Kind.BITS, "candidate_frames", "artifacts/a.npz -> none"),
        (_changed(5, case=SAMPLE.case | {"size": [64, 64]}), Kind.CASE, "size", "case size none -> [64, 64]"),
        (_changed(6, case=DRIFT[0].case | {"steps": 6}), Kind.CASE, "steps", "case steps none -> 6"),
        (RECORDS[1:], Kind.GONE, "", "gone (was PASSED)"),
        ([*RECORDS, _op(3)], Kind.NEW, "", "new (PASSED)"),
        ([*RECORDS, _op(1, op_set="mine")], Kind.NEW, "", "new (PASSED)"),
        (_changed(0, case={})[1:], Kind.GONE, "", "gone (was PASSED)"),
        (RECORDS[:-1], Kind.GONE, "", "gone (was PASSED)"),
    ],
)
def test_each_change_is_named(write: Write, records: list[Record], kind: Kind, what: str, says: str) -> None:
    difference = _only(write("old", RECORDS), write("new", records))
    assert (difference.kind, difference.what) == (kind, what)
    assert says in difference.text


@pytest.mark.parametrize(
    ("numbers", "says"),
    [((0.0, -0.0), "zero 0.0 -> -0.0"), ((True, 1), "zero True -> 1"), ((1, None), "zero 1 -> none")],
)
def test_numbers_are_compared_to_the_bit(write: Write, numbers: tuple[Any, Any], says: str) -> None:
    old, new = (write(str(n), [_op(0, numbers={"zero": value})]) for n, value in enumerate(numbers))
    assert _only(old, new).text == says


def test_a_bit_of_an_artifact_is_named(write: Write) -> None:
    frames = FRAMES.copy()
    frames[0, 1, 2, 0] ^= 1
    difference = _only(write("old", RECORDS), write("new", RECORDS, frames))
    assert difference.kind is Kind.BITS
    assert difference.text == ("bits of candidate_frames: frames[0, 1, 2, 0] 15 -> 14, first of 1 of 18 that differ")
    assert difference.about == "red-square, 0"


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (FRAMES[:, :1], "frames uint8 [1, 2, 3, 3] -> uint8 [1, 1, 3, 3]"),
        (FRAMES.astype(np.float32), "-> float32 [1, 2, 3, 3]"),
    ],
)
def test_an_array_of_another_shape_or_dtype_is_named(write: Write, frames: Any, says: str) -> None:
    assert says in _only(write("old", RECORDS), write("new", RECORDS, frames)).text


def test_equal_arrays_of_other_bits_differ(write: Write) -> None:
    old, new = (
        write(name, [SAMPLE], np.array([zero, np.nan], np.float32)) for name, zero in (("old", 0.0), ("new", -0.0))
    )
    assert "frames[0] 0.0 -> -0.0, first of 1 of 2" in _only(old, new).text


def test_other_files_are_compared_byte_by_byte(write: Write) -> None:
    old, new = write("old", RECORDS), write("new", RECORDS, image=b"gif!")
    assert _only(old, new).text == "bits of view: 3 bytes -> 4 other bytes"
    for folder in (old, new):
        (folder / "artifacts" / "a.npz").write_bytes(folder.name.encode())
    assert diff(old, new).counts == {"bits": 2}


def test_a_file_that_only_one_run_has_is_named(write: Write) -> None:
    old, new = write("old", RECORDS), write("new", RECORDS)
    (new / "artifacts" / "a.png").unlink()
    assert _only(old, new).text == "bits of view: the file is only in the old run"
    (old / "artifacts" / "a.png").unlink()
    assert diff(old, new).differences == []


def test_a_case_that_stands_twice_is_matched_in_order(write: Write) -> None:
    # The third record is the second of its case.
    difference = _only(write("old", RECORDS), write("new", _changed(2, tier="close")))
    assert difference.kind is Kind.TIER
    records = _changed(1, check="budget")
    assert _only(write("older", RECORDS), write("newer", records)).kind is Kind.CHECK
    found = diff(write("once", [_op(1)]), write("twice", [_op(1), _op(1)]))
    assert found.counts == {"new": 1}


def test_other_cases_are_never_matched(write: Write) -> None:
    literals = _op(0).case | {"literals": {"x": [1.0]}}
    found = diff(write("old", [_op(0)]), write("new", [_op(0, case=literals)]))
    assert found.counts == {"gone": 1, "new": 1}


def test_another_environment_is_named_and_no_difference(write: Write) -> None:
    found = diff(write("old", RECORDS), write("new", RECORDS, torch="2.14.0", commit="ba9876543210"))
    assert found.environment == {"torch": ("2.13.0", "2.14.0"), "commit": ("0123456789ab", "ba9876543210")}
    assert "another environment: torch '2.13.0' -> '2.14.0'" in list(found.lines())
    assert found.differences == []


def test_the_text_shows_the_gravest_of_each_op_first(write: Write) -> None:
    records = [_op(n, numbers={"rms_ratio": 2.0, "launches": n}) for n in range(4)]
    records[3] = dataclasses.replace(records[3], status=Status.BIASED)
    found = diff(write("old", [_op(n) for n in range(4)]), write("new", records))
    lines = list(found.lines())
    assert lines[1] == "0 of 4 records are equal; 4 changed, 0 gone, 0 new"
    assert lines[2] == "differences by kind: verdict 1, number 20"
    assert lines[3] == "layer_norm fused_ops (op): 21"
    assert lines[4] == "  x[2, 3, 4] bfloat16 values=normal seed=3: verdict PASSED -> BIASED"
    assert lines[-1] == "  and 18 more"


def test_the_command_says_it_by_its_exit_status(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    old, same, new = write("old", RECORDS), write("same", RECORDS), write("new", _changed(0, tier="close"), seed=1)
    assert cli.main(["diff", str(old), str(same)]) == 0
    path = old.parent / "diff.json"
    assert cli.main(["diff", str(old), str(new), "--json", str(path)]) == 1
    assert "tier lossless -> close" in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert data["counts"] == {"tier": 1}
    assert data["environment"] == {"seed": [0, 1]}
    (difference,) = data["differences"]
    assert (difference["kind"], difference["old"], difference["new"]) == ("tier", "lossless", "close")


def test_infinities_are_strict_json(write: Write) -> None:
    old, new = (write(name, [_op(0, numbers={"psnr": psnr})]) for name, psnr in (("old", math.inf), ("new", math.nan)))
    (difference,) = json.loads(diff(old, new).to_json())["differences"]
    assert (difference["old"], difference["new"]) == ("inf", "nan")


def test_what_is_no_run_is_a_usage_error(refused: Callable[[list[str], str], None]) -> None:
    refused(["diff", "no", "run"], "no has no environment.json")


def test_a_place_that_cannot_be_written_is_a_usage_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    old = write("old", RECORDS)
    assert cli.main(["diff", str(old), str(old), "--json", str(old / "none" / "diff.json")]) == cli.USAGE
    assert "--json: cannot write" in capsys.readouterr().err
