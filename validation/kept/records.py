"""The results of a call as a run folder, from which `validation.report` makes its page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from validation.kept.floors import Floors
from validation.kept.judge import Result
from validation.kept.kinds import Clip, Frames, Videos
from validation.media.video import write_video
from validation.options import repeat_line
from validation.record import Level, Record, Run
from validation.samples.rung import Player


def keep(run: Run, results: Sequence[Result], candidate: Path, floors: Floors) -> None:
    """Add a record for each pair; the frames of both sides are copied into the folder, for the report to show.

    Args:
        run: a new run folder.
        results: of the pairs.
        candidate: as it was given; its name stands for the op set.
        floors: as given, for the repeat lines.

    Raises:
        UsageError: the folder cannot be written.
    """
    for n, result in enumerate(results):
        run.add(_record(run.folder, f"artifacts/{n}", result, candidate.name, floors))


def _record(folder: Path, place: str, result: Result, op_set: str, floors: Floors) -> Record:
    pair, verdict = result.pair, result.verdict
    subject = pair.name or str(pair.reference)
    second = [str(path / pair.name) if pair.name else str(path) for path in floors.second]
    repeat = repeat_line(
        "compare", str(pair.reference), str(pair.candidate), floors=floors.floors, second_reference=second or None
    )
    lines = [f"{subject}  {op_set}  {verdict.status}", verdict.reason, *(one.reason for one in result.findings)]
    both = pair.reference is not None and pair.candidate is not None
    artifacts, players = _frames(folder, place, result) if both else ({}, [])
    rung = pair.kind.rung
    return Record(
        level=Level.SAMPLE,
        subject=subject,
        op_set=op_set,
        status=verdict.status,
        check=verdict.check,
        reason=verdict.reason,
        tier=verdict.tier,
        case={"reference": str(pair.reference), "candidate": str(pair.candidate), "kind": pair.kind.name},
        numbers=dict(verdict.numbers),
        series=dict(verdict.series),
        artifacts=artifacts,
        message="\n".join([*lines, f"repeat: {repeat}"]) if verdict.status.failed else "",
        repro=repeat if both else "",
        measures=[
            {"name": m.name, "label": m.label, "unit": m.unit, "better": m.better, "rung": rung.name}
            for m in rung.measures
            if m.name in verdict.numbers
        ],
        players=[dataclasses.asdict(player) for player in players],
    )


def _frames(folder: Path, place: str, result: Result) -> tuple[dict[str, str], list[Player]]:
    """Copies of both sides' frames by role, and how they are shown; empty where the two have no frames to show."""
    pair, numbers = result.pair, result.verdict.numbers
    if not isinstance(pair.kind, Videos) or not (numbers or result.verdict.tier):
        return {}, []
    artifacts, rate = {}, 1.0
    for side, path in (("reference", pair.reference), ("candidate", pair.candidate)):
        assert path is not None
        clip: Clip = pair.kind.read(path)
        rate = clip.rate or rate
        artifacts[f"{side}_frames"] = f"{place}/{side}.npz"
        write_video(folder / artifacts[f"{side}_frames"], _shown(clip.frames), max(1, round(rate)))
    worst = numbers.get("worst_frame")
    return artifacts, [Player("frames", "frame", rate, worst=worst if isinstance(worst, int) else None)]


def _shown(frames: Frames) -> Frames:
    """RGB: grey three times, and alpha left out."""
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames[..., :3]
