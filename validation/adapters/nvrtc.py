"""NVIDIA's runtime compiler: CUDA C++ to PTX and machine code, without a GPU (``pip install nvidia-cuda-nvrtc``).

``cuda_bf16.h`` and the other headers of the CUDA runtime come from Triton's wheel. Those of CCCL (``cuda/std``) do not:
name their folder by ``--include-path``.
"""

import ctypes
import dataclasses
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from validation.device.private import triton_module
from validation.errors import UsageError

# Both are tried: CUDA 13's, which a torch of CUDA 13 brings, and CUDA 12's.
WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        ptx: of its module. cubin: the module's machine code, by the same compiler.
        entry: the kernel's name there.
        compiler: ``NVRTC 13.5``.
    """

    ptx: str
    cubin: bytes = dataclasses.field(repr=False)
    entry: str
    compiler: str


def library() -> Path:
    """The file of the compiler.

    Raises:
        UsageError: none of the wheels is installed.
    """
    for wheel in WHEELS:
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            # libnvrtc.alt is the same compiler with a larger stack, libnvrtc-builtins its library.
            if file.name.startswith("libnvrtc.so"):
                return Path(str(file.locate()))
    raise UsageError(f"CUDA C++ is compiled by NVRTC, which is not installed: pip install {WHEELS[0]}")


def headers() -> Path:
    """The folder of the CUDA runtime's headers in Triton's wheel."""
    return Path(triton_module("triton.backends.nvidia").__file__).parent / "include"


@cache
def _nvrtc() -> tuple[Any, str]:
    """The loaded library, and its name with its version."""
    nvrtc = ctypes.CDLL(str(library()))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return nvrtc, f"NVRTC {major.value}.{minor.value}"


@cache
def compiled(source: str, name: str, target: str, options: tuple[str, ...] = ()) -> Compiled:
    """Compile a kernel; 0.05 to 0.15 s, and once in a process.

    Args:
        source: CUDA C++.
        name: the kernel as C++ names it, ``norm::layer_norm<__nv_bfloat16>``.
        target: ``sm_90`` or another one.
        options: NVRTC's, before ``--gpu-architecture`` and ``-lineinfo``.

    Raises:
        UsageError: NVRTC is not installed, or rejects the source; the message ends with its log.
    """
    nvrtc, compiler = _nvrtc()
    program = ctypes.c_void_p()

    def called(function: str, *arguments: Any) -> None:
        status = getattr(nvrtc, function)(program, *arguments)
        if status:
            log = _text(nvrtc, program, "ProgramLog").strip()
            error = nvrtc.nvrtcGetErrorString(status).decode()
            raise UsageError(f"{compiler}, {name} for {target}: {error}" + (f"\n{log}" if log else ""))

    flags = [*options, f"--gpu-architecture={target}", "-lineinfo", f"--include-path={headers()}"]
    encoded = (ctypes.c_char_p * len(flags))(*map(str.encode, flags))
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    if status:
        raise UsageError(f"{compiler}: {nvrtc.nvrtcGetErrorString(status).decode()}")
    try:
        called("nvrtcAddNameExpression", name.encode())
        called("nvrtcCompileProgram", len(flags), encoded)
        entry = ctypes.c_char_p()
        called("nvrtcGetLoweredName", name.encode(), ctypes.byref(entry))
        assert entry.value is not None
        return Compiled(_text(nvrtc, program, "PTX"), _content(nvrtc, program, "CUBIN"), entry.value.decode(), compiler)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _content(nvrtc: Any, program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, content)
    return content.raw[: size.value]


def _text(nvrtc: Any, program: Any, what: str) -> str:
    return _content(nvrtc, program, what).rstrip(b"\0").decode()
