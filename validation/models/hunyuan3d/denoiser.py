"""Hunyuan3D-2 for `validate bench denoise`. A forward computes both halves of the guidance at once."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import Modulation, expand_modulation
from validation.models.hunyuan3d import sampling
from validation.models.hunyuan3d.dit import Hunyuan3DDiT, mount
from validation.models.hunyuan3d.flow_matching import FlowMatchEuler, denoise, guided
from validation.models.hunyuan3d.loading import denoiser_params, read_config
from validation.models.hunyuan3d.parts import find_parts
from validation.models.hunyuan3d.shape_vae import ShapeVAE
from validation.models.hunyuan3d.sites import place_of, sites_of
from validation.models.mount import Mount, SiteCall
from validation.ops import OpSet
from validation.samples.denoiser import ALL, BEFORE, COMPACT, Arm, Denoiser, Forward, Goal, Size, allocate, draw_weights


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Numbers of latents, of context tokens, and of cells along an edge of the decoded field's grid."""

    latents: int
    context: int
    resolution: int


SIZES = {
    "full": Inputs(3072, 1370, 384),
    "tiny": Inputs(12, 5, 8),
    "embedded": Inputs(32, 4, 64),
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "tiny": {
        "in_channels": 8,
        "context_in_dim": 16,
        "hidden_size": 64,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
    },
}
# Configuration of hunyuan3d-vae-v2-0.
FULL_VAE = {"width": 1024, "heads": 16, "num_decoder_layers": 16, "num_freqs": 8}
TINY_VAE = {"width": 32, "heads": 2, "num_decoder_layers": 1, "num_freqs": 2}
GUIDANCE = 5.0
COPIES = "copies"


class Hunyuan3DDenoiser(Denoiser):
    """Hunyuan3D-2's denoiser in float16, both halves of the guidance in one batch, its decoder in float32."""

    name = "hunyuan3d"
    goal = Goal(ALL, 0.25, 0.30, less_memory=False)

    def __init__(
        self, size: Size, device: str, *, checkpoint: Path | None = None, seed: int = 0, weights: bool = True
    ) -> None:
        """See `Denoiser`; with a checkpoint (official layout) its decoder decides the number of latents."""
        self._size, self._dtype = SIZES[size], sampling.DTYPE
        self.vae: ShapeVAE | None = None
        if checkpoint is not None and weights:
            pipeline = sampling.load(find_parts(checkpoint), device)
            self.model, self.vae = pipeline.denoiser, pipeline.vae
            self._size = dataclasses.replace(self._size, latents=pipeline.num_latents)
            self.weights = checkpoint.resolve().name
        else:
            config = CONFIGS[size]
            if checkpoint is not None:
                parts = find_parts(checkpoint)
                config = denoiser_params(parts.denoiser)
                decoder = read_config(parts.vae)
                trained = decoder.get("vae", decoder).get("params", {}).get("num_latents", self._size.latents)
                self._size = dataclasses.replace(self._size, latents=int(trained))
            with torch.device("meta"):
                self.model = Hunyuan3DDiT(**config)
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
                        **(TINY_VAE if size == "tiny" else FULL_VAE),
                    )
                allocate(self.vae.eval(), device)
                draw_weights(self.vae, seed)
        self.sites = sites_of(dataclasses.asdict(self.model.config))
        generator = torch.Generator(device).manual_seed(seed) if weights else None
        self._context = torch.empty(
            1, self._size.context, self.model.config.context_in_dim, dtype=self._dtype, device=device
        )
        if generator is not None:
            self._context.normal_(generator=generator)
        # The official code normalises q and k out of place, without copying them first. The partial is made once,
        # since a compiler guards on it.
        self._eager_qk_norm = functools.partial(self.model.sites.ops["qk_norm"], inplace=False)

    @property
    def size(self) -> str:
        """Tokens and dtype, in words."""
        s, config = self._size, self.model.config
        return (
            f"{config.depth} double and {config.depth_single_blocks} single blocks of width {config.hidden_size}, "
            f"batch 2 of {s.latents} latents and {s.context} context tokens; float16"
        )

    def arms(self, ops: OpSet) -> tuple[Arm, ...]:
        """The official code, then sglang's change, then all sites."""
        upstream = OpSet(f"{ops.name} with addcmul", {**ops.functions, "residual_gate_add": _addcmul}, ops.origin)
        about = "sglang #24287: fused norms, q/k norm of contiguous copies, addcmul"
        one_row = "modulation has one row a batch item already"
        return (
            Arm(BEFORE, "the eager code of the official model"),
            Arm("#24287", about, upstream, variant=COPIES),
            Arm(ALL, "every site, q and k normalised where they lie", ops),
            Arm(COMPACT, "modulation as distinct rows", ops, left_out=one_row),
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
    def mount(self, ops: OpSet, sites: Iterable[str] | None, variant: str = "") -> Iterator[Mount]:
        """See `Denoiser.mount`; the variant `COPIES` normalises contiguous copies of q and k."""
        with self.path_before(), mount(self.model, ops, sites) as mounted:
            if "qk_norm" in mounted:
                self.model.sites.packed_qk_norm = variant != COPIES
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
        """Run the decoder, and compute the field on its grid, or on a small one to warm up."""
        assert self.vae is not None
        decoded = self.vae.decode(latents.float())
        self.vae.latents_to_grid(decoded, min(self._size.resolution, 32) if warm_up else self._size.resolution)

    def place_of(self, call: SiteCall) -> str:
        """See `sites.place_of`."""
        return place_of(call, self.model.config.depth)


def _addcmul(residual: Tensor, x: Tensor, gate: Modulation, **_: Any) -> Tensor:
    """``residual + x * gate`` as in #24287: product and sum are rounded together."""
    return torch.addcmul(residual, x, expand_modulation(gate, x)).to(x.dtype)
