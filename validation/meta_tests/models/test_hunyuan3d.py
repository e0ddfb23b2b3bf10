import contextlib
import math
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reference_ops
from validation.errors import UsageError
from validation.files import FIXTURES
from validation.meta_tests import plain_hunyuan3d as plain
from validation.meta_tests.model_op_sets import reference
from validation.models.hunyuan3d import dit, flow_matching, loading, sampling, sites
from validation.models.hunyuan3d.dit import Hunyuan3DDiT
from validation.models.hunyuan3d.flow_matching import ConsistencyFlowMatchEuler, FlowMatchEuler, denoise, guided
from validation.models.hunyuan3d.shape_vae import ShapeVAE
from validation.models.mount import SiteError
from validation.ops import Op, OpSet, op_set_from
from validation.session import Session
from validation.verdict import Status

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SITE_SETS = [*((name,) for name in sites.SITE_NAMES), sites.SITE_NAMES]

CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "context_in_dim": 6,
    "hidden_size": 32,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [16],
}
GOLDEN = plain.read_golden("hunyuan3d-dit-tiny")

Inputs = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


def small(dtype: torch.dtype = torch.float32, **settings: Any) -> Hunyuan3DDiT:
    """A model in which every parameter matters."""
    return drawn(Hunyuan3DDiT(**{**CONFIG, **settings})).to(dtype)


def drawn(model: M) -> M:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter.shape[1] ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    return model


def inputs_of(model: Hunyuan3DDiT, batch: int = 2, tokens: int = 7, context: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    dtype = model.latent_in.weight.dtype
    inputs = {
        "latents": torch.randn(batch, tokens, model.config.in_channels, generator=generator).to(dtype),
        "timestep": torch.rand(batch, generator=generator).to(dtype),
        "context": torch.randn(batch, context, model.config.context_in_dim, generator=generator).to(dtype),
    }
    return inputs | ({"guidance": torch.full((batch,), 5.0, dtype=dtype)} if model.config.guidance_embed else {})


def golden_model(dtype: torch.dtype, **settings: Any) -> Hunyuan3DDiT:
    model = Hunyuan3DDiT(**{**GOLDEN.config, **settings})
    model.load_state_dict(GOLDEN.weights, strict=True)
    return model.to(dtype)


def golden_error(model: Hunyuan3DDiT) -> float:
    dtype = model.latent_in.weight.dtype
    inputs = {name: t.to(dtype) for name, t in GOLDEN.inputs.items()}
    with golden_frequencies():
        return plain.relative_error(model(**inputs), GOLDEN.outputs["float64"])


@contextlib.contextmanager
def golden_frequencies() -> Iterator[None]:
    """The time embedding's frequencies of the processor that made the golden vectors: on an Intel the error is 2e-5."""
    own, rates = dit.time_frequencies, GOLDEN.rates
    assert rates is not None

    def kept(count: int, max_period: float, device: torch.device) -> Tensor:
        here = own(count, max_period, device)
        if max_period != GOLDEN.config["time_factor"]:
            return here
        torch.testing.assert_close(here, rates.to(device), rtol=2.0**-23, atol=0)  # an ulp at most
        return rates.to(device)

    with patch.object(dit, "time_frequencies", kept):
        yield


MARKS = {torch.float64: 1e-10, torch.float32: 1e-5}


pytestmark = pytest.mark.usefixtures("one_thread")


# The model


@pytest.mark.parametrize("packed", [False, True], ids=["copies", "packed"])
@pytest.mark.parametrize("dtype", MARKS, ids=["fp64", "fp32"])
def test_golden_vectors(dtype: torch.dtype, packed: bool) -> None:
    assert golden_error(golden_model(dtype, packed_qk_norm=packed)) < MARKS[dtype]


@pytest.mark.parametrize("name", GOLDEN.weights)
def test_golden_vectors_see_every_weight(name: str) -> None:
    model = golden_model(torch.float64)
    model.get_parameter(name).mul_(1.001)
    assert golden_error(model) > 1e4 * MARKS[torch.float64]


def norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, **_: Any) -> Tensor:
    return torch.as_tensor(reference()["layer_norm_scale_shift"](x, shift, scale, eps=eps, casting_mode="input"))


def sample_deviation(x: Tensor, shift: Tensor, scale: Tensor, eps: float, **_: Any) -> Tensor:
    deviation = (x.var(dim=-1, keepdim=True) + eps).sqrt()
    y: Tensor = (x - x.mean(dim=-1, keepdim=True)) / deviation * (1 + scale) + shift
    return y


