"""A kernel bound to steps: its basic blocks, where each goes, and when each register's value is no longer needed."""

import dataclasses
from functools import lru_cache

from validation.compiled.ptx.binding import Binder, Get
from validation.compiled.ptx.parse import BRANCHES, ENDS, Instruction, Kernel, parse
from validation.compiled.ptx.table import Step


@dataclasses.dataclass(frozen=True)
class Block:
    """A basic block.

    Attributes:
        steps: each with the registers that nothing reads after it.
        condition: the predicate of its branch, if it has one. negated: whether the branch is taken where it is false.
        taken: the block that its branch leads to, len(blocks) for the end. other: the block after it.
    """

    steps: tuple[tuple[Step, tuple[int, ...]], ...]
    condition: Get | None
    negated: bool
    taken: int
    other: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A kernel bound to steps.

    Attributes:
        kernel: as it was parsed.
        blocks: in the order of the text.
        guesses: loads from an address at which a compare-and-swap follows, which takes no value that has changed since.
        traps: the blocks that end the launch.
        atomic: whether it has atomics.
        waits: whether one of them, in a loop, gives a result that is read, as in a lock.
    """

    kernel: Kernel
    blocks: tuple[Block, ...]
    guesses: frozenset[Instruction]
    traps: tuple[int, ...]
    atomic: bool
    waits: bool


# A bound kernel takes 32 times the memory of its text (1.4 MB each, of 100 kernels of 42 KB): kept for ever, those of
# all planted faults took 18 GB. A sweep of an op has 150.
@lru_cache(maxsize=256)
def program(ptx: str, entry: str = "", block: tuple[int, int, int] | None = None) -> Program:
    """Parse and bind a kernel of a PTX module; the arguments are those of `validation.compiled.ptx.parse.parse`.

    Raises:
        NotExecutedError: something in it is not executed; nothing has run then.
        RuntimeError: the kernel declares another block.
    """
    kernel = parse(ptx, entry, block)
    binder = Binder(kernel)
    if kernel.threads % 32:
        raise kernel.instructions[0].refuse(f"{kernel.threads} threads are no whole warps")
    steps = [binder.step(instruction) for instruction in kernel.instructions]
    used = [binder.reads_and_writes(instruction) for instruction in kernel.instructions]
    end = len(kernel.blocks)
    start = {part.start: n for n, part in enumerate(kernel.blocks)} | {len(kernel.instructions): end}
    goes: list[tuple[int, int]] = []
    for n, part in enumerate(kernel.blocks):
        last = kernel.instructions[part[-1]]
        target = n + 1
        if last.opcode in ENDS:
            target = end
        elif last.opcode in BRANCHES:
            if last.operands[0] not in kernel.labels:
                raise last.refuse(f"no label {last.operands[0]}")
            target = start[kernel.labels[last.operands[0]]]
        goes.append((target, n + 1 if last.guard else target))

    def loops(block: int) -> bool:
        """Whether a block may run again."""
        seen, ahead = set[int](), [*goes[block]]
        while ahead:
            n = ahead.pop()
            if n not in seen and n < end:
                seen.add(n)
                ahead += goes[n]
        return block in seen

    live = _live_out(kernel, used, goes)
    blocks, waits = [], False
    for n, part in enumerate(kernel.blocks):
        last = kernel.instructions[part[-1]]
        predicate = last.guard if last.opcode in (*BRANCHES, *ENDS) else None
        condition = None if predicate is None else binder.get(predicate, "pred")
        alive = set(live[n])
        bound: list[tuple[Step, tuple[int, ...]]] = []
        for at in reversed(part):
            read, written = used[at]
            waits = waits or (kernel.instructions[at].opcode.startswith("atom.") and bool(written & alive) and loops(n))
            # The machine reads the branch's predicate after the last step.
            dead = set() if at == part[-1] and predicate else (read | written) - alive
            bound.append((steps[at], tuple(sorted(dead))))
            alive = (alive - written) | read
        blocks.append(Block(tuple(reversed(bound)), condition, last.negated, *goes[n]))
    atomic = any(instruction.opcode.startswith(("atom.", "red.")) for instruction in kernel.instructions)
    traps = tuple(n for n, part in enumerate(kernel.blocks) if kernel.instructions[part[-1]].opcode == "trap")
    swapped = {i.operands[1] for i in kernel.instructions if i.opcode.startswith("atom.") and ".cas." in i.opcode}
    guesses = frozenset(i for i in kernel.instructions if i.opcode.startswith("ld.") and i.operands[1] in swapped)
    return Program(kernel, tuple(blocks), guesses, traps, atomic, waits)


def _live_out(kernel: Kernel, used: list[tuple[set[int], set[int]]], goes: list[tuple[int, int]]) -> list[set[int]]:
    """The registers that are read after each block."""
    live_in: list[set[int]] = [set() for _ in range(len(kernel.blocks) + 1)]
    changed = True
    while changed:
        changed = False
        for n in range(len(kernel.blocks) - 1, -1, -1):
            alive = live_in[goes[n][0]] | live_in[goes[n][1]]
            for at in reversed(kernel.blocks[n]):
                read, written = used[at]
                alive = (alive - written) | read
            if alive != live_in[n]:
                live_in[n], changed = alive, True
    return [live_in[taken] | live_in[other] for taken, other in goes]
