"""The models as `validate bench denoise` runs them: at full size with random weights, from a checkpoint, or tiny.

A step is what sampling does between two latents: the forward (Hunyuan3D-2: of both halves of the guidance at once;
Helios: one, without guidance, which would run two) and the Euler update. Text and image conditions are random.
"""

import contextlib
import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, HeliosTransformer3DModel
from torch import Tensor, nn

from validation.errors import UsageError
from validation.models import helios, hunyuan3d, shape_pipeline
from validation.models.flow_matching import FlowMatchEuler, denoise, guided
from validation.models.mount import Mount, Site, SiteCall
from validation.models.prompts import read_json
from validation.models.shape_vae import ShapeVAE
from validation.ops import OpSet

MODELS = ("helios", "hunyuan3d")
FULL, TINY, EMBEDDED = "full", "tiny", "embedded"

Forward = Callable[..., Any]


class Subject(ABC):
    """A model with its inputs.

    Attributes:
        name: of the model, of `MODELS`.
        weights: where they come from, in words.
        model: the denoiser.
        sites: its sites.
    """

    name: str
    weights: str
    model: Any
    sites: tuple[Site, ...]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    @abstractmethod
    def size(self) -> str:
        """Tokens and dtype, in words."""

    @abstractmethod
    def path_before(self) -> contextlib.AbstractContextManager[None]:
        """The model as it was before any fusion, until the end of the ``with`` block."""

    @abstractmethod
    def mount(
        self, ops: OpSet, sites: Iterable[str] | None, *, compact: bool = False, packed: bool = True
    ) -> contextlib.AbstractContextManager[Mount]:
        """Mount an op set; the other sites stay as they were before.

        Args:
            ops: the op set. sites: names; None is wherever the set has the op.
            compact: modulation as `IndexedRows`. packed: q/k norm where q and k lie, without copies; each for the
                model that knows the difference.

        Raises:
            UsageError: the sites cannot be mounted.
        """

    @abstractmethod
    def sample(self, forward: Forward, seed: int, steps: int) -> Iterator[Tensor]:
        """Yield the latents after each step; ``forward`` is the model, or what computes the same."""

    @abstractmethod
    def decode(self, latents: Tensor, *, warm_up: bool = False) -> None:
        """Decode latents to what is looked at, and drop it; to warm up, as little as runs the same code."""

    @abstractmethod
    def place_of(self, call: SiteCall) -> str:
        """Where in the model a site call is."""


def allocate(model: nn.Module, device: str, dtype: torch.dtype | None = None) -> None:
    """Give the parameters of a model that was made on the meta device memory on another; they hold anything.

    ``Module.to_empty`` does the same, but not for fake tensors (PyTorch 2.13).
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            memory = torch.empty(parameter.shape, dtype=dtype or parameter.dtype, device=device)
            module.register_parameter(name, nn.Parameter(memory, requires_grad=False))


def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill a model's parameters where they lie, from one seed; no copy is made anywhere.

    Matrices are normal with variance 1 / fan-in, so that activations stay near unit size; rows 0.1 times normal,
    weights of norms 1 more.
    """
    generator: torch.Generator | None = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if generator is None:
                generator = torch.Generator(parameter.device).manual_seed(seed)
            parameter.normal_(generator=generator)
            matrix = parameter.ndim > 1 and not name.endswith("scale_shift_table")
            parameter.mul_(math.prod(parameter.shape[1:]) ** -0.5 if matrix else 0.1)
            if parameter.ndim == 1 and not name.endswith("bias"):
                parameter.add_(1)


# Helios


@dataclasses.dataclass(frozen=True)
class HeliosSize:
    """Latent pixels and frames: of the current chunk, and of its history (long, middle, short); text tokens."""

    height: int
    width: int
    frames: int
    history: tuple[int, int, int]
    text: int


HELIOS_SIZES = {
    FULL: HeliosSize(48, 80, 9, (16, 2, 2), 512),  # 384x640: 8640 tokens behind 2400
    TINY: HeliosSize(4, 6, 2, (4, 2, 2), 5),
    # A legal replay turns one rounding in some ten thousand: a band of the norms alone needs many elements.
    EMBEDDED: HeliosSize(16, 24, 9, (16, 2, 2), 16),
}
HELIOS_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    TINY: {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "rope_dim": (8, 4, 4),
        "num_layers": 1,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_dim": 8,
    },
}
TINY_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}


