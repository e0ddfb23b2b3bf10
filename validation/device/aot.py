"""Every kernel of ``fused_ops`` compiled ahead of time, without a GPU, and what came out of the compiler.

What the interpreter cannot see is read here from PTX, cubin and AMDGCN: the width of loads and stores,
registers, spills, roundings, whether subnormals are flushed. The launchers themselves are called, with CPU
tensors of the real models' widths and strides; only Triton's last step, the launch, is left out. So block
sizes and specialisation (which integer is 1 or divisible by 16, which pointer is 16-byte aligned) are those
of a real launch by construction.

Compilation runs in processes of its own: with TRITON_INTERPRET set, ``triton.jit`` gives interpreted
functions, which cannot be compiled.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from validation.cases.case import Case
from validation.cases.tensors import Arguments, keyword_arguments
from validation.judge.verdict import absent

# What triton calls each target: backend, architecture, threads of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}

# Two programs of 8 warps fit on an SM of 65,536 registers; four waves on a SIMD of CDNA 3.
REGISTER_LIMIT = 128

LAYOUTS = ("aligned", "offset", "odd")


@dataclasses.dataclass(frozen=True)
class Width:
    """The widths and dtypes at which a model calls the ops.

    Attributes:
        model: its name.
        heads, head_dim: width is their product.
        dtype: of activations; modulation: of shift, scale and gate.
        casting_mode: that of the model.
    """

    model: str
    heads: int
    head_dim: int
    dtype: torch.dtype
    modulation: torch.dtype
    casting_mode: str


WIDTHS = (
    Width("Helios", 40, 128, torch.bfloat16, torch.float32, "float32"),
    Width("Hunyuan3D-2", 16, 64, torch.float16, torch.float16, "input"),
    Width("FLUX", 24, 128, torch.bfloat16, torch.bfloat16, "input"),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel for one target.

    Attributes:
        op: the op, with its flags where it is called more than once.
        model: whose widths and dtypes.
        layout: ``aligned``; ``offset``: every tensor starts one element into its memory; ``odd``: width and
            head_dim are one less.
        target: a name in `TARGETS`.
        load_bits, store_bits: how many global loads and stores there are of each width in bits.
        registers: a thread's (VGPRs on AMD).
        local_bytes: a thread's local memory (stack, spills; scratch on AMD).
        spilled: VGPRs spilled (AMD; on NVIDIA spills are local_bytes). SGPRs that AMD's compiler parks in
            lanes of a VGPR cost no memory and are not counted.
        shared_bytes: a program's shared memory.
        warps: a program's.
        roundings: conversions from float32 to 16 bits, by instruction.
        fp_fusion: whether the compiler may contract a product and a sum to a fused multiply-add.
        flushes_subnormals: whether float32 subnormals are flushed to zero somewhere.
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

    @property
    def faults(self) -> list[str]:
        """What should not be, in words; empty for a kernel as it should be.

        Every layout: no local memory, only roundings to nearest, subnormals kept. For ``aligned`` besides:
        registers within `REGISTER_LIMIT`; all loads and stores 128 bits wide, but for those of an index.
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
            # One int64 a row and table, where a program has several rows perhaps two at once.
            index = {64} if "IndexedRows" in self.op else set()
            if set(self.load_bits) - index != {128}:
                faults.append(f"loads of {widths_text(self.load_bits)}, expected 128 bits")
            if set(self.store_bits) != {128}:
                faults.append(f"stores of {widths_text(self.store_bits)}, expected 128 bits")
        return faults


def _to_nearest(instruction: str) -> bool:
    return ".rn" in instruction or instruction in ("v_cvt_f16_f32", "v_cvt_pk_bf16_f32", "v_add3_u32 0x7fff")


def widths_text(bits: Mapping[int, int]) -> str:
    """How many accesses there are of each width, the widest first: ``8 x 128 bits, 2 x 32 bits``."""
    return ", ".join(f"{n} x {width} bits" for width, n in sorted(bits.items(), reverse=True)) or "no width"


MODELS = tuple(width.model for width in WIDTHS)


