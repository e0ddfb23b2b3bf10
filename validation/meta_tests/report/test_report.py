import base64
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
import pytest

from validation.errors import UsageError
from validation.record import Environment, Level, Record, Run
from validation.report import page, summary
from validation.report.curve import figure
from validation.report.html import MAX_OTHERS, write_report
from validation.report.junit import write_junit
from validation.report.terminal import WIDTH, print_table
from validation.verdict import Status, Tier

ENVIRONMENT = Environment(
    started="2026-01-02T03:04:05Z",
    command="validate run --profile quick",
    device="interpreter",
    cpu="a processor, 2 cores",
    python="3.11.7",
    torch="2.13.0",
    triton="3.7.1",
    cuda="",
    diffusers="0.42.1",
    commit="0123456789ab+",
    seed=7,
    profile="quick",
)
HOSTILE = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""
VOID = {"meta", "br", "img", "input", "wbr", "link", "hr"}


class Page(HTMLParser):
    """The parts of a report that tests ask for; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def text(self, tag: str = "body") -> str:
        return " ".join(" ".join(data for tags, data in self.texts if tag in tags and "script" not in tags).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def op_record(
    n: int = 0,
    *,
    op: str = "rms_norm",
    status: Status = Status.PASSED,
    budget: float | None = 80.0,
    shape: Sequence[int] = (2, 8, 64),
    dtype: str = "bfloat16",
    tier: Tier | None = Tier.LOSSLESS,
    **changes: Any,
) -> Record:
    spec = {"shape": list(shape), "dtype": dtype, "strides": [1] * len(shape), "offset": 0, "storage": "x"}
    case = {"op": op, "tensors": {"x": spec}, "flags": {"casting_mode": "input"}, "values": "normal", "seed": n}
    repro = f"validate repro '{json.dumps(case)}'"
    failed = status.failed
    record = Record(
        Level.OP,
        op,
        "fused_ops",
        status,
        check="error",
        reason=f"{budget} % of the error budget used",
        case=case,
        dtype=dtype,
        tier=None if failed else tier,
        numbers={
            "arithmetic_percent": budget,
            "rms_ulp": 0.29,
            "max_ulp": 0.5,
            "bias_ulp": 0.001,
            "baseline_rms_ulp": 0.3,
            "baseline_max_ulp": 0.5,
            "rms_ratio": 0.29 / 0.3,
            "equal_share": 0.99,
            "elements": math.prod(shape),
        },
        seconds={"total": 0.01},
        message=f"{op}  fused_ops  {status}\nseed {n} is wrong\nrepeat: {repro}" if failed else "",
        repro=repro,
        corners=["B>1", "D=2^k"],
    )
    return dataclasses.replace(record, **changes)


def video(frames: int = 5, height: int = 16, width: int = 24, *, noise: float = 2.0, seed: int = 0) -> Any:
    """A disc that moves over a noisy gradient, uint8."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    made = np.empty((frames, height, width, 3), np.uint8)
    for n in range(frames):
        picture = np.stack([90 + 50 * np.sin(x / 20 + n / 9), 90 + 40 * np.cos(y / 15), 90 + x + y], -1).astype(float)
        picture[(x - width * n / frames) ** 2 + (y - height / 2) ** 2 < height] = (230, 180, 60)
        made[n] = np.clip(picture + generator.normal(0, noise, picture.shape), 0, 255)
    return made


MEASURES = [
    {"name": name, "label": label, "unit": unit, "better": "high", "rung": "frames"}
    for name, label, unit in (
        ("psnr", "PSNR, all frames pooled", "dB"),
        ("psnr_worst_frame", "PSNR, worst frame", "dB"),
        ("ssim_worst_frame", "SSIM, worst frame", ""),
    )
]


def sample_record(folder: Path, name: str, reference: Any, candidate: Any, **changes: Any) -> Record:
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    artifacts = {}
    for arm, frames in (("reference", reference), ("candidate", candidate)):
        artifacts[f"{arm}_frames"] = f"artifacts/{name}-{arm}.npz"
        np.savez(folder / artifacts[f"{arm}_frames"], frames=frames)
    count = len(reference)
    record = Record(
        Level.SAMPLE,
        "helios",
        "fused_ops",
        Status.PASSED,
        "floors",
        "worst frame 3: 41.2 dB, floor 30 dB",
        case={"model": "helios", "prompt": "a disc", "seed": 1},
        dtype="bfloat16",
        numbers={"psnr": 44.0, "psnr_worst_frame": 41.2, "worst_frame": 3, "floor_psnr_worst_frame": 30.0},
        series={
            "psnr_per_frame": [50.0 - n for n in range(count)],
            "ssim_per_frame": [1 - 0.001 * n for n in range(count)],
        },
        artifacts=artifacts,
        seconds={"denoise": 2.0, "decode": 1.0},
        repro="validate quality --model helios",
        measures=MEASURES,
        players=[{"role": "frames", "unit": "frame", "rate": 16.0, "width": None, "captions": None, "worst": 3}],
    )
    return dataclasses.replace(record, **changes)


