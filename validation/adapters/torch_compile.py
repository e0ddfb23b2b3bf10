"""`torch_native` under ``torch.compile``: Inductor's C++ on the CPU, its Triton kernels on a GPU.

Compiled with ``emulate_precision_casts``. Without it Inductor (torch 2.13) fuses the gated sum into the norm
and normalises the sum before its rounding to 16 bits: y is no longer the norm of the residual_out that comes
with it (1.6 times the budget on four bfloat16 numbers), and the suite says so.

Expresses all twelve ops with every argument. What a compiled function allocates stands between no guards
(Dynamo takes no frame while a dispatch mode watches, so the modes are put aside for the call): its memory is
not judged, its values and its inputs' memory are. Each new combination of dtypes, rank and layout compiles:
0.7 to 2 s on two cores, where the same case costs 5 ms otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from validation.adapters import torch_native
from validation.device.private import disable_current_modes, dynamo
from validation.ops import reference_op, reference_op_names

# More graphs than any sweep makes. By default Dynamo stops at 8 of a function that is compiled and at 256 of its code
# object: a control's 373 cases came to 257. `torch.compile`'s own argument sets the first alone.
GRAPHS = 1_000_000


def compiled(function: Callable[..., Any], *, emulate_precision_casts: bool = True) -> Callable[..., Any]:
    """An op, compiled.

    Args:
        function: the op.
        emulate_precision_casts: round where the function rounds, inside a fused kernel too.
    """
    # fullgraph: a frame that Dynamo cannot compile raises instead of running as it is, uncompiled.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": emulate_precision_casts}
    fused: Callable[..., Any] = torch.compile(function, fullgraph=True, options=options)
    limits = {"recompile_limit": GRAPHS, "accumulated_recompile_limit": GRAPHS}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with disable_current_modes(), dynamo().config.patch(limits):
            return fused(*args, **kwargs)

    return call


# An op that torch_native has no functions for is compiled as its reference writes it.
globals().update({op: compiled(getattr(torch_native, op, reference_op(op))) for op in reference_op_names()})
