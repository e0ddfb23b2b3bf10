"""`torch_native` under ``torch.compile``: Inductor's C++ on the CPU, its Triton kernels on a GPU.

With ``--compiled`` Inductor's Triton kernels of that GPU, executed on the CPU (`validation.adapters.inductor`).

Compiled with ``emulate_precision_casts``. Without it Inductor (torch 2.13) fuses the gated sum into the norm
and normalises the sum before its rounding to 16 bits: y is then not the norm of the residual_out returned with it
(1.6 times the budget on four bfloat16 numbers), and the suite reports it.

Expresses all twelve ops with every argument. Memory that a compiled function allocates has no guards around it
(Dynamo compiles no frame while a dispatch mode is active, so the modes are disabled for the call): that memory is not
judged, but the values and the inputs' memory are; with ``--compiled`` each access of a kernel is held to its arguments'
elements, that memory's too. Each new combination of dtypes, rank and layout compiles in 0.7 to 2 s on two cores; the
same case costs 5 ms otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from validation.adapters import shells, torch_native
from validation.adapters.inductor import backend
from validation.compiled.ptx import executing
from validation.device.private import disable_current_modes, dynamo
from validation.ops import reference_op, reference_op_names

# More graphs than any sweep makes. By default Dynamo stops at 8 graphs of a compiled function and at 256 of its code
# object: a control's 373 cases reached 257. `torch.compile`'s own argument sets only the first limit.
GRAPHS = 1_000_000


def compiled(function: Callable[..., Any], *, emulate_precision_casts: bool = True) -> Callable[..., Any]:
    """Compile an op.

    Args:
        function: the op.
        emulate_precision_casts: round wherever the function rounds, also inside a fused kernel.
    """
    # fullgraph: a frame that Dynamo cannot compile raises instead of running uncompiled.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"emulate_precision_casts": emulate_precision_casts}
    if executing.target() is None:
        fused: Callable[..., Any] = torch.compile(function, fullgraph=True, options=options)
    else:
        fused = torch.compile(function, fullgraph=True, backend=backend(**options))
    limits = {"recompile_limit": GRAPHS, "accumulated_recompile_limit": GRAPHS}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with disable_current_modes(), shells.as_it_is(), dynamo().config.patch(limits):
            return fused(*args, **kwargs)

    return call


# An op that torch_native does not define is compiled from its reference.
globals().update({op: compiled(getattr(torch_native, op, reference_op(op))) for op in reference_op_names()})
