"""Layer-wise loading for a pipeline larger than the GPU's memory: blocks stay in main memory and visit the GPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Share of the free memory for weights. The rest is for activations: a site of Helios at full size ([1, 11040, 5120])
# takes 0.45 GB for each float64 tensor of its truth.
SHARE = 0.6


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters and buffers."""
    return sum(
        t.numel() * t.element_size()
        for module in modules
        for t in (*module.parameters(), *module.buffers())
    )  # fmt: skip


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU; None for other devices, whose weights are in main memory anyway."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def place_layer_wise(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Put a model on a device, except its blocks: each is copied there before its forward and freed afterwards.

    Args:
        model: in main memory.
        blocks: modules of it that are called one after the other, not nested.
        device: where to compute.
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
    # Also after a forward that raised, as an op under test may.
    block.register_forward_hook(leave, always_call=True)