def calls(width: Width, layout: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every op called as the models call it, by label; some in two forms.

    Tensors are uninitialised CPU memory: what is compiled depends on dtypes, shapes, strides and alignment.
    """
    import fused_ops as ops
    from reference_ops import IndexedRows

    # 48 tokens: a multiple of 16, as 11,040 (Helios) and 3072 (Hunyuan3D-2) are.
    B, L, H, offset, odd = 1, 48, width.heads, int(layout == "offset"), int(layout == "odd")
    head_dim = width.head_dim - odd
    D = H * width.head_dim - odd

    def new(*shape: int, dtype: torch.dtype = width.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.empty(count + offset, dtype=dtype)[offset:].view(shape)

    x, residual = new(B, L, D), new(B, L, D)
    row, bias = new(D), new(D)
    # Helios: [B, L, 6, D] sliced; Hunyuan3D-2: [B, 1, 6 * D] in chunks.
    tokens = L if width.model == "Helios" else 1
    shift, scale, gate = new(B, tokens, 6, D, dtype=width.modulation).unbind(2)[:3]
    compact = IndexedRows(new(B, 2, D, dtype=width.modulation), torch.zeros(B, L, dtype=torch.int64))
    q, k = new(B, L, 3, H, head_dim).unbind(2)[:2]
    q_weight, k_weight = new(head_dim), new(head_dim)
    cos, sin = (new(L, head_dim // 2, dtype=torch.float32) for _ in range(2))
    split = new(B, L, H * (head_dim - odd))
    split_cos, split_sin = (new(B, H, L, head_dim // 2, dtype=torch.float32) for _ in range(2))
    mode = {"casting_mode": width.casting_mode}
    norm = (q, k, q_weight, k_weight)

    yield "layer_norm", lambda: ops.layer_norm(x, row, bias)
    yield "rms_norm", lambda: ops.rms_norm(x, row, **mode)
    yield "layer_norm_scale_shift", lambda: ops.layer_norm_scale_shift(x, shift, scale, **mode)
    yield "layer_norm_scale_shift IndexedRows", lambda: ops.layer_norm_scale_shift(x, compact, compact, **mode)
    yield "rms_norm_scale_shift", lambda: ops.rms_norm_scale_shift(x, shift, scale, row, **mode)
    yield (
        "scale_residual_layer_norm_scale_shift",
        lambda: ops.scale_residual_layer_norm_scale_shift(residual, x, gate, shift, scale, **mode),
    )
    yield (
        "scale_residual_rms_norm_scale_shift",
        lambda: ops.scale_residual_rms_norm_scale_shift(residual, x, gate, shift, scale, row, **mode),
    )
    yield "scale_shift", lambda: ops.scale_shift(x, shift, scale, **mode)
    yield "residual_gate_add", lambda: ops.residual_gate_add(residual, x, gate, **mode)
    yield "qk_norm", lambda: ops.qk_norm(*norm, **mode)
    yield "qk_norm inplace", lambda: ops.qk_norm(*norm, **mode, inplace=True)
    yield "rotary_embedding", lambda: ops.rotary_embedding(q, cos, sin)
    yield "rotary_embedding halves", lambda: ops.rotary_embedding(q, cos, sin, interleaved=False)
    yield "split_rotary_embedding", lambda: ops.split_rotary_embedding(split, split_cos, split_sin)
    yield "qk_norm_rope", lambda: ops.qk_norm_rope(*norm, cos, sin, **mode)
    yield (
        "qk_norm_rope halves inplace",
        lambda: ops.qk_norm_rope(*norm, cos, sin, **mode, interleaved=False, inplace=True),
    )


def compile_kernels(
    targets: Sequence[str] = tuple(TARGETS),
    models: Sequence[str] = MODELS,
    layouts: Sequence[str] = LAYOUTS,
    options: Mapping[str, Any] | None = None,
) -> list[Compiled]:
    """Compile every call of `calls`; one process a target, two at a time.

    On one core a kernel takes about 0.25 s where the layout is aligned, up to three times that elsewhere.

    Args:
        targets: names in `TARGETS`.
        models: models in `WIDTHS`.
        layouts: names in `LAYOUTS`.
        options: Triton's compile options in place of the launchers' (``{"enable_fp_fusion": False}``).

    Raises:
        RuntimeError: a kernel did not compile; the message ends with the compiler's.
    """

    request = {"models": [*models], "layouts": [*layouts], "options": {**(options or {})}}
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda target: _compile_elsewhere({"target": target, **request}), targets)
        return [kernel for kernels in found for kernel in kernels]


def compile_cases(target: str, cases: Sequence[Case]) -> list[Compiled]:
    """Compile what each case launches, on uninitialised memory of its size; model and layout are empty.

    Args:
        target: a name in `TARGETS`.
        cases: which launch a kernel.

    Raises:
        RuntimeError: a kernel did not compile; the message ends with the compiler's.
    """
    return _compile_elsewhere({"target": target, "cases": [case.to_json() for case in cases]})


def _compile_elsewhere(request: dict[str, Any]) -> list[Compiled]:
    # A cache of its own: what is read below was compiled now, by this version.
    with tempfile.TemporaryDirectory(prefix="triton-aot-") as cache:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": cache}
        command = [sys.executable, "-m", "validation.device.aot", json.dumps(request)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"compiling for {request['target']} failed: {run.stderr.strip()}")
    return [_from_json(line) for line in run.stdout.splitlines()]


def _from_json(line: str) -> Compiled:
    data = json.loads(line)
    for name in ("load_bits", "store_bits"):
        data[name] = {int(width): n for width, n in data[name].items()}
    return Compiled(**data)


def table(kernels: Sequence[Compiled]) -> str:
    """The kernels as a text table, one a line."""
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


class Driver:
    """Tells Triton to compile for a target where there is no device."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        """The target."""
        return self.target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """The default stream."""
        return 0


def _compile_here(
    target: str,
    models: Sequence[str] = (),
    layouts: Sequence[str] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
    cases: Sequence[str] = (),
) -> Iterator[Compiled]:
    """What is compiled for one target, in this process, which must not have the interpreter on."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from fused_ops import _launch

    driver.set_active(Driver(GPUTarget(*TARGETS[target])))
    _launch.DEVICE_TYPES = ("cpu",)
    launch, compiled = JITFunction.run, []

    def compile_only(self: Any, *arguments: Any, warmup: bool, **keywords: Any) -> None:
        assert not warmup
        compiled.append(launch(self, *arguments, warmup=True, **{**keywords, **options}))

    JITFunction.run = compile_only
    of_widths = (
        (op, width.model, layout, call)
        for width in WIDTHS
        if width.model in models
        for layout in layouts
        for op, call in calls(width, layout)
    )
    of_cases = ((case.op, "", "", _call_of(case)) for case in map(Case.from_json, cases))
    read = _read_amd if target.startswith("gfx") else _read_nvidia
    for op, model, layout, call in (*of_widths, *of_cases):
        call()
        kernel = compiled.pop()
        yield Compiled(
            op=op,
            model=model,
            layout=layout,
            target=target,
            shared_bytes=kernel.metadata.shared,
            warps=kernel.metadata.num_warps,
            fp_fusion=kernel.metadata.enable_fp_fusion,
            **read(kernel.asm),
        )


def _call_of(case: Case) -> Callable[[], Any]:
    import fused_ops

    return lambda: getattr(fused_ops, case.op)(**unwritten(case).kwargs)


def unwritten(case: Case) -> Arguments:
    """The arguments of a case on the CPU; only an index has values, zeros, since ops read them before they launch."""
    sizes: dict[str, int] = {}
    for spec in case.tensors.values():
        sizes[spec.storage] = max(sizes.get(spec.storage, 0), spec.extent)
    memory, tensors = dict[str, Tensor](), dict[str, Tensor]()
    for name, spec in case.tensors.items():
        make = torch.zeros if name.endswith(".index") else torch.empty
        whole = memory.setdefault(spec.storage, make(sizes[spec.storage], dtype=spec.torch_dtype))
        tensors[name] = whole.as_strided(spec.shape, spec.strides, spec.offset)
    kwargs = keyword_arguments(case, tensors)
    return Arguments(kwargs | absent(case, kwargs), tensors, {})


def _count(pattern: str, text: str, bits: Callable[[re.Match[str]], int]) -> dict[int, int]:
    return dict(Counter(bits(match) for match in re.finditer(pattern, text)))


def _read_nvidia(asm: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        usage = resource_usage(Path(cubin.name))
    return {**read_ptx(asm["ptx"]), **usage}


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


def resource_usage(cubin: Path) -> dict[str, int]:
    """Registers and local memory of a cubin, as cuobjdump reads them from it."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if match is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text.strip()[:200]!r}")
    registers, stack, local = map(int, match.groups())
    return {"registers": registers, "local_bytes": stack + local, "spilled": 0}


def _read_amd(asm: Mapping[str, Any]) -> dict[str, Any]:
    return read_amdgcn(asm["amdgcn"])


def read_amdgcn(text: str) -> dict[str, Any]:
    """The same from AMDGCN.

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


if __name__ == "__main__":
    for _kernel in _compile_here(**json.loads(sys.argv[1])):
        print(json.dumps(dataclasses.asdict(_kernel)), flush=True)
