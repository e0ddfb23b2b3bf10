"""Helios for `validate bench denoise`. There is no guidance, which would run two forwards."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, HeliosTransformer3DModel
from torch import Tensor

from validation.files import read_json
from validation.models.helios import loading
from validation.models.helios.sites import cast_parameters, mount, place_of, sites_of
from validation.models.mount import Mount, SiteCall
from validation.ops import OpSet
from validation.samples.denoiser import ALL, BEFORE, COMPACT, Arm, Denoiser, Forward, Goal, Size, allocate, draw_weights


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Latent height, width and frames of the current chunk, history frames (long, middle, short), text tokens."""

    height: int
    width: int
    frames: int
    history: tuple[int, int, int]
    text: int


SIZES = {
    "full": Inputs(48, 80, 9, (16, 2, 2), 512),  # 384x640: 8640 tokens behind 2400
    "tiny": Inputs(4, 6, 2, (4, 2, 2), 5),
    # A legal replay changes about one rounding in ten thousand: a band over only the norms needs many elements.
    "embedded": Inputs(16, 24, 9, (16, 2, 2), 16),
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "tiny": {
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


class HeliosDenoiser(Denoiser):
    """diffusers' Helios in bfloat16, its VAE in float32, one batch item per forward."""

    name = "helios"
    goal = Goal(COMPACT, 0.15, 0.19, less_memory=True)

    def __init__(
        self, size: Size, device: str, *, checkpoint: Path | None = None, seed: int = 0, weights: bool = True
    ) -> None:
        """See `Denoiser`; a checkpoint is a folder in diffusers' format."""
        self._size, self._dtype = SIZES[size], torch.bfloat16
        self.vae: Any = None
        if checkpoint is not None and weights:
            pipeline = loading.load(checkpoint, self._dtype, device)
            self.model, self.vae = pipeline.transformer, pipeline.vae
            self.weights = f"{checkpoint.resolve().name}"
        else:
            config = CONFIGS[size] if checkpoint is None else read_json(checkpoint / "transformer/config.json")
            self.model = _random_model(config, self._dtype, device, seed if weights else None)
            self.weights = f"random, seed {seed}" if checkpoint is None else checkpoint.resolve().name
            if weights:
                with torch.device(device), torch.random.fork_rng([device] if device.startswith("cuda") else []):
                    torch.manual_seed(seed)
                    self.vae = AutoencoderKLWan(**(TINY_VAE if size == "tiny" else {})).eval().requires_grad_(False)
        self.sites = sites_of(self.model.config)
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

    def arms(self, ops: OpSet) -> tuple[Arm, ...]:
        """diffusers unchanged, then the sites of sglang's change, then all sites."""
        sites = ("norm1", "norm2", "norm3", "norm_out")
        return (
            Arm(BEFORE, "diffusers' code, untouched"),
            Arm("#24059", "the sites of sglang #24059: norm1, norm2, norm3, norm_out", ops, sites),
            Arm(ALL, "every site", ops),
            Arm(COMPACT, "every site, modulation as its two distinct rows", ops, variant=COMPACT),
        )

    @contextlib.contextmanager
    def path_before(self) -> Iterator[None]:
        """diffusers' code, untouched."""
        yield

    def mount(
        self, ops: OpSet, sites: Iterable[str] | None, variant: str = ""
    ) -> contextlib.AbstractContextManager[Mount]:
        """See `Denoiser.mount`; the variant `COMPACT` gives modulation as `IndexedRows`."""
        return mount(self.model, ops, sites, compact=variant == COMPACT)

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
        """Run the VAE on all frames, or on two to warm up."""
        latents = latents[:, :, :2] if warm_up else latents
        self.vae.decode(latents.to(self.vae.dtype), return_dict=False)

    def place_of(self, call: SiteCall) -> str:
        """See `sites.place_of`."""
        return place_of(call)

    def _inputs(self, device: str, seed: int, *, drawn: bool) -> dict[str, Tensor]:
        s, config = self._size, self.model.config
        generator = torch.Generator(device).manual_seed(seed) if drawn else None

        def values(*shape: int) -> Tensor:
            t = torch.empty(shape, device=device, dtype=self._dtype)
            return t if generator is None else t.normal_(generator=generator)

        inputs = {"encoder_hidden_states": values(1, s.text, config.text_dim)}
        # On the device: an index copied from the host cannot be captured in a graph.
        indices = torch.arange(sum(s.history) + s.frames, device=device).unsqueeze(0)
        *history, inputs["indices_hidden_states"] = torch.split(indices, [*s.history, s.frames], dim=1)
        for part, frames, index in zip(("long", "mid", "short"), s.history, history, strict=True):
            inputs[f"latents_history_{part}"] = values(1, config.in_channels, frames, s.height, s.width)
            inputs[f"indices_latents_history_{part}"] = index
        return inputs


def _random_model(config: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int | None) -> Any:
    """A transformer as ``from_pretrained(torch_dtype=dtype)`` would leave it, its weights made on the device."""
    with torch.device("meta"):
        model = HeliosTransformer3DModel.from_config(dict(config))
    cast_parameters(model, dtype)
    allocate(model, device)
    # Its frequencies are not weights: they follow from the configuration.
    model.rope = type(model.rope)(model.config.rope_dim, model.config.rope_theta).to(device)
    if seed is not None:
        draw_weights(model, seed)
    return model.eval()
