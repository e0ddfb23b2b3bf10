"""Hunyuan3D-2's denoiser, whose blocks look up the op of each site in a table (`sites.Sites`)."""

import dataclasses
import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import reference_ops
from validation.errors import UsageError
from validation.models.hunyuan3d.shape_vae import attend
from validation.models.hunyuan3d.sites import Hunyuan3DDiTConfig, SiteMount, Sites, sites_of
from validation.models.mount import Mount, select_sites
from validation.ops import OpSet

TIME_CHANNELS = 256


class Hunyuan3DDiT(nn.Module):
    """The denoiser: ``Hunyuan3DDiT(**config)``, with the names of `Hunyuan3DDiTConfig`.

    Made for inference: its parameters do not require grad until ``requires_grad_()`` is called (and to train,
    the ops must be differentiable; ``reference_ops`` and ``fused_ops`` refuse).

    Attributes:
        config: the configuration.
        sites: the op of each site.

    Args:
        ops: a module or an `OpSet` that provides all four ops; `mount` replaces them site by site.
        packed_qk_norm: give the op at ``qk_norm`` views of the packed q, k, v projection, to be normalised
            in place, instead of contiguous copies of q and k. The result is the same.
        config: the configuration.

    Raises:
        UsageError: `ops` lacks an op of a site.
        TypeError, ValueError: the configuration has an unknown name, or widths that cannot be divided.
    """

    def __init__(self, *, ops: ModuleType | OpSet = reference_ops, packed_qk_norm: bool = False, **config: Any) -> None:
        super().__init__()
        self.config = c = Hunyuan3DDiTConfig(**config)
        self.sites = Sites(ops, packed_qk_norm)
        self.latent_in = nn.Linear(c.in_channels, c.hidden_size)
        self.cond_in = nn.Linear(c.context_in_dim, c.hidden_size)
        self.time_in = MLPEmbedder(TIME_CHANNELS, c.hidden_size)
        self.guidance_in = MLPEmbedder(TIME_CHANNELS, c.hidden_size) if c.guidance_embed else None
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(c) for _ in range(c.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(c) for _ in range(c.depth_single_blocks))
        self.final_layer = LastLayer(c)
        self.requires_grad_(False)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor, guidance: Tensor | None = None) -> Tensor:
        """The velocity at ``latents``.

        Args:
            latents: ``[B, L, in_channels]``, in the parameters' dtype.
            timestep: ``[B]``, floating point, 0 (noise) to 1 (data).
            context: ``[B, T, context_in_dim]``, in the parameters' dtype.
            guidance: ``[B]``, the guidance scale, where the configuration embeds it; else None.

        Returns:
            ``[B, L, in_channels]`` in the latents' dtype.

        Raises:
            ValueError: a wrong shape, or guidance given without ``guidance_embed`` or missing with it.
        """
        self._check(latents, timestep, context, guidance)
        vec: Tensor = self.time_in(self._embed(timestep).to(latents.dtype))
        if self.guidance_in is not None and guidance is not None:
            vec = vec + self.guidance_in(self._embed(guidance).to(latents.dtype))
        img, txt = self.latent_in(latents), self.cond_in(context)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, self.sites)
        x = torch.cat([txt, img], dim=1)
        for block in self.single_blocks:
            x = block(x, vec, self.sites)
        y: Tensor = self.final_layer(x[:, txt.shape[1] :], vec, self.sites)
        return y

    def _embed(self, t: Tensor) -> Tensor:
        return time_embedding(t, TIME_CHANNELS, self.config.time_factor)

    def _check(self, latents: Tensor, timestep: Tensor, context: Tensor, guidance: Tensor | None) -> None:
        for name, t, form, last in (
            ("latents", latents, "[B, L, in_channels]", self.config.in_channels),
            ("context", context, "[B, T, context_in_dim]", self.config.context_in_dim),
        ):
            if t.dim() != 3 or t.shape[-1] != last:
                raise ValueError(f"{name} has shape {list(t.shape)}, expected {form} with {last} in the last dimension")
        if (guidance is not None) != self.config.guidance_embed:
            came, expected = ("none", "one") if guidance is None else ("a tensor", "None")
            raise ValueError(f"guidance is {came}, expected {expected}: guidance_embed is {self.config.guidance_embed}")
        batch = len(latents)
        if len(context) != batch:
            raise ValueError(f"context has shape {list(context.shape)}, expected B = {batch} first, as in latents")
        for name, row in (("timestep", timestep), ("guidance", guidance)):
            if row is not None and row.shape != (batch,):
                raise ValueError(f"{name} has shape {list(row.shape)}, expected [{batch}], the latents' B")


