"""Counts a launch by some of its CTAs, and bounds its time on a GPU from below."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from validation.cases.case import extent
from validation.compiled.counters.footprint import sectors_of
from validation.compiled.counters.gpus import Gpu
from validation.compiled.counters.latency import ONE_EACH, class_of, cycles
from validation.compiled.counters.watch import CTA_SHIFT, SECTOR, Watch
from validation.compiled.ptx.bits import Array
from validation.compiled.ptx.launch import Launch, bound_launch
from validation.compiled.ptx.machine import run
from validation.compiled.ptx.parse import Kernel
from validation.compiled.ptx.sass import contracted, differences, machine_code

# CTAs that are counted: in runs of neighbours, since these may share sectors, over the whole grid.
RUNS, NEIGHBOURS = 4, 8
LINE = 128  # bytes that L1 gives a cycle
# CTAs that share a grid between tensors, q's and k's, are not drawn evenly: from this share on all of one is touched.
WHOLE = 0.7


@dataclasses.dataclass(frozen=True)
class Counters:
    """What a launch asks for, of all of its CTAs; numbers of warps, not of threads.

    Attributes:
        kernel: its name. target: what it was compiled for.
        programs: CTAs. threads: of a CTA.
        registers, local_bytes: of a thread. shared_bytes: of a CTA.
        requests: of global memory. sectors: that they move, of 32 bytes, from or to L1. needed: the fewest.
        read_bytes, written_bytes: of DRAM, each sector once.
        l2_bytes: between L2 and the SMs, if L1 keeps what a CTA reads twice.
        common_bytes: of those that every CTA reads, once; each SM must read them at least once.
        shared_requests, wavefronts, needed_wavefronts: of shared memory.
        instructions: of PTX, by class.
        machine_instructions: about as many of SASS: those of PTX times the ratio of both in the kernel's text. Of a
            kernel with loops, which ptxas unrolls, those alone that become one each (`ONE_EACH`).
        cycles: of the path of one warp, the first of the grid; 0 for a kernel with loops, where it is not known.
        alike: whether the counted CTAs, but for the last, ran as many blocks and made as many requests each.
        contracted: as `validation.compiled.ptx.sass.contracted` says. differences: by opcode, as `differences` there.
    """

    kernel: str
    target: str
    programs: int
    threads: int
    registers: int
    local_bytes: int
    shared_bytes: int
    requests: int
    sectors: int
    needed: int
    read_bytes: int
    written_bytes: int
    l2_bytes: int
    common_bytes: int
    shared_requests: int
    wavefronts: int
    needed_wavefronts: int
    instructions: dict[str, int]
    machine_instructions: int
    cycles: int
    contracted: str
    differences: dict[str, tuple[int, int, int]]
    alike: bool

    @property
    def dram_bytes(self) -> int:
        """Bytes of DRAM, read and written."""
        return self.read_bytes + self.written_bytes

    def ctas_of_sm(self, gpu: Gpu) -> int:
        """How many CTAs an SM holds at once."""
        return gpu.resident(self.threads, self.registers, self.shared_bytes)

    def bounds(self, gpu: Gpu) -> dict[str, float]:
        """Seconds that the launch takes at least, by what it waits for: each as if all else were free.

        That of latency is an estimate: it assumes that DRAM answers each load, and without load.
        """
        sms = min(gpu.sms, self.programs)
        # To the SMs together each sector must come once, and what every CTA reads once to each: L1 may keep the rest.
        l2 = self.dram_bytes + self.common_bytes * (sms - 1)
        # Waves of CTAs, not rounded up: the next CTA starts when any one ends.
        waves = max(1.0, self.programs / (gpu.sms * self.ctas_of_sm(gpu)))
        return {
            "DRAM": self.dram_bytes / gpu.dram,
            "L2": l2 / (gpu.l2 * sms / gpu.sms * gpu.clock),
            "L1": (self.sectors * SECTOR / LINE + self.wavefronts) / (sms * gpu.clock),
            "issue": self.machine_instructions / (4 * sms * gpu.clock),
            "latency": waves * self.cycles / gpu.clock,
        }

    def bound(self, gpu: Gpu) -> tuple[str, float]:
        """The largest of the bounds: its name and seconds."""
        return max(self.bounds(gpu).items(), key=lambda one: one[1])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def chosen(programs: int) -> list[int]:
    """The CTAs that are counted beside the last one: all if there are few, else runs of neighbours over the grid."""
    if programs - 1 <= RUNS * NEIGHBOURS:
        return [*range(programs - 1)]
    starts = np.linspace(0, programs - 1 - NEIGHBOURS, RUNS).astype(int)
    return sorted({int(start) + n for start in starts for n in range(NEIGHBOURS)})


def count(launch: Launch, target: str) -> Counters:
    """Count a launch; its tensors are neither read nor written, but for integers, which may be addresses.

    CTAs are taken to be alike, but for the last one, which may be masked: it is counted, and so are those of `chosen`,
    which stand for the others.

    Raises:
        NotExecutedError: something in it is not executed.
    """
    program, parameters, memory = bound_launch(launch, addresses_alone=True)
    counted = [*chosen(launch.programs), launch.programs - 1]
    others, last = Watch(), Watch()
    for ctas, watch in ((counted[:-1], others), (counted[-1:], last)):
        if ctas:
            run(program, launch.grid, parameters, memory, shared_bytes=launch.shared_bytes, ctas=ctas, counting=watch)
    scale = (launch.programs - 1) / max(1, len(counted) - 1)

    def total(of_others: float, of_last: float) -> int:
        return round(of_others * scale + of_last)

    def of_space(space: Iterable[str], name: str) -> int:
        sums = [sum(getattr(s, name) for s in w.sites.values() if s.space in space) for w in (others, last)]
        return total(*sums)

    of_others, of_last = (_by_class(program.kernel, watch) for watch in (others, last))
    instructions = {name: total(of_others[name], of_last[name]) for name in sorted({*of_others, *of_last})}
    code = machine_code(launch.cubin, program.kernel.name)
    read = np.concatenate([others.read, last.read])
    common = _common(read, len(counted)) if len(counted) > 1 else np.zeros(0, np.int64)
    at_addresses = [(memory.address(t), t) for t in launch.tensors.values()]
    once = [total(len(getattr(others, name)), len(getattr(last, name))) for name in ("read", "written")]
    trace = others.trace or last.trace
    memories = ("global", "local")
    return Counters(
        kernel=program.kernel.name,
        target=target,
        programs=launch.programs,
        threads=program.kernel.threads,
        registers=code.registers,
        local_bytes=code.local_bytes,
        shared_bytes=launch.shared_bytes,
        requests=of_space(memories, "requests"),
        sectors=of_space(memories, "moved"),
        needed=of_space(memories, "needed"),
        read_bytes=SECTOR * _touched(others.read, last.read, at_addresses, scale, common),
        written_bytes=SECTOR * _touched(others.written, last.written, at_addresses, scale, common[:0]),
        l2_bytes=SECTOR * (sum(once) - len(common) * launch.programs),
        common_bytes=SECTOR * len(common),
        shared_requests=of_space(("shared",), "requests"),
        wavefronts=of_space(("shared",), "moved"),
        needed_wavefronts=of_space(("shared",), "needed"),
        instructions=instructions,
        machine_instructions=_machine_instructions(program.kernel, instructions, len(code.opcodes)),
        cycles=0 if program.kernel.loops else cycles(program.kernel, trace, target),
        alike=len({*others.work.values()}) <= 1,
        contracted=contracted(program.kernel, launch.cubin),
        differences=differences(program.kernel, launch.cubin),
    )


def _machine_instructions(kernel: Kernel, instructions: Mapping[str, int], of_text: int) -> int:
    if kernel.loops:
        return sum(number for name, number in instructions.items() if name in ONE_EACH)
    return round(sum(instructions.values()) * of_text / len(kernel.instructions))


def _by_class(kernel: Kernel, watch: Watch) -> Counter[str]:
    found = Counter[str]()
    for number, block in enumerate(kernel.blocks):
        for at in block:
            found[class_of(kernel.instructions[at].opcode)] += watch.warps[number]
    return found


def _common(keys: Array, ctas: int) -> Array:
    """The sectors that every counted CTA reads."""
    sectors, times = np.unique(keys & ((1 << CTA_SHIFT) - 1), return_counts=True)
    return sectors[times == ctas]


def _touched(
    of_others: Array, of_last: Array, tensors: Iterable[tuple[int, Tensor]], scale: float, common: Array
) -> int:
    """How many sectors the whole grid touches: all that hold elements of what the counted CTAs touch, or as many as
    these do times the CTAs that they stand for, if that is much less. What every CTA reads counts once.

    Tensors that lie within one another, as q and k of a packed buffer do, are one in this.
    """
    others, last = (np.unique(keys & ((1 << CTA_SHIFT) - 1)) for keys in (of_others, of_last))
    last = np.setdiff1d(last, others)
    spans: list[list[int]] = []  # first and last sector, and sectors with elements
    known = {(first, t.shape, t.stride(), t.element_size()) for first, t in tensors if t.numel()}
    for first, shape, strides, size in sorted(known):
        begin, end = first // SECTOR, (first + size * extent(shape, strides) - 1) // SECTOR
        held = sectors_of(first, shape, strides, size)
        if spans and begin <= spans[-1][1]:
            spans[-1] = [spans[-1][0], max(end, spans[-1][1]), spans[-1][2] + held]
        else:
            spans.append([begin, end, held])
    found = 0
    for begin, end, held in spans:
        here, more, once = (int(((sectors >= begin) & (sectors <= end)).sum()) for sectors in (others, last, common))
        estimate = (here - once) * scale + more + once
        found += held if estimate > WHOLE * held else round(estimate)
    return found