def whole_op(op: str = "rms_norm", status: Status = Status.PASSED, **changes: Any) -> Record:
    record = Record(Level.RUN, op, "fused_ops", status, "tier", "rms is 0.99x the reference path's", tier=Tier.LOSSLESS)
    return dataclasses.replace(record, **changes)


def report(folder: Path, records: Sequence[Record]) -> tuple[str, Page]:
    run = Run(folder, ENVIRONMENT)
    (folder / "records.jsonl").write_text("".join(record.to_json() + "\n" for record in records))
    path = write_report(run.folder)
    assert path == folder / "report.html"
    text = path.read_text()
    return text, Page(text)


def sheets(text: str) -> dict[str, npt.NDArray[np.uint8]]:
    """The embedded sprite sheets, decoded, by class."""
    found = re.findall(r"\.(s\d+-\d+-\w+)\{background-image:url\(\"data:image/png;base64,([^\"]+)\"\)\}", text)
    return {name: iio.imread(base64.b64decode(data), extension=".png") for name, data in found}


def table(records: Sequence[Record], **options: Any) -> str:
    file = io.StringIO()
    print_table(records, file=file, **options)
    return file.getvalue()


# ---------------------------------------------------------------- summary


def test_verdict_and_headline() -> None:
    passed, failed = op_record(), op_record(status=Status.BIASED)
    unsure = dataclasses.replace(passed, level=Level.SAMPLE, status=Status.INCONCLUSIVE)
    assert summary.headline([passed, passed, whole_op()]) == (
        "PASSED",
        "2 op cases passed; 1 check of the whole run passed.",
    )
    verdict, sentence = summary.headline([passed, failed, unsure, whole_op(status=Status.CORNER_NOT_REACHED)])
    assert verdict == "FAILED"
    assert sentence == ("1 of 2 op cases failed; 1 of 1 sample inconclusive; 1 of 1 check of the whole run failed.")
    assert summary.headline([passed, unsure])[0] == "INCONCLUSIVE"
    # Nothing judged is a failure, whatever the run says about itself.
    for nothing in ([], [whole_op()]):
        assert summary.headline(nothing) == ("FAILED", summary.NOT_JUDGED)


def test_rows_take_the_loosest_tier_and_what_the_run_says_of_the_whole_op() -> None:
    records = [op_record(tier=Tier.BIT_EXACT), op_record(tier=Tier.LOSSLESS, budget=99.0), op_record(op="qk_norm")]
    other = dataclasses.replace(op_record(), op_set="theirs")
    qk, theirs, ours = (
        {(r.subject, r.op_set): r for r in summary.rows([*records, other])}[key]
        for key in (("qk_norm", "fused_ops"), ("rms_norm", "theirs"), ("rms_norm", "fused_ops"))
    )
    assert (ours.tier, ours.worst_arithmetic, ours.verdict, len(ours.records)) == ("lossless", 99.0, "PASSED", 2)
    assert len(qk.records) == len(theirs.records) == 1

    close = whole_op(status=Status.BELOW_REQUIRED_TIER, tier=Tier.CLOSE)
    row, *rest = summary.rows([*records[:2], close])
    assert (row.tier, row.verdict, row.failed, rest) == ("close", "FAILED", 0, [])

    row, run = summary.rows([op_record(status=Status.BIASED), op_record(), whole_op(op="bfloat16")])
    assert (row.tier, row.failed) == (None, 1)
    assert (run.level, run.subject, run.op_set) == (Level.RUN, "the run itself", "")


def test_rms_ratio_is_the_geometric_mean_of_the_worst_dtype() -> None:
    def with_ratio(ratio: float, dtype: str) -> Record:
        return op_record(dtype=dtype, numbers={"rms_ratio": ratio})

    records = [with_ratio(0.5, "bfloat16"), with_ratio(2.0, "bfloat16"), with_ratio(1.5, "float32")]
    (row,) = summary.rows([*records, with_ratio(math.inf, "float32"), with_ratio(math.nan, "bfloat16")])
    assert row.rms_ratio == pytest.approx(1.5)
    assert summary.rows([with_ratio(math.inf, "float32")])[0].rms_ratio is None


