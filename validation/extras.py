"""The packages that sampling a model takes, and nothing else here: the extra ``models``."""

from importlib.util import find_spec

from validation.errors import UsageError

INSTALL = "pip install 'fused-op-validation[models]'"

# Packages by the name under which they are imported.
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
    """Look for the packages of the extra, importing none of them.

    Args:
        who: needs them.

    Raises:
        UsageError: some are not installed.
    """
    missing = [package for module, package in MODELS.items() if find_spec(module) is None]
    if missing:
        raise UsageError(f"{who} needs {', '.join(missing)}, expected the extra models: {INSTALL}")
