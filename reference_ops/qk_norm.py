"""RMSNorm of the queries and the keys."""

from torch import Tensor

from reference_ops.contract import check_inplace, check_qk
from reference_ops.rms_norm import float32_rms_norm, input_rms_norm


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
    """`rms_norm` of q and of k, each over its last dimension.

    Args:
        q, k: ``[..., head_dim]``, float32, float16, bfloat16 (or float64: the truth); the leading shapes
            and the dtypes of the two may differ.
        q_weight, k_weight: ``[head_dim]`` of any of those dtypes, or None.
        eps: added to the mean square, inside the square root.
        casting_mode: as in `rms_norm`.
        inplace: write the results into q and k, whatever their strides, and return those tensors. Views of
            one packed buffer are fine if they interleave without sharing an element (the exact rule:
            `reference_ops.contract.may_overlap`); q and k that overlap are refused.

    Returns:
        (q, k) normalised, each of its input's shape and dtype.

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is expected.
        NotImplementedError: an argument requires grad while grad mode is on.
    """
    check_qk("qk_norm", q, k, q_weight, k_weight, eps, casting_mode, inplace, rank=None, float64=True)
    if inplace:
        check_inplace("qk_norm", {"q": q, "k": k}, {"q_weight": q_weight, "k_weight": k_weight})
    norm = float32_rms_norm if casting_mode == "float32" else input_rms_norm
    q_out, k_out = norm(q, q_weight, eps).to(q.dtype), norm(k, k_weight, eps).to(k.dtype)
    return (q.copy_(q_out), k.copy_(k_out)) if inplace else (q_out, k_out)
