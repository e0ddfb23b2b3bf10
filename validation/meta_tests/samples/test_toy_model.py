"""A model is a folder: a toy of some forty lines passes through quality to a report, and through its controls."""

import json
from pathlib import Path

import pytest

import validation.models
from validation.controls import op_set, separation
from validation.device import Device
from validation.meta_tests.report.test_report import ENVIRONMENT, Page
from validation.record import Level, Record, Run
from validation.report.html import write_report
from validation.samples.registry import model_class, names
from validation.samples.request import Request
from validation.samples.run import run
from validation.verdict import Status

MODEL = """
import dataclasses, math
from pathlib import Path

import torch
from torch import nn
from validation.models.mount import Mount, Site, select_sites
from validation.samples.model import Model
from validation.samples.request import silent
from validation.samples.rung import Measure, Rung, Sample

@dataclasses.dataclass(frozen=True)
class Start:
    name: str
    text: str
    seed: int
    steps: int = 4
    guidance_scale: float = 1.0

class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(2, 64, 64, generator=generator).bfloat16() / 8
        self.rows = torch.randn(2, 2, 64, generator=generator) / 4
    def forward(self, x):
        for weight, (shift, scale) in zip(self.weights, self.rows):
            x = x + self.mounted.call("norm", x, shift, scale) @ weight
        return x

class Picture(Rung):
    name = "picture"
    measures = (Measure("picture_rms", "picture, RMS", "", "low", required=True),)
    def compare(self, reference, candidate):
        return {"picture_rms": float(((reference - candidate) ** 2).mean() ** 0.5)}, {}

class Toy(Model):
    name, dtype, rungs, prompt_type, default_checkpoint = "toy", torch.bfloat16, (Picture(),), Start, Path("toy")
    def ops(cls): return frozenset({"layer_norm_scale_shift"})
    def choose_sites(self, ops, names): return select_sites([Site("norm", "layer_norm_scale_shift", 2)], ops, names)
    def load(self, device): self.layers, self.device = Layers(), torch.device(device.torch)
    def identity(self): return {"weights": "seed 0"}
    def mount(self, ops):
        self.layers.mounted = Mount(self.layers, ops, self.sites)
        return self.layers.mounted
    def latents(self, prompt, mounted, progress=silent):
        x, found = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(prompt.seed)), []
        with torch.no_grad():
            for _ in range(prompt.steps):
                x = x + 0.3 * (self.layers(x.bfloat16()).float() - x)
                found.append(x)
        return Sample(found)
    def make(self, rung, sample, made, prompt, progress=silent): return sample.latents[-1].numpy().copy()

MODEL = Toy
"""

FAULTS = '''
import dataclasses
from reference_ops.contract import expand_modulation
from validation.samples import planted

def modulated(normalise):
    def layer_norm_scale_shift(x, shift, scale, eps=1e-6, **_):
        return (normalise(x, eps) * (1 + expand_modulation(scale, x)) + expand_modulation(shift, x)).to(x.dtype)
    return planted.with_ops(layer_norm_scale_shift=layer_norm_scale_shift)

def dark(sample, _model):
    """All black."""
    return dataclasses.replace(sample, made={"picture": 0 * sample.made["picture"]})

FAULTS = {
    **planted.faults_of_norms(modulated, planted.ragged_rows(20), "teacher-forced"),
    "dark": planted.Planted(planted.bug_of(dark), frozenset({"picture"}), spoil=dark),
}
SHOWN = {}
MEASURE = "picture_rms"

def op_set(name):
    return planted.op_set_of(name, FAULTS, __name__)
'''

CPU = Device("interpreter", "cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def request_of_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    folder = tmp_path / "models" / "toy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "model.py").write_text(MODEL)
    (folder / "faults.py").write_text(FAULTS)
    monkeypatch.setattr(validation.models, "__path__", [*validation.models.__path__, str(folder.parent)])
    prompts, bounds = tmp_path / "prompts.json", tmp_path / "bounds.json"
    starts = [{"name": "noise", "text": "noise", "seed": seed} for seed in range(6)]
    prompts.write_text(json.dumps({"prompts": starts}))
    bounds.write_text(json.dumps({"ceilings": {"picture_rms": 0.5}}))
    return Request(CPU, prompts=prompts, bounds=bounds, cache=tmp_path / "cache")


def _report(folder: Path, records: list[Record]) -> Page:
    made = Run(folder, ENVIRONMENT)
    for record in records:
        made.add(record)
    return Page(write_report(folder).read_text())


def test_quality_samples_it_and_the_report_shows_it(request_of_toy: Request, tmp_path: Path) -> None:
    assert "toy" in names()
    records = list(run(model_class("toy"), op_set("pairwise"), request_of_toy))
    assert [record.level for record in records] == [Level.SAMPLE] * 6 + [Level.MODEL] * 2
    assert {record.status for record in records} == {Status.PASSED}, [record.reason for record in records]
    (measure,) = records[0].measures
    assert (measure["name"], measure["better"], measure["rung"]) == ("picture_rms", "low", "picture")
    text = _report(tmp_path / "run", records).text()
    for words in ("toy", "picture, RMS", "≤ 0.5", "first step", "legal roundings", "Drift"):
        assert words in text, words


def test_its_controls_tell_right_from_wrong(request_of_toy: Request) -> None:
    chosen = ("reference", "division", *separation.faults_of("toy").FAULTS)
    assert set(chosen) <= set(separation.names("toy"))
    for found in separation.separate("toy", chosen, request_of_toy):
        assert found.expected, separation.line(found)
        assert found.name in separation.line(found)
