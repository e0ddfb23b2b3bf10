"""The field of a shape, and the error for an invalid shape.

A field is float32 ``[n, n, n]``, indices x, y, z, over the cube of `validation.media.grid`; above 0 is
inside the shape.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]


class ShapeError(Exception):
    """A sampled shape is invalid, and nothing further can be made from it.

    Attributes:
        status: name of the record's status: MISSING_LATENTS, INCORRECT_NONFINITE, NO_SURFACE or DEGENERATE_MESH.
        check: the rung where it was found: ``latents``, ``field`` or ``mesh``.
        numbers: findings by name, for `Record.numbers`.
    """

    def __init__(self, status: str, check: str, reason: str, numbers: Mapping[str, float | int]) -> None:
        super().__init__(reason)
        self.status, self.check, self.numbers = status, check, dict(numbers)
