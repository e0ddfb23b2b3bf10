"""Helios' modulation as its blocks read it: one row per token, or the distinct rows and an index per token."""

from collections.abc import Sequence

import torch
from diffusers import HeliosTransformer3DModel
from torch import Tensor

from reference_ops.contract import IndexedRows, Modulation


class EveryRow:
    """Modulation as in diffusers, one row per token."""

    def of_block(self, table: Tensor, modulation: Tensor) -> Sequence[Modulation]:
        """The six rows of a block: ``[B, L, D]`` each, or ``[B, 1, D]`` where modulation is ``[B, 6, D]``.

        Views, never copied, with a token stride of D or 6 * D, as modulation ``[B, L, 6, D]`` lies in memory
        (diffusers 0.42: ``[B, 6, L, D]``, so D).
        """
        if modulation.ndim == 4:
            return (table.unsqueeze(0) + modulation.float()).unbind(2)
        return (table + modulation.float()).unsqueeze(2).unbind(1)

    def of_output(self, table: Tensor, time: Tensor) -> Sequence[Modulation]:
        """Shift and scale of the output norm, ``[B, L, D]`` like time."""
        return (table.unsqueeze(0) + time.unsqueeze(2)).unbind(2)


class DistinctRows:
    """Modulation as the condition embedder makes it: one row per embedder call in a forward.

    diffusers embeds t = 0 for the history, if the configuration does so, and then the time of the current
    tokens. `embed` replaces the embedder's forward; `of_block` and `of_output` then receive the index of each
    token's row in place of modulation (``[B, L, 6, 1]``) and time (``[B, L, 1]``).
    """

    def __init__(self, transformer: HeliosTransformer3DModel) -> None:
        self.embedder = transformer.condition_embedder
        self.calls = 2 if transformer.config.zero_history_timestep else 1
        self.found: list[tuple[Tensor, Tensor]] = []
        self.time = self.modulation = self.numbers = self.index = torch.empty(0)

    def embed(
        self, timestep: Tensor, text: Tensor | None = None, is_return_encoder_hidden_states: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embed a time, and return the index of its row in place of time and modulation."""
        time, modulation, text = type(self.embedder).forward(
            self.embedder, timestep, text, is_return_encoder_hidden_states
        )
        last = is_return_encoder_hidden_states
        if self.calls == 1 or not last:
            self.found.clear()
        number = len(self.found)
        self.found.append((time, modulation.unflatten(-1, (6, -1))))
        if last:
            batch = len(time)
            self.time, modulations = (
                torch.stack([part.expand(batch, *part.shape[1:]) for part in parts], dim=1)
                for parts in zip(*self.found, strict=True)
            )
            self.modulation = modulations.float()
        return time.new_full((len(time), 1), number), modulation.new_full((len(modulation), 6), number), text

    def of_block(self, table: Tensor, modulation: Tensor) -> Sequence[Modulation]:
        """The six rows of a block: tables of ``[B, n, D]``."""
        if modulation is not self.numbers:  # the same tensor for every block
            self.numbers, self.index = modulation, modulation[:, :, 0, 0].to(torch.int32)
        return [IndexedRows(rows, self.index) for rows in (table.unsqueeze(0) + self.modulation).unbind(2)]

    def of_output(self, table: Tensor, time: Tensor) -> Sequence[Modulation]:
        """Shift and scale of the output norm: tables of ``[B, n, D]``."""
        index = time[:, :, 0].to(torch.int32)
        return [IndexedRows(rows, index) for rows in (table.unsqueeze(0) + self.time.unsqueeze(2)).unbind(2)]
