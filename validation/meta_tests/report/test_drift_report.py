"""The report's section on drift and the text for a pull request, from records of a measurement of a small model."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from validation.meta_tests.drift.test_drift import drift_of
from validation.meta_tests.model_op_sets import reference
from validation.meta_tests.report.test_report import ENVIRONMENT, HOSTILE, Page, op_record, report, sample_record, video
from validation.models.helios import faults
from validation.ops import OpSet
from validation.record import Level, Record
from validation.report.drift_section import distance_figure
from validation.report.pull_request import pull_request_text
from validation.report.summary import headline
from validation.samples.records import Records
from validation.verdict import Status


def records_of(ops: OpSet, cache: Path, require: str = "lossless") -> list[Record]:
    records = Records("small", ops.name, "bfloat16", "validate quality")
    return list(records.of_drift(drift_of(ops, cache), require, ["norm"]))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


def test_a_candidate_that_leaves_is_shown_with_the_site_the_factor_and_the_step(cache: Path, tmp_path: Path) -> None:
    records = records_of(faults.op_set("undeclared_rounding"), cache)
    assert [record.status for record in records] == [Status.BELOW_REQUIRED_TIER] * 2
    _, shown = report(tmp_path, records)
    text = shown.text()
    numbers = records[0].numbers
    assert (
        f"First to leave: norm in layer 0, {numbers['first_factor']:.4g} times the RMS error of the path that it "
        "replaces, from step 1 on."
    ) in text
    # Both checks give their reasons, each in a card and in its article.
    assert len(shown.of_class("card")) == 2
    for record in records:
        assert text.count(record.reason) >= 2
    # Both norms are ringed, the gates not.
    titles = [data for tags, data in shown.texts if tags[-2:] == ("circle", "title")]
    rings = [title for (tag, a), title in zip(_circles(shown), titles, strict=True) if "worst" in (a["class"] or "")]
    assert [ring.partition(":")[0] for ring in rings] == ["norm in layer 0", "norm in layer 1"]
    assert len(shown.of_class("past")) >= 2  # the norm's row, and the first step's
    assert {a["aria-label"] for a in shown.of_class("curve")} >= {
        "Distance to the truth's latents, median of the prompts, in shares of their spread, over the denoising steps",
    }
    assert len(shown.of_class("wide")) == 1
    assert {"lossless band", "close band", "reference", "candidate", "legal rounding"} <= {
        data for tags, data in shown.texts if tags[-1:] == ("span",)
    }


def _circles(shown: Page) -> list[tuple[str, dict[str, str | None]]]:
    return [(tag, attributes) for tag, attributes in shown.tags if tag == "circle"]


def test_what_is_right_has_no_ring_and_no_first_site(cache: Path, tmp_path: Path) -> None:
    _, shown = report(tmp_path, records_of(reference(), cache, "bit-exact"))
    assert "First to leave" not in shown.text()
    assert "Ringed" not in shown.text()
    assert shown.of_class("worst") == shown.of_class("past") == []
    assert len(shown.of_class("curve")) == 3
    assert "first step" in shown.text()


def test_records_without_series_and_of_any_text_render(tmp_path: Path) -> None:
    record = Record(Level.MODEL, "small", "ops", Status.INCONCLUSIVE, "teacher-forced", HOSTILE)
    rest = {"p_per_place": [1.0, math.nan], "candidate_error_per_place": [0.0, math.inf]}
    odd = dataclasses.replace(record, series=rest, case={"places": [HOSTILE, 3]})
    _, shown = report(tmp_path, [record, odd, dataclasses.replace(record, check="band")])
    assert len(shown.attributes("script")) == 1
    assert shown.attributes("img") == []
    assert distance_figure({}, "") is None


def test_the_text_for_a_pull_request_has_verdict_reasons_and_the_command(cache: Path, tmp_path: Path) -> None:
    frames = video()
    samples = [sample_record(tmp_path, name, frames, frames) for name in ("a", "b")]
    samples[1].numbers["psnr_worst_frame"] = 35.0
    worst = dataclasses.replace(samples[1], reason="worst of all", case={"prompt_name": "ball", "seed": 4})
    records = [*(op_record(n) for n in range(3)), op_record(op="qk_norm", status=Status.BIASED, budget=7.0)]
    records += [*records_of(faults.op_set("undeclared_rounding"), cache), samples[0], worst]
    lines = pull_request_text(ENVIRONMENT, records).splitlines()
    assert lines[0].startswith("**FAILED**: fault:undeclared_rounding, fused_ops: 1 of 4 op cases failed")
    assert lines[2] == "- 1 op passed in 3 cases: lossless, at most 80.0 % of the arithmetic's allowance"
    assert lines[3] == "- qk_norm: 1 of 1 failed: BIASED: 7.0 % of the error budget used"
    assert lines[4].startswith("- small, teacher-forced: BELOW_REQUIRED_TIER: norm in layer 0 is the first")
    assert lines[5].startswith("- small, band: BELOW_REQUIRED_TIER: outside the lossless band")
    assert lines[6] == "- helios, 2 samples, the worst (ball 4): PASSED: worst of all"
    assert lines[-1].endswith("commit 0123456789ab+: `validate run --profile quick`")
    _, shown = report(tmp_path / "run", [record for record in records if record.level is not Level.SAMPLE])
    (pasted,) = (data for tags, data in shown.texts if tags[-2:] == ("pre", "code"))
    assert pasted.startswith("**FAILED**")


def test_the_headline_says_what_was_accepted_as_close_and_where(cache: Path) -> None:
    held, accepted = (
        records_of(faults.op_set("undeclared_rounding"), cache, require) for require in ("lossless", "close")
    )
    verdict, sentence = headline(accepted)
    assert verdict == "PASSED"
    factor = accepted[0].numbers["first_factor"]
    assert sentence.endswith(
        f"Close, not lossless: further from the truth than the path it replaces at norm {factor:.4g}x."
    )
    verdict, sentence = headline(held)
    assert (verdict, "Close" in sentence) == ("FAILED", False)
