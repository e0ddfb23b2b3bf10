"""In float64 each site's reference op is what the model's own code computes there."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import HeliosTransformer3DModel
from torch import Tensor

import reference_ops
from validation.errors import UsageError
from validation.meta_tests import plain_hunyuan3d as plain
from validation.models.helios import sites as helios
from validation.models.hunyuan3d import sites as hunyuan3d
from validation.models.hunyuan3d.dit import Hunyuan3DDiT
from validation.models.widened import SAME, Widened, apart
from validation.ops import op_set_from


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def off_in_float64(op: str) -> Callable[..., Any]:
    """A reference op that is right in every working dtype and off by 1e-9 in float64."""
    right = getattr(reference_ops, op)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        first = args[0].dtype is torch.float64
        result = right(*args, **kwargs)
        off = [y.mul_(1 + 1e-9) if first else y for y in (result if isinstance(result, tuple) else (result,))]
        return tuple(off) if len(off) > 1 else off[0]

    wrong.__signature__ = inspect.signature(right)  # type: ignore[attr-defined]
    return wrong


TINY = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "rope_dim": (8, 4, 4), "ffn_dim": 32}


def mounted_on_helios(sites: tuple[str, ...] | None = None) -> None:
    transformer = HeliosTransformer3DModel(**TINY, in_channels=4, out_channels=4, freq_dim=16, text_dim=8)
    helios.cast_parameters(transformer, torch.bfloat16)
    with helios.mount(transformer, op_set_from(reference_ops, "reference_ops", "reference_ops"), sites):
        pass


@pytest.mark.usefixtures("forget_proofs")
def test_mounting_on_helios_compares_them() -> None:
    mounted_on_helios()


@pytest.mark.usefixtures("forget_proofs")
@pytest.mark.parametrize("site", helios.SITE_NAMES)
def test_a_reference_that_is_wrong_in_float64_alone_is_not_mounted(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = next(s.op for s in helios.sites_of({}) if s.name == site)
    monkeypatch.setattr(reference_ops, op, off_in_float64(op))
    with pytest.raises(UsageError, match=rf"in float64.* the reference ops at {site} are .* a reference op is wrong"):
        mounted_on_helios((site,))


def hunyuan3d_apart(monkeypatch: pytest.MonkeyPatch | None = None, op: str = "") -> float:
    """How far the denoiser with reference ops is from the plain version, both in float64."""
    if monkeypatch is not None:
        monkeypatch.setattr(reference_ops, op, off_in_float64(op))
    golden = plain.read_golden("hunyuan3d-dit-tiny")
    model = Hunyuan3DDiT(**golden.config)
    model.load_state_dict(golden.weights, strict=True)
    model.double()
    inputs: dict[str, Tensor] = {name: t.double() for name, t in golden.inputs.items()}
    with Widened():
        return apart(model(**inputs), plain.denoiser(model.state_dict(), golden.config, **inputs))


def test_hunyuan3ds_are_the_plain_versions() -> None:
    assert hunyuan3d_apart() <= SAME


@pytest.mark.parametrize("op", sorted({site.op for site in hunyuan3d.sites_of({})}))
def test_one_that_is_off_by_a_billionth_shows(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hunyuan3d_apart(monkeypatch, op) > 100 * SAME
