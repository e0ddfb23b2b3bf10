"""Read prompts from JSON files."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from validation.errors import UsageError
from validation.files import read_json


class Seeded(Protocol):
    """A prompt: a dataclass with a name and a seed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """For messages and file names."""

    @property
    def seed(self) -> int:
        """Seed of the noise."""


P = TypeVar("P", bound=Seeded)


def read_prompts(cls: type[P], path: Path) -> tuple[P, ...]:
    """Read a JSON file: fields for all prompts at the top, each prompt's own under ``prompts``.

    Raises:
        UsageError: no such file, no JSON, an unknown or missing field, the same name and seed twice.
    """
    shared = read_json(path)
    prompts = shared.pop("prompts", None)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, dict) for p in prompts):
        raise UsageError(f"{path} has no list of prompts, expected at least one under 'prompts'")
    try:
        read = tuple(cls(**{**shared, **prompt}) for prompt in prompts)
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(cls))
        raise UsageError(f"{path}: {str(error).partition(' ')[2]}, expected the fields {fields}") from error
    if len({(p.name, p.seed) for p in read}) < len(read):
        raise UsageError(f"{path} has two prompts of one name and seed, expected each once")
    return read
