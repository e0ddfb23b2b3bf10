"""The available models: the folders of `validation.models`, and of any other folder on that package's path."""

import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Any

from validation.errors import UsageError
from validation.option import Option

if TYPE_CHECKING:
    from validation.samples.model import Model

_PACKAGE = "validation.models"


def names() -> tuple[str, ...]:
    """The models, in alphabetical order."""
    path = importlib.import_module(_PACKAGE).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if module.ispkg))


def options_of(name: str) -> tuple[Option, ...]:
    """The options that only one model has: its folder's ``OPTIONS``. Imports no model."""
    return tuple(getattr(importlib.import_module(f"{_PACKAGE}.{name}"), "OPTIONS", ()))


def module_of(name: str, part: str) -> ModuleType | None:
    """A module of a model's folder; None where the folder has none of that name."""
    full = f"{_PACKAGE}.{name}.{part}"
    return importlib.import_module(full) if importlib.util.find_spec(full) is not None else None


def model_class(name: str) -> "type[Model[Any]]":
    """The class of a model: ``MODEL`` of its folder's module ``model``.

    Raises:
        UsageError: there is no such model.
    """
    if name not in names():
        raise UsageError(f"--model: unknown model {name!r}, expected one of: {', '.join(names())}")
    found: type[Model[Any]] = importlib.import_module(f"{_PACKAGE}.{name}.model").MODEL
    return found