class Helios(Subject):
    """diffusers' Helios in bfloat16, its VAE in float32, one batch item a forward."""

    name = "helios"

    def __init__(
        self, size: str, device: str, *, checkpoint: Path | None = None, seed: int = 0, weights: bool = True
    ) -> None:
        """Make or load it.

        Args:
            size: a key of `HELIOS_SIZES`: of the inputs, and without a checkpoint of the model.
            device: where the weights are made.
            checkpoint: a folder in diffusers' format.
            seed: of weights and inputs.
            weights: False leaves weights and inputs as they are and makes no VAE; with a checkpoint its
                configuration alone is read.

        Raises:
            UsageError: the checkpoint cannot be loaded.
        """
        self._size, self._dtype = HELIOS_SIZES[size], torch.bfloat16
        self.vae: Any = None
        if checkpoint is not None and weights:
            pipeline = helios.load(checkpoint, self._dtype, device)
            self.model, self.vae = pipeline.transformer, pipeline.vae
            self.weights = f"{checkpoint.resolve().name}"
        else:
            config = HELIOS_CONFIGS[size] if checkpoint is None else read_json(checkpoint / "transformer/config.json")
            self.model = _random_helios(config, self._dtype, device, seed if weights else None)
            self.weights = f"random, seed {seed}" if checkpoint is None else checkpoint.resolve().name
            if weights:
                with torch.device(device), torch.random.fork_rng(_cuda_devices(device)):
                    torch.manual_seed(seed)
                    self.vae = AutoencoderKLWan(**(TINY_VAE if size == TINY else {})).eval().requires_grad_(False)
        self.sites = helios.sites_of(self.model.config)
        self._fixed = self._inputs(device, seed, drawn=weights)

    @property
    def size(self) -> str:
        """Tokens and dtype, in words."""
        s, (_, p, _) = self._size, self.model.config.patch_size
        current = s.frames * (s.height // p) * (s.width // p)
        history = sum(
            -(-frames // n) * -(-s.height // (n * p)) * -(-s.width // (n * p))
            for frames, n in zip(s.history, (4, 2, 1), strict=True)
        )
        config = self.model.config
        return (
            f"{config.num_layers} layers of width {config.num_attention_heads * config.attention_head_dim}, "
            f"{history + current} tokens, {history} of them history; bfloat16"
        )

    @contextlib.contextmanager
    def path_before(self) -> Iterator[None]:
        """diffusers' code, untouched."""
        yield

    def mount(
        self, ops: OpSet, sites: Iterable[str] | None, *, compact: bool = False, packed: bool = True
    ) -> contextlib.AbstractContextManager[Mount]:
        """See `Subject.mount`; ``packed`` means nothing here."""
        del packed
        return helios.mount(self.model, ops, sites, compact=compact)

    def sample(self, forward: Forward, seed: int, steps: int) -> Iterator[Tensor]:
        """Latents ``[1, C, T, H, W]``, float32: flow matching from noise at sigma 1 to data at 0."""
        s, config = self._size, self.model.config
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, config.in_channels, s.frames, s.height, s.width)
        x = torch.randn(shape, generator=generator, device="cpu").to(self.device)
        for step in range(steps):
            time = torch.full((1,), 1000 * (1 - step / steps), device=self.device)
            v = forward(hidden_states=x.to(self._dtype), timestep=time, return_dict=False, **self._fixed)[0]
            x = x - v.float() / steps
            yield x

    def decode(self, latents: Tensor, *, warm_up: bool = False) -> None:
        """The VAE on all frames, or on two."""
        latents = latents[:, :, :2] if warm_up else latents
        self.vae.decode(latents.to(self.vae.dtype), return_dict=False)

    def place_of(self, call: SiteCall) -> str:
        """See `helios.place_of`."""
        return helios.place_of(call)

    def _inputs(self, device: str, seed: int, *, drawn: bool) -> dict[str, Tensor]:
        s, config = self._size, self.model.config
        generator = torch.Generator(device).manual_seed(seed) if drawn else None

        def values(*shape: int) -> Tensor:
            t = torch.empty(shape, device=device, dtype=self._dtype)
            return t if generator is None else t.normal_(generator=generator)

        inputs = {"encoder_hidden_states": values(1, s.text, config.text_dim)}
        # On the device: an index that comes from the host could not be captured in a graph.
        indices = torch.arange(sum(s.history) + s.frames, device=device).unsqueeze(0)
        *history, inputs["indices_hidden_states"] = torch.split(indices, [*s.history, s.frames], dim=1)
        for part, frames, index in zip(("long", "mid", "short"), s.history, history, strict=True):
            inputs[f"latents_history_{part}"] = values(1, config.in_channels, frames, s.height, s.width)
            inputs[f"indices_latents_history_{part}"] = index
        return inputs


def _random_helios(config: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int | None) -> Any:
    """A transformer as ``from_pretrained(torch_dtype=dtype)`` would leave it, its weights made on the device."""
    with torch.device("meta"):
        model = HeliosTransformer3DModel.from_config(dict(config))
    helios.cast_parameters(model, dtype)
    allocate(model, device)
    # Its frequencies are no weights: they come from the configuration.
    model.rope = type(model.rope)(model.config.rope_dim, model.config.rope_theta).to(device)
    if seed is not None:
        draw_weights(model, seed)
    return model.eval()


def _cuda_devices(device: str) -> list[str]:
    return [device] if device.startswith("cuda") else []


# Hunyuan3D-2


@dataclasses.dataclass(frozen=True)
class HunyuanSize:
    """Latents, context tokens, and cells along an edge of the grid on which a field is decoded."""

    latents: int
    context: int
    resolution: int


HUNYUAN_SIZES = {
    FULL: HunyuanSize(3072, 1370, 384),
    TINY: HunyuanSize(12, 5, 8),
    EMBEDDED: HunyuanSize(32, 4, 64),
}
HUNYUAN_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    TINY: {
        "in_channels": 8,
        "context_in_dim": 16,
        "hidden_size": 64,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
    },
}
# Of hunyuan3d-vae-v2-0.
FULL_SHAPE_VAE = {"width": 1024, "heads": 16, "num_decoder_layers": 16, "num_freqs": 8}
TINY_SHAPE_VAE = {"width": 32, "heads": 2, "num_decoder_layers": 1, "num_freqs": 2}
GUIDANCE = 5.0


