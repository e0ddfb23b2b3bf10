"""The decoder of Hunyuan3D-2's ShapeVAE: from latents to a field whose zero level is the surface.

`ShapeVAE.decode` runs the latents through pre-LN transformer layers; `ShapeVAE.query` asks the geometry
decoder, a cross-attention from points to the decoded latents, for a logit at each point. Parameter names are
those of the official checkpoint. None of this is fused upstream, so it has no sites.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from validation.media.grid import BOX, RESOLUTION, grid_axis

MEMORY_LIMIT = 512 * 2**20
"""Bytes that `ShapeVAE.query` may allocate for one chunk of points; at full size some 10 000 points."""

GRID_CHUNK = 8192
"""Most points of a grid that are asked for at once, however much memory there is.

Bits depend on how many there are: with 777 instead of 8192, 12 of 15 625 float32 logits differ by an ulp on the
CPU. Chunks of 16 points and more that are powers of two agree there; a GPU picks its kernels by the count.
"""


@dataclasses.dataclass(frozen=True)
class ShapeVAEConfig:
    """The official configuration's names; those with a default may be absent from a ``config.yaml``.

    Attributes:
        num_latents: latents of a shape in training (3072 in v2-0, 512 in mini). Any number can be decoded;
            callers that decode fewer must say so.
        embed_dim: channels of a latent. width: channels inside. heads: heads of each attention.
        num_decoder_layers: transformer layers between latents and geometry decoder.
        num_freqs: octaves of the points' Fourier embedding. include_pi: multiply them by pi.
        qkv_bias: biases in the q, k, v projections. qk_norm: LayerNorm of q and k.
        scale_factor: the denoiser's latents are this many times the decoder's.
        geo_decoder_mlp_expand_ratio, geo_decoder_downsample_ratio: of the geometry decoder, whose width and
            heads are divided by the latter (turbo). geo_decoder_ln_post: add a last LayerNorm; without it
            the geometry decoder has no q/k norm either.
    """

    num_latents: int
    embed_dim: int
    width: int
    heads: int
    num_decoder_layers: int
    num_freqs: int = 8
    include_pi: bool = True
    qkv_bias: bool = True
    qk_norm: bool = False
    scale_factor: float = 1.0
    geo_decoder_mlp_expand_ratio: int = 4
    geo_decoder_downsample_ratio: int = 1
    geo_decoder_ln_post: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError unless the widths can be divided as configured."""
        heads = self.heads // self.geo_decoder_downsample_ratio
        for name, value, divisor in (
            ("width", self.width, self.heads),
            ("width", self.width, self.geo_decoder_downsample_ratio),
            ("heads", self.heads, self.geo_decoder_downsample_ratio),
            ("width / geo_decoder_downsample_ratio", self.width // self.geo_decoder_downsample_ratio, heads),
        ):
            if not divisor or value % divisor:
                raise ValueError(f"{name} is {value}, expected a multiple of {divisor}")


class ShapeVAE(nn.Module):
    """``ShapeVAE(**config)``, with the names of `ShapeVAEConfig`; in production float32.

    Made for inference: its parameters do not require grad until ``requires_grad_()`` is called.
    """

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = c = ShapeVAEConfig(**config)  # type: ignore[arg-type]
        self.post_kl = nn.Linear(c.embed_dim, c.width)
        self.transformer = Transformer(c)
        self.geo_decoder = GeometryDecoder(c)
        self.requires_grad_(False)

    def decode(self, latents: Tensor) -> Tensor:
        """The denoiser's latents ``[B, L, embed_dim]`` -> decoded latents ``[B, L, width]``.

        Divides by ``scale_factor``, in the dtype of the parameters. ValueError for another shape.
        """
        _check_shape("latents", latents, "[B, L, embed_dim]", self.config.embed_dim)
        x: Tensor = self.post_kl(latents.to(self.post_kl.weight.dtype) / self.config.scale_factor)
        return self.transformer(x)  # type: ignore[no-any-return]

    def query(self, decoded: Tensor, points: Tensor, *, memory_limit: int = MEMORY_LIMIT) -> Tensor:
        """The logits of points, ``[B, P, 1]`` in the dtype of the parameters.

        Args:
            decoded: ``[B, L, width]`` from `decode`.
            points: ``[B, P, 3]``, x, y, z.
            memory_limit: bytes for the points in flight; they are processed in chunks that fit. The keys and
                values of the latents, ``2 * B * L * width`` numbers, and the result are not included.

        Raises:
            ValueError: a wrong shape, or a limit too small for one point.
        """
        _check_shape("decoded", decoded, "[B, L, width]", self.config.width)
        _check_shape("points", points, "[B, P, 3]", 3)
        if len(points) != len(decoded):
            raise ValueError(f"points are for {len(points)} shapes, expected {len(decoded)}, as many as are decoded")
        keys, values = self.geo_decoder.keys_values(decoded)
        chunk = self._chunk(decoded, memory_limit)
        logits = [self.geo_decoder(p.to(decoded.dtype), keys, values) for p in torch.split(points, chunk, dim=1)]
        return torch.cat(logits, dim=1)

    def latents_to_grid(
        self,
        decoded: Tensor,
        resolution: int = RESOLUTION,
        *,
        box: float = BOX,
        memory_limit: int = MEMORY_LIMIT,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> Tensor:
        """The logits of a dense grid: float32 ``[B, n, n, n]`` on the CPU, n = resolution + 1, indices x, y, z.

        Args:
            decoded: ``[B, L, width]`` from `decode`.
            resolution: cells along an edge of the cube ``[-box, box]^3``.
            box: half of that edge.
            memory_limit: as in `query`; the chunk is the greatest power of two that fits, at most `GRID_CHUNK`,
                so that any limit with room for that gives the same bits.
            progress: called with a few words after each chunk; an exception that it raises ends the work.

        Raises:
            ValueError: latents of another shape, a resolution below 1, a limit too small for one point.
        """
        _check_shape("decoded", decoded, "[B, L, width]", self.config.width)
        axis = grid_axis(resolution, box).to(decoded.device)
        n = len(axis)
        keys, values = self.geo_decoder.keys_values(decoded)
        chunk = min(GRID_CHUNK, 1 << (self._chunk(decoded, memory_limit).bit_length() - 1))
        logits = torch.empty(len(decoded), n**3)
        for start in range(0, n**3, chunk):
            # The points of 385^3 would take 685 MB at once.
            index = torch.arange(start, min(start + chunk, n**3), device=axis.device)
            points = torch.stack([axis[index // n**2], axis[index // n % n], axis[index % n]], dim=-1)
            points = points.to(decoded.dtype).expand(len(decoded), -1, -1)
            logits[:, start : start + chunk] = self.geo_decoder(points, keys, values).squeeze(-1)
            progress(f"{100 * min(start + chunk, n**3) // n**3} % of {n**3} grid points decoded")
        return logits.reshape(-1, n, n, n)

    def _chunk(self, decoded: Tensor, memory_limit: int) -> int:
        """The number of points of each shape that fit into `memory_limit` bytes.

        The feed-forward holds the projected points, its input, the norm of its input, and twice its inner width;
        the embedding is freed by then, so their sum is an upper bound (measured on the CPU at full width:
        98 % of it). Attention is assumed to be flash attention, which keeps no scores.
        """
        c = self.config
        width = c.width // c.geo_decoder_downsample_ratio
        numbers = (3 + 2 * c.geo_decoder_mlp_expand_ratio) * width + 3 * (2 + 5 * c.num_freqs)
        needed = len(decoded) * numbers * decoded.element_size()
        if memory_limit < needed:
            raise ValueError(f"memory_limit is {memory_limit} bytes, expected at least {needed}, what one point takes")
        return memory_limit // max(needed, 1)


class Transformer(nn.Module):
    """Pre-LN self-attention layers."""

    def __init__(self, c: ShapeVAEConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            SelfAttentionBlock(c.width, c.heads, c.qkv_bias, c.qk_norm) for _ in range(c.num_decoder_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, width]`` -> the same."""
        for block in self.resblocks:
            x = block(x)
        return x


class SelfAttentionBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, qkv_bias, qk_norm)
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, 4)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, width]`` -> the same."""
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class SelfAttention(nn.Module):
    """Self-attention; the fused projection is laid out ``[heads, (q, k, v), head_dim]``."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.c_proj = nn.Linear(width, width)
        self.attention = QKNorm(width // heads, qk_norm)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, width]`` -> the same."""
        q, k, v = self.c_qkv(x).unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        y: Tensor = self.c_proj(attend(self.attention.q_norm(q), self.attention.k_norm(k), v))
        return y


class CrossAttention(nn.Module):
    """Attention from points to latents; keys and values are laid out ``[heads, (k, v), head_dim]``."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_q = nn.Linear(width, width, bias=qkv_bias)
        self.c_kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.c_proj = nn.Linear(width, width)
        self.attention = QKNorm(width // heads, qk_norm)

    def keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, L, width]`` -> keys and values, each ``[B, L, heads, head_dim]``."""
        k, v = self.c_kv(latents).unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        return self.attention.k_norm(k), v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``[B, P, width]`` -> the same."""
        q = self.c_q(x).unflatten(-1, (self.heads, -1))
        y: Tensor = self.c_proj(attend(self.attention.q_norm(q), keys, values))
        return y


class QKNorm(nn.Module):
    """LayerNorm of the queries and of the keys over head_dim, or no norm."""

    def __init__(self, head_dim: int, enabled: bool) -> None:
        super().__init__()
        self.q_norm = nn.LayerNorm(head_dim, eps=1e-6) if enabled else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=1e-6) if enabled else nn.Identity()


class FeedForward(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, expand_ratio: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, expand_ratio * width)
        self.c_proj = nn.Linear(expand_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` -> the same."""
        y: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return y


class CrossAttentionBlock(nn.Module):
    """``x + attention(norm(x), norm(latents))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, expand_ratio: int, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.attn = CrossAttention(width, heads, qkv_bias, qk_norm)
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.ln_3 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, expand_ratio)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``[B, P, width]`` -> the same."""
        x = x + self.attn(self.ln_1(x), keys, values)
        y: Tensor = x + self.mlp(self.ln_3(x))
        return y


class GeometryDecoder(nn.Module):
    """One logit for each point, from one cross-attention to the decoded latents."""

    def __init__(self, c: ShapeVAEConfig) -> None:
        super().__init__()
        self.num_freqs, self.include_pi = c.num_freqs, c.include_pi
        width, heads = c.width // c.geo_decoder_downsample_ratio, c.heads // c.geo_decoder_downsample_ratio
        self.query_proj = nn.Linear(3 + 6 * c.num_freqs, width)
        self.latents_proj = nn.Linear(c.width, width) if c.geo_decoder_downsample_ratio != 1 else None
        self.cross_attn_decoder = CrossAttentionBlock(
            width, heads, c.geo_decoder_mlp_expand_ratio, c.qkv_bias, c.qk_norm and c.geo_decoder_ln_post
        )
        self.ln_post = nn.LayerNorm(width) if c.geo_decoder_ln_post else None
        self.output_proj = nn.Linear(width, 1)

    def keys_values(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values for all points, computed once: ``[B, L, width]`` -> two ``[B, L, heads, head_dim]``."""
        if self.latents_proj is not None:
            decoded = self.latents_proj(decoded)
        block = self.cross_attn_decoder
        return block.attn.keys_values(block.ln_2(decoded))

    def forward(self, points: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``[B, P, 3]`` -> ``[B, P, 1]``."""
        x = self.query_proj(fourier_embedding(points, self.num_freqs, self.include_pi))
        x = self.cross_attn_decoder(x, keys, values)
        if self.ln_post is not None:
            x = self.ln_post(x)
        y: Tensor = self.output_proj(x)
        return y


def fourier_embedding(points: Tensor, num_freqs: int, include_pi: bool) -> Tensor:
    """``[..., 3]`` -> ``[..., 3 + 6 * num_freqs]``: the point, the sines, the cosines.

    Angles are coordinate times 2^i (times pi if `include_pi`): all octaves of x first, then those of y and z.
    """
    octaves = 2.0 ** torch.arange(num_freqs, dtype=points.dtype, device=points.device)
    if include_pi:
        octaves = octaves * torch.pi
    angles = (points.unsqueeze(-1) * octaves).flatten(-2)
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of ``[B, L, heads, head_dim]`` over the tokens -> ``[B, L, heads * head_dim]``."""
    attended = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return attended.transpose(1, 2).flatten(2)


def _check_shape(name: str, t: Tensor, expected: str, last: int) -> None:
    if t.dim() != 3 or t.shape[-1] != last:
        raise ValueError(f"{name} has shape {list(t.shape)}, expected {expected} with {last} in the last dimension")
