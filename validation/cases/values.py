"""Value regimes: each constant of an op shows in some of them only.

An op with eps ten times too big is right to the last bit at unit variance and wrong where the variance is
about eps; a one-pass variance is right without a mean and wrong at 30 sigma.
"""

import math

import torch
from torch import Tensor

REGIMES = {
    "normal": "standard normal",
    "mean_offset": "standard normal around a mean of 30 sigma, either sign, one a row",
    "variance_eps": "normal with a variance of about eps, so that eps counts",
    "constant_rows": "every row one value: variance zero",
    "outlier_channels": "normal, a few channels x200, as in trained transformers",
    "tiny": "subnormal in the working dtype",
    "near_max": "about float16's largest number, 65504, so that sums and products overflow float16",
    "zeros": "all zero",
    "nonfinite": "normal, with NaN, inf and -inf sprinkled over some rows",
    "zero_modulation": "normal; shift, scale and gate zero, as an adaLN-Zero block starts",
    "dit": "as in a diffusion transformer: heavy tails, outlier channels, a mean, modulation up to 10",
}

# Arguments that are activations; all others are parameters or modulation.
ACTIVATIONS = frozenset({"x", "residual", "q", "k"})
MODULATIONS = ("shift", "scale", "gate")


def draw(
    regime: str, name: str, shape: tuple[int, ...], dtype: torch.dtype, eps: float, generator: torch.Generator
) -> Tensor:
    """Values for the tensor called ``name``, made in float32 and rounded to dtype; contiguous.

    Activations follow the regime. Weights lie about 1; biases, shifts, scales and gates about 0, wider in
    the regime ``dit``; cos and sin are of random angles, the same angles for the same shape and seed.
    """
    argument = name.partition(".")[0]
    if argument in ACTIVATIONS:
        return _activation(regime, shape, dtype, eps, generator).to(dtype)
    normal = torch.randn(shape, generator=generator)
    if argument in ("weight", "q_weight", "k_weight"):
        made = 1.0 + 0.25 * normal
    elif argument in ("cos", "sin"):
        # Independent, not of one angle: a rotation by (cos, sin) of any length is linear all the same,
        # and a swap of the two shows.
        made = torch.cos(math.pi * normal)
    elif regime == "zero_modulation" and argument in MODULATIONS:
        made = torch.zeros(shape)
    elif regime == "dit":
        made = normal * torch.exp(torch.randn(shape[-1:], generator=generator)).clamp(max=10.0)
    else:
        made = 0.5 * normal
    return made.to(dtype)


def _activation(
    regime: str, shape: tuple[int, ...], dtype: torch.dtype, eps: float, generator: torch.Generator
) -> Tensor:
    def normal(size: tuple[int, ...] = shape) -> Tensor:
        return torch.randn(size, generator=generator)

    def uniform(size: tuple[int, ...] = shape) -> Tensor:
        return torch.rand(size, generator=generator)

    row = (*shape[:-1], 1)
    match regime:
        case "normal" | "zero_modulation":
            return normal()
        case "mean_offset":
            return normal() + 30.0 * torch.where(uniform(row) < 0.5, -1.0, 1.0)
        case "variance_eps":
            return normal() * math.sqrt(max(eps, 1e-12))
        case "constant_rows":
            return normal(row).expand(shape)
        case "outlier_channels":
            return normal() * torch.where(uniform(shape[-1:]) < max(0.01, 1.5 / max(shape[-1], 1)), 200.0, 1.0)
        case "tiny":
            return normal().clamp(-4.0, 4.0) * (0.2 * torch.finfo(dtype).tiny)
        case "near_max":
            return torch.where(uniform() < 0.5, -1.0, 1.0) * (0.5 + 0.5 * uniform()) * 65504.0
        case "zeros":
            return torch.zeros(shape)
        case "nonfinite":
            special = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(0, 3, shape, generator=generator)]
            # About a third of the rows, one or two elements of each.
            hit = (uniform(row) < 0.35) & (uniform() < 1.5 / max(shape[-1], 1))
            return torch.where(hit, special, normal())
        case "dit":
            heavy = normal() * (1.0 + normal(shape[-1:]).abs().pow(3))
            return heavy + 0.5 * normal(shape[-1:])
    raise ValueError(f"unknown value regime {regime!r}, expected one of {', '.join(REGIMES)}")