def time_frequencies(count: int, max_period: float, device: torch.device) -> Tensor:
    """Frequencies ``[count]`` of the time embedding in float32, from 1 down to nearly 1 / max_period.

    They are the official code's to the ulp of the processor's ``exp``: of 128 four differ between what MKL computes on
    an Intel and elsewhere, which moves an angle of 1000 by 6e-5.
    """
    return torch.exp(-math.log(max_period) * torch.arange(count, dtype=torch.float32, device=device) / count)


def time_embedding(t: Tensor, channels: int, max_period: float, scale: float = 1000.0) -> Tensor:
    """Cosines, then sines, of ``scale * t`` at channels / 2 frequencies from 1 down to nearly 1 / max_period.

    The official code passes the configuration's ``time_factor`` where the maximum period is expected, so
    that the longest period is 1000 and not the customary 10000; the golden vectors confirm this (with 10000 the
    error is 4e-2). It computes in float32 for every dtype, and float64 results follow it.

    Args:
        t: ``[B]``, multiplied by `scale` in its own dtype.
        channels: of the result, even.
        max_period: see above.
        scale: of t.

    Returns:
        ``[B, channels]`` in t's dtype.
    """
    angles = (scale * t).float().unsqueeze(-1) * time_frequencies(channels // 2, max_period, t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(t.dtype)


class MLPEmbedder(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_dim]`` -> ``[B, hidden_dim]``."""
        y: Tensor = self.out_layer(functional.silu(self.in_layer(x)))
        return y


class RMSNorm(nn.Module):
    """The weight of an RMSNorm: named ``scale`` in the checkpoint, read as ``weight``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    @property
    def weight(self) -> nn.Parameter:
        """The parameter `scale`, ``[dim]``."""
        return self.scale


class QKNorm(nn.Module):
    """The weights of the norms of queries and keys."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The weights for queries and keys, each ``[head_dim]``."""
        return self.query_norm.weight, self.key_norm.weight


class SelfAttention(nn.Module):
    """The parameters of one stream's attention; `DoubleStreamBlock` computes it for both streams at once."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(c.hidden_size, 3 * c.hidden_size, bias=c.qkv_bias)
        self.norm = QKNorm(c.hidden_size // c.num_heads)
        self.proj = nn.Linear(c.hidden_size, c.hidden_size)


class ModulationRows(NamedTuple):
    """Modulation with one row per batch item, each ``[B, 1, hidden_size]``, as strided views."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Modulation(nn.Module):
    """One or two sets of shift, scale and gate from the embedding of time (and guidance)."""

    def __init__(self, dim: int, *, double: bool) -> None:
        super().__init__()
        self.times = 2 if double else 1
        self.lin = nn.Linear(dim, 3 * self.times * dim)

    def forward(self, vec: Tensor) -> list[ModulationRows]:
        """``[B, dim]`` -> one or two `ModulationRows`."""
        rows = self.lin(functional.silu(vec)).unsqueeze(1).chunk(3 * self.times, dim=-1)
        return [ModulationRows(*rows[i : i + 3]) for i in range(0, len(rows), 3)]


class DoubleStreamBlock(nn.Module):
    """Image (latents) and text (context) streams with separate weights and joint attention."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.img_mod = Modulation(c.hidden_size, double=True)
        self.img_attn = SelfAttention(c)
        self.img_mlp = _feed_forward(c)
        self.txt_mod = Modulation(c.hidden_size, double=True)
        self.txt_attn = SelfAttention(c)
        self.txt_mlp = _feed_forward(c)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, sites: Sites) -> tuple[Tensor, Tensor]:
        """``[B, L, D]``, ``[B, T, D]`` and ``[B, D]`` -> the new img and txt."""
        img_mod1, img_mod2 = self.img_mod(vec)
        txt_mod1, txt_mod2 = self.txt_mod(vec)

        img_qkv = self.img_attn.qkv(sites["norm1"](img, img_mod1.shift, img_mod1.scale))
        txt_qkv = self.txt_attn.qkv(sites["norm1"](txt, txt_mod1.shift, txt_mod1.scale))
        img_q, img_k, img_v = sites.normalised_qkv(img_qkv, self.num_heads, *self.img_attn.norm.weights)
        txt_q, txt_k, txt_v = sites.normalised_qkv(txt_qkv, self.num_heads, *self.txt_attn.norm.weights)
        attended = attend(
            torch.cat([txt_q, img_q], dim=1), torch.cat([txt_k, img_k], dim=1), torch.cat([txt_v, img_v], dim=1)
        )
        txt_attended, img_attended = attended.tensor_split([txt.shape[1]], dim=1)

        x, img = sites["norm2"](img, self.img_attn.proj(img_attended), img_mod1.gate, img_mod2.shift, img_mod2.scale)
        img = sites["gate"](img, self.img_mlp(x), img_mod2.gate)
        x, txt = sites["norm2"](txt, self.txt_attn.proj(txt_attended), txt_mod1.gate, txt_mod2.shift, txt_mod2.scale)
        txt = sites["gate"](txt, self.txt_mlp(x), txt_mod2.gate)
        return img, txt


class SingleStreamBlock(nn.Module):
    """Attention and feed-forward in parallel, on text and image in one sequence."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.widths = (3 * c.hidden_size, int(c.hidden_size * c.mlp_ratio))
        self.linear1 = nn.Linear(c.hidden_size, sum(self.widths))
        self.linear2 = nn.Linear(c.hidden_size + self.widths[1], c.hidden_size)
        self.norm = QKNorm(c.hidden_size // c.num_heads)
        self.modulation = Modulation(c.hidden_size, double=False)

    def forward(self, x: Tensor, vec: Tensor, sites: Sites) -> Tensor:
        """``[B, T + L, D]`` and ``[B, D]`` -> the new x."""
        (mod,) = self.modulation(vec)
        qkv, mlp = self.linear1(sites["pre_norm"](x, mod.shift, mod.scale)).split(self.widths, dim=-1)
        attended = attend(*sites.normalised_qkv(qkv, self.num_heads, *self.norm.weights))
        output = self.linear2(torch.cat([attended, functional.gelu(mlp, approximate="tanh")], dim=-1))
        y: Tensor = sites["gate"](x, output, mod.gate)
        return y


class LastLayer(nn.Module):
    """Modulated norm and a linear layer back to the latents' channels."""

    def __init__(self, c: Hunyuan3DDiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(c.hidden_size, c.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.hidden_size, 2 * c.hidden_size))

    def forward(self, x: Tensor, vec: Tensor, sites: Sites) -> Tensor:
        """``[B, L, D]`` and ``[B, D]`` -> ``[B, L, in_channels]``."""
        shift, scale = self.adaLN_modulation(vec).unsqueeze(1).chunk(2, dim=-1)
        y: Tensor = self.linear(sites["norm_final"](x, shift, scale))
        return y


def _feed_forward(c: Hunyuan3DDiTConfig) -> nn.Sequential:
    width = int(c.hidden_size * c.mlp_ratio)
    return nn.Sequential(nn.Linear(c.hidden_size, width), nn.GELU(approximate="tanh"), nn.Linear(width, c.hidden_size))


def mount(model: Hunyuan3DDiT, ops: OpSet, sites: Iterable[str] | None = None) -> SiteMount:
    """Mount an op set; by default on every site whose op it provides. Other sites keep their ops.

    Args:
        model: the denoiser.
        ops: the op set.
        sites: names from `sites.SITE_NAMES`.

    Raises:
        UsageError: `sites` cannot be mounted, or one of them is mounted already.
    """
    chosen = select_sites(sites_of(dataclasses.asdict(model.config)), ops, sites)
    for site in chosen:
        if isinstance(getattr(model.sites.ops[site.name].func, "__self__", None), Mount):
            raise UsageError(f"site {site.name} is mounted already, expected a site without a mount (unmount first)")
    mounted = SiteMount(model, ops, chosen)
    for site in chosen:
        mounted.replace_op(model.sites, site)
    return mounted
