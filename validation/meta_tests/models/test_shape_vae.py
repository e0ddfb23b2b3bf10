from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from validation.media.grid import grid_axis, grid_to_world
from validation.meta_tests import plain_hunyuan3d as plain
from validation.models.hunyuan3d import shape_vae
from validation.models.hunyuan3d.shape_vae import ShapeVAE

GOLDEN = plain.read_golden("hunyuan3d-shape-vae-tiny")
MARKS = {torch.float64: 1e-10, torch.float32: 1e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    "v2-0": {},
    "turbo": {"geo_decoder_downsample_ratio": 2, "geo_decoder_mlp_expand_ratio": 1, "geo_decoder_ln_post": False},
    "include_pi": {"include_pi": True, "num_freqs": 3},
    "qkv_bias": {"qkv_bias": True, "qk_norm": False},
}


def golden_model(dtype: torch.dtype = torch.float32) -> ShapeVAE:
    model = ShapeVAE(**GOLDEN.config)
    model.load_state_dict(GOLDEN.weights, strict=True)
    return model.to(dtype)


def golden_errors(model: ShapeVAE) -> tuple[float, float]:
    decoded = model.decode(GOLDEN.inputs["latents"])
    logits = model.query(decoded, GOLDEN.inputs["points"])
    return (
        plain.relative_error(decoded, GOLDEN.outputs["decoded.float64"]),
        plain.relative_error(logits, GOLDEN.outputs["logits.float64"]),
    )


def points(batch: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2.02 * torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(1)) - 1.01).to(dtype)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", MARKS, ids=["fp64", "fp32"])
def test_golden_vectors(dtype: torch.dtype) -> None:
    model = golden_model(dtype)
    # decode and query convert float32 latents and points, which are exact in float64.
    assert max(golden_errors(model)) < MARKS[dtype]


@pytest.mark.parametrize("name", GOLDEN.weights)
def test_golden_vectors_see_every_weight(name: str) -> None:
    model = golden_model(torch.float64)
    parameter = model.get_parameter(name)
    parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    error = golden_errors(model)[1]
    # A bias that all keys share moves all scores of a query alike, which does not change the softmax.
    assert (error > 1e4 * MARKS[torch.float64]) != name.endswith("k_norm.bias")


@pytest.mark.parametrize(
    "settings",
    [{"scale_factor": 1.0}, {"include_pi": True}, {"heads": 4, "qk_norm": False}],
    ids=lambda settings: "-".join(settings),
)
def test_golden_vectors_see_the_configuration(settings: dict[str, Any]) -> None:
    model = ShapeVAE(**{**GOLDEN.config, **settings}).double()
    known = model.state_dict()
    model.load_state_dict({name: weight for name, weight in GOLDEN.weights.items() if name in known}, strict=True)
    assert golden_errors(model)[1] > 1e4 * MARKS[torch.float64]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_bit_identical_to_the_plain_version(dtype: torch.dtype, variant: str) -> None:
    config = {**GOLDEN.config, **VARIANTS[variant]}
    model = ShapeVAE(**config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise / parameter.shape[1] ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise)
    model.to(dtype)
    weights = model.state_dict()
    assert ("geo_decoder.latents_proj.weight" in weights) == (variant == "turbo")
    for batch, tokens, count in ((2, 12, 9), (1, 5, 1), (1, 1, 30)):
        latents = torch.randn(batch, tokens, 8, generator=generator).to(dtype)
        queries = points(batch, count, dtype)
        decoded = model.decode(latents)
        assert torch.equal(decoded, plain.decoded(weights, config, latents))
        logits = model.query(decoded, queries)
        assert logits.isfinite().all()
        assert logits.shape == (batch, count, 1)
        assert torch.equal(logits, plain.logits(weights, config, decoded, queries))


def test_fourier_embedding_is_ordered_x_sin_cos() -> None:
    embedded = shape_vae.fourier_embedding(torch.tensor([[0.5, -0.25, 1.0]], dtype=torch.float64), 2, include_pi=False)
    angles = [0.5, 1.0, -0.25, -0.5, 1.0, 2.0]
    expected = [0.5, -0.25, 1.0, *np.sin(angles), *np.cos(angles)]
    assert embedded.flatten().tolist() == pytest.approx(expected, abs=1e-15)


