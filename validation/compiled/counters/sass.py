"""The machine code of a kernel as nvdisasm, of Triton's wheel, prints it."""

import re
import subprocess
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from validation.compiled.machine_code import resource_usage, tool
from validation.compiled.ptx.parse import Kernel

# "        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;"
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


class MachineCode(NamedTuple):
    """A kernel's machine code.

    Attributes:
        registers: of a thread. local_bytes: of a thread, spills among them.
        opcodes: of the main path, by spelling, with repetitions, in order.
    """

    registers: int
    local_bytes: int
    opcodes: tuple[str, ...]

    @property
    def kinds(self) -> Counter[str]:
        """How many of each opcode, without its modifiers: ``FFMA``."""
        return Counter(opcode.partition(".")[0] for opcode in self.opcodes)


@cache
def machine_code(cubin: bytes) -> MachineCode:
    """Read a cubin.

    The main path ends with the last EXIT before the first return of a subroutine: what follows are the slow paths of
    divisions and roots, for operands that overflow, and the padding behind the code.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        path = Path(file.name)
        usage = resource_usage(path)
        text = subprocess.run([tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True).stdout
    opcodes = _INSTRUCTION.findall(text)
    returns = [n for n, opcode in enumerate(opcodes) if opcode.startswith("RET")]
    main = opcodes[: returns[0]] if returns else opcodes
    exits = [n for n, opcode in enumerate(main) if opcode == "EXIT"]
    if not exits:
        raise RuntimeError(f"nvdisasm shows no EXIT among {len(opcodes)} instructions")
    return MachineCode(usage["registers"], usage["local_bytes"], tuple(main[: exits[-1] + 1]))


# Opcodes of SASS, and those of PTX that become one of each: by their beginning and their end.
_BECOMES: dict[str, tuple[tuple[str, str], ...]] = {
    "FFMA": (("fma.", ".f32"),),
    "FADD": (("add.", ".f32"), ("sub.", ".f32")),
    "FMUL": (("mul.", ".f32"),),
    "FFMA2": (("fma.", ".f32x2"),),
    "FADD2": (("add.", ".f32x2"), ("sub.", ".f32x2")),
    "FMUL2": (("mul.", ".f32x2"),),
    "FHADD": (("add.", ".f32.bf16"), ("sub.", ".f32.bf16"), ("add.", ".f32.f16"), ("sub.", ".f32.f16")),
}
# What ptxas 12.8 (Triton 3.7.1) makes of a division and a root: on all three targets, in all of our kernels.
_EXPANDED = {"div.rn.f32": Counter(FFMA=5), "sqrt.rn.f32": Counter(FFMA=2, FMUL=2)}
# Other functions, whose expansions are not known.
_UNKNOWN = ("div.full", "div.approx", "rcp", "rsqrt", "sqrt.approx", "ex2", "lg2", "sin", "cos", "tanh", "neg.", "abs.")


def contracted(kernel: Kernel, code: MachineCode) -> str:
    """How ptxas changed a kernel's float32 arithmetic, in words; "" if it kept every addition, product and FMA.

    PTX is executed here, and a GPU runs SASS. If each of their counts is the same, but for the fixed expansions of
    divisions and roots, ptxas contracted nothing, so that the bits are those of the PTX. That is no proof: two changes
    might make up for each other. Nothing is said of kernels with functions whose expansions are not known.
    """
    opcodes = Counter(instruction.opcode for instruction in kernel.instructions)
    if any(opcode.startswith(_UNKNOWN) and opcode.rpartition(".")[2] == "f32" for opcode in opcodes):
        return ""
    wrong = []
    for name, forms in _BECOMES.items():
        expected = sum(
            number
            for opcode, number in opcodes.items()
            for begin, end in forms
            if opcode.startswith(begin) and opcode.endswith(end)
        )
        expected += sum(opcodes[opcode] * more[name] for opcode, more in _EXPANDED.items())
        if code.kinds[name] != expected:
            wrong.append(f"{code.kinds[name]} {name}, expected {expected}")
    return f"ptxas changed the arithmetic of {kernel.name}: {'; '.join(wrong)}" if wrong else ""
