"""Ops in CUDA C++, judged by ``validate parity --ops validation/meta_tests/adapters/cuda_cpp_ops.py --compiled``."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from reference_ops.contract import (
    Modulation,
    check_casting_mode,
    check_inplace,
    check_modulated_norm,
    check_no_grad,
    check_norm,
    check_qk,
    expand_modulation,
)
from validation.adapters import CannotExpress, cuda_cpp

SOURCE = r"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T, int V> struct alignas(sizeof(T) * V) Pack { T at[V]; };

__device__ float wide(float v) { return v; }
__device__ float wide(__half v) { return __half2float(v); }
__device__ float wide(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T> __device__ T narrow(float v) { return v; }
template <> __device__ __half narrow(float v) { return __float2half_rn(v); }
template <> __device__ __nv_bfloat16 narrow(float v) { return __float2bfloat16_rn(v); }

__device__ float warp_sum(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

__device__ float block_sum(float v) {
    __shared__ float partial[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads();  // the sum before has been read
    if (lane == 0) partial[warp] = v;
    __syncthreads();  // all partial sums are there
    return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

// A row a block: read as packs of V elements and a tail of single ones.
template <typename T, typename W, int V>
__global__ void rms_norm(const T* __restrict__ x, const W* __restrict__ weight, T* __restrict__ y, long long stride,
                         int width, float eps, bool input_casting) {
    x += blockIdx.x * stride;
    y += (long long)blockIdx.x * width;
    const int packed = width / V * V;
    float squares = 0.0f;
    for (int i = threadIdx.x * V; i < packed; i += blockDim.x * V) {
        const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(x + i);
        for (int n = 0; n < V; n++) squares += wide(pack.at[n]) * wide(pack.at[n]);
    }
    for (int i = packed + threadIdx.x; i < width; i += blockDim.x) squares += wide(x[i]) * wide(x[i]);
    const float rstd = rsqrtf(block_sum(squares) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float value = wide(x[i]) * rstd;
        if (input_casting) value = wide(narrow<T>(value));
        y[i] = narrow<T>(weight == nullptr ? value : value * wide(weight[i]));
    }
}

// A row a block, kept in shared memory as float32; modulations are float32, a row each.
template <typename T, typename W>
__global__ void layer_norm_scale_shift(const T* __restrict__ x, const float* __restrict__ shift,
                                       const float* __restrict__ scale, const W* __restrict__ weight,
                                       const W* __restrict__ bias, T* __restrict__ y, int width, float eps) {
    extern __shared__ float row[];
    x += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    shift += (long long)blockIdx.x * width;
    scale += (long long)blockIdx.x * width;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] = wide(x[i]);
    const float mean = block_sum(sum) / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    const float deviation = sqrtf(block_sum(squares) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float value = (row[i] - mean) / deviation;
        if (weight != nullptr) value *= wide(weight[i]);
        if (bias != nullptr) value += wide(bias[i]);
        y[i] = narrow<T>(value * (1.0f + scale[i]) + shift[i]);
    }
}

// A head a warp, and blockDim.y of them a block.
template <typename T, typename W>
__global__ void head_norm(const T* x, const W* __restrict__ weight, T* y, int heads, int width, float eps,
                          bool input_casting) {
    const int head = blockIdx.x * blockDim.y + threadIdx.y;
    if (head >= heads) return;
    x += (long long)head * width;
    y += (long long)head * width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += 32) squares += wide(x[i]) * wide(x[i]);
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / width + eps);
    for (int i = threadIdx.x; i < width; i += 32) {
        float value = wide(x[i]) * rstd;
        if (input_casting) value = wide(narrow<T>(value));
        y[i] = narrow<T>(weight == nullptr ? value : value * wide(weight[i]));
    }
}
"""

TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
# Of shared memory of a block, in float32.
WIDEST = 200 * 256


@cache
def kernel(name: str, *arguments: Any) -> cuda_cpp.Kernel:
    """An instance of a template, for dtypes and numbers."""
    return cuda_cpp.kernel(SOURCE, f"{name}<{', '.join(TYPES.get(one, str(one)) for one in arguments)}>")


def threads_for(width: int) -> int:
    """A row of a few elements takes a warp, a long one eight."""
    return min(256, -(-width // 32) * 32)


def dtype_of(weight: Tensor | None) -> torch.dtype:
    return torch.float32 if weight is None else weight.dtype


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, casting_mode: str = "float32") -> Tensor:
    check_no_grad("rms_norm", x=x, weight=weight)
    check_norm("rms_norm", x, {"weight": weight}, eps, float64=False)
    check_casting_mode("rms_norm", casting_mode)
    D = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.reshape(-1, D) if x.stride(-1) == 1 else x.contiguous().view(-1, D)
    weight = None if weight is None else weight.contiguous()
    V = 16 // x.element_size()
    if rows.data_ptr() % 16 or rows.stride(0) % V:
        V = 1
    launch = kernel("rms_norm", x.dtype, dtype_of(weight), V)[len(rows), threads_for(D)]
    launch(rows, weight, y, rows.stride(0), D, eps, casting_mode == "input")
    return y


def layer_norm_scale_shift(
    x: Tensor,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
) -> Tensor:
    op, modulations = "layer_norm_scale_shift", {"shift": shift, "scale": scale}
    check_no_grad(op, x=x, weight=weight, bias=bias, **modulations)
    check_modulated_norm(op, x, modulations, {"weight": weight, "bias": bias}, eps, casting_mode, float64=False)
    D = x.shape[-1]
    if casting_mode != "float32":
        raise CannotExpress("casting_mode='input'")
    if D > WIDEST:
        raise CannotExpress(f"D = {D}: a row does not fit shared memory")
    if dtype_of(weight) != dtype_of(bias) and None not in (weight, bias):
        raise CannotExpress("weight and bias of two dtypes")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rows = x.contiguous()
    expanded = [expand_modulation(m, x).float().expand(x.shape).contiguous() for m in (shift, scale)]
    affine = [None if one is None else one.contiguous() for one in (weight, bias)]
    launch = kernel("layer_norm_scale_shift", x.dtype, dtype_of(bias if weight is None else weight))
    launch[x.numel() // D, threads_for(D), 4 * D](rows, *expanded, *affine, y, D, eps)
    return y


def qk_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float = 1e-6,
    *,
    casting_mode: str = "float32",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    check_no_grad("qk_norm", q=q, k=k, q_weight=q_weight, k_weight=k_weight)
    check_qk("qk_norm", q, k, q_weight, k_weight, eps, casting_mode, inplace, rank=None, float64=False)
    if inplace:
        check_inplace("qk_norm", {"q": q, "k": k}, {"q_weight": q_weight, "k_weight": k_weight})

    def normalised(x: Tensor, weight: Tensor | None) -> Tensor:
        rows, D = x.contiguous(), x.shape[-1]
        y = rows if inplace else torch.empty_like(rows)
        if y.numel():
            heads = y.numel() // D
            launch = kernel("head_norm", x.dtype, dtype_of(weight))[-(-heads // 4), (32, 4)]
            launch(rows, None if weight is None else weight.contiguous(), y, heads, D, eps, casting_mode == "input")
        return x.copy_(y) if inplace and y is not x else y

    return normalised(q, q_weight), normalised(k, k_weight)
