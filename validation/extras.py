"""The extra ``models``: the packages that only sampling a model needs."""

from importlib.util import find_spec

from validation.errors import UsageError

INSTALL = "pip install 'fused-op-validation[models]'"

# Package by import name.
MODELS = {
    "accelerate": "accelerate",
    "diffusers": "diffusers",
    "embreex": "embreex",
    "ftfy": "ftfy",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "transformers": "transformers",
    "trimesh": "trimesh",
    "yaml": "pyyaml",
}


def require_models(who: str) -> None:
    """Look for the packages of the extra without importing them.

    Args:
        who: the command that needs them, for the message.

    Raises:
        UsageError: some are not installed.
    """
    missing = [package for module, package in MODELS.items() if find_spec(module) is None]
    if missing:
        raise UsageError(f"{who} needs {', '.join(missing)}, expected the extra models: {INSTALL}")
