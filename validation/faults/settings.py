"""Ops that heed, or leave behind, settings of the process that calls them."""

import random
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from validation.faults.fault import fault
from validation.faults.right import RightOps
from validation.verdict import Status

OTHER_BITS, LEFT = Status.NOT_REPRODUCIBLE, Status.STATE_CHANGED


@fault(
    "accumulates in the default dtype", "layer_norm", "the mean square is summed in torch's default dtype", OTHER_BITS
)
class SumsInTheDefaultDtype(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        return super().mean_square(deviation.to(torch.get_default_dtype())).float()


@fault("eps in the default dtype", "rms_norm_scale_shift", "eps is a tensor of torch's default dtype", OTHER_BITS)
class EpsInTheDefaultDtype(RightOps):
    def inverse_root(self, mean_square: Tensor, eps: float) -> Tensor:
        return super().inverse_root(mean_square, float(torch.tensor(eps)))


@fault(
    "sums by a matrix product",
    "rms_norm",
    "the mean square is a matrix product, in bfloat16 under autocast",
    OTHER_BITS,
)
class SumsByMatrixProduct(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        width = deviation.shape[-1]
        return functional.linear(deviation * deviation, torch.ones(1, width)).float() / width


@fault(
    "a version counter read",
    "residual_gate_add",
    "x._version is a key of its cache: in inference mode there is none",
    OTHER_BITS,
)
class VersionCounterRead(RightOps):
    def residual_gate_add(self, residual: Tensor, x: Tensor, *rest: Any, **flags: Any) -> Tensor:
        hash((x.data_ptr(), x._version))
        return super().residual_gate_add(residual, x, *rest, **flags)


@fault(
    "prepared in the first thread",
    "scale_shift",
    "its workspace is a threading.local of the importing thread",
    OTHER_BITS,
)
class PreparedInTheFirstThread(RightOps):
    def __init__(self) -> None:
        self.own = threading.local()
        self.own.workspace = {}

    def scale_shift(self, x: Tensor, *rest: Any, **flags: Any) -> Tensor:
        self.own.workspace[x.dtype] = x.shape
        return super().scale_shift(x, *rest, **flags)


@fault(
    "another kernel when deterministic",
    "qk_norm",
    "with deterministic algorithms the root is that of a bfloat16 sum",
    OTHER_BITS,
)
class AnotherKernelWhenDeterministic(RightOps):
    def mean_square(self, deviation: Tensor) -> Tensor:
        mean = super().mean_square(deviation)
        return mean.bfloat16().float() if torch.are_deterministic_algorithms_enabled() else mean


@fault(
    "matmul precision left behind",
    "qk_norm_rope",
    "torch.set_float32_matmul_precision('high') for itself, and for all",
    LEFT,
)
class MatmulPrecisionLeftBehind(RightOps):
    def qk_norm_rope(self, *args: Any, **kwargs: Any) -> Any:
        torch.set_float32_matmul_precision("high")
        return super().qk_norm_rope(*args, **kwargs)


@fault(
    "TF32 left on",
    "rotary_embedding",
    "TF32 of matrix products by the newer setting, which the older cannot read",
    LEFT,
)
class Tf32LeftOn(RightOps):
    def rotary_embedding(self, *args: Any, **kwargs: Any) -> Any:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return super().rotary_embedding(*args, **kwargs)


@fault("cudnn.benchmark left on", "split_rotary_embedding", "torch.backends.cudnn.benchmark stays on", LEFT)
class CudnnBenchmarkLeftOn(RightOps):
    def split_rotary_embedding(self, *args: Any, **kwargs: Any) -> Any:
        torch.backends.cudnn.benchmark = True
        return super().split_rotary_embedding(*args, **kwargs)


@fault("grad mode left on", "layer_norm_scale_shift", "torch.set_grad_enabled(True) is never taken back", LEFT)
class GradModeLeftOn(RightOps):
    def layer_norm_scale_shift(self, *args: Any, **kwargs: Any) -> Any:
        y = super().layer_norm_scale_shift(*args, **kwargs)
        torch.set_grad_enabled(True)
        return y


@fault("autocast's dtype left behind", "rms_norm", "autocast computes in float16 from then on", LEFT)
class AutocastDtypeLeftBehind(RightOps):
    def rms_norm(self, *args: Any, **kwargs: Any) -> Any:
        torch.set_autocast_dtype("cpu", torch.float16)
        return super().rms_norm(*args, **kwargs)


@fault(
    "a random number drawn",
    "residual_gate_add",
    "it takes a number of torch's default generator, which others miss",
    LEFT,
)
class RandomNumberDrawn(RightOps):
    def residual_gate_add(self, *args: Any, **kwargs: Any) -> Any:
        torch.rand(())
        return super().residual_gate_add(*args, **kwargs)


@fault("NumPy seeded", "layer_norm", "np.random.seed(0) for a table of its own", LEFT)
class NumpySeeded(RightOps):
    def layer_norm(self, *args: Any, **kwargs: Any) -> Any:
        np.random.seed(0)
        return super().layer_norm(*args, **kwargs)


@fault("a number of Python's generator drawn", "scale_shift", "random.random() chooses among kernels", LEFT)
class PythonsNumberDrawn(RightOps):
    def scale_shift(self, *args: Any, **kwargs: Any) -> Any:
        random.random()
        return super().scale_shift(*args, **kwargs)
