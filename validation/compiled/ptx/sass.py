"""The machine code of a kernel as nvdisasm, of Triton's wheel, prints it."""

import contextlib
import hashlib
import re
import subprocess
import tempfile
import zlib
from collections import Counter
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from validation.compiled.ptx.parse import Kernel
from validation.device.private import triton_module

# "        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;"
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)

# ".section	.text._Z1kPf,"ax",@progbits": the code of a kernel begins.
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([\w$]+),.*$", re.MULTILINE)


class MachineCode(NamedTuple):
    """A kernel's machine code.

    Attributes:
        registers: of a thread. local_bytes: of a thread, spills among them.
        opcodes: of the main path, by spelling, with repetitions, in order.
    """

    registers: int
    local_bytes: int
    opcodes: tuple[str, ...]


def tool(name: str) -> Path:
    """A tool of CUDA in Triton's wheel: ``cuobjdump``, ``nvdisasm``, ``ptxas``."""
    return Path(triton_module("triton.backends.nvidia").__file__).parent / "bin" / name


def resource_usage(cubin: Path, kernel: str = "") -> dict[str, int]:
    """Registers and local memory of a cubin's kernel, read by cuobjdump; "": of the only one."""
    command = (str(tool("cuobjdump")), "-res-usage", str(cubin))
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function = rf"Function {re.escape(kernel)}:\s+" if kernel else ""
    match = re.search(rf"{function}REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if match is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text.strip()[:200]!r}")
    registers, stack, local = map(int, match.groups())
    return {"registers": registers, "local_bytes": stack + local, "spilled": 0}


def _disassembled(cubin: bytes) -> str:
    """What nvdisasm prints of a cubin.

    It takes 0.22 s of processor time, most of it before it reads the cubin; so its text is kept in Triton's cache, as
    the cubin is.
    """
    nvdisasm = tool("nvdisasm")
    # Another wheel has another nvdisasm.
    size, key = nvdisasm.stat().st_size, hashlib.sha256(cubin)
    key.update(f"nvdisasm -c of {size} bytes, Triton {version('triton')}".encode())
    kept, name = triton_module("triton.runtime.cache").get_cache_manager(key.hexdigest()), "sass.zlib"
    if (path := kept.get_file(name)) is not None:
        return zlib.decompress(Path(path).read_bytes()).decode()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run((str(nvdisasm), "-c", file.name), capture_output=True, text=True, check=True).stdout
    with contextlib.suppress(OSError):  # a full or read-only cache costs time alone
        kept.put(zlib.compress(text.encode()), name)
    return text


@lru_cache(maxsize=256)  # as `validation.compiled.ptx.program.program`
def opcodes_of(cubin: bytes, kernel: str = "") -> tuple[str, ...]:
    """The opcodes of a kernel's main path; `kernel` says which, where the cubin has several.

    That ends with the last EXIT before the first return of a subroutine: what follows are the slow paths of divisions
    and roots, for operands that overflow, and the padding behind the code.
    """
    text = _disassembled(cubin)
    parts = _SECTION.split(text)
    if len(parts) > 3:
        named = dict(zip(parts[1::2], parts[2::2], strict=True))
        if kernel not in named:
            raise RuntimeError(f"nvdisasm shows no {kernel!r} among {', '.join(named)}")
        text = named[kernel]
    opcodes = _INSTRUCTION.findall(text)
    returns = [n for n, opcode in enumerate(opcodes) if opcode.startswith("RET")]
    main = opcodes[: returns[0]] if returns else opcodes
    exits = [n for n, opcode in enumerate(main) if opcode == "EXIT"]
    if not exits:
        raise RuntimeError(f"nvdisasm shows no EXIT among {len(opcodes)} instructions")
    return tuple(main[: exits[-1] + 1])


