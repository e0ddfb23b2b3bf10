"""Layer-wise loading, where a pipeline takes more than the GPU has: blocks stay in main memory and visit the GPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of the memory that is free. The rest is for activations: a site of Helios at full size ([1, 11040, 5120]) takes
# 0.45 GB for each float64 tensor of its truth.
SHARE = 0.6


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Of all parameters and buffers."""
    return sum(
        t.numel() * t.element_size()
        for module in modules
        for t in (*module.parameters(), *module.buffers())
    )  # fmt: skip


def free_bytes(device: torch.device) -> int | None:
    """On a GPU; None elsewhere, where weights lie in main memory anyway."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def place_layer_wise(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Put a model on a device, but for its blocks: each is copied there before its forward and let go after it.

    Args:
        model: in main memory.
        blocks: modules of it that are called one after the other, not inside each other.
        device: to compute on.
    """
    visiting = list(blocks)
    staying = {id(t) for block in visiting for t in (*block.parameters(), *block.buffers())}
    for t in (*model.parameters(), *model.buffers()):
        if id(t) not in staying:
            t.data = t.data.to(device)
    for block in visiting:
        _let_visit(block, device)


def _let_visit(block: nn.Module, device: torch.device) -> None:
    home: dict[int, Tensor] = {id(t): t.data for t in (*block.parameters(), *block.buffers())}

    def arrive(_block: nn.Module, _arguments: Any) -> None:
        for t in (*block.parameters(), *block.buffers()):
            t.data = torch.empty_like(home[id(t)], device=device).copy_(home[id(t)])

    def leave(_block: nn.Module, _arguments: Any, _output: Any) -> None:
        for t in (*block.parameters(), *block.buffers()):
            t.data = home[id(t)]

    block.register_forward_pre_hook(arrive)
    # Also where the forward raised, which an op under test may.
    block.register_forward_hook(leave, always_call=True)
