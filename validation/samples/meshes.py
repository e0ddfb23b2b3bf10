"""The rung of any model that makes a surface, and of two mesh files."""

import dataclasses
import math
from typing import Any

from validation.media import shape_metrics
from validation.samples.rung import Measure, Rung
from validation.verdict import Numbers, Series


class Mesh(Rung):
    """The surface: distances from points of each mesh to the other, volume, and whether it is closed."""

    name = "mesh"
    stage = "mesh"
    measures = (
        Measure("mesh_candidate_rms", "points to the other surface, RMS", "d", "low"),
        Measure("mesh_candidate_max", "points to the other surface, greatest", "d", "low"),
        Measure("mesh_reference_rms", "and back, RMS", "d", "low"),
        Measure("mesh_reference_max", "and back, greatest", "d", "low"),
        Measure("mesh_chamfer", "Chamfer, normalised", "d²", "low"),
        Measure("mesh_volume_change", "volume, change", "", "low"),
    )

    def compare(self, reference: Any, candidate: Any) -> tuple[Numbers, Series]:
        """See `shape_metrics.compare_meshes`."""
        meshes = shape_metrics.compare_meshes(reference, candidate)
        numbers: Numbers = {f"mesh_{name}": value for name, value in dataclasses.asdict(meshes).items()}
        volume, volume_candidate = meshes.volume_reference, meshes.volume_candidate
        numbers["mesh_volume_change"] = abs(volume_candidate - volume) / abs(volume) if volume else math.inf
        return numbers, {}

    def demands(self, numbers: Numbers) -> list[str]:
        """An open mesh is wrong, regardless of the gates, if the reference's is closed."""
        opened = numbers["mesh_watertight_reference"] and not numbers["mesh_watertight_candidate"]
        return ["the mesh is not watertight, as the reference is"] if opened else []

    def words(self, numbers: Numbers) -> str:
        """The RMS distance."""
        return f"surface {numbers['mesh_candidate_rms']:.2g} of the diagonal away (RMS)"
