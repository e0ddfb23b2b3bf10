"""The embedded checkpoints that tests sample."""

from validation.files import FIXTURES

TINY = FIXTURES / "checkpoints" / "helios-tiny"  # random weights
HELIOS_TRAINED = FIXTURES / "checkpoints" / "helios-trained"
SHAPES_TRAINED = FIXTURES / "checkpoints" / "hunyuan3d-trained"
SHAPE_PROMPTS = FIXTURES / "prompts" / "hunyuan3d-trained.json"
