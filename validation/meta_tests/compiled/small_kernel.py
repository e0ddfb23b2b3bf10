"""A kernel around a few lines of PTX: each thread leaves 32 bits in memory of its own."""

import numpy as np
import torch

from validation.compiled.ptx.machine import Outcome, run
from validation.compiled.ptx.memory import Memory
from validation.compiled.ptx.program import program

HEADER = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
{module}
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0
)
.reqntid {threads}
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<20>;
	.reg .b64 %rd<9>;
	.loc 1 7 3                          // a.py:7:3 @[ b.py:9:1 ]
	mov.u32 %r0, %tid.x;
	mov.u32 %r9, %ctaid.x;
	ld.param.b64 %rd0, [small_param_0];
	mad.lo.s32 %r8, %r9, {threads}, %r0;
	mad.wide.u32 %rd1, %r8, 4, %rd0;
	.loc 1 8 3                          // a.py:8:3 @[ b.py:9:1 ]
"""
END = '\n	st.global.b32 [%rd1], %r1;\n	ret;\n}\n	.file	1 "/src/a.py"\n'


def ptx(body: str, threads: int = 64, module: str = "") -> str:
    return HEADER.format(threads=threads, module=module) + body + END


def execute(
    body: str, threads: int = 64, ctas: int = 2, *, shared: int = 0, module: str = "", **how: bool
) -> tuple[list[int], Outcome]:
    """What each thread leaves in %r1, CTA by CTA; `how` has further arguments of `run`."""
    out = torch.zeros(threads * ctas, dtype=torch.int32)
    memory = Memory([("out", out)])
    violations = run(
        program(ptx(body, threads, module)),
        (ctas, 1, 1),
        [np.uint64(memory.address(out))],
        memory,
        shared_bytes=shared,
        **how,  # type: ignore[arg-type]
    )
    memory.write_back()
    return out.tolist(), violations


def execute_some(body: str, threads: int, of: int, ctas: list[int]) -> Outcome:
    """Run some of the CTAs, in one chunk if the kernel allows it, and look for races."""
    out = torch.zeros(threads * of, dtype=torch.int32)
    memory = Memory([("out", out)])
    address = np.uint64(memory.address(out))
    return run(program(ptx(body, threads)), (of, 1, 1), [address], memory, races=True, ctas=ctas)
