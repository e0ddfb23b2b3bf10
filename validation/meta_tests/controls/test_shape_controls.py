"""Right and wrong op sets on the sampled shape model: a fast subset of ``validation.controls --model hunyuan3d``."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from validation import controls
from validation.controls.separation import Separation, line, names, separate
from validation.device import Device
from validation.errors import UsageError
from validation.meta_tests.sampled_models import SHAPE_PROMPTS as PROMPTS
from validation.models.hunyuan3d import faults
from validation.samples.request import Request

CPU = Device("interpreter", "cpu")

# With six prompts, eight replays and a few steps the test can reject as it does on the whole set.
PROMPT_COUNT = 6
VARIED: dict[str, Any] = {"until": "field", "steps": 3, "own": {"octree_resolution": 8}}

RIGHT = ("torch_native", "pairwise")
WRONG = (
    "n_minus_1_variance",
    "truncating_store",
    "gate_batch_stride_assumed",
    "rms_weight_dropped",
    "qk_norm_through_a_packed_view",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Separation]]:
    folder = tmp_path_factory.mktemp("separation")
    content = json.loads(PROMPTS.read_text())
    content["prompts"] = content["prompts"][:PROMPT_COUNT]
    (folder / "prompts.json").write_text(json.dumps(content))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request = Request(CPU, prompts=folder / "prompts.json", cache=folder / "cache", **VARIED)
    judged = separate("hunyuan3d", (*RIGHT, *WRONG), request)
    yield {separation.name: separation for separation in judged}
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RIGHT)
def test_right_op_sets_are_not_flagged(found: dict[str, Separation], name: str) -> None:
    assert found[name].expected is True, found[name]
    assert found[name].failed == ()


@pytest.mark.parametrize("name", WRONG)
def test_planted_faults_are_caught_by_the_gate_that_names_them(found: dict[str, Separation], name: str) -> None:
    separation = found[name]
    assert separation.expected is True, separation
    assert faults.FAULTS[name].gates <= set(separation.failed)
    assert separation.teacher is not None
    assert separation.teacher.numbers["first_factor"] > 1.001  # type: ignore[operator]


def test_a_fault_is_found_where_it_was_planted(found: dict[str, Separation]) -> None:
    sites = {
        name: str(separation.teacher.numbers["first_site"])
        for name, separation in found.items()
        if name in WRONG and separation.teacher is not None
    }
    assert sites["rms_weight_dropped"].startswith("qk_norm")
    assert sites["qk_norm_through_a_packed_view"].startswith("qk_norm")
    assert sites["truncating_store"] == sites["gate_batch_stride_assumed"] == "gate"
    assert sites["n_minus_1_variance"] in ("norm1", "pre_norm", "norm_final")


def test_the_packed_view_s_fault_shows_nowhere_else() -> None:
    """On contiguous copies the same op is right: the fault needs the packed projection."""
    ops = faults.op_set("qk_norm_through_a_packed_view")
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(1, 5, 3, 2, 8, generator=generator).half()
    q, k, v = packed.unbind(2)
    weight = torch.ones(8).half()
    copies = [t.clone(memory_format=torch.contiguous_format) for t in (q, k)]
    expected = controls.op_set("reference")["qk_norm"](*(t.clone() for t in copies), weight, weight)
    right = ops["qk_norm"](*copies, weight, weight, inplace=True)
    assert all(torch.equal(a, b) for a, b in zip(right, expected, strict=True))
    kept = v.clone()
    wrong = ops["qk_norm"](q, k, weight, weight, inplace=True)
    assert not any(torch.equal(a, b) for a, b in zip(wrong, expected, strict=True))
    assert not torch.equal(v, kept)


def test_lines_of_the_table_fit_both_models(found: dict[str, Separation]) -> None:
    for separation in found.values():
        assert separation.name in line(separation)


def test_names_are_told_apart_and_unknown_ones_refused(tmp_path: Path) -> None:
    assert len(set(names("hunyuan3d"))) == len(names("hunyuan3d"))
    with pytest.raises(UsageError, match="unknown control 'odd'"):
        next(itertools.islice(separate("hunyuan3d", ["odd"], Request(CPU, cache=tmp_path)), 1))
    with pytest.raises(UsageError, match="unknown control 'hole_in_the_mesh'"):
        faults.op_set("hole_in_the_mesh")
    for name, fault in faults.FAULTS.items():
        assert fault.bug.endswith(".")
        assert (fault.ops is None) != (fault.spoil is None)
        assert fault.gates, name
