"""PSNR and SSIM of a clip: `validation.media.metrics` beside scikit-image, and whether the numbers agree.

    python benchmarks/ssim.py [--frames N] [--rounds N] [--json FILE]

The clip is 832 x 480 in uint8 and in float32 (as a VAE returns it). Arms, in another order in each round:

    ours            `compare`: PSNR, SSIM, worst tile and temporal difference, on all cores of this process
    scikit-image    its PSNR and SSIM of one frame after another, as it is used, on one core; it computes in float64
                    for uint8 frames, in float32 for float32 frames
    in float64      the same for float32 frames that are converted to float64 first, in which ours computes
    on all cores    scikit-image as it is used, frames spread over as many threads as there are cores

Prints median seconds, the ratio to ours with its range over the rounds, and processor time, which changes little if
another core is busy with other things. Ratios are taken within a round; the machine's load is recorded. Under
`taskset -c 0` every arm has one core, which compares the arithmetic without the cores that ours takes by itself.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from validation.device import select
from validation.media.metrics import Frames, compare
from validation.record import Environment

HEIGHT, WIDTH = 480, 832


def clip(frames: int, dtype: type[np.generic]) -> tuple[Frames, Frames, float]:
    """A moving pattern with noise, the same with a little more noise, and their data range."""
    data_range = 255.0 if dtype is np.uint8 else 1.0
    generator = np.random.default_rng(0)
    t, y, x = (np.arange(size, dtype=np.float32) for size in (frames, HEIGHT, WIDTH))
    made = []
    for noise in (0.02, 0.03):
        video = np.empty((frames, HEIGHT, WIDTH, 3), dtype=dtype)
        for i in range(frames):
            wave = 0.5 + 0.4 * np.sin(0.05 * x + 0.03 * y[:, None] + 0.2 * t[i])
            frame = wave[..., None] + noise * generator.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32)
            video[i] = (frame.clip(0, 1) * data_range).astype(dtype)
        made.append(video)
    return made[0], made[1], data_range


def scikit_image(reference: Frames, candidate: Frames, data_range: float) -> tuple[float, float]:
    """scikit-image's PSNR and SSIM of one frame."""
    similarity = structural_similarity(
        reference,
        candidate,
        data_range=data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(peak_signal_noise_ratio(reference, candidate, data_range=data_range)), float(similarity)


def arms(reference: Frames, candidate: Frames, data_range: float) -> dict[str, Callable[[], list[float]]]:
    """Calls by name; each returns SSIM frame by frame."""
    pairs = list(zip(reference, candidate, strict=True))

    def spread() -> list[float]:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return [s for _, s in pool.map(lambda pair: scikit_image(pair[0], pair[1], data_range), pairs)]

    found: dict[str, Callable[[], list[float]]] = {
        "ours": lambda: compare(reference, candidate, data_range).ssim_per_frame,
        "scikit-image": lambda: [scikit_image(x, y, data_range)[1] for x, y in pairs],
        "scikit-image on all cores": spread,
    }
    if reference.dtype == np.float32:
        found["scikit-image in float64"] = lambda: [
            scikit_image(x.astype(np.float64), y.astype(np.float64), data_range)[1] for x, y in pairs
        ]
    return found


def measure(frames: int, rounds: int, dtype: type[np.generic]) -> dict[str, Any]:
    """Time every arm in every round, after a warm-up on two frames."""
    reference, candidate, data_range = clip(frames, dtype)
    for call in arms(reference[:2], candidate[:2], data_range).values():
        call()
    calls = arms(reference, candidate, data_range)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    similarity: dict[str, list[float]] = {}
    for n in range(rounds):
        for name in list(calls)[:: 1 if n % 2 else -1]:
            wall, own = time.perf_counter(), time.process_time()
            similarity[name] = calls[name]()
            seconds[name].append(time.perf_counter() - wall)
            cpu[name].append(time.process_time() - own)
    result: dict[str, Any] = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["ours"], strict=True)]
        result[name] = {
            "seconds": times,
            "cpu_seconds": cpu[name],
            "median_seconds": statistics.median(times),
            "ratio_to_ours": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "cpu_ratio_to_ours": statistics.median(cpu[name]) / statistics.median(cpu["ours"]),
            "largest_ssim_difference": float(np.abs(np.subtract(similarity[name], similarity["ours"])).max()),
        }
    return result


def main() -> None:
    """Run, print, and write the JSON file where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = select(gpu=False)
    environment = dataclasses.asdict(Environment.capture(device=device.name, seed=0, profile=""))
    environment |= {package: version(package) for package in ("scikit-image", "scipy", "numpy")}
    result: dict[str, Any] = {
        "environment": environment,
        "clip": [arguments.frames, HEIGHT, WIDTH, 3],
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg(),
    }
    for dtype in (np.uint8, np.float32):
        result[dtype.__name__] = measured = measure(arguments.frames, arguments.rounds, dtype)
        size = f"{arguments.frames} frames of {WIDTH} x {HEIGHT}"
        print(f"{dtype.__name__}: {size}, {arguments.rounds} rounds, {result['cores']} cores")
        for name, arm in measured.items():
            low, high = arm["ratio_range"]
            ratio = f"{arm['ratio_to_ours']:5.1f} x ours ({low:.1f} to {high:.1f})"
            print(
                f"  {name:26}{arm['median_seconds']:7.2f} s {ratio}, processor"
                f" {statistics.median(arm['cpu_seconds']):.2f} s = {arm['cpu_ratio_to_ours']:.1f} x,"
                f" SSIM within {arm['largest_ssim_difference']:.1e}"
            )
    result["load_after"] = os.getloadavg()
    print(
        "load averages before and after:", *(f"{load:.2f}" for load in (*result["load_before"], *result["load_after"]))
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