def test_nan_does_not_hide_behind_a_finite_worst() -> None:
    records = [op_record(budget=10.0), op_record(budget=math.nan), op_record(budget=900.0)]
    worst = summary.worst(records, "arithmetic_percent")
    assert worst is not None
    assert math.isnan(worst)
    assert summary.percent(worst) == "NaN"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (99.999, "99.9"),
        (100.0, "100.0"),
        (100.0001, "100.1"),
        (0.0, "0.0"),
        (12345.6, "1.23e4"),
        (math.inf, "inf"),
        (math.nan, "NaN"),
        (None, "-"),
    ],
)
def test_percent_never_crosses_the_gate(value: float | None, text: str) -> None:
    assert summary.percent(value) == text


def test_numbers_as_text() -> None:
    values = [None, 1234567, 0.97, 1.5e-7, -2.5e10, math.inf, -math.inf, math.nan, "word"]
    assert [summary.number(v) for v in values] == [
        "-", "1,234,567", "0.97", "1.5e-7", "-2.5e10", "inf", "-inf", "NaN", "word",
    ]  # fmt: skip
    assert [summary.number(v, zeros=True) for v in (0.97, 2.0, 123.0)] == ["0.970", "2.00", "123"]


def test_not_passed_groups_by_kind_smallest_case_first() -> None:
    records = [
        op_record(1, status=Status.BIASED, shape=(4, 64)),
        op_record(2, status=Status.BIASED, shape=(1, 3)),
        op_record(3, status=Status.BIASED, shape=(1, 5)),
        op_record(4, status=Status.RUNTIME_ERROR, numbers={}),
        op_record(5, op="layer_norm", status=Status.INCONCLUSIVE),
        op_record(6),
    ]
    groups = summary.not_passed(records)
    assert [(g.subject, g.status, [r.case["seed"] for r in g.records]) for g in groups] == [
        ("rms_norm", Status.BIASED, [2, 3, 1]),
        ("rms_norm", Status.RUNTIME_ERROR, [4]),
        ("layer_norm", Status.INCONCLUSIVE, [5]),
    ]


def test_what_one_status_shares_is_said_of_that_status_alone() -> None:
    words = "NOT_WRITTEN only where D is odd (2 of 2 failing cases and 0 of 9 passing ones)"
    whole = dataclasses.replace(whole_op(status=Status.NOT_WRITTEN), numbers={"only_where": words})
    records = [op_record(status=status) for status in (Status.NOT_WRITTEN, Status.BIASED)]
    said = {g.status: g.only_where for g in summary.not_passed([*records, whole]) if g.records[0].case}
    assert said == {Status.NOT_WRITTEN: words, Status.BIASED: ""}


def test_records_without_a_case_say_different_things() -> None:
    unused = [
        Record(Level.RUN, "rms_norm", "mine", Status.XFAIL_UNUSED, "xfail", f"xfail.txt:{n}: matched no failure")
        for n in (2, 7)
    ]
    assert [g.records for g in summary.not_passed(unused)] == [[record] for record in unused]
    text = io.StringIO()
    print_table([op_record(1), *unused], report=Path("report.html"), file=text)
    assert "xfail.txt:2" in text.getvalue()
    assert "xfail.txt:7" in text.getvalue()


# ---------------------------------------------------------------- terminal


def test_table_fits_and_shows_each_failure_once_with_its_repro() -> None:
    long = "scale_residual_layer_norm_scale_shift"
    records = [op_record(n, op=long, op_set="a_third_party_op_set_of_a_long_name") for n in range(2000)]
    records += [op_record(n, status=Status.INCORRECT_NUMERICAL, budget=12345.6, shape=(n, 3)) for n in (9, 4)]
    records += [op_record(3, op=long, status=Status.INCONCLUSIVE, reason="words " * 60), whole_op()]
    text = table(records, report=Path("runs/1/report.html"))
    lines = text.splitlines()
    # Only a command may be longer, because it is pasted.
    assert max(len(line) for line in lines if "validate repro" not in line) <= WIDTH
    row = next(line for line in lines if line.startswith("rms_norm "))
    assert re.split(r"\s{2,}", row) == ["rms_norm", "fused_ops", "2", "2", "1.23e4", "0.967", "-", "FAILED"]
    assert text.count("validate repro") == 2
    assert "seed 4 is wrong" in text
    assert "seed 9 is wrong" not in text
    assert "INCORRECT_NUMERICAL  2 times" in text
    assert lines.index(next(line for line in lines if "2 times" in line)) > lines.index(row)
    assert lines[-1] == "report: runs/1/report.html"
    assert "FAILED: 2 of 2,003 op cases failed; 1 of 2,003 op cases inconclusive;" in " ".join(lines)


