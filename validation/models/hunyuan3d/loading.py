"""Load the parts of Hunyuan3D-2's checkpoints in the official layout: configuration and weights."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import nn

import reference_ops
from validation.errors import UsageError
from validation.models.hunyuan3d.dit import Hunyuan3DDiT
from validation.models.hunyuan3d.flow_matching import ConsistencyFlowMatchEuler, FlowMatchEuler, Schedule
from validation.models.hunyuan3d.shape_vae import ShapeVAE
from validation.models.hunyuan3d.sites import Hunyuan3DDiTConfig
from validation.ops import OpSet

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def load_denoiser(
    folder: Path,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cpu",
    *,
    ops: ModuleType | OpSet = reference_ops,
    packed_qk_norm: bool = False,
) -> Hunyuan3DDiT:
    """Load the denoiser of a folder in the official layout, such as ``hunyuan3d-dit-v2-0``.

    The folder holds ``config.yaml``, whose ``model`` has a ``target`` (a class name) and ``params`` (the
    configuration), and ``model.fp16.safetensors`` or else ``model.safetensors``. Official files hold the
    whole pipeline: the denoiser's keys begin with ``model.``; a file without such keys is the denoiser's.

    Args:
        folder: see above.
        dtype, device: of the parameters.
        ops, packed_qk_norm: as in `Hunyuan3DDiT`.

    Raises:
        UsageError: a file is missing or damaged, it is another model, or keys are missing, too many or of other shapes.
    """
    params = _section(folder, "model", "Hunyuan3DDiT")
    build = functools.partial(Hunyuan3DDiT, ops=ops, packed_qk_norm=packed_qk_norm)
    return _load(build, params, folder, "model.", dtype, device)


def load_shape_vae(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> ShapeVAE:
    """Load the decoder of a folder in the official layout, such as ``hunyuan3d-vae-v2-0``, or of a denoiser's.

    In its own folder, ``config.yaml`` has ``target`` and ``params`` at the top and the weights have the decoder's
    keys; in a denoiser's folder the section is ``vae`` and the keys begin with ``vae.``.

    Raises:
        UsageError: as in `load_denoiser`.
    """
    return _load(ShapeVAE, _section(folder, "vae", "ShapeVAE"), folder, "vae.", dtype, device)


def load_schedule(folder: Path) -> Schedule:
    """Load the scheduler of a denoiser's folder: ``scheduler`` in its ``config.yaml``.

    Raises:
        UsageError: no such file or section, another scheduler, or an unknown option.
    """
    schedules: dict[str, Callable[..., Schedule]] = {
        "FlowMatchEulerDiscreteScheduler": FlowMatchEuler,
        "ConsistencyFlowMatchEulerDiscreteScheduler": ConsistencyFlowMatchEuler,
    }
    name, params = _target(folder, "scheduler")
    if name not in schedules:
        raise UsageError(f"{folder / 'config.yaml'}: scheduler is a {name}, expected one of: {', '.join(schedules)}")
    return _build(schedules[name], params, folder)


def denoiser_params(folder: Path) -> dict[str, Any]:
    """Read the configuration of the denoiser in a folder, for `Hunyuan3DDiTConfig`; no weights are read.

    Raises:
        UsageError: no such file or section, another model, or an unknown option.
    """
    params = _section(folder, "model", "Hunyuan3DDiT")
    _build(Hunyuan3DDiTConfig, params, folder)
    return params


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's ``config.yaml``; empty if it does not hold names and values.

    Raises:
        UsageError: it cannot be read.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read {path}: {_one_line(error)}, expected the official layout") from error
    return config if isinstance(config, dict) else {}


def _section(folder: Path, section: str, expected: str) -> dict[str, Any]:
    name, params = _target(folder, section)
    if name != expected:
        raise UsageError(f"{folder / 'config.yaml'}: {section} is a {name}, expected {expected}")
    return params


def _target(folder: Path, section: str) -> tuple[str, dict[str, Any]]:
    """The class name (without its module) and the parameters of a section of ``config.yaml``."""
    path = folder / "config.yaml"
    config: Any = read_config(folder)
    if section in config:
        config = config[section]
    elif section != "vae":
        config = None  # the decoder's own folder has its section at the top
    if not isinstance(config, dict) or not isinstance(config.get("target"), str):
        raise UsageError(f"{path} has no {section} with a target, expected the official layout")
    params = config.get("params")
    if params is None:
        params = {}
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise UsageError(f"{path}: the params of {section} are no mapping, expected names and values")
    return config["target"].rpartition(".")[2], params


def _build(build: Callable[..., T], params: Mapping[str, Any], folder: Path) -> T:
    try:
        return build(**params)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UsageError(f"{folder / 'config.yaml'}: {_one_line(error)}") from error


def _load(
    build: Callable[..., M],
    params: Mapping[str, Any],
    folder: Path,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> M:
    path = next((p for p in (folder / "model.fp16.safetensors", folder / "model.safetensors") if p.is_file()), None)
    if path is None:
        raise UsageError(f"{folder} lacks model.fp16.safetensors (or model.safetensors), expected the official layout")
    with torch.device("meta"):  # do not allocate or draw weights that are about to be replaced
        model = _build(build, params, folder)
    expected = model.state_dict()
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            if any(key.startswith(prefix) for key in keys):
                names = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
            else:
                names = {key: key for key in keys}
            shapes = {name: list(file.get_slice(key).get_shape()) for name, key in names.items()}
            for kind, wrong in (
                ("missing", expected.keys() - names.keys()),
                ("unexpected", names.keys() - expected.keys()),
                ("misshapen", {n for n in expected.keys() & names.keys() if shapes[n] != list(expected[n].shape)}),
            ):
                if wrong:
                    listed = ", ".join(
                        f"{n} {shapes[n]} for {list(expected[n].shape)}" if kind == "misshapen" else n
                        for n in sorted(wrong)[:3]
                    )
                    raise UsageError(
                        f"{path} has {len(wrong)} {kind} keys ({listed}), "
                        "expected the weights that its config.yaml describes"
                    )
            # Always copied: a file's tensors may be at any address, and on the CPU a float32 matrix product of
            # one row has other bits with weights off a 64-byte boundary (measured: 1.2e-7 in the time embedding).
            weights = {name: file.get_tensor(key).to(device, dtype, copy=True) for name, key in names.items()}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {_one_line(error)}") from error
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
