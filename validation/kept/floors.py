"""Where floors come from: a file, an embedded checkpoint, or a second right sample of the reference."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation.errors import UsageError
from validation.files import FIXTURES, read_json
from validation.kept.kinds import KINDS, FileError, Kind
from validation.samples.gates import SECTIONS, Gates
from validation.samples.rung import SampleError

TIMES = 8.0
"""How many times further from the reference than a second right sample a candidate may be, in squared error (9 dB), in
1 - SSIM or in a squared length; in a length or a share by the root of it.

One right sample's distance is one draw: another that is as right lies further away in half of all cases. Each of 8
right op sets' videos of 6 prompts of the embedded Helios was judged with floors from each other's: 60 of 336 failed by
twice the squared error, 14 by four times, 5 (1.5 %) by eight times; by eight times the worst of two others 2 of 1008
failed, of three others none of 1680. With eight times and one second reference, all 240 verdicts on videos of the five
planted faults that change the picture failed, and 1 of 192 on those of the four whose rounding alone is wrong, which a
video does not show.
"""

# Differences of two sums: by chance they can be 0 for a second sample, and would then be no floor at all.
_BY_CHANCE = ("flicker_change", "mesh_volume_change")

HOW = "--floors or --second-reference"


def checkpoints() -> tuple[str, ...]:
    """The embedded checkpoints for which floors were measured."""
    names = (path.stem for path in (FIXTURES / "tolerances").glob("*.json"))
    return tuple(sorted(name for name in names if (FIXTURES / "checkpoints" / name).is_dir()))


@dataclasses.dataclass(frozen=True)
class Floors:
    """Bounds for all pairs of a call.

    Attributes:
        floors: a file of bounds, or the name of an embedded checkpoint; None where there are none.
        second: further right samples: files, or folders with files of the same names as the reference's.
    """

    floors: str | None = None
    second: Sequence[Path] = ()

    def require(self, kinds: Sequence[Kind]) -> None:
        """Read a file of bounds for pairs of these kinds, before any pair is judged.

        Raises:
            UsageError: there is no such file, or it bounds nothing of these kinds.
        """
        if self.floors is not None and self.second:
            raise UsageError("--second-reference: given beside --floors, expected one of the two")
        if self.floors is not None:
            read = [self._read(kind) for kind in kinds]
            if not any(isinstance(gates, Gates) for gates in read):
                some = ", ".join(measure.name for kind in kinds for measure in kind.rung.measures)
                raise UsageError(f"--floors: {self.floors} has no bound on these files, expected some of: {some}")

    def of(self, kind: Kind, name: str, reference: Any) -> Gates | str:
        """The bounds of a pair, or in words why there are none.

        Args:
            kind: of the pair's files. name: of the pair below the two folders, "" for two files.
            reference: what was read.

        Raises:
            UsageError: a second sample is missing, damaged, or no right sample.
        """
        if self.floors is not None:
            return self._read(kind)
        if not self.second:
            return f"not judged against a measured floor, expected {HOW}"
        rows = [self._distances(kind, folder / name if name else folder, reference) for folder in self.second]
        rows = [row for row in rows if row]
        if not rows:
            return "not judged against a measured floor: the second reference is equal to the first and measures none"
        ceilings, floors = {}, {}
        for measure in kind.rung.measures:
            values = [value for row in rows if (value := row.get(measure.name)) is not None and math.isfinite(value)]
            if measure.name in _BY_CHANCE or not values:
                continue
            if measure.better == "low":
                ceilings[measure.name] = (TIMES if measure.unit == "d²" else math.sqrt(TIMES)) * max(values)
            elif measure.unit == "dB":
                floors[measure.name] = min(values) - 10 * math.log10(TIMES)
            else:
                floors[measure.name] = 1 - TIMES * (1 - min(values))
        if not (ceilings or floors):
            return "not judged against a measured floor: no distance of the second reference is a finite number"
        return Gates("second reference", ceilings, floors)

    def _distances(self, kind: Kind, path: Path, reference: Any) -> dict[str, float]:
        """The measures of a second sample against the reference; empty where it is equal to the bit."""
        try:
            second = kind.read(path)
            kind.require_same_form(reference, second)
            if kind.same_bits(reference, second):
                return {}
            numbers, _ = kind.rung.compare(reference, second)
        except (FileError, SampleError, ValueError) as error:
            raise UsageError(f"--second-reference: {path}: {error}") from error
        if found := kind.findings(reference, second):
            raise UsageError(f"--second-reference: {path} is {found[0].reason}, expected a right sample")
        return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}

    def _read(self, kind: Kind) -> Gates | str:
        """The bounds of a file on one kind, or in words that it has none."""
        text = str(self.floors)
        known = checkpoints()
        path = FIXTURES / "tolerances" / f"{text}.json" if text in known else Path(text)
        if not path.is_file():
            raise UsageError(f"--floors: no file {text}, expected a JSON file of bounds or one of: {', '.join(known)}")
        try:
            names = _names(path)
            # A checkpoint's floors are on more than files hold, such as a shape's field.
            everything = [measure.name for one in KINDS for measure in one.rung.measures]
            if text not in known and (odd := [name for name in names if name not in everything]):
                raise UsageError(f"{path}: unknown name {odd[0]!r}, expected some of: {', '.join(everything)}")
            if not any(measure.name in names for measure in kind.rung.measures):
                return f"not judged against a measured floor: {text} has none for {kind.name}"
            return Gates.read(path, kind.rung.measures, others=True)
        except UsageError as error:
            raise UsageError(f"--floors: {error}") from error


def _names(path: Path) -> list[str]:
    """The names that a file of bounds has; a section that is no object has none, which `Gates.read` says."""
    content = read_json(path)
    sections = [content.get(section, {}) for section in SECTIONS]
    return [name for section in sections if isinstance(section, dict) for name in section]
