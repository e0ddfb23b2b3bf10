"""Two video files, judged like the two arms of a run: what was kept of one run against what was kept of another."""

from collections.abc import Mapping
from pathlib import Path

from validation.errors import UsageError
from validation.media import video
from validation.quality import judge_frames
from validation.verdict import Status, Verdict


def judge_files(reference: Path, candidate: Path, floors: Mapping[str, float]) -> Verdict:
    """The verdict on a candidate's file.

    INCORRECT_FRAMES where a file is missing or damaged, or where rate, count or size differ: nothing is trimmed.
    BELOW_FLOOR where its frames are too far from the reference's.

    Args:
        reference, candidate: ``.npz`` or ``.mkv``, which are lossless; of an ``.mp4`` the encoder's loss is judged too.
        floors: as in `judge_frames`.

    Raises:
        UsageError: another kind of file, or frames smaller than SSIM's window.
    """
    paths = {"reference": reference, "candidate": candidate}
    for arm, path in paths.items():
        if path.suffix not in video.SUFFIXES:
            raise UsageError(f"{arm}: {path} ends in {path.suffix!r}, expected one of: {', '.join(video.SUFFIXES)}")
    try:
        frames = {arm: video.read_video(path) for arm, path in paths.items()}
        rates = {arm: video.read_rate(path) for arm, path in paths.items()}
    except video.VideoError as error:
        return Verdict(Status.INCORRECT_FRAMES, "frames", str(error))
    if rates["candidate"] != rates["reference"]:
        reason = f"candidate has {rates['candidate']:g} frames a second, expected {rates['reference']:g}"
        return Verdict(Status.INCORRECT_FRAMES, "frames", reason)
    try:
        return judge_frames(frames["reference"], frames["candidate"], floors, 255.0)
    except ValueError as error:
        raise UsageError(f"reference: {reference}: {error}") from error
