"""The compiler's output for one kernel, and the faults to look for in it."""

import dataclasses
from collections.abc import Mapping, Sequence

# At this limit two programs of 8 warps fit on an SM of 65,536 registers, and four waves on a SIMD of CDNA 3.
REGISTER_LIMIT = 128


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one target.

    Attributes:
        op: the op, with its flags if it is called more than once.
        model: the model whose widths and dtypes it has.
        layout: ``aligned``; ``offset``: every tensor starts one element into its memory; ``odd``: width and
            head_dim are one less.
        target: a name in `TARGETS`.
        load_bits, store_bits: number of global loads and stores by width in bits.
        registers: per thread (VGPRs on AMD).
        local_bytes: local memory per thread (stack, spills; scratch on AMD).
        spilled: VGPRs spilled (AMD; on NVIDIA spills are local_bytes). SGPRs that AMD's compiler parks in
            lanes of a VGPR cost no memory and are not counted.
        shared_bytes: shared memory per program.
        warps: per program.
        roundings: number of conversions from float32 to 16 bits, by instruction.
        fp_fusion: whether the compiler may contract a product and a sum to a fused multiply-add.
        flushes_subnormals: whether float32 subnormals are flushed to zero somewhere.
        opcodes: number of instructions by exact spelling (PTX; empty on AMD).
    """

    op: str
    model: str
    layout: str
    target: str
    load_bits: dict[int, int]
    store_bits: dict[int, int]
    registers: int
    local_bytes: int
    spilled: int
    shared_bytes: int
    warps: int
    roundings: dict[str, int]
    fp_fusion: bool
    flushes_subnormals: bool
    opcodes: dict[str, int]

    @property
    def faults(self) -> list[str]:
        """The kernel's faults in words; empty if there are none.

        Expected in every layout: no local memory, only roundings to nearest, subnormals kept. For ``aligned`` also:
        registers within `REGISTER_LIMIT`; all loads and stores 128 bits wide, except loads of an index.
        """
        faults = []
        if self.local_bytes or self.spilled:
            faults.append(f"{self.local_bytes} bytes of local memory, {self.spilled} registers spilled")
        faults += [f"{n} x {name}: not to nearest" for name, n in self.roundings.items() if not _to_nearest(name)]
        if self.flushes_subnormals:
            faults.append("float32 subnormals are flushed to zero")
        if self.layout == "aligned":
            if self.registers > REGISTER_LIMIT:
                faults.append(f"{self.registers} registers, more than {REGISTER_LIMIT}")
            # One int64 for each row and table; a program with several rows may load two at once.
            index = {64} if "IndexedRows" in self.op else set()
            if set(self.load_bits) - index != {128}:
                faults.append(f"loads of {widths_text(self.load_bits)}, expected 128 bits")
            if set(self.store_bits) != {128}:
                faults.append(f"stores of {widths_text(self.store_bits)}, expected 128 bits")
        return faults


def _to_nearest(instruction: str) -> bool:
    return ".rn" in instruction or instruction in ("v_cvt_f16_f32", "v_cvt_pk_bf16_f32", "v_add3_u32 0x7fff")


def widths_text(bits: Mapping[int, int]) -> str:
    """The number of accesses of each width, the widest first: ``8 x 128 bits, 2 x 32 bits``."""
    return ", ".join(f"{n} x {width} bits" for width, n in sorted(bits.items(), reverse=True)) or "no width"


def table(kernels: Sequence[Compiled]) -> str:
    """The kernels as a text table, one per line."""
    header = ("target", "model", "op", "layout", "loads", "stores", "registers", "local", "shared", "roundings")
    rows = [
        (
            k.target,
            k.model,
            k.op,
            k.layout,
            widths_text(k.load_bits),
            widths_text(k.store_bits),
            str(k.registers),
            str(k.local_bytes),
            str(k.shared_bytes),
            ", ".join(f"{n} x {name}" for name, n in sorted(k.roundings.items())) + (" ftz" * k.flushes_subnormals),
        )
        for k in kernels
    ]
    sizes = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join("  ".join(f"{v:{n}}" for v, n in zip(row, sizes, strict=True)).rstrip() for row in (header, *rows))
