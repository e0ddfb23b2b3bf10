"""Hunyuan3D-2's sites: which op runs where in the denoiser.

Sites, and the op that each calls (D double blocks, S single blocks; in one forward):

    norm1       layer_norm_scale_shift                  image and text stream, before attention     2 D
    qk_norm     qk_norm                                 queries and keys, over head_dim             2 D + S
    norm2       scale_residual_layer_norm_scale_shift   attention's gated residual and the norm
                                                        before the feed-forward                     2 D
    gate        residual_gate_add                       after the feed-forward; after a single
                                                        block                                       2 D + S
    pre_norm    layer_norm_scale_shift                  single block                                S
    norm_final  layer_norm_scale_shift                  before the last linear layer                1

Every op is called with ``casting_mode="input"``: with ``reference_ops`` the model is the eager code before
the fusion, bit for bit. The blocks look up the op of each site in a table (`Sites`), so that `dit.mount` can
replace and count it; there is no other path around a site.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from validation.errors import UsageError
from validation.models.mount import Mount, Site, SiteCall
from validation.ops import OpSet, op_set_from
from validation.verdict import Status

SITE_NAMES = ("norm1", "qk_norm", "norm2", "gate", "pre_norm", "norm_final")

PACKED = "packed_qk_norm"
"""The site ``qk_norm`` with views of the packed projection, instead of contiguous copies of q and k."""

EPS = 1e-6

_OPTIONS: dict[str, dict[str, Any]] = {
    "layer_norm_scale_shift": {"eps": EPS, "casting_mode": "input"},
    "scale_residual_layer_norm_scale_shift": {"eps": EPS, "casting_mode": "input"},
    "qk_norm": {"eps": EPS, "casting_mode": "input", "inplace": True},
    "residual_gate_add": {"casting_mode": "input"},
}
_RETURN_PAIRS = ("scale_residual_layer_norm_scale_shift", "qk_norm")


@dataclasses.dataclass(frozen=True)
class Hunyuan3DDiTConfig:
    """The official configuration's names and, as defaults, the values of ``hunyuan3d-dit-v2-0``.

    Attributes:
        in_channels: channels of a latent. context_in_dim: channels of a context token (DINOv2 giant's 1536).
        hidden_size: channels inside. mlp_ratio: the feed-forward's width over it. num_heads: attention heads.
        depth, depth_single_blocks: numbers of double and of single blocks (16 and 32; mini has 8 and 16).
        axes_dim, theta: for a rotary embedding that the model does not have; official files contain them.
        qkv_bias: bias in the double blocks' q, k, v projection.
        time_factor: despite its name, the longest period of the time embedding; see `time_embedding`.
        guidance_embed: the guidance scale is an input (turbo, fast).
    """

    in_channels: int = 64
    context_in_dim: int = 1536
    hidden_size: int = 1024
    mlp_ratio: float = 4.0
    num_heads: int = 16
    depth: int = 16
    depth_single_blocks: int = 32
    axes_dim: tuple[int, ...] = (64,)
    theta: int = 10_000
    qkv_bias: bool = True
    time_factor: float = 1000
    guidance_embed: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError unless hidden_size is a multiple of num_heads."""
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected a multiple of num_heads = {self.num_heads}")


def sites_of(config: Mapping[str, Any]) -> tuple[Site, ...]:
    """The sites of a denoiser of this configuration, with their calls in one forward."""
    c = Hunyuan3DDiTConfig(**config)
    double, single = c.depth, c.depth_single_blocks
    return (
        Site("norm1", "layer_norm_scale_shift", 2 * double),
        Site("qk_norm", "qk_norm", 2 * double + single),
        Site("norm2", "scale_residual_layer_norm_scale_shift", 2 * double),
        Site("gate", "residual_gate_add", 2 * double + single),
        Site("pre_norm", "layer_norm_scale_shift", single),
        Site("norm_final", "layer_norm_scale_shift", 1),
    )


def place_of(call: SiteCall, depth: int) -> str:
    """Name the place of a site call in a denoiser of `depth` double blocks: ``double block 1 image``,
    ``single block 0``, or ``output``."""
    if call.site == "norm_final":
        return "output"
    if call.site == "pre_norm" or call.index >= 2 * depth:
        return f"single block {call.index if call.site == 'pre_norm' else call.index - 2 * depth}"
    return f"double block {call.index // 2} {('image', 'text')[call.index % 2]}"


class Sites:
    """The op of each site of one model: ``sites[name](...)``, its options filled in.

    Attributes:
        ops: op by site.
        packed_qk_norm: as in `dit.Hunyuan3DDiT`.
    """

    def __init__(self, ops: ModuleType | OpSet, packed_qk_norm: bool) -> None:
        if isinstance(ops, ModuleType):
            ops = op_set_from(ops, ops.__name__, ops.__name__)
        sites = sites_of({})
        lacking = sorted({site.op for site in sites} - set(ops.functions))
        if lacking:
            raise UsageError(
                f"{ops.origin} does not provide {', '.join(lacking)}, expected every op that the model calls "
                "(mount a set that has only some of them)"
            )
        self.ops: dict[str, functools.partial[Any]] = {
            site.name: functools.partial(ops[site.op], **_OPTIONS[site.op]) for site in sites
        }
        self.packed_qk_norm = packed_qk_norm

    def __getitem__(self, site: str) -> functools.partial[Any]:
        return self.ops[site]

    def normalised_qkv(
        self, qkv: Tensor, num_heads: int, q_weight: Tensor, k_weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (normalised) and v, each ``[B, L, H, head_dim]``, from a projection laid out ``[3, H, head_dim]``.

        ``qkv`` is overwritten if the norm is packed. The official norm computes in float32 even for a float64
        model, as in the golden vectors' float64: there the op normalises float32 copies.
        """
        q, k, v = qkv.view(*qkv.shape[:2], 3, num_heads, -1).unbind(2)
        if q.dtype is torch.float64:
            q, k = self["qk_norm"](q.float(), k.float(), None, None)
            return q * q_weight, k * k_weight, v
        if not self.packed_qk_norm:
            # contiguous() would not copy if there is one token of one item, and the op would write to qkv.
            q, k = (t.clone(memory_format=torch.contiguous_format) for t in (q, k))
        q, k = self["qk_norm"](q, k, q_weight, k_weight)
        return q, k, v


class SiteMount(Mount):
    """A `Mount` on the table of a model's sites; two of the ops return a pair of tensors."""

    def replace_op(self, sites: Sites, site: Site) -> None:
        """Make a site call the mounted op until `unmount`."""
        known = sites.ops[site.name]
        call = self.call_pair if site.op in _RETURN_PAIRS else self.call
        sites.ops[site.name] = functools.partial(call, site.name, **_OPTIONS[site.op])
        self._undo.append(lambda: sites.ops.__setitem__(site.name, known))

    def call_pair(self, site: str, first: Tensor, second: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Call an op that returns two tensors like its first two arguments, or these two in place.

        Raises:
            SiteError: the op raised, or returned anything else.
        """
        pair = self.run(site, first, second, *rest, **options)
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(y, Tensor) for y in pair)):
            raise self.wrong(Status.INCORRECT_STRUCTURE, site, type(pair).__name__, "a tuple of two tensors")
        for y, like in zip(pair, (first, second), strict=True):
            self.require_like(site, y, like)
            if options.get("inplace") and y is not like:
                raise self.wrong(Status.INCORRECT_STRUCTURE, site, "another tensor", "the one it was given, in place")
        return pair
