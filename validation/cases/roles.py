"""The roles of ops' arguments: one table, by name."""

import enum
from types import MappingProxyType


class Role(enum.Enum):
    """The role of an argument: it decides the argument's shapes and values."""

    ACTIVATION = "activation"  # [B, L, D], [B, S, H, head_dim] or [..., D]: follows the value regime
    MODULATION = "modulation"  # a form of `reference_ops.contract.forms.modulation_strides`, about 0
    WEIGHT = "weight"  # [D], about 1
    BIAS = "bias"  # [D], about 0
    ANGLE = "angle"  # [S, Dr/2], [B, S, Dr/2] or [B, H, S, Dh/2]: cosines
    FLAG = "flag"  # no tensor


ROLES = MappingProxyType(
    {
        **dict.fromkeys(("x", "residual", "q", "k"), Role.ACTIVATION),
        **dict.fromkeys(("shift", "scale", "gate"), Role.MODULATION),
        **dict.fromkeys(("weight", "q_weight", "k_weight"), Role.WEIGHT),
        "bias": Role.BIAS,
        **dict.fromkeys(("cos", "sin"), Role.ANGLE),
        **dict.fromkeys(("eps", "casting_mode", "inplace", "interleaved", "scale_constant"), Role.FLAG),
    }
)


def _named(*roles: Role) -> tuple[str, ...]:
    return tuple(name for name, role in ROLES.items() if role in roles)


ACTIVATIONS = _named(Role.ACTIVATION)
MODULATIONS = _named(Role.MODULATION)
WEIGHTS = _named(Role.WEIGHT)
ROWS = _named(Role.WEIGHT, Role.BIAS)
ANGLES = _named(Role.ANGLE)