def test_table_of_nothing() -> None:
    assert table([]) == f"\nFAILED: {summary.NOT_JUDGED}\n"


def test_table_is_coloured_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")

    def on_terminal() -> str:
        ours, theirs = os.openpty()
        with open(theirs, "w") as file:  # noqa: PTH123 - a file descriptor
            print_table([op_record()], file=file)
        found = b""
        # The lines come one by one; after the last, reading from a closed terminal's master raises.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 2**16):
                found += piece
        os.close(ours)
        return found.decode()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in on_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in on_terminal()
    assert "\x1b" not in table([op_record()])


def test_table_lets_no_control_sequence_through_and_needs_no_unicode() -> None:
    record = op_record(status=Status.RUNTIME_ERROR, message="\x1b[31mred\x07\x9b2J \ud800 \u00b5", repro="")
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_table([record], file=file)
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert "red" in text
    assert r"\xb5" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


# ---------------------------------------------------------------- JUnit


def test_junit_has_a_test_case_an_op_and_dtype_with_the_failures_inside(tmp_path: Path) -> None:
    records = [op_record(n, dtype=dtype) for n in range(50) for dtype in ("bfloat16", "float32")]
    records += [op_record(n, status=Status.BIASED) for n in (7, 8)] + [op_record(9, status=Status.NOT_WRITTEN)]
    records += [op_record(1, op="qk_norm", status=Status.INCONCLUSIVE), whole_op()]
    write_junit(records, tmp_path / "junit.xml")
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert [(s.get("name"), s.get("tests"), s.get("failures"), s.get("errors")) for s in root] == [
        ("op", "3", "1", "1"),
        ("run", "1", "0", "0"),
    ]
    assert [(c.get("classname"), c.get("name")) for c in root.iter("testcase")] == [
        ("op.fused_ops", "qk_norm[bfloat16]"),
        ("op.fused_ops", "rms_norm[bfloat16]"),
        ("op.fused_ops", "rms_norm[float32]"),
        ("run.fused_ops", "rms_norm"),
    ]
    (failure,) = root.iter("failure")
    assert failure.get("type") == "NOT_WRITTEN"
    text = failure.text or ""
    assert "seed 9 is wrong" in text
    assert "BIASED: 2 records" in text
    assert "seed 7 is wrong" in text
    assert text.count("repeat: validate repro") == 2
    assert [error.get("type") for error in root.iter("error")] == ["INCONCLUSIVE"]


def test_junit_is_valid_whatever_the_text_holds(tmp_path: Path) -> None:
    every = "".join(map(chr, range(0x200))) + "\ud800\udfff\ufffe\uffff\U0001f600]]>"
    bad = op_record(op=every, op_set=every, status=Status.RUNTIME_ERROR, message=every, reason=every, repro=every)
    write_junit([dataclasses.replace(bad, dtype=every)], tmp_path / "junit.xml")
    (failure,) = ET.parse(tmp_path / "junit.xml").getroot().iter("failure")
    assert "\U0001f600" in (failure.get("message") or "")


def test_junit_of_nothing_is_an_error(tmp_path: Path) -> None:
    write_junit([], tmp_path / "junit.xml")
    root = ET.parse(tmp_path / "junit.xml").getroot()
    assert (root.get("tests"), root.get("errors")) == ("1", "1")


# ---------------------------------------------------------------- HTML


def test_report_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    frames = video()
    records = [op_record(n, op=op) for n in range(20) for op in ("rms_norm", "qk_norm")]
    records += [op_record(status=Status.BIASED), sample_record(tmp_path, "a", frames, frames), whole_op()]
    text, parsed = report(tmp_path, records)
    assert text.startswith("<!DOCTYPE html>")
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "img")
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if "href" in attributes:
            assert (attributes["href"] or "")[:1] == "#"
            assert (attributes["href"] or "")[1:] in ids
        assert attributes.get("aria-labelledby", ids[0]) in ids
    assert not re.search(r"https?://|@import|url\((?!\"data:)", text)
    # The policy forbids the network, and every script except this one.
    (policy,) = (a["content"] for a in parsed.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    script = next(data for tags, data in parsed.texts if "script" in tags)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    body = parsed.text()
    for value in (
        "validate run --profile quick",
        "interpreter",
        "2.13.0",
        "0123456789ab+",
        "fused_ops in 2 ops and in helios",
    ):
        assert value in body
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "artifacts", "environment.json", "records.jsonl", "report.html",
    ]  # fmt: skip


