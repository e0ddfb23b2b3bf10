"""Runs a program over a grid: a chunk of CTAs at a time, all of its threads in lock step.

Where threads part, blocks are run with a mask, always the first block in the text that a thread waits at. That meets
again where structured code does. A barrier that only a part of a CTA's threads reaches at once, or a shuffle that only
a part of a warp does, is not executed: what a GPU does then is not defined, or depends on its scheduler.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from validation.compiled.ptx import harmless
from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.assert_ops import TrapError
from validation.compiled.ptx.chunk import Chunk, Counting, Found
from validation.compiled.ptx.errors import NotExecutedError, Violation
from validation.compiled.ptx.harmless import AstrayError, Poison
from validation.compiled.ptx.memory import BASE, Memory
from validation.compiled.ptx.program import Program
from validation.compiled.ptx.races import Races

# Arrays of this many float32 stay in a core's cache.
THREADS = 1 << 14


class Outcome(list[Violation]):
    """The violations of a run.

    Attributes:
        unordered: ``opcode at path:line`` of each instruction by which several threads changed one address, where what
            is left there may depend on their order: atomics (sums of floats, exchanges, compare-and-swaps) and, where
            races are looked for, stores of different values. On a GPU bits may differ from run to run, if anything
            depends on it. Of what integer atomics return, such as tickets, nothing is said.
    """

    def __init__(self, violations: Iterable[Violation], unordered: Iterable[str]) -> None:
        super().__init__(violations)
        self.unordered = tuple(unordered)


def run(
    program: Program,
    grid: tuple[int, int, int],
    parameters: Sequence[Any],
    memory: Memory,
    *,
    shared_bytes: int = 0,
    approximation: Approximation | None = None,
    races: bool = False,
    ctas: Iterable[int] | None = None,
    backwards: bool = False,
    counting: Counting | None = None,
) -> Outcome:
    """Run a grid.

    Args:
        program: the kernel.
        grid: CTAs in x, y and z.
        parameters: an unsigned NumPy scalar with the bits of each, of its size.
        memory: of the launch; the kernel's stores go there.
        shared_bytes: of a CTA.
        approximation: what ``.approx`` gives; by default the value, rounded.
        races: look for races too, which takes longer: most where there are some, since up to three runs more say
            whether they matter (`validation.compiled.ptx.harmless`).
        ctas: run these alone.
        backwards: CTAs come in the other order of their numbers, and so do threads that access one address at once.
        counting: is told of what warps do.

    Returns:
        What the kernel must not do, empty if nothing; and which instructions leave the order of threads in the result.

    Raises:
        NotExecutedError: the kernel does what is not executed.
        RuntimeError: this process flushes subnormals, so its arithmetic is not IEEE 754's.
    """
    with np.errstate(all="ignore"):
        if np.float32(1e-40) * np.float32(1) == 0:
            raise RuntimeError("this process flushes float32 subnormals to zero (torch.set_flush_denormal)")
        symbols = {
            name: np.full((1, 1), np.uint64(memory.place(content)))
            for name, content in program.kernel.constants.items()
        }
        named = {name: value for (_, name), value in zip(program.kernel.parameters, parameters, strict=True)}
        every = np.arange(grid[0] * grid[1] * grid[2]) if ctas is None else np.asarray([*ctas])
        every = every[::-1] if backwards else every
        # A CTA that waits for a lock would wait for ever beside one that holds it.
        at_once = 1 if program.waits else max(1, THREADS // program.kernel.threads)

        def once(approximation: Approximation, watch: Races | None) -> Found:
            found = Found(program.kernel.name)
            changed = np.zeros(len(memory.bytes) if program.atomic else 0, np.int64)
            for first in range(0, len(every), at_once):
                chunk = Chunk.of(
                    program,
                    grid,
                    every[first : first + at_once],
                    memory,
                    approximation=approximation,
                    parameters=named,
                    shared_bytes=shared_bytes,
                    found=found,
                    races=watch,
                    symbols=symbols,
                    backwards=backwards,
                )
                if watch is not None:
                    watch.begin(*chunk.shared.shape)
                chunk.counting = counting
                if program.atomic:
                    chunk.changed = {"global": changed, "shared": np.zeros(chunk.shared.size, np.int64)}
                try:
                    _run_chunk(program, chunk)
                except TrapError:
                    break
            return found

        watch = Races(len(memory.bytes), program.guesses) if races else None
        approximation = approximation or Approximation()
        found = once(approximation, watch)
        if watch is not None and watch.racing and not watch.decisive:
            _forget_harmless(program, memory, approximation, watch, found, once)
        for name, content in program.kernel.constants.items():
            at = int(symbols[name][0, 0]) - BASE
            if memory.bytes[at : at + len(content)].tobytes() != content:
                raise NotExecutedError(f"{program.kernel.name} writes to {name}, which would last till the next launch")
    return Outcome(found.by_instruction.values(), found.unordered)


def _forget_harmless(
    program: Program,
    memory: Memory,
    approximation: Approximation,
    watch: Races,
    found: Found,
    once: Callable[[Approximation, Races], Found],
) -> None:
    """Take the races out of what a run has found if its result does not depend on them; memory is left as it is."""
    result = memory.bytes.copy()
    # In "seeded" other values take other numbers from the generator.
    mode = "nearest" if approximation.mode == "seeded" else approximation.mode

    def end(poison: Poison | None) -> tuple[frozenset[tuple[str, int]], bytes] | None:
        memory.reset()
        # Wrong values may keep a loop from its end.
        races = Races(len(result), program.guesses, poison=poison, most_blocks=2 * watch.blocks + 1000)
        try:
            there = once(Approximation(mode), races)
        except (AstrayError, NotExecutedError):
            return None
        return None if races.decisive else (frozenset(there.by_instruction), memory.bytes.tobytes())

    right = (frozenset(found.by_instruction), result.tobytes()) if mode == approximation.mode else end(None)
    if harmless.are_harmless(watch.racing, lambda poison: end(poison) == right):
        found.by_instruction = {key: one for key, one in found.by_instruction.items() if key[0] != "RACE"}
    memory.bytes[:] = result


def _run_chunk(program: Program, chunk: Chunk) -> None:
    end, at = len(program.blocks), 0
    waiting = np.zeros(chunk.shape, np.int64)  # the block that each thread runs next, where they differ
    registers = chunk.registers
    undefined = list(registers)
    while at < end:
        block = program.blocks[at]
        if chunk.races is not None:
            chunk.races.block()
        if chunk.counting is not None:
            chunk.counting.block(at, chunk.active, chunk.shape, chunk.ctas)
        whole = chunk.active is None
        for step, dead in block.steps:
            step(chunk)
            if whole:  # threads that wait elsewhere may still read them
                for n in dead:
                    registers[n] = undefined[n]
        condition = None if block.condition is None else block.condition(chunk) ^ block.negated
        if chunk.active is None and (condition is None or condition.all() or not condition.any()):
            at = block.taken if condition is None or condition.all() else block.other
            continue
        goes = np.full(chunk.shape, block.taken) if condition is None else np.where(condition, block.taken, block.other)
        waiting = np.broadcast_to(goes, chunk.shape) if chunk.active is None else np.where(chunk.active, goes, waiting)
        # Threads that trap go first: the launch ends with them, while others may wait for them at a barrier.
        at = next((n for n in program.traps if (waiting == n).any()), int(waiting.min()))
        gone = waiting == end
        chunk.gone = gone if gone.any() else None
        active = waiting == at
        chunk.active = None if active.all() else active