@lru_cache(maxsize=256)  # as `validation.compiled.ptx.program.program`
def machine_code(cubin: bytes, kernel: str = "") -> MachineCode:
    """Read a cubin's kernel; `kernel` says which, where it has several."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = resource_usage(Path(file.name), kernel)
    return MachineCode(usage["registers"], usage["local_bytes"], opcodes_of(cubin, kernel))


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
# How many of them ptxas 12.8 (Triton 3.7.1) makes of other instructions, the fewest and the most: the same on the three
# targets, measured with one to three instructions on operands of their own, and on one divisor in common, which shares
# its scaling. A sign or a magnitude may become part of the instruction that reads it.
_EXPANDED: dict[str, dict[str, tuple[int, int]]] = {
    "div.rn.f32": {"FFMA": (5, 5)},
    "sqrt.rn.f32": {"FFMA": (2, 2), "FMUL": (2, 2)},
    "rcp.rn.f32": {"FFMA": (2, 2), "FADD": (1, 1)},
    "lg2.approx.f32": {"FADD": (1, 1), "FMUL": (1, 1)},
    **{f"{name}.approx{ftz}.f32": {"FMUL": (1, 1)} for name in ("sin", "cos") for ftz in ("", ".ftz")},
    **{f"{name}{ftz}.f32": {"FADD": (0, 1)} for name in ("neg", "abs") for ftz in ("", ".ftz")},
    **{f"{name}.approx.ftz.f32": {} for name in ("rcp", "rsqrt", "sqrt", "ex2", "lg2")},
    "tanh.approx.f32": {},
}
# These end with a product, which ptxas contracts into a sum that follows: ``sum / D + eps`` of most norms is one FMA.
# The quotient is judged over its interval, and the others' last factor is a power of two: so nothing is left out.
for _name, _fewest, _most in (
    ("div.full.f32", 3, 5),
    ("div.full.ftz.f32", 2, 3),
    ("div.approx.f32", 2, 3),
    ("div.approx.ftz.f32", 1, 1),
    ("rsqrt.approx.f32", 2, 2),
    ("sqrt.approx.f32", 2, 2),
    ("ex2.approx.f32", 2, 2),
):
    _EXPANDED[_name] = {"FMUL": (_fewest - 1, _most), "FFMA": (0, 1), "FADD": (-1, 0)}
# Where one of these has another spelling, its expansion is not known.
_FUNCTIONS = ("div", "rcp", "rsqrt", "sqrt", "ex2", "lg2", "sin", "cos", "tanh", "neg", "abs")


def differences(kernel: Kernel, cubin: bytes) -> dict[str, tuple[int, int, int]]:
    """By opcode of float32 arithmetic: how many the machine code has, and the fewest and the most that the PTX implies.

    Empty if all are as many, but for the expansions of divisions and functions; or if that cannot be said: of kernels
    with loops, which ptxas unrolls, and with functions whose expansions are not known.
    """
    if kernel.loops:
        return {}
    opcodes = Counter(instruction.opcode for instruction in kernel.instructions)
    functions = [
        one for one in opcodes if one.partition(".")[0] in _FUNCTIONS and one.rpartition(".")[2] in ("f32", "f64")
    ]
    if not _EXPANDED.keys() >= {*functions}:
        return {}
    kinds = Counter(opcode.partition(".")[0] for opcode in opcodes_of(cubin, kernel.name))
    found = {}
    for name, forms in _BECOMES.items():
        kept = sum(
            number
            for opcode, number in opcodes.items()
            for begin, end in forms
            if opcode.startswith(begin) and opcode.endswith(end)
        )
        ends = [(opcodes[function], *_EXPANDED[function].get(name, (0, 0))) for function in functions]
        low, high = (kept + sum(number * of[end] for number, *of in ends) for end in (0, 1))
        if not low <= kinds[name] <= high:
            found[name] = kinds[name], low, high
    return found


def contracted(kernel: Kernel, cubin: bytes) -> str:
    """Which products and sums of a kernel ptxas contracted, in words; "" if none.

    PTX is executed here, and a GPU runs SASS. If that has no more FMAs than the PTX implies, the bits are those of the
    PTX; fewer instructions are dead code. That is no proof: two changes might make up for each other, and beside each
    approximate division one contraction is taken for that of its last product. Only float32 is looked at.
    """
    found = differences(kernel, cubin)
    if not any(name in found and found[name][0] > found[name][2] for name in ("FFMA", "FFMA2")):
        return ""
    words = (
        f"{number} {name}, expected {low if low == high else f'{low} to {high}'}"
        for name, (number, low, high) in found.items()
    )
    return f"ptxas contracted products and sums of {kernel.name}: {'; '.join(words)}"
