"""How many cycles one warp takes from its first instruction to its last, if it never waits for another.

Instructions are issued in order, one a cycle at most, each when what it reads is ready. Latencies were measured on
hardware by others: of main memory on A100 SXM, H100 SXM and B200 (550, 700 and 860 cycles: the table of
github.com/markdewing/AI_kernels, latency/README.md). The others are of the order that Jia et al. ("Dissecting the
NVIDIA Volta GPU Architecture via Microbenchmarking", 2018) and Luo et al. (arXiv 2402.13499) measured: shared memory
some 29, shuffles 23, arithmetic 4 to 6 cycles. Their tables were not at hand when this was written, and divisions,
conversions and barriers are guesses. Without load memory answers sooner than under it; so a time made of this is an
estimate.
"""

from collections.abc import Sequence

from validation.compiled.ptx.binding import Binder
from validation.compiled.ptx.parse import Instruction, Kernel

# Classes of instructions, by the beginnings of their spelling; the first that fits.
CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "global memory",
        ("ld.global", "st.global", "ld.volatile.global", "st.volatile.global", "atom", "red.", "cp.async"),
    ),
    ("local memory", ("ld.local", "st.local")),
    ("shared memory", ("ld.shared", "st.shared", "ld.volatile.shared", "st.volatile.shared", "ldmatrix", "stmatrix")),
    ("shuffle", ("shfl", "vote", "redux", "activemask", "match")),
    ("barrier", ("bar", "membar", "fence")),
    ("control", ("bra", "ret", "exit", "trap", "call", "nanosleep")),
    ("conversion", ("cvt",)),
    ("division and functions", ("div.", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh")),
    ("move", ("mov", "ld.param", "cvta", "prmt", "selp", "createpolicy")),
)
FLOAT, INTEGER = "float arithmetic", "integer and predicate"
# Each of these is one instruction of SASS.
ONE_EACH = ("global memory", "shared memory", "shuffle", "barrier", FLOAT)
_FLOAT_TYPES = ("f32", "f16", "bf16", "f64", "f32x2", "f16x2", "bf16x2")

# Cycles from the issue of an instruction to the first use of its result.
GLOBAL = {"sm_80": 550, "sm_90": 700, "sm_100": 860}
CYCLES = {
    "local memory": 33, "shared memory": 29, "shuffle": 23, "barrier": 20, "control": 5, "conversion": 6,
    "division and functions": 40, "move": 4, FLOAT: 4, INTEGER: 4,
}  # fmt: skip


def class_of(opcode: str) -> str:
    """The class of an instruction."""
    if opcode.startswith("div.") and opcode.rpartition(".")[2] not in _FLOAT_TYPES:
        return INTEGER
    for name, beginnings in CLASSES:
        if opcode.startswith(beginnings):
            return name
    types = opcode.split(".")
    return FLOAT if types[-1] in _FLOAT_TYPES and not types[0].startswith("setp") else INTEGER


def cycles(kernel: Kernel, trace: Sequence[int], target: str) -> int:
    """The cycles that a warp takes to run the blocks of a trace.

    Args:
        kernel: the kernel.
        trace: numbers of blocks, in the order in which the warp runs them.
        target: a name in `GLOBAL`.
    """
    binder = Binder(kernel)
    ready: dict[int, float] = {}
    now = 0.0
    used: dict[Instruction, tuple[set[int], set[int], float]] = {}
    for number in trace:
        for at in kernel.blocks[number]:
            instruction = kernel.instructions[at]
            if instruction not in used:
                name = class_of(instruction.opcode)
                takes = float(GLOBAL[target] if name == "global memory" else CYCLES[name])
                used[instruction] = (*binder.reads_and_writes(instruction), takes)
            read, written, takes = used[instruction]
            if instruction.guard and instruction.opcode.startswith("ld"):
                read = read - written  # lanes that do not load keep what they have, which was there before
            now = max([now + 1, *(ready.get(n, 0.0) for n in read)])
            if instruction.opcode.startswith("bar"):
                now += takes
            for n in written:
                ready[n] = now + takes
    return round(now)
