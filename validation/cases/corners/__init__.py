"""The declared corners: a sweep must reach all of them before it may call an op checked.

A corner has a name, the choices that force it, and a test on the finished case. The test reads shapes and
strides, not the choices: a corner that a strategy no longer reaches fails the run.
"""

from validation.cases.case import Case
from validation.cases.corners.corner import Corner, all_rows
from validation.cases.corners.heads import qk_corners, rotary_corners
from validation.cases.corners.layouts import layout_corners, shared_corners
from validation.cases.corners.modulation import (
    affine_corners,
    modulation_corners,
    partial_corners,
    same_form_corners,
)
from validation.cases.corners.paths import head_path_corners, path_corners
from validation.cases.corners.regimes import type_corners
from validation.cases.corners.sizes import far_corners, most_rows_corner, size_corners, width_corners
from validation.cases.signature import Signature

__all__ = ["Corner", "all_rows", "corners_of", "declared_corners", "out_of_reach"]


def declared_corners(signature: Signature, *, bfloat16: bool = True, gpu: bool = False) -> tuple[Corner, ...]:
    """All corners of an op; with gpu, also those of `out_of_reach` without one."""
    corners = [*type_corners(signature, bfloat16), *size_corners(signature), *width_corners(signature)]
    for name in signature.modulations:
        corners += modulation_corners(name, bfloat16)
    if signature.modulations:
        corners += same_form_corners(signature) + partial_corners(signature)
    if signature.family in ("norm", "modulated"):
        corners += path_corners(signature)
    if "weight" in signature:
        corners += affine_corners(signature)
    corners += layout_corners(signature)
    if signature.family == "qk":
        corners += qk_corners(signature)
    if "cos" in signature:
        corners += rotary_corners(signature)
    if signature.family in ("qk", "rotary", "split_rotary"):
        corners += head_path_corners(signature)
    corners += shared_corners(signature) + far_corners(signature)
    return (*corners, *([most_rows_corner(signature)] if gpu else ()))


def out_of_reach(signature: Signature, *, gpu: bool = False) -> tuple[Corner, ...]:
    """The corners that `declared_corners` leaves out because the device has no time for them."""
    return () if gpu else (most_rows_corner(signature),)


def corners_of(case: Case, corners: tuple[Corner, ...]) -> list[str]:
    """Names of the corners that a case is in."""
    return [corner.name for corner in corners if corner.reached(case)]
