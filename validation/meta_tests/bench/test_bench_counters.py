"""``validate bench ops`` without a GPU: counters of every arm, their table, picture and JSON, and what is worse."""

import dataclasses
import json
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

import pytest

from validation import cli
from validation.bench import counters, selection
from validation.bench.ops_results import OURS
from validation.compiled.counters.gpus import GPUS
from validation.errors import UsageError

KEPT = Path(__file__).parents[3] / "benchmarks" / "counters.json"
NARROW = ["--op", "scale_shift", "--model", "shapes"]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object], str]:
    """What the command prints, its JSON and its picture."""
    folder = tmp_path_factory.mktemp("counters")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert cli.main(["bench", "ops", *NARROW, "--out", "out"]) == cli.PASSED
    (data,), (picture,) = (folder / "out").glob("*.json"), (folder / "out").glob("*.svg")
    return "\n".join(printed), json.loads(data.read_text()), picture.read_text()


def test_the_table_has_every_arm_and_says_that_its_times_are_bounds(
    command: tuple[str, dict[str, object], str],
) -> None:
    lines = command[0].splitlines()
    start = next(n for n, line in enumerate(lines) if "H200 bound us" in line)
    header, *rows = (line for line in lines[start:] if line.startswith("  "))
    assert header.split()[-12:] == ["H200", "bound", "us", "by", "H200", "%", "A100", "%", "H100", "%", "B200", "%"]
    ours = [line for line in rows if OURS in line]
    assert len(ours) == len(selection.chosen(["scale_shift"], ["shapes"]))
    assert sum("reference_ops" in line for line in rows) == len(ours)
    # One kernel, every byte once, and with a row of bfloat16 modulation no sector twice.
    assert ours[0].split()[-14:-11] == ["1", "1.00", "1.00"]
    assert "Counted, not timed; nothing of it was compared with hardware." in command[0]
    assert "liger: the library has no such op" in command[0]
    assert not any(" us" in line and "bound" not in line for line in lines[start:])


def test_the_json_holds_counters_bounds_and_the_rates_behind_them(command: tuple[str, dict[str, object], str]) -> None:
    data = command[1]
    assert [gpu["name"] for gpu in data["gpus"]] == ["A100", "H100", "H200", "B200"]  # type: ignore[attr-defined]
    for row in data["rows"]:  # type: ignore[attr-defined]
        ours = row["arms"][OURS]
        assert set(ours["launches"]) == {"sm_80", "sm_90", "sm_100"}
        (launch,) = ours["launches"]["sm_90"]
        assert launch["read_bytes"] + launch["written_bytes"] == row["bytes_read"] + row["bytes_written"]
        for bound in ours["bounds"].values():
            assert bound["seconds"] == max(bound["launches"][0].values())
            assert bound["launches"][0][bound["by"]] == bound["seconds"]
        eager = row["arms"]["reference_ops"]
        assert eager["torch_bytes"] > launch["read_bytes"] + launch["written_bytes"]
        assert sum(eager["torch_kernels"].values()) >= 2


def test_the_picture_says_what_it_is_and_shows_every_arm(command: tuple[str, dict[str, object], str]) -> None:
    root = ET.fromstring(command[2])
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "At best this share of the DRAM bandwidth of an H200: a bound from counters, not measured"
    assert {OURS, "reference_ops", "torch_native"} < set(texts)
    assert "goal" not in texts


@pytest.fixture(scope="module")
def rows() -> list[counters.Row]:
    """Ours at the first workload of each op and model, for sm_90."""
    first = {(one.op, one.model): one for one in reversed(selection.chosen())}
    return counters.count([*first.values()], names=[OURS], targets=["sm_90"])


def test_no_counter_of_ours_is_worse_than_the_committed_one(rows: list[counters.Row]) -> None:
    # Another version of Triton compiles otherwise; what must come from DRAM, and in how many launches, stays.
    same = version("triton") == json.loads(KEPT.read_text())["triton"]
    assert counters.regressions(rows, KEPT.read_text(), counters.WORSE if same else counters.OF_ANY_COMPILER) == []
    assert len(rows) > 20


def test_a_worse_counter_is_named(rows: list[counters.Row]) -> None:
    before = counters.kept(rows[:1])
    assert counters.regressions(rows[:1], before) == []
    arm = rows[0].arms[OURS]
    (launch,) = arm.launches["sm_90"]
    for name in counters.WORSE:
        worse = dataclasses.replace(launch, **{name: getattr(launch, name) + 1})
        row = dataclasses.replace(rows[0], arms={OURS: dataclasses.replace(arm, launches={"sm_90": (worse,)})})
        (found,) = counters.regressions([row], before)
        number = getattr(launch, name)
        assert found.endswith(f"sm_90: {name} {number + 1}, {number} before")
    twice = dataclasses.replace(rows[0], arms={OURS: dataclasses.replace(arm, launches={"sm_90": (launch, launch)})})
    assert counters.regressions([twice], before)[0].endswith("sm_90: 2 launches, 1 before")
    with pytest.raises(UsageError, match="expected those that this version wrote"):
        counters.regressions(rows, before)


def test_nothing_of_ours_is_contracted_spilled_or_read_twice(rows: list[counters.Row]) -> None:
    for row in rows:
        for launch in row.arms[OURS].launches["sm_90"]:
            assert (launch.contracted, launch.differences) == ("", {}), row.workload
            assert launch.local_bytes == 0, row.workload
            assert launch.dram_bytes <= 1.07 * row.traffic.total, row.workload  # gaps in cos and sin of a rotation
            assert launch.wavefronts == launch.needed_wavefronts, row.workload


def test_an_arm_that_can_only_be_timed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--arm: 'torch.compile' cannot be counted without a GPU"):
        counters.chosen_arms(["torch.compile"])
    assert counters.chosen_arms(["liger"]) == (OURS, "liger")


def test_bounds_are_those_of_the_gpu_at_hand(rows: list[counters.Row]) -> None:
    workload = rows[0].workload
    h200 = next(gpu for gpu in GPUS if gpu.name == "H200")
    arm = rows[0].arms[OURS]
    assert counters.bounds_on("NVIDIA H200", [workload]) == [(arm.seconds(h200), arm.named(h200))]
    for other in ("NVIDIA GeForce RTX 5090", "NVIDIA H100 NVL", "NVIDIA GH200 480GB"):
        assert counters.bounds_on(other, [workload]) == [None]
    named = {device: counters.gpu_of(device) for device in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")}
    assert [gpu and gpu.name for gpu in named.values()] == ["A100", "H100"]


@pytest.mark.unit
def test_gpus_have_targets_that_are_executed() -> None:
    assert [gpu.target for gpu in GPUS] == ["sm_80", "sm_90", "sm_90", "sm_100"]