def chained(residual: Tensor, x: Tensor, gate: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    y, residual_out = reference()["scale_residual_layer_norm_scale_shift"](residual, x, gate, *rest, **options)
    return y, residual_out


def qk(q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    q, k = reference()["qk_norm"](q, k, q_weight, k_weight, **options)
    return q, k


PLANTED: dict[str, tuple[torch.dtype, dict[str, Op]]] = {
    "scale and shift swapped": (
        torch.float64,
        {"layer_norm_scale_shift": lambda x, shift, scale, **o: norm(x, scale, shift, **o)},
    ),
    "1 + dropped": (torch.float64, {"layer_norm_scale_shift": lambda x, a, b, **o: norm(x, a, b - 1, **o)}),
    "eps ten times too big": (
        torch.float64,
        {"layer_norm_scale_shift": lambda x, a, b, eps, **_: norm(x, a, b, 10 * eps)},
    ),
    "variance over N - 1": (torch.float64, {"layer_norm_scale_shift": sample_deviation}),
    "modulation of item 0": (
        torch.float64,
        {"layer_norm_scale_shift": lambda x, a, b, **o: norm(x, a[:1], b[:1], **o)},
    ),
    "gate dropped": (torch.float64, {"residual_gate_add": lambda residual, x, _gate, **_: residual + x}),
    "gate of item 0": (torch.float64, {"residual_gate_add": lambda residual, x, gate, **_: residual + x * gate[:1]}),
    "residual as it was": (
        torch.float64,
        {"scale_residual_layer_norm_scale_shift": lambda residual, *a, **o: (chained(residual, *a, **o)[0], residual)},
    ),
    "shift and scale of the chain swapped": (
        torch.float64,
        {"scale_residual_layer_norm_scale_shift": lambda r, x, g, a, b, **o: chained(r, x, g, b, a, **o)},
    ),
    "weights of q and k swapped": (torch.float32, {"qk_norm": lambda q, k, a, b, **o: qk(q, k, b, a, **o)}),
    "weights of q and k dropped": (torch.float32, {"qk_norm": lambda q, k, _a, _b, **o: qk(q, k, None, None, **o)}),
    "q and k taken for each other": (torch.float64, {"qk_norm": lambda q, k, a, b, **o: qk(k, q, a, b, **o)}),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_golden_vectors_see_a_planted_fault(fault: str) -> None:
    dtype, replaced = PLANTED[fault]
    assert golden_error(golden_model(dtype, ops=reference(**replaced))) > 10 * MARKS[dtype]


def test_golden_vectors_see_the_longest_period() -> None:
    """Time and guidance have periods of up to ``time_factor`` = 1000; 10000 would be the customary number."""
    assert golden_error(golden_model(torch.float64, time_factor=10_000)) > 1e-3


def test_the_recipe_makes_the_golden_vectors(tmp_path: Path) -> None:
    runpy.run_path(str(FIXTURES / "recipes" / "hunyuan3d_goldens.py"))["main"](tmp_path)
    names = sorted(path.name for path in (FIXTURES / "goldens").glob("hunyuan3d-*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        made, kept = load_file(tmp_path / name), load_file(FIXTURES / "goldens" / name)
        assert made.keys() == kept.keys()
        for key, value in made.items():
            # torch's normal numbers may differ in the last bits between kinds of processors.
            torch.testing.assert_close(value, kept[key], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("packed", [False, True], ids=["copies", "packed"])
@pytest.mark.parametrize("guidance", [False, True], ids=["unguided", "guidance_embed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_reference_ops_are_bit_identical_to_the_plain_version(dtype: torch.dtype, guidance: bool, packed: bool) -> None:
    model = small(dtype, guidance_embed=guidance, packed_qk_norm=packed)
    config = {**CONFIG, "time_factor": 1000}
    for batch, tokens, context in ((2, 7, 3), (1, 7, 3), (3, 3, 3), (1, 1, 1), (2, 1, 1), (1, 33, 20)):
        inputs = inputs_of(model, batch, tokens, context)
        output = model(**inputs)
        assert output.isfinite().all()
        assert torch.equal(output, plain.denoiser(model.state_dict(), config, **inputs)), (batch, tokens, context)


@pytest.mark.parametrize(
    "settings",
    [{"depth": 0}, {"depth_single_blocks": 0}, {"qkv_bias": False}, {"mlp_ratio": 2.5}, {"num_heads": 1}],
    ids=lambda settings: "-".join(settings),
)
def test_other_configurations_are_bit_identical_too(settings: dict[str, Any]) -> None:
    model = small(torch.float16, **settings)
    inputs = inputs_of(model)
    config = {**CONFIG, "time_factor": 1000, **settings}
    assert torch.equal(model(**inputs), plain.denoiser(model.state_dict(), config, **inputs))


OFFICIAL_KEYS = r"""
    (latent_in|cond_in)\.(weight|bias)
    (time_in|guidance_in)\.(in_layer|out_layer)\.(weight|bias)
    double_blocks\.\d+\.(img|txt)_mod\.lin\.(weight|bias)
    double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)\.(weight|bias)
    double_blocks\.\d+\.(img|txt)_attn\.norm\.(query|key)_norm\.scale
    double_blocks\.\d+\.(img|txt)_mlp\.[02]\.(weight|bias)
    single_blocks\.\d+\.(linear1|linear2|modulation\.lin)\.(weight|bias)
    single_blocks\.\d+\.norm\.(query|key)_norm\.scale
    final_layer\.(linear|adaLN_modulation\.1)\.(weight|bias)
"""


def test_parameter_names_are_the_official_checkpoints() -> None:
    patterns = dict.fromkeys(OFFICIAL_KEYS.split(), 0)
    for key in Hunyuan3DDiT(**CONFIG, guidance_embed=True).state_dict():
        (pattern,) = (pattern for pattern in patterns if re.fullmatch(pattern, key))
        patterns[pattern] += 1
    D, S = 2, 3
    assert list(patterns.values()) == [4, 8, 4 * D, 8 * D, 4 * D, 8 * D, 6 * S, 2 * S, 4]


def test_official_sizes() -> None:
    """1.1 and 0.6 thousand million parameters, as published; the VAE's float16 file has 428 455 666 bytes."""

    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        assert round(count(Hunyuan3DDiT()) / 1e9, 1) == 1.1
        assert round(count(Hunyuan3DDiT(depth=8, depth_single_blocks=16, guidance_embed=True)) / 1e9, 1) == 0.6
        vae = ShapeVAE(
            num_latents=3072,
            embed_dim=64,
            include_pi=False,
            heads=16,
            width=1024,
            num_decoder_layers=16,
            qkv_bias=False,
            qk_norm=True,
        )
    assert 20_000 < 428_455_666 - 2 * count(vae) < 40_000  # the header, with a hundred bytes for each tensor


def test_the_norms_scale_is_readable_as_weight() -> None:
    norm = Hunyuan3DDiT(**CONFIG).single_blocks[0].get_submodule("norm.query_norm")
    assert norm.weight is norm.scale
    assert list(norm.state_dict()) == ["scale"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"latents": torch.zeros(2, 7, 5)}, r"latents has shape \[2, 7, 5\], expected \[B, L, in_channels\] with 4"),
        ({"latents": torch.zeros(7, 4)}, r"latents has shape \[7, 4\]"),
        ({"context": torch.zeros(2, 3, 7)}, r"context has shape \[2, 3, 7\].* with 6"),
        ({"context": torch.zeros(1, 3, 6)}, r"context has shape \[1, 3, 6\], expected B = 2"),
        ({"timestep": torch.zeros(1)}, r"timestep has shape \[1\], expected \[2\]"),
        ({"timestep": torch.tensor(0.5)}, r"timestep has shape \[\], expected \[2\]"),
        ({"guidance": torch.zeros(2)}, "guidance is a tensor, expected None: guidance_embed is False"),
    ],
)
def test_wrong_inputs_are_refused(changes: Inputs, reason: str) -> None:
    model = small()
    with pytest.raises(ValueError, match=reason):
        model(**{**inputs_of(model), **changes})


def test_a_missing_or_misshapen_guidance_is_refused() -> None:
    model = small(guidance_embed=True)
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match="guidance is none, expected one: guidance_embed is True"):
        model(**{**inputs, "guidance": None})
    with pytest.raises(ValueError, match=r"guidance has shape \[1\], expected \[2\]"):
        model(**{**inputs, "guidance": torch.zeros(1)})


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size is 32, expected a multiple of num_heads = 3"):
        small(num_heads=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_pe'"):
        small(use_pe=False)


# Sites


@pytest.mark.parametrize("packed", [False, True], ids=["copies", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_mounted_reference_ops_are_counted_and_bit_identical(dtype: torch.dtype, packed: bool) -> None:
    model = small(dtype, packed_qk_norm=packed)
    inputs = inputs_of(model)
    untouched = model(**inputs)
    expected = {"norm1": 4, "qk_norm": 7, "norm2": 4, "gate": 7, "pre_norm": 3, "norm_final": 1}
    for names in SITE_SETS:
        with dit.mount(model, reference(), names) as mounted:
            assert torch.equal(model(**inputs), untouched)
            model(**inputs)
        assert mounted.calls == {site: 2 * expected[site] for site in names}
        mounted.require_forwards(2)
    assert torch.equal(model(**inputs), untouched)


def scaled(op: str) -> OpSet:
    """Reference ops, one of which returns one and a half times the result."""

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = reference()[op](*arguments, **options)
        if isinstance(result, tuple):
            for t in result:
                t.mul_(1.5)
            return result
        return 1.5 * result

    return reference(**{op: wrong})


def test_each_site_matters_and_is_mounted_alone() -> None:
    model = small()
    inputs = inputs_of(model)
    untouched = model(**inputs)
    outputs = [untouched]
    for site in sites.sites_of(CONFIG):
        with dit.mount(model, scaled(site.op), [site.name]):
            outputs.append(model(**inputs))
    for i, output in enumerate(outputs):
        assert not any(torch.allclose(output, other, rtol=1e-2) for other in outputs[:i])


def test_what_reaches_the_ops() -> None:
    """Modulation as views of one row for each item; every call in the eager chain's casting mode."""
    model = small(torch.float16)
    inputs = inputs_of(model)
    seen: list[str] = []

    def spy(name: str) -> Op:
        def op(x: Tensor, *arguments: Any, **options: Any) -> Any:
            seen.append(name)
            assert options.pop("casting_mode") == "input"
            assert options.pop("eps", 1e-6) == 1e-6
            if name == "qk_norm":
                assert options == {"inplace": True}
                assert [t.shape[2:] for t in (x, arguments[0])] == [(2, 16), (2, 16)]
                return reference()[name](x, *arguments, casting_mode="input", **options)
            assert not options
            rows = [t for t in arguments if t.shape != x.shape]
            assert len(rows) == {"layer_norm_scale_shift": 2, "residual_gate_add": 1}.get(name, 3)
            for row in rows:
                assert row.shape == (2, 1, 32)
                assert row.stride(0) in (2 * 32, 3 * 32, 6 * 32)
            return reference()[name](x, *arguments, casting_mode="input")

        return op

    ops = {site.op: spy(site.op) for site in sites.sites_of(CONFIG)}
    with dit.mount(model, reference(**ops)):
        model(**inputs)
    assert len(seen) == 26


@pytest.mark.parametrize("packed", [False, True], ids=["copies", "packed"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_q_and_k_are_copies_or_views_of_the_packed_projection(packed: bool, tokens: int) -> None:
    """A single token of a single item is already contiguous, but must still be copied."""
    table = small(packed_qk_norm=packed).sites
    norm = dit.QKNorm(16).requires_grad_(False)
    projection = torch.randn(1, tokens, 3 * 32 + 8, generator=torch.Generator().manual_seed(0))
    before = projection.clone()
    q, k, v = table.normalised_qkv(projection[..., : 3 * 32], 2, *norm.weights)
    assert {t.shape for t in (q, k, v)} == {(1, tokens, 2, 16)}
    assert v.untyped_storage().data_ptr() == projection.untyped_storage().data_ptr()
    for t in (q, k):
        assert (t.untyped_storage().data_ptr() == projection.untyped_storage().data_ptr()) == packed
        assert t.is_contiguous() or packed
    assert torch.equal(projection[..., : 2 * 32], before[..., : 2 * 32]) != packed
    assert torch.equal(projection[..., 2 * 32 :], before[..., 2 * 32 :])


def test_fused_ops_run_at_every_site(validation_session: Session) -> None:
    import fused_ops

    device = validation_session.device.torch
    ops = op_set_from(fused_ops, "fused_ops", "fused_ops")
    for dtype in DTYPES:
        inputs = {name: t.to(device, dtype) for name, t in GOLDEN.inputs.items()}
        outputs = []
        for packed in (False, True):
            model = golden_model(dtype, packed_qk_norm=packed).to(device)
            with dit.mount(model, ops) as mounted, golden_frequencies():
                outputs.append(model(**inputs))
            assert mounted.calls == {site.name: site.calls for site in sites.sites_of(GOLDEN.config)}
        with golden_frequencies():
            outputs.append(golden_model(dtype, ops=fused_ops).to(device)(**inputs))
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
        if dtype in MARKS:
            assert plain.relative_error(outputs[0].cpu(), GOLDEN.outputs["float64"]) < MARKS[dtype]


def test_ops_of_the_model_are_used_where_nothing_is_mounted() -> None:
    inputs = inputs_of(small())
    wrong = small(ops=scaled("qk_norm"))
    assert not torch.allclose(wrong(**inputs), small()(**inputs), rtol=1e-2)
    with dit.mount(wrong, reference(), ["qk_norm"]):
        assert torch.equal(wrong(**inputs), small()(**inputs))
    assert torch.equal(small(ops=reference_ops)(**inputs), small()(**inputs))


def test_a_set_that_lacks_an_op_is_mounted_on_the_others_and_never_built_in() -> None:
    module = ModuleType("partial")
    vars(module)["residual_gate_add"] = reference()["residual_gate_add"]
    with pytest.raises(UsageError, match=r"partial does not provide layer_norm_scale_shift, qk_norm, scale_residual"):
        small(ops=module)
    ops = OpSet("partial", {"residual_gate_add": reference()["residual_gate_add"]}, "partial.py")
    with dit.mount(small(), ops) as mounted:
        assert tuple(mounted.sites) == ("gate",)
    with pytest.raises(UsageError, match=r"norm1 calls layer_norm_scale_shift, which partial\.py does not provide"):
        dit.mount(small(), ops, ["norm1"])
    with pytest.raises(UsageError, match="this model has no pre_norm"):
        dit.mount(small(depth_single_blocks=0), reference(), ["pre_norm"])


def test_unmount_restores_exactly() -> None:
    model = small()
    before = dict(model.sites.ops)
    with dit.mount(model, reference(), ["norm2", "gate"]):
        changed = {site for site, op in model.sites.ops.items() if op is not before[site]}
        assert changed == {"norm2", "gate"}
    assert model.sites.ops == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_site_is_mounted_once_and_two_mounts_may_share_a_model() -> None:
    model = small()
    with dit.mount(model, reference(), ["norm2", "gate"]) as first:
        with pytest.raises(UsageError, match="site gate is mounted already"):
            dit.mount(model, reference(), ["norm1", "gate"])
        with dit.mount(model, reference(), ["norm1"]) as second:
            model(**inputs_of(model))
    assert (first.calls, second.calls) == ({"norm2": 4, "gate": 7}, {"norm1": 4})


def test_a_site_that_is_not_reached_is_an_error() -> None:
    model = small()
    direct = model.sites.ops["gate"]
    with dit.mount(model, reference()):
        model.sites.ops["gate"] = direct
        with pytest.raises(SiteError, match="gate was called 0 times in forward 1, expected 7") as caught:
            model(**inputs_of(model))
    assert caught.value.status is Status.SITE_NOT_REACHED


def raises(*_: Any, **__: Any) -> Any:
    raise ValueError("residual has a wrong shape")


PAIR_FAULTS: list[tuple[str, Callable[..., Any], Status, str]] = [
    ("norm2", lambda *a, **_: a[0], Status.INCORRECT_STRUCTURE, "returned Tensor at site norm2, expected a tuple of t"),
    ("norm2", lambda *a, **_: [a[0], a[0]], Status.INCORRECT_STRUCTURE, "returned list"),
    ("norm2", lambda *a, **_: a[:3], Status.INCORRECT_STRUCTURE, "returned tuple"),
    ("norm2", lambda *a, **_: (a[0], None), Status.INCORRECT_STRUCTURE, "returned tuple"),
    ("norm2", lambda *a, **_: (a[0], a[1].double()), Status.INCORRECT_DTYPE, "returned float64 at site norm2, expecte"),
    ("norm2", lambda *a, **_: (a[0][:, :1], a[1]), Status.INCORRECT_SHAPE, r"returned \[2, 1, 32\].*expected \[2, 7,"),
    ("norm2", lambda *a, **_: (a[0].to("meta"), a[1]), Status.INCORRECT_DEVICE, "returned meta at site norm2, expect"),
    ("norm2", raises, Status.RUNTIME_ERROR, "shift raised at site norm2: ValueError: residual has a wrong shape"),
    (
        "qk_norm",
        lambda q, k, *_, **__: (q.clone(), k),
        Status.INCORRECT_STRUCTURE,
        "returned another tensor at site",
    ),
    ("qk_norm", lambda q, k, *_, **__: (k, q), Status.INCORRECT_STRUCTURE, "expected the one it was given, in place"),
]


@pytest.mark.parametrize(("site", "op", "status", "reason"), PAIR_FAULTS)
def test_pairs_that_ops_return_are_checked(site: str, op: Op, status: Status, reason: str) -> None:
    model = small()
    name = next(s.op for s in sites.sites_of(CONFIG) if s.name == site)
    with (
        dit.mount(model, reference(**{name: op}), [site]),
        pytest.raises(SiteError, match=reason) as caught,
    ):
        model(**inputs_of(model))
    assert caught.value.status is status


def test_differentiable_ops_train_the_model() -> None:
    """Parameters need no grad until they require it; then, with differentiable ops, each gets one."""

    def layer_norm_scale_shift(x: Tensor, shift: Tensor, scale: Tensor, **_: Any) -> Tensor:
        return plain.modulated(x, shift, scale)

    def residual_gate_add(residual: Tensor, x: Tensor, gate: Tensor, **_: Any) -> Tensor:
        return residual + x * gate

    def chain(residual: Tensor, x: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, **_: Any) -> Any:
        residual = residual + x * gate
        return plain.modulated(residual, shift, scale), residual

    def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return plain.rms_norm(q, q_weight), plain.rms_norm(k, k_weight)

    functions: dict[str, Op] = {
        "layer_norm_scale_shift": layer_norm_scale_shift,
        "residual_gate_add": residual_gate_add,
        "scale_residual_layer_norm_scale_shift": chain,
        "qk_norm": qk_norm,
    }
    model = small(ops=OpSet("differentiable", functions, "differentiable"), guidance_embed=True)
    inputs = inputs_of(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(**inputs), small(guidance_embed=True)(**inputs))
    model.requires_grad_()
    model(**inputs).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# Loading

DIT_YAML = """
model:
  target: hy3dgen.shapegen.models.Hunyuan3DDiT
  params:
    in_channels: 4
    context_in_dim: 6
    hidden_size: 32
    mlp_ratio: 4.0
    num_heads: 2
    depth: 2
    depth_single_blocks: 3
    axes_dim: [ 16 ]
    theta: 10000
    qkv_bias: true
vae:
  target: hy3dgen.shapegen.models.ShapeVAE
  params:
    num_latents: 7
    embed_dim: 4
    num_freqs: 8
    include_pi: false
    heads: 2
    width: 32
    num_decoder_layers: 1
    qkv_bias: false
    qk_norm: true
    scale_factor: 0.9990943042622529
scheduler:
  target: hy3dgen.shapegen.schedulers.FlowMatchEulerDiscreteScheduler
  params:
    num_train_timesteps: 1000
pipeline:
  target: hy3dgen.shapegen.pipelines.Hunyuan3DDiTFlowMatchingPipeline
"""
VAE: dict[str, Any] = {
    "num_latents": 7,
    "embed_dim": 4,
    "heads": 2,
    "width": 32,
    "num_decoder_layers": 1,
    "include_pi": False,
    "qkv_bias": False,
    "qk_norm": True,
    "scale_factor": 0.9990943042622529,
}
VAE_YAML = "target: hy3dgen.shapegen.models.ShapeVAE\nparams:\n" + "".join(
    f"  {name}: {str(value).lower()}\n" for name, value in VAE.items()
)
TURBO_SCHEDULER = """
  target: hy3dgen.shapegen.schedulers.ConsistencyFlowMatchEulerDiscreteScheduler
  params:
    num_train_timesteps: 1000
    pcm_timesteps: 100"""


def denoiser_folder(folder: Path, config: str = DIT_YAML, **settings: Any) -> Path:
    """A folder like ``hunyuan3d-dit-v2-0``: one float16 file with the whole pipeline."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    weights = {f"model.{key}": t for key, t in small(torch.float16, **settings).state_dict().items()}
    weights |= {f"vae.{key}": t for key, t in drawn(ShapeVAE(**VAE)).half().state_dict().items()}
    weights["conditioner.main_image_encoder.model.layernorm.weight"] = torch.ones(3).half()
    save_file(weights, folder / "model.fp16.safetensors", {"format": "pt"})
    return folder


def vae_folder(folder: Path) -> Path:
    """A folder like ``hunyuan3d-vae-v2-0``."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(VAE_YAML)
    save_file(drawn(ShapeVAE(**VAE)).half().state_dict(), folder / "model.fp16.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
def test_a_denoiser_loads_from_the_official_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = denoiser_folder(tmp_path / "hunyuan3d-dit-v2-0")
    loaded = loading.load_denoiser(folder, dtype)
    expected = small(torch.float16).to(dtype)
    inputs = inputs_of(expected)
    assert torch.equal(loaded(**inputs), expected(**inputs))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    packed = loading.load_denoiser(folder, dtype, ops=scaled("qk_norm"), packed_qk_norm=True)
    assert packed.sites.packed_qk_norm
    assert not torch.allclose(packed(**inputs), expected(**inputs), rtol=1e-2)
    assert loading.load_schedule(folder) == FlowMatchEuler(1000)


def test_turbo_and_mini_load_from_the_official_layout(tmp_path: Path) -> None:
    config = DIT_YAML.replace("qkv_bias: true", "qkv_bias: true\n    guidance_embed: true")
    config = re.sub(r"(?<=\nscheduler:).*(?=\npipeline:)", TURBO_SCHEDULER, config, flags=re.DOTALL)
    turbo = denoiser_folder(tmp_path / "hunyuan3d-dit-v2-0-turbo", config, guidance_embed=True)
    model = loading.load_denoiser(turbo)
    expected = small(torch.float16, guidance_embed=True)
    assert torch.equal(model(**inputs_of(model)), expected(**inputs_of(expected)))
    assert loading.load_schedule(turbo) == ConsistencyFlowMatchEuler(1000, 100)

    config = DIT_YAML.replace("depth: 2", "depth: 1").replace("depth_single_blocks: 3", "depth_single_blocks: 2")
    mini = denoiser_folder(tmp_path / "hunyuan3d-dit-v2-mini", config, depth=1, depth_single_blocks=2)
    assert len(loading.load_denoiser(mini).single_blocks) == 2


@pytest.mark.parametrize("own", [True, False], ids=["vae folder", "denoiser folder"])
def test_a_decoder_loads_from_the_official_layout(tmp_path: Path, own: bool) -> None:
    folder = vae_folder(tmp_path / "vae") if own else denoiser_folder(tmp_path / "dit")
    vae = loading.load_shape_vae(folder)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    latents = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vae.decode(latents), drawn(ShapeVAE(**VAE)).half().float().decode(latents))


def test_a_file_of_the_denoiser_alone_loads_and_float16_is_preferred(tmp_path: Path) -> None:
    folder = denoiser_folder(tmp_path / "dit")
    whole = load_file(folder / "model.fp16.safetensors")
    bare = {key.removeprefix("model."): t for key, t in whole.items() if key.startswith("model.")}
    save_file({key: torch.zeros_like(t) for key, t in bare.items()}, folder / "model.safetensors")
    assert loading.load_denoiser(folder).latent_in.weight.any()
    (folder / "model.fp16.safetensors").unlink()
    assert not loading.load_denoiser(folder).latent_in.weight.any()


def test_bits_do_not_depend_on_where_a_tensor_lies_in_the_file(tmp_path: Path) -> None:
    """The header's length moves all tensors; with weights off a 64-byte boundary some products differ."""
    folder = denoiser_folder(tmp_path / "dit")
    path = folder / "model.fp16.safetensors"
    weights = {key: t.float() for key, t in load_file(path).items()}
    outputs = []
    for note in ("", "x" * 8, "x" * 16):
        save_file(weights, path, {"note": note})
        model = loading.load_denoiser(folder, torch.float32)
        assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
        outputs.append(model(**inputs_of(model, batch=1, tokens=1)))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.fp16.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def edit_config(folder: Path, old: str, new: str) -> None:
    path = folder / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "config.yaml").unlink(), "cannot read .*config.yaml: FileNotFoundError.*official layout"),
    (lambda f: (f / "config.yaml").write_text("model: ["), "cannot read .*config.yaml: ParserError"),
    (lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe\x80"), "cannot read .*config.yaml: "),
    (lambda f: (f / "config.yaml").write_text("[]"), "has no model with a target"),
    (lambda f: (f / "config.yaml").write_text("model: 3"), "has no model with a target"),
    (
        lambda f: edit_config(f, "models.Hunyuan3DDiT", "models.HunYuanDiTPlain"),
        "model is a HunYuanDiTPlain, expected",
    ),
    (lambda f: edit_config(f, "theta: 10000", "use_pe: true"), "unexpected keyword argument 'use_pe'"),
    (lambda f: edit_config(f, "num_heads: 2", "num_heads: 3"), "expected a multiple of num_heads = 3"),
    (lambda f: edit_config(f, "num_heads: 2", "num_heads: 0"), "config.yaml: ZeroDivisionError"),
    (lambda f: edit_config(f, "num_heads: 2", "num_heads: many"), "config.yaml: TypeError"),
    (lambda f: edit_config(f, "hidden_size: 32", "hidden_size: -32"), "config.yaml: RuntimeError"),
    (lambda f: edit_config(f, "in_channels: 4\n", "in_channels: 4\n    7: 7\n"), "params of model are no mapping"),
    (lambda f: (f / "model.fp16.safetensors").unlink(), r"lacks model\.fp16\.safetensors \(or model\.safetensors\)"),
    (lambda f: (f / "model.fp16.safetensors").write_bytes(b"junk"), "cannot read .*safetensors: SafetensorError"),
    (
        lambda f: edit_weights(f, lambda w: w.pop("model.cond_in.bias")),
        r"has 1 missing keys \(cond_in.bias\), expected the weights that its config.yaml describes",
    ),
    (
        lambda f: edit_weights(f, lambda w: w.update({"model.extra": torch.ones(1)})),
        r"has 1 unexpected keys \(extra\)",
    ),
    (
        lambda f: edit_config(f, "context_in_dim: 6", "context_in_dim: 7"),
        r"has 1 misshapen keys \(cond_in.weight \[32, 6\] for \[32, 7\]\)",
    ),
    (lambda f: edit_config(f, "depth: 2", "depth: 3"), r"has 24 missing keys \(double_blocks.2.img_attn"),
    (lambda f: edit_config(f, "qkv_bias: true", "guidance_embed: true"), r"has 4 missing keys \(guidance_in.in_layer"),
]


@pytest.mark.parametrize(("damage", "reason"), BROKEN)
def test_a_broken_denoiser_folder_is_one_clear_error(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    folder = denoiser_folder(tmp_path / "dit")
    damage(folder)
    with pytest.raises(UsageError, match=reason) as caught:
        loading.load_denoiser(folder)
    assert "\n" not in str(caught.value)


def test_broken_decoders_and_schedulers_are_one_clear_error(tmp_path: Path) -> None:
    vae = vae_folder(tmp_path / "vae")
    with pytest.raises(UsageError, match="has no model with a target"):
        loading.load_denoiser(vae)
    with pytest.raises(UsageError, match="has no scheduler with a target"):
        loading.load_schedule(vae)
    edit_config(vae, "  heads: 2", "  num_encoder_layers: 8\n  heads: 2")
    with pytest.raises(UsageError, match="unexpected keyword argument 'num_encoder_layers'"):
        loading.load_shape_vae(vae)

    dit = denoiser_folder(tmp_path / "dit")
    edit_weights(dit, lambda w: w.pop("vae.post_kl.bias"))
    with pytest.raises(UsageError, match=r"has 1 missing keys \(post_kl.bias\)"):
        loading.load_shape_vae(dit)
    edit_config(dit, "schedulers.FlowMatch", "schedulers.Other")
    with pytest.raises(UsageError, match="scheduler is a OtherEulerDiscreteScheduler, expected one of: FlowMatchEuler"):
        loading.load_schedule(dit)
    edit_config(dit, "schedulers.Other", "schedulers.FlowMatch")
    edit_config(dit, "num_train_timesteps", "shift")
    with pytest.raises(UsageError, match="unexpected keyword argument 'shift'"):
        loading.load_schedule(dit)


# Sampling


def test_sigmas_of_flow_matching() -> None:
    for steps in (1, 2, 5, 50):
        sigmas = FlowMatchEuler().sigmas(steps)
        assert sigmas.dtype == torch.float32
        assert torch.equal(sigmas[:-1], torch.from_numpy(np.linspace(0, 1, steps).astype(np.float32)))
        assert sigmas[-1] == 1
    assert FlowMatchEuler().sigmas(50)[-2:].tolist() == [1, 1]
    assert FlowMatchEuler().sigmas(1).tolist() == [0, 1]


def test_sigmas_of_the_consistency_schedule() -> None:
    """Eight steps of a hundred levels are the levels 0, 12, 25, ...; level i is timestep 10 i - 1 of 0 to 999."""
    turbo = ConsistencyFlowMatchEuler(1000, 100)
    expected = [0, 119, 249, 369, 499, 619, 749, 869]
    torch.testing.assert_close(turbo.sigmas(8), torch.tensor([t / 999 for t in expected] + [1]), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        turbo.sigmas(5), torch.tensor([0, 199 / 999, 399 / 999, 599 / 999, 799 / 999, 1]), rtol=1e-6, atol=0
    )
    assert turbo.sigmas(1).tolist() == [0, 1]
    every = turbo.sigmas(100)
    assert len(every) == 101
    assert (every.diff() > 0).all()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: FlowMatchEuler().sigmas(0), "steps is 0, expected an integer of at least 1"),
        (lambda: FlowMatchEuler().sigmas(True), "steps is True, expected an integer"),
        (lambda: FlowMatchEuler().sigmas(2.5), "steps is 2.5, expected an integer"),  # type: ignore[arg-type]
        (lambda: FlowMatchEuler(0), "num_train_timesteps is 0"),
        (lambda: ConsistencyFlowMatchEuler(1000, 100).sigmas(101), "steps is 101, expected at most 100"),
        (lambda: ConsistencyFlowMatchEuler(1000, 0), "pcm_timesteps is 0"),
        (lambda: ConsistencyFlowMatchEuler(10, 20), "num_train_timesteps is 10, expected an integer of at least 20"),
    ],
)
def test_impossible_schedules_are_refused(call: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        call()


@pytest.mark.parametrize("schedule", [FlowMatchEuler(), ConsistencyFlowMatchEuler(1000, 100)], ids=["euler", "turbo"])
def test_a_straight_flow_arrives_whatever_the_steps(schedule: flow_matching.Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, data = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for steps in (1, 2, 7, 50):
        *_, last = denoise(lambda _x, _t: data - noise, noise, schedule.sigmas(steps))
        torch.testing.assert_close(last, data, rtol=1e-12, atol=1e-12)


def test_the_velocity_is_asked_for_at_sigma() -> None:
    asked: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return torch.full_like(x, 2.0) * t[:, None, None]

    sigmas = FlowMatchEuler().sigmas(5)
    *_, before_last, last = denoise(velocity, torch.zeros(2, 1, 1), sigmas)
    torch.testing.assert_close(torch.stack(asked), sigmas[:-1, None].expand(5, 2), rtol=2e-7, atol=0)
    # Left rectangles of 2 t on [0, 1]: 2 (0 + 1/4 + 2/4 + 3/4) / 4; the last step, at t = 1, has no width.
    assert last.flatten().tolist() == pytest.approx([0.75, 0.75])
    assert torch.equal(before_last, last)


def test_float16_follows_the_official_chain() -> None:
    model = small(torch.float16)
    context = inputs_of(model, batch=1)["context"]
    schedule = FlowMatchEuler()
    latents = sampling.sample(model, context, schedule=schedule, steps=4, num_latents=7, seed=3)

    sigmas = torch.cat([torch.from_numpy(np.linspace(0, 1, 4)).float(), torch.ones(1)])
    x = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(3)).half()
    both = torch.cat([context, torch.zeros_like(context)])
    for step, timestep in enumerate(1000 * sigmas[:-1]):
        v = model(torch.cat([x, x]), timestep.expand(2).half() / 1000, both)
        conditional, unconditional = v.chunk(2)
        v = unconditional + 5.0 * (conditional - unconditional)
        x = (x.float() + (sigmas[step + 1] - sigmas[step]) * v).half()
        assert torch.equal(latents[step], x)
        assert latents[step].dtype == torch.float16
    assert len(latents) == 4
    assert latents[-1].isfinite().all()


def test_latents_keep_their_dtype_between_steps() -> None:
    """So float16 latents of 1024 lose two steps of 0.3, as in production."""
    sigmas = torch.tensor([0.0, 0.3, 0.6])
    for dtype, expected in ((torch.float16, 1024.0), (torch.float32, 1024.6), (torch.float64, 1024.6)):
        noise = torch.full((1, 1, 1), 1024.0, dtype=dtype)
        *_, last = denoise(lambda x, _t: torch.ones_like(x), noise, sigmas)
        assert last.dtype == dtype
        assert last.item() == pytest.approx(expected, rel=1e-7)


def test_guidance_is_one_batch_of_two_conditional_first() -> None:
    asked: list[Inputs] = []

    def model(latents: Tensor, t: Tensor, context: Tensor, guidance: Tensor | None = None) -> Tensor:
        assert guidance is None
        asked.append({"latents": latents, "t": t, "context": context})
        return latents + context.sum(dim=(1, 2), keepdim=True)

    latents, context = torch.ones(2, 3, 1), torch.tensor([[[1.0]], [[2.0]]])
    v = guided(model, context, 5.0)(latents, torch.tensor([0.1, 0.2]))
    (call,) = asked
    assert call["context"].flatten().tolist() == [1, 2, 0, 0]
    assert call["t"].tolist() == pytest.approx([0.1, 0.2, 0.1, 0.2])
    assert torch.equal(call["latents"], torch.ones(4, 3, 1))
    assert v[:, 0, 0].tolist() == [1 + 5 * 1, 1 + 5 * 2]
    other = guided(model, context, 5.0, unconditional=torch.full_like(context, 3.0))(latents, torch.zeros(2))
    assert other[:, 0, 0].tolist() == [4 + 5 * (1 - 3), 4 + 5 * (2 - 3)]
    with pytest.raises(ValueError, match=r"unconditional has shape \[1, 1, 1\], expected \[2, 1, 1\]"):
        guided(model, context, 5.0, unconditional=torch.zeros(1, 1, 1))


def test_a_model_with_embedded_guidance_runs_one_batch_and_sees_the_scale() -> None:
    model = small(torch.float16, guidance_embed=True)
    context = inputs_of(model)["context"]
    schedule = ConsistencyFlowMatchEuler(1000, 100)
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _model, arguments: batches.append(len(arguments[0])))
    few = sampling.sample(model, context, schedule=schedule, steps=3, num_latents=7, seed=0)
    assert batches == [2, 2, 2]
    other = sampling.sample(model, context, schedule=schedule, steps=3, num_latents=7, seed=0, guidance_scale=2.0)
    assert not torch.equal(few[-1], other[-1])
    t = torch.zeros(2).half()
    v = model(few[0], t, context, torch.full((2,), 5.0).half())
    assert torch.equal(flow_matching.guidance_embedded(model, context, 5.0)(few[0], t), v)


def sample(model: Hunyuan3DDiT, context: Tensor, **options: Any) -> list[Tensor]:
    defaults: dict[str, Any] = {"schedule": FlowMatchEuler(), "steps": 4, "num_latents": 7, "seed": 3}
    return sampling.sample(model, context, **{**defaults, **options})


def test_the_seed_decides_everything() -> None:
    model = small(torch.float16)
    context = inputs_of(model)["context"]
    told: list[str] = []
    state = torch.get_rng_state()
    first = sample(model, context, progress=told.append)
    assert told == [f"step {n} of 4" for n in (1, 2, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(2)
    torch.manual_seed(9)
    again = sample(model, context)
    assert torch.get_num_threads() == 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for changes in ({"seed": 4}, {"guidance_scale": 1.0}, {"steps": 5}):
        assert not torch.allclose(sample(model, context, **changes)[-1], first[-1], rtol=1e-2)
    assert sample(model, context, num_latents=5)[-1].shape == (2, 5, 4)


def test_sampling_can_be_taken_up_after_any_step() -> None:
    model = small(torch.float16)
    velocity = guided(model, inputs_of(model)["context"], 5.0)
    sigmas = FlowMatchEuler().sigmas(6)
    noise = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)).half()
    whole = list(denoise(velocity, noise, sigmas))
    rest = list(denoise(velocity, whole[2], sigmas[3:]))
    assert len(rest) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_sampling_can_be_cancelled() -> None:
    def stop(text: str) -> None:
        if text == "step 2 of 4":
            raise KeyboardInterrupt

    model = small(torch.float16)
    context = inputs_of(model)["context"]
    torch.set_num_threads(2)
    with dit.mount(model, reference()) as mounted:
        with pytest.raises(KeyboardInterrupt):
            sample(model, context, progress=stop)
        assert mounted.forwards == 2
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()

    steps = denoise(guided(model, context, 5.0), torch.zeros(2, 7, 4).half(), FlowMatchEuler().sigmas(9))
    with dit.mount(model, reference()) as mounted:
        next(steps)
        steps.close()  # type: ignore[attr-defined]
        assert mounted.forwards == 1


def test_mounted_calls_are_counted_over_a_sampling() -> None:
    model = small(torch.float16)
    context = inputs_of(model)["context"]
    bare = sample(model, context)
    with dit.mount(model, reference()) as mounted:
        assert all(torch.equal(a, b) for a, b in zip(sample(model, context, mounted=mounted), bare, strict=True))
    assert mounted.calls["qk_norm"] == 4 * 7
    with dit.mount(model, reference(), ["norm_final"]) as mounted:
        mounted.forwards = 1
        with pytest.raises(SiteError, match="5 forwards ran through the mounted model, expected 4"):
            sample(model, context, mounted=mounted)


def test_no_step_is_skipped_where_the_velocity_is_not_finite() -> None:
    """The last step has no width, but 0 * NaN is NaN: a NaN at t = 1 shows."""
    *_, last = denoise(lambda x, t: torch.where(t[:, None, None] == 1, math.nan, x), torch.ones(1, 1, 1), torch.ones(2))
    assert last.isnan().all()
