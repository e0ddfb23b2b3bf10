"""Runs one instruction of PTX on arrays of bits: parsed, bound and stepped as in a kernel."""

import re
from typing import Any

import numpy as np

from validation.compiled.ptx.approximate import Approximation
from validation.compiled.ptx.bits import UNSIGNED, bits
from validation.compiled.ptx.chunk import Chunk
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.program import program

MODULE = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry one()
.reqntid 32
{{
	.reg .pred %p<8>;
	.reg .b16 %rs<8>;
	.reg .b32 %r<8>;
	.reg .b64 %rd<8>;
	{text}
	ret;
}}
"""


def apply(text: str, *operands: Any, mode: str = "nearest", seed: int = 0) -> np.ndarray[Any, Any]:
    """The bits that an instruction gives.

    Args:
        text: the instruction, ``add.f32 %r0, %r1, %r2``; the result is its first register.
        operands: values of the other registers, in the order of the text: one-dimensional arrays of one length.
        mode: what ``.approx`` gives. seed: of its generator.
    """
    bound = program(MODULE.format(text=text + ";"))
    numbers = {name: n for n, name in enumerate(bound.kernel.registers)}
    result, *names = re.findall(r"%(?:p|rs|r|rd)\d\b", text)
    names = list(dict.fromkeys(names))
    assert len(names) == len(operands), names
    count = len(operands[0])
    ctas = np.arange(-(-count // 32))
    approximation = Approximation(mode, np.random.default_rng(seed))
    chunk = Chunk.of(bound, (len(ctas), 1, 1), ctas, Memory([]), approximation=approximation)
    for name, values in zip(names, operands, strict=True):
        raw = np.ascontiguousarray(values)
        raw = raw if raw.dtype == bool else raw.view(UNSIGNED[raw.dtype.itemsize])
        padded = np.zeros(chunk.shape, raw.dtype)
        padded.reshape(-1)[:count] = raw
        chunk.registers[numbers[name]] = padded
    with np.errstate(all="ignore"):
        bound.blocks[0].steps[0][0](chunk)
    return np.broadcast_to(bits(chunk.registers[numbers[result]]), chunk.shape).reshape(-1)[:count]