class Hunyuan3D(Subject):
    """Hunyuan3D-2's denoiser in float16, both halves of the guidance in one batch, its decoder in float32."""

    name = "hunyuan3d"

    def __init__(
        self, size: str, device: str, *, checkpoint: Path | None = None, seed: int = 0, weights: bool = True
    ) -> None:
        """Make or load it: arguments and errors as of `Helios`, with a checkpoint in the official layout.

        A checkpoint's shapes have as many latents as its decoder was trained with.
        """
        self._size, self._dtype = HUNYUAN_SIZES[size], shape_pipeline.DTYPE
        self.vae: ShapeVAE | None = None
        if checkpoint is not None and weights:
            pipeline = shape_pipeline.load(shape_pipeline.find_parts(checkpoint), device)
            self.model, self.vae = pipeline.denoiser, pipeline.vae
            self._size = dataclasses.replace(self._size, latents=pipeline.num_latents)
            self.weights = checkpoint.resolve().name
        else:
            config = HUNYUAN_CONFIGS[size]
            if checkpoint is not None:
                parts = shape_pipeline.find_parts(checkpoint)
                config = hunyuan3d.denoiser_params(parts.denoiser)
                decoder = hunyuan3d.read_config(parts.vae)
                trained = decoder.get("vae", decoder).get("params", {}).get("num_latents", self._size.latents)
                self._size = dataclasses.replace(self._size, latents=int(trained))
            with torch.device("meta"):
                self.model = hunyuan3d.Hunyuan3DDiT(**config)
            allocate(self.model.eval(), device, self._dtype)
            self.weights = f"random, seed {seed}" if checkpoint is None else checkpoint.resolve().name
            if weights:
                draw_weights(self.model, seed)
                with torch.device("meta"):
                    self.vae = ShapeVAE(
                        num_latents=self._size.latents,
                        embed_dim=self.model.config.in_channels,
                        include_pi=False,
                        qkv_bias=False,
                        qk_norm=True,
                        **(TINY_SHAPE_VAE if size == TINY else FULL_SHAPE_VAE),
                    )
                allocate(self.vae.eval(), device)
                draw_weights(self.vae, seed)
        self.sites = hunyuan3d.sites_of(dataclasses.asdict(self.model.config))
        generator = torch.Generator(device).manual_seed(seed) if weights else None
        self._context = torch.empty(
            1, self._size.context, self.model.config.context_in_dim, dtype=self._dtype, device=device
        )
        if generator is not None:
            self._context.normal_(generator=generator)
        # The official code normalises q and k out of place, where they lie; written once, as a compiler guards it.
        self._eager_qk_norm = functools.partial(self.model.sites.ops["qk_norm"], inplace=False)

    @property
    def size(self) -> str:
        """Tokens and dtype, in words."""
        s, config = self._size, self.model.config
        return (
            f"{config.depth} double and {config.depth_single_blocks} single blocks of width {config.hidden_size}, "
            f"batch 2 of {s.latents} latents and {s.context} context tokens; float16"
        )

    @contextlib.contextmanager
    def path_before(self) -> Iterator[None]:
        """The reference ops, q and k normalised out of place: the kernels of the official code."""
        sites = self.model.sites
        known, packed = sites.ops["qk_norm"], sites.packed_qk_norm
        sites.ops["qk_norm"], sites.packed_qk_norm = self._eager_qk_norm, True
        try:
            yield
        finally:
            sites.ops["qk_norm"], sites.packed_qk_norm = known, packed

    @contextlib.contextmanager
    def mount(
        self, ops: OpSet, sites: Iterable[str] | None, *, compact: bool = False, packed: bool = True
    ) -> Iterator[Mount]:
        """See `Subject.mount`; ``compact`` means nothing here: each batch item has one row of modulation."""
        del compact
        with self.path_before(), hunyuan3d.mount(self.model, ops, sites) as mounted:
            if "qk_norm" in mounted:
                self.model.sites.packed_qk_norm = packed
            yield mounted

    def sample(self, forward: Forward, seed: int, steps: int) -> Iterator[Tensor]:
        """Latents ``[1, L, C]``, float16: flow matching from noise at sigma 0 to data at 1."""
        schedule = FlowMatchEuler()
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, self._size.latents, self.model.config.in_channels)
        noise = torch.randn(shape, generator=generator, device="cpu").to(self._context)
        velocity = guided(forward, self._context, GUIDANCE)
        yield from denoise(velocity, noise, schedule.sigmas(steps), schedule.num_train_timesteps)

    def decode(self, latents: Tensor, *, warm_up: bool = False) -> None:
        """The decoder, and the field on its grid, or on a small one."""
        assert self.vae is not None
        decoded = self.vae.decode(latents.float())
        self.vae.latents_to_grid(decoded, min(self._size.resolution, 32) if warm_up else self._size.resolution)

    def place_of(self, call: SiteCall) -> str:
        """See `hunyuan3d.place_of`."""
        return hunyuan3d.place_of(call, self.model.config.depth)


def make(
    model: str, size: str, device: str, *, checkpoint: Path | None = None, seed: int = 0, weights: bool = True
) -> Subject:
    """The subject of a model; see `Helios`.

    Raises:
        UsageError: an unknown model, or a checkpoint that cannot be loaded.
    """
    if model not in MODELS:
        raise UsageError(f"--model: unknown model {model!r}, expected one of: {', '.join(MODELS)}")
    kinds: dict[str, type[Helios | Hunyuan3D]] = {"helios": Helios, "hunyuan3d": Hunyuan3D}
    return kinds[model](size, device, checkpoint=checkpoint, seed=seed, weights=weights)