def test_any_number_of_latents_decodes() -> None:
    """The caller judges whether there are fewer than in training, and needs the field for it."""
    model = golden_model()
    assert model.config.num_latents == 12
    assert model.query(model.decode(GOLDEN.inputs["latents"][:, :3]), points(2, 4)).isfinite().all()


# Chunks


def chunks_of(model: ShapeVAE) -> list[int]:
    sizes: list[int] = []
    model.geo_decoder.register_forward_pre_hook(lambda _model, arguments: sizes.append(arguments[0].shape[1]))
    return sizes


def test_queries_in_chunks_are_the_same_queries() -> None:
    model = golden_model(torch.float64)
    decoded = model.decode(GOLDEN.inputs["latents"])
    queries = points(2, 1000)
    whole = model.query(decoded, queries)
    sizes = chunks_of(model)
    logits = model.query(decoded, queries, memory_limit=2**20)
    assert len(sizes) > 5
    assert sum(sizes) == 1000
    assert len(set(sizes[:-1])) == 1
    torch.testing.assert_close(logits, whole, rtol=1e-12, atol=1e-12)
    assert model.query(decoded, queries[:, :0]).shape == (2, 0, 1)


def peak_bytes(call: Any) -> int:
    """The peak of torch's CPU allocations during the call, beyond those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("variant", ["v2-0", "turbo", "include_pi"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["fp32", "fp64", "bf16"])
def test_queries_stay_within_the_memory_limit(dtype: torch.dtype, variant: str) -> None:
    model = ShapeVAE(**{**GOLDEN.config, **VARIANTS[variant]}).to(dtype)
    decoded = torch.zeros(2, 12, 32, dtype=dtype)
    queries = points(2, 50_000, dtype)
    limit = 4 * 2**20
    sizes = chunks_of(model)
    result = 2 * 50_000 * decoded.element_size() * 2  # the chunks' logits, and these in one tensor
    keys_values = 8 * decoded.nbytes
    peak = peak_bytes(lambda: model.query(decoded, queries, memory_limit=limit))
    assert 0.4 * limit < peak < limit + result + keys_values
    assert len(sizes) > 5


def test_twice_the_limit_is_seen_by_the_measurement() -> None:
    model = golden_model()
    decoded = model.decode(GOLDEN.inputs["latents"])
    queries = points(2, 20_000)
    small, large = (peak_bytes(lambda n=n: model.query(decoded, queries, memory_limit=n)) for n in (2**22, 2**23))
    assert large - small > 0.5 * 2**22


# The grid


def test_the_grid_is_the_field_at_its_points() -> None:
    model = golden_model()
    decoded = model.decode(GOLDEN.inputs["latents"])
    told: list[str] = []
    grid = model.latents_to_grid(decoded, 6, memory_limit=2**20, progress=told.append)
    assert grid.shape == (2, 7, 7, 7)
    assert grid.dtype == torch.float32
    axis = np.linspace(-1.01, 1.01, 7, dtype=np.float32)
    for i, j, k in ((0, 0, 0), (6, 6, 6), (1, 2, 3), (5, 0, 4), (0, 6, 1)):
        point = torch.tensor([[axis[i], axis[j], axis[k]]]).expand(2, 1, 3)
        torch.testing.assert_close(grid[:, i, j, k], model.query(decoded, point).flatten(), rtol=1e-5, atol=1e-6)
    assert grid.std() > 0.01  # a constant field would agree in any order
    assert len(told) > 1
    assert told[-1] == "100 % of 343 grid points decoded"

    half = model.latents_to_grid(decoded, 6, box=0.5)
    torch.testing.assert_close(
        half[:, 6, 0, 3], model.query(decoded, torch.tensor([[[0.5, -0.5, 0.0]]]).expand(2, 1, 3)).flatten()
    )
    assert torch.equal(grid, model.latents_to_grid(decoded, 6, memory_limit=2**20))


def test_a_grid_can_be_cancelled() -> None:
    def stop(_text: str) -> None:
        raise KeyboardInterrupt

    model = golden_model()
    sizes = chunks_of(model)
    with pytest.raises(KeyboardInterrupt):
        model.latents_to_grid(model.decode(GOLDEN.inputs["latents"]), 20, memory_limit=2**20, progress=stop)
    assert len(sizes) == 1


def test_a_reduced_precision_decoder_gives_a_float32_grid() -> None:
    model = golden_model(torch.float16)
    grid = model.latents_to_grid(model.decode(GOLDEN.inputs["latents"]), 3)
    assert grid.dtype == torch.float32
    exact = golden_model()
    expected = exact.latents_to_grid(exact.decode(GOLDEN.inputs["latents"]), 3)
    torch.testing.assert_close(grid, expected, rtol=0.1, atol=0.1)


def test_grid_points_and_vertices() -> None:
    """384 cells have 385 points along an edge; upstream divides a vertex by 385 and not by 384."""
    axis = grid_axis()
    assert axis.shape == (385,)
    assert axis.dtype == torch.float32
    assert torch.equal(axis, torch.from_numpy(np.linspace(-1.01, 1.01, 385, dtype=np.float32)))
    corners = grid_to_world(np.array([[0.0, 0.0, 0.0], [384.0, 192.0, 0.5]]))
    assert corners[0].tolist() == [-1.01, -1.01, -1.01]
    expected = [384 / 385 * 2.02 - 1.01, 192 / 385 * 2.02 - 1.01, 0.5 / 385 * 2.02 - 1.01]
    assert corners[1].tolist() == pytest.approx(expected, abs=1e-15)
    assert corners[1, 0] < 1.01 - 0.005
    assert grid_to_world(np.array([[5.0, 0.0, 10.0]]), 10, 0.5)[0].tolist() == pytest.approx(
        [5 / 11 - 0.5, -0.5, 10 / 11 - 0.5]
    )


# Bad input


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            lambda m, _: m.decode(torch.zeros(2, 12, 9)),
            r"latents has shape \[2, 12, 9\], expected \[B, L, embed_dim\]",
        ),
        (lambda m, _: m.decode(torch.zeros(12, 8)), r"latents has shape \[12, 8\]"),
        (
            lambda m, _: m.query(torch.zeros(2, 12, 8), points(2, 3)),
            r"decoded has shape \[2, 12, 8\].* with 32 in",
        ),
        (lambda m, d: m.query(d, torch.zeros(2, 3, 2)), r"points has shape \[2, 3, 2\], expected \[B, P, 3\]"),
        (lambda m, d: m.query(d, torch.zeros(3, 3)), r"points has shape \[3, 3\]"),
        (lambda m, d: m.query(d, points(1, 3)), "points are for 1 shapes, expected 2"),
        (lambda m, d: m.query(d, points(2, 3), memory_limit=100), "memory_limit is 100 bytes, expected at least 3"),
        (lambda m, d: m.latents_to_grid(d, 0), "resolution is 0, expected an integer of at least 1"),
        (lambda m, d: m.latents_to_grid(d, 2.5), "resolution is 2.5, expected an integer"),
        (lambda m, d: m.latents_to_grid(d, 4, box=-1.0), "box is -1.0, expected a positive number"),
        (lambda m, d: m.latents_to_grid(d, 4, box=float("nan")), "box is nan"),
        (lambda m, d: m.latents_to_grid(d[..., :8], 4), r"decoded has shape \[2, 12, 8\]"),
    ],
)
def test_wrong_inputs_are_refused(call: Any, reason: str) -> None:
    model = golden_model()
    decoded = model.decode(GOLDEN.inputs["latents"])
    sizes = chunks_of(model)
    with pytest.raises(ValueError, match=reason):
        call(model, decoded)
    assert not sizes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": 3}, "width is 32, expected a multiple of 3"),
        ({"heads": 0}, "width is 32, expected a multiple of 0"),
        ({"geo_decoder_downsample_ratio": 3}, "width is 32, expected a multiple of 3"),
        ({"heads": 1, "geo_decoder_downsample_ratio": 2}, "heads is 1, expected a multiple of 2"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ShapeVAE(**{**GOLDEN.config, **changes})


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_encoder_layers'"):
        ShapeVAE(**GOLDEN.config, num_encoder_layers=8)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        ShapeVAE(**{name: value for name, value in GOLDEN.config.items() if name != "width"})