def test_failures_come_first(tmp_path: Path) -> None:
    records = [op_record(n) for n in range(3)]
    records += [op_record(n, status=Status.INCORRECT_NUMERICAL, budget=300.0, shape=(100 - n, 2)) for n in range(30)]
    records += [op_record(50, op="qk_norm", status=Status.INCONCLUSIVE)]
    _, parsed = report(tmp_path, records)
    headings = [data.strip() for tags, data in parsed.texts if tags[-1:] == ("h2",)]
    assert headings == ["Failures", "Inconclusive", "Overview", "Ops"]
    body = parsed.text()
    assert "FAILED 30 of 34 op cases failed; 1 of 34 op cases inconclusive." in parsed.text("h1")
    assert "30 records; the smallest case first." in body
    pre = [data for tags, data in parsed.texts if "pre" in tags and "header" not in tags]
    assert "seed 29 is wrong" in pre[0]
    assert "repeat:" not in pre[0]
    (shown,) = (data for tags, data in parsed.texts if "code" in tags and '"seed": 29' in data)
    assert shown == records[32].repro
    # Other cases in short form, and only as many as a person reads.
    assert len([1 for tags, data in parsed.texts if "code" in tags and "validate repro" in data]) == 1 + MAX_OTHERS + 1
    assert f"{30 - MAX_OTHERS - 1} more records in records.jsonl" in body


def test_nothing_from_a_record_becomes_markup(tmp_path: Path) -> None:
    frames = video()
    hostile = op_record(
        op=HOSTILE,
        op_set=HOSTILE,
        status=Status.RUNTIME_ERROR,
        check=HOSTILE,
        reason=HOSTILE,
        message=f"message {HOSTILE}\x00\x1b\ud800",
        repro=f"repro {HOSTILE}",
        corners=[HOSTILE],
        dtype=HOSTILE,
        seconds={HOSTILE: 1.0},
        case={"values": HOSTILE, "flags": {"casting_mode": HOSTILE}, "tensors": {"x": {"shape": HOSTILE}}},
    )
    sample = sample_record(
        tmp_path,
        "a",
        frames,
        frames,
        subject=HOSTILE,
        reason=HOSTILE,
        numbers={HOSTILE: HOSTILE, "floor_psnr_" + HOSTILE: 3.0, "worst_frame": 1},
        series={
            HOSTILE + "_per_frame": [1.0, 2.0],
            f"latents_per_{HOSTILE}": [1.0],
            HOSTILE: [2.0],
            "psnr_per_frame": [3.0] * 5,
        },
        case={"prompt": HOSTILE},
    )
    lost = dataclasses.replace(sample, artifacts={"reference_frames": HOSTILE, HOSTILE: HOSTILE})
    whole = whole_op(op=HOSTILE, op_set=HOSTILE, reason=HOSTILE, status=Status.BIASED)
    _, parsed = report(tmp_path, [hostile, dataclasses.replace(hostile, status=Status.PASSED), sample, lost, whole])
    assert len(parsed.attributes("script")) == 1
    assert parsed.attributes("img") == []
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert f"message {HOSTILE}" in parsed.text("pre")
    assert f"repro {HOSTILE}" in parsed.text("code")


@pytest.mark.parametrize("levels", ["none", "run", "failures", "samples"])
def test_every_kind_of_run_renders(tmp_path: Path, levels: str) -> None:
    frames = video()
    bare = Record(Level.OP, "rms_norm", "fused_ops", Status.CRASHED, "", "")
    records = {
        "none": [],
        "run": [whole_op(op="bfloat16", status=Status.BFLOAT16_NOT_JUDGED)],
        "failures": [bare, op_record(status=Status.BIASED), dataclasses.replace(bare, level=Level.MODEL)],
        "samples": [sample_record(tmp_path, "a", frames, frames)],
    }[levels]
    _, parsed = report(tmp_path, records)
    headings = [data.strip() for tags, data in parsed.texts if tags[-1:] == ("h2",)]
    assert (
        headings
        == {
            "none": [],
            "run": ["Failures", "Overview"],
            "failures": ["Failures", "Overview", "Ops", "Drift"],
            "samples": ["Overview", "Samples"],
        }[levels]
    )
    assert (summary.NOT_JUDGED in parsed.text("h1")) is (levels in ("none", "run"))


