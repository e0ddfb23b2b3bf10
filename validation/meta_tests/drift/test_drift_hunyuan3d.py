"""The drift of Hunyuan3D-2's denoiser, which declares intermediate roundings, works in place and returns pairs."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reference_ops
from validation import controls
from validation.chains.truth import truth
from validation.drift import measure, verdicts
from validation.meta_tests.drift.test_drift import STARTS, Start
from validation.meta_tests.model_op_sets import reference
from validation.models.hunyuan3d import dit, sampling, sites
from validation.models.hunyuan3d.flow_matching import FlowMatchEuler
from validation.models.hunyuan3d.sites import SiteMount
from validation.models.mount import Mount
from validation.ops import OpSet
from validation.samples.model import Sampler
from validation.samples.request import Progress, silent
from validation.samples.rung import Sample
from validation.verdict import Status

STEPS = 4


def small(*, packed: bool) -> dit.Hunyuan3DDiT:
    model = dit.Hunyuan3DDiT(
        in_channels=8,
        context_in_dim=16,
        hidden_size=64,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        packed_qk_norm=packed,
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter.shape[1] ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    return model.half()


class Small(Sampler[Start]):
    """Adapts the small model to the drift's sampling."""

    name = "hunyuan3d"
    sites = sites.sites_of({"depth": 1, "depth_single_blocks": 1})

    def __init__(self, model: dit.Hunyuan3DDiT) -> None:
        self.model = model

    def mount(self, ops: OpSet) -> SiteMount:
        return dit.mount(self.model, ops)

    def latents(self, prompt: Start, mounted: Mount, _progress: Progress = silent) -> Sample:
        context = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(5)).half()
        latents = sampling.sample(
            self.model,
            context,
            schedule=FlowMatchEuler(),
            steps=STEPS,
            num_latents=40,
            seed=prompt.seed,
            guidance_scale=2.0,
            mounted=mounted,
        )
        return Sample(latents)

    def steps(self, _prompt: Start) -> int:
        return STEPS


def sample(model: dit.Hunyuan3DDiT, ops: OpSet, start: Start) -> list[Tensor]:
    return Small(model).sample(ops, start).latents


@functools.cache
def sampled_by_reference(start: Start, *, packed: bool) -> list[Tensor]:
    return sample(small(packed=packed), reference(), start)


def drift_of(ops: OpSet, cache: Path, *, packed: bool = False) -> measure.Drift[Start]:
    model = small(packed=packed)
    drift = measure.Drift(Small(model), ops, STARTS, identity={}, cache=cache)
    for start in STARTS:
        drift.add(start, sampled_by_reference(start, packed=packed), sample(model, ops, start))
    return drift


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("name", "packed"), [("torch_native", False), ("chunked", True), ("float64_inside", False)])
def test_right_op_sets_are_lossless(cache: Path, name: str, packed: bool) -> None:
    for verdict in verdicts.verdicts(drift_of(controls.op_set(name), cache, packed=packed), "lossless"):
        assert (verdict.status, verdict.tier) == (Status.PASSED, "lossless"), verdict.reason


def test_the_reference_is_bit_exact(cache: Path) -> None:
    drift = drift_of(reference(), cache)
    assert {error.site for error in drift.teacher.errors} == {
        "norm1",
        "pre_norm",
        "norm_final",
        "gate",
        *(f"{site} output {n}" for site in ("qk_norm", "norm2") for n in (0, 1)),
    }
    for verdict in verdicts.verdicts(drift, "lossless"):
        assert (verdict.status, verdict.tier) == (Status.PASSED, "bit-exact"), verdict.reason


def test_the_packed_norm_and_the_one_on_copies_have_one_truth() -> None:
    latents = [sample(small(packed=packed), truth(), STARTS[0]) for packed in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(*latents, strict=True))


def test_an_rms_norm_whose_k_weight_is_dropped_is_named(cache: Path) -> None:
    def qk_norm(q: Tensor, k: Tensor, q_weight: Any, k_weight: Any, **options: Any) -> Any:
        return reference_ops.qk_norm(q, k, q_weight, torch.ones_like(k_weight), **options)

    teacher, banded = verdicts.verdicts(drift_of(reference(qk_norm=qk_norm), cache), "close")
    assert (teacher.status, teacher.numbers["first_site"]) == (Status.BELOW_REQUIRED_TIER, "qk_norm output 1")
    assert banded.status is Status.OUTSIDE_BAND


def test_one_rounding_more_than_declared_is_below_lossless(cache: Path) -> None:
    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor, **_options: Any) -> Tensor:
        # bfloat16 for the gate: three bits fewer than declared.
        return residual + x * gate.bfloat16().to(x.dtype)

    teacher, banded = verdicts.verdicts(drift_of(reference(residual_gate_add=residual_gate_add), cache), "lossless")
    assert (teacher.status, teacher.numbers["first_site"]) == (Status.BELOW_REQUIRED_TIER, "gate")
    assert banded.status.failed
