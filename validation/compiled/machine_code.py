"""Reads PTX, cubin and AMDGCN: widths of loads and stores, registers, spills, roundings, flushing."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from validation.compiled.ptx.parse import parse
from validation.compiled.ptx.sass import resource_usage


def _count(pattern: str, text: str, bits: Callable[[re.Match[str]], int]) -> dict[int, int]:
    return dict(Counter(bits(match) for match in re.finditer(pattern, text)))


def read_nvidia(asm: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `validation.compiled.kernel.Compiled` that PTX and cubin show."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        usage = resource_usage(Path(cubin.name))
    opcodes = dict(Counter(instruction.opcode for instruction in parse(asm["ptx"]).instructions))
    return {**read_ptx(asm["ptx"]), **usage, "opcodes": opcodes}


def read_ptx(ptx: str) -> dict[str, Any]:
    """Widths of global loads and stores, roundings to 16 bits and flushing, from PTX."""

    def bits(match: re.Match[str]) -> int:
        return int(match["vector"] or 1) * int(match["size"])

    access = r"\b{}\.global(?:\.(?!v\d)[A-Za-z_:0-9]+)*?(?:\.v(?P<vector>\d))?\.[bfsu](?P<size>\d+)\b"
    return {
        "load_bits": _count(access.format("ld"), ptx, bits),
        "store_bits": _count(access.format("st"), ptx, bits),
        "roundings": dict(Counter(re.findall(r"\bcvt\.[a-z.]*b?f16(?:x2)?\.f32\b", ptx))),
        "flushes_subnormals": ".ftz" in ptx,
    }


def read_amd(asm: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `validation.compiled.kernel.Compiled` that AMDGCN shows."""
    return {**read_amdgcn(asm["amdgcn"]), "opcodes": {}}


def read_amdgcn(text: str) -> dict[str, Any]:
    """Widths of global loads and stores, resources, roundings and flushing, from the text of AMDGCN.

    gfx942 has no conversion to bfloat16: the compiler adds 0x7fff and the lowest kept bit, which rounds to
    nearest even, and so do the conversions to float16 where the mode register says so.
    """

    def bits(match: re.Match[str]) -> int:
        return {"byte": 8, "short": 16}.get(match["small"]) or 32 * int(match["dwords"] or 1)

    def field(name: str) -> int:
        match = re.search(rf"\.{name}:?\s+(\d+)", text)
        if match is None:
            raise RuntimeError(f"the assembly says nothing of {name}")
        return int(match[1])

    access = r"\b(?:global|buffer|flat)_{}_(?:(?:u|s|d16_)*(?:hi_)?(?P<small>byte|short)|dword(?:x(?P<dwords>\d))?)\w*"
    roundings = Counter(re.findall(r"\b(v_cvt_(?:f16_f32|pkrtz_f16_f32|pk_bf16_f32))", text))
    halves = "|".join({"0x7fff", *re.findall(r"\b(?:s_movk_i32|s_mov_b32|v_mov_b32_e32) ([sv]\d+), 0x7fff\b", text)})
    roundings["v_add3_u32 0x7fff"] = len(re.findall(rf"\bv_add3_u32 v\d+, v\d+, v\d+, (?:{halves})\b", text))
    return {
        "load_bits": _count(access.format("load"), text, bits),
        "store_bits": _count(access.format("store"), text, bits),
        "registers": field("vgpr_count"),
        "local_bytes": field("private_segment_fixed_size"),
        "spilled": field("vgpr_spill_count"),
        "roundings": {name: n for name, n in roundings.items() if n},
        "flushes_subnormals": field("amdhsa_float_denorm_mode_32") != 3,
    }