def test_op_section_counts_what_was_covered(tmp_path: Path) -> None:
    records = [
        op_record(0, budget=10.0, shape=(2, 15)),
        op_record(1, budget=30.0, shape=(2, 16), dtype="float32"),
        op_record(2, budget=500.0, shape=(2, 5120), dtype="float32", status=Status.INCORRECT_NUMERICAL),
        dataclasses.replace(op_record(3, op="qk_norm"), case={"values": "zeros"}, corners=[]),
        whole_op(status=Status.CORNER_NOT_REACHED, reason="1 of 40 declared corners was never reached: D=1"),
    ]
    _, parsed = report(tmp_path, records)
    body = parsed.text()
    assert "values normal 1 10.0 1/2 500.0 1/3 500.0 zeros none none none" in body
    assert (
        "width 1 to 15 1 10.0 none 1 10.0 16 to 127 none 1 30.0 1 30.0 4096 and more none 1/1 500.0 1/1 500.0" in body
    )
    assert "CORNER_NOT_REACHED 1 of 40 declared corners was never reached: D=1" in body
    assert "B>1 3" in body
    charts = [a["aria-label"] for a in parsed.of_class("chart")]
    assert charts[-1] == "Histogram of the percent used of the arithmetic's allowance: 1 of 3 cases over 100"


def test_frames_are_embedded_without_loss_and_the_worst_is_shown_first(tmp_path: Path) -> None:
    reference = video(600, 16, 24)  # more rows than one column of a sheet holds
    candidate = reference.copy()
    candidate[3, 5, 7] += 3
    text, parsed = report(tmp_path, [sample_record(tmp_path, "a", reference, candidate)])
    (player,) = parsed.of_class("player")
    rows = int(player["data-rows"] or 0)
    for name, frames in (("s0-0-reference", reference), ("s0-0-candidate", candidate)):
        sheet = sheets(text)[name]
        found = [sheet[n % rows * 16 :][:16, n // rows * 24 :][:, :24] for n in range(600)]
        np.testing.assert_array_equal(np.stack(found), frames)
    style = player["style"] or ""
    assert "--x:0;--y:3;" in style
    assert "--gain:64" in style  # 64 x 3 grey levels: the largest power of two that does not clip, at most 64
    assert json.loads(player["data-frames"] or "") == list(range(600))
    assert "frame 3, the worst · PSNR 47 dB · SSIM 0.9970" in parsed.text()
    assert "64 largest: 3 grey levels of 255" in parsed.text()


def test_large_videos_embed_some_frames_and_say_so(tmp_path: Path) -> None:
    frames = np.zeros((9, 512, 1024, 3), np.uint8)
    record = sample_record(tmp_path, "a", frames, frames)
    text, parsed = report(tmp_path, [record])
    (player,) = parsed.of_class("player")
    assert json.loads(player["data-frames"] or "") == [0, 3]
    assert "2 of 9 frames are embedded, the worst among them; all are in the run folder." in parsed.text()
    assert sheets(text)["s0-0-reference"].shape == (2 * 512, 1024, 3)


def test_missing_and_damaged_artifacts_are_named_in_place(tmp_path: Path) -> None:
    frames = video()
    record = sample_record(tmp_path, "a", frames, frames)
    (tmp_path / "artifacts/text.npz").write_text("no archive")
    whole = (tmp_path / "artifacts/a-reference.npz").read_bytes()
    (tmp_path / "artifacts/cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "artifacts/other.npz", pictures=frames)
    np.savez(tmp_path / "artifacts/float.npz", frames=frames.astype(np.float32))
    np.savez(tmp_path / "artifacts/pickle.npz", frames=np.array([{}], dtype=object))
    np.savez(tmp_path / "artifacts/short.npz", frames=frames[:2])
    unread = "cannot be read, expected npz with an array 'frames'"
    expected = {
        "gone.npz": "No frames of the candidate: artifacts/gone.npz is missing.",
        "text.npz": f"No frames of the candidate: artifacts/text.npz {unread}",
        "cut.npz": f"No frames of the candidate: artifacts/cut.npz {unread}",
        "other.npz": f"No frames of the candidate: artifacts/other.npz {unread}",
        "float.npz": "artifacts/float.npz holds float32 [5, 16, 24, 3], expected uint8 [F, H, W, 3], not empty.",
        "pickle.npz": f"No frames of the candidate: artifacts/pickle.npz {unread}",
        "../../a.npz": "No frames of the candidate: artifacts/../../a.npz lies outside the run folder.",
        "short.npz": "No difference is drawn: the arms are [5, 16, 24] and [2, 16, 24] (frames, height, width).",
    }
    records = [
        dataclasses.replace(record, artifacts={**record.artifacts, "candidate_frames": f"artifacts/{name}"})
        for name in expected
    ]
    records.append(dataclasses.replace(record, artifacts={}))
    _, parsed = report(tmp_path, records)
    body = parsed.text()
    for text in expected.values():
        assert text in body
    assert "No frames of the reference: the record names no file." in body
    assert "candidate_frames: artifacts/gone.npz (missing)" in body
    assert len(parsed.of_class("player")) == len(expected)
    assert len(parsed.of_class("difference")) == 0
    assert len(parsed.of_class("sample")) == len(expected) + 1


def test_infinite_and_missing_numbers_are_drawn_as_what_they_are(tmp_path: Path) -> None:
    frames = video(4)
    inf, nan = math.inf, math.nan
    records = [
        sample_record(
            tmp_path,
            f"s{n}",
            frames,
            frames,
            series={"psnr_per_frame": list(series), "ssim_per_frame": [1.0] * 4},
            numbers={"psnr": inf, "ssim_mean": nan, "psnr_worst_frame": -inf, "worst_frame": nan, "floor_psnr": nan},
        )
        for n, series in enumerate(itertools.product((inf, nan, 40.0, -inf), repeat=4))
        if n % 17 == 0 or series == (inf, inf, nan, 40.0)
    ]
    records += [op_record(n, budget=budget) for n, budget in enumerate((inf, nan, 5.0, None))]
    text, parsed = report(tmp_path, records)
    for tag, attributes in parsed.tags:
        if tag in ("line", "circle", "rect", "text", "path", "polyline"):
            shape = " ".join(
                v or ""
                for k, v in attributes.items()
                if k in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "d", "points", "height")
            )
            assert not re.search("nan|inf", shape)
    assert (
        "Infinite, which for PSNR is equal to the bit, in 2 of 4 frames. No number in 1 of 4 frames (crosses)." in text
    )
    assert "PSNR, all frames pooled inf dB" in parsed.text()
    assert "SSIM mean NaN" in parsed.text()
    assert "1 of 2 cases over 100" in text
    assert "2 cases without such a number are not drawn." in parsed.text()


def test_numbers_of_a_sample_stand_beside_their_floors(tmp_path: Path) -> None:
    frames = video()
    numbers: dict[str, float | int | str | None] = {
        "psnr": 44.0,
        "ssim_worst_frame": 1 - 1e-9,
        "worst_frame": 3,
        "worst_ssim_frame": 1,
        "floor_psnr": 30.0,
        "floor_ssim_worst_frame": 0.9,
        "reference_peak_mib": 12.5,
        "calls_norm1": 6,
        "calls_rope": 12,
    }
    series = {
        "psnr_per_frame": [50.0] * 3 + [40.0, 50.0],
        "ssim_per_frame": [0.99, 0.98] + [0.99] * 3,
        "latents_per_step": [1e-4, 2e-4],
    }
    text, parsed = report(tmp_path, [sample_record(tmp_path, "a", frames, frames, numbers=numbers, series=series)])
    body = parsed.text()
    assert "a disc, seed 1" in body
    assert "PSNR, all frames pooled 44 dB ≥ 30 dB" in body
    assert "SSIM, worst frame 1 - 1e-9 ≥ 0.9000" in body
    assert "peak memory 12.5 MiB" in body
    assert "calls of the sites norm1 6, rope 12" in body
    assert [(a["aria-label"] or "").partition(",")[0] for a in parsed.of_class("curve")] == [
        "PSNR per frame", "SSIM per frame", "Distance of the candidate's latents to the reference's",
    ]  # fmt: skip
    # A floor of the pooled PSNR does not apply to single frames; each curve marks its own worst frame.
    assert len(parsed.of_class("floor")) == 1
    marked = [data for tags, data in parsed.texts if tags[-2:] == ("circle", "title")]
    assert len(marked) == 12
    assert len(parsed.of_class("worst")) == 2
    assert len(re.findall(r'class="point candidate worst"[^>]*><title>frame (?:3: 40|1: 0.98)<', text)) == 2
    assert len([a for a in parsed.of_class("curve") if "data-x" in a]) == 2


def figure_of(values: Sequence[float], **options: Any) -> Page:
    return Page(figure("values", {"candidate": values}, **options))


def test_curve_puts_infinity_above_the_plot_and_a_floor_where_it_is() -> None:
    svg = figure_of([50.0, math.inf, 40.0], floors={"floor": 30.0}, marked=[2])
    first, infinite, worst = svg.attributes("circle")
    (floor,) = (a for a in svg.attributes("line") if a["class"] == "floor")
    heights = [float(value or "nan") for value in (infinite["cy"], first["cy"], worst["cy"], floor["y1"])]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4
    (edge,) = (a for a in svg.attributes("line") if a["class"] == "break")
    assert heights[0] < float(edge["y1"] or "nan") < heights[1]
    assert svg.attributes("polyline") == []  # no line to or from a point that is NaN
    assert worst["class"] == "point candidate worst"
    assert "floor 30" in svg.text("svg")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[1.0], [0.0] * 3, [1.0] * 200, [1e-9, 1e9], [1e-3, 1.1e-3], [math.inf], [math.nan], [-1.0, 2.0], []]
)
def test_curve_of_any_values(values: list[float], log: bool) -> None:
    svg = figure_of(values, log=log)
    assert len(svg.attributes("circle")) + len(svg.attributes("path")) == len(values)
    assert all(0 <= float(circle["cy"] or "nan") <= 210 for circle in svg.attributes("circle"))


def test_heights_of_a_logarithmic_plot_are_logarithms_and_zero_has_none() -> None:
    svg = figure_of([1.0, 10.0, 100.0, 0.0], log=True)
    a, b, c = (float(circle["cy"] or "nan") for circle in svg.attributes("circle"))
    assert a - b == pytest.approx(b - c, abs=0.11)
    assert a > b
    assert len(svg.of_class("no-number")) == 1
    assert {"1", "10", "100"} <= {text.strip() for _, text in svg.texts}


def test_lines_and_bands_are_named_where_there_are_several() -> None:
    lines = {"reference": [1.0, 2.0], "candidate": [1.5, 2.5]}
    svg = Page(figure("values", lines, bands={"lossless band": ([0.5, 1.0], [2.0, 3.0])}, axis="step", at=[1, 8]))
    assert len(svg.attributes("polyline")) == 2
    (outline,) = svg.of_class("band")[:1]
    assert len((outline["points"] or "").split()) == 4
    assert svg.text("figcaption") == "reference candidate lossless band values."
    assert {"step 1: reference 1", "step 8: candidate 2.5"} <= {text for _, text in svg.texts}
    assert "data-x" not in svg.of_class("curve")[0]


def test_ticks_are_round_and_inside() -> None:
    assert page.ticks(0.0, 32.0, 6) == [0, 10, 20, 30]
    assert page.ticks(28.5, 51.0, 5) == [30, 35, 40, 45, 50]
    assert page.ticks(0.89, 1.0) == pytest.approx([0.9, 0.95, 1.0])


def test_report_of_no_run_or_an_unwritable_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no environment\.json, expected a run folder"):
        write_report(tmp_path)
    Run(tmp_path / "run", ENVIRONMENT)
    (tmp_path / "run" / "report.html").mkdir()
    before = sorted((tmp_path / "run").iterdir())
    with pytest.raises(UsageError, match=r"cannot write .*report\.html: .*, expected a writable folder"):
        write_report(tmp_path / "run")
    assert sorted((tmp_path / "run").iterdir()) == before
    with pytest.raises(UsageError, match="expected a writable folder"):
        write_junit([], tmp_path / "nowhere" / "junit.xml")


def test_report_replaces_the_old_one(tmp_path: Path) -> None:
    Run(tmp_path, ENVIRONMENT)
    (tmp_path / "report.html").write_text("half of a rep")
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_text().endswith("</html>")


def test_size_and_time_of_a_large_run(tmp_path: Path) -> None:
    statuses = [Status.PASSED] * 9 + [Status.INCORRECT_NUMERICAL]
    records = [op_record(n, op=f"op_{n % 12}", status=statuses[n // 12 % 10], shape=(2, 7, 1 + n)) for n in range(5000)]
    for name in ("a", "b"):
        reference = video(33, 64, 96, seed=1)
        candidate = np.clip(reference + np.random.default_rng(2).integers(-3, 4, reference.shape), 0, 255)
        records.append(sample_record(tmp_path, name, reference, candidate.astype(np.uint8)))
    start = time.process_time()
    text, _ = report(tmp_path, records)
    assert time.process_time() - start < 10
    assert len(text.encode()) < 3_000_000


def test_failures_are_listed_by_what_they_mean() -> None:
    def failed(status: Status, width: int) -> Record:
        return op_record(status=status, shape=(2, width))

    records = [
        failed(Status.RUNTIME_ERROR, 4),
        failed(Status.INCORRECT_NUMERICAL, 1),
        failed(Status.INCORRECT_NUMERICAL, 64),
        failed(Status.INCORRECT_NUMERICAL, 8),
        failed(Status.OUT_OF_BOUNDS_WRITE, 4096),
    ]
    groups = summary.not_passed(records)
    assert [group.status for group in groups] == [
        Status.OUT_OF_BOUNDS_WRITE,
        Status.INCORRECT_NUMERICAL,
        Status.RUNTIME_ERROR,
    ]
    # Of one channel every norm is the same: such a case is shown last, though it is the smallest.
    assert [record.numbers["elements"] for record in groups[1].records] == [16, 128, 2]
