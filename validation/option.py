"""An option as data. Every command line imports this module, so it imports nothing heavy."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of some commands.

    Attributes:
        name: as on the command line, without the dashes.
        help: what it does; the default is added.
        commands: the commands that have it, of which ``pytest`` is one; by default those that have the options of one
            model.
        type: converts a word to the value, or raises `argparse.ArgumentTypeError`. ``bool`` takes no word: with
            default False the option has one form, with default None also ``--no-NAME``.
        default: the value if it is not given; None if that depends on other things, which ``help`` then names.
        metavar: what help texts call the value.
        choices: the values that are allowed; empty for all.
        repeated: whether it may be given several times; the value is then a list.
        several: whether it takes several words; the value is then a list.
        alone: the value where it is given without a word; None: it needs one.
        required: whether it must be given.
        group: its heading in the help text; "" for the command's own options.
    """

    name: str
    help: str
    commands: tuple[str, ...] = ("quality", "pytest")
    type: Callable[[str], Any] = str
    default: Any = None
    metavar: str | None = None
    choices: tuple[Any, ...] = ()
    repeated: bool = False
    several: bool = False
    alone: Any = None
    required: bool = False
    group: str = ""

    @property
    def key(self) -> str:
        """Its attribute in `argparse.Namespace`."""
        return self.name.replace("-", "_")

    @property
    def unset(self) -> Any:
        """The value if it is not given; a new list each time if it is repeated."""
        return [] if self.repeated else self.default

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of argparse's ``add_argument`` and pytest's ``addoption``."""
        notes = ["may be repeated"] if self.repeated else []
        if self.default not in (None, False) and "default: " not in self.help:
            notes.append(f"default: {self.default}")
        text = f"{self.help} ({'; '.join(notes)})" if notes else self.help
        if self.type is bool:
            two = self.default is None
            return {"action": argparse.BooleanOptionalAction if two else "store_true", "help": text}
        keywords: dict[str, Any] = {"type": self.type, "default": self.unset, "metavar": self.metavar, "help": text}
        if self.repeated:
            keywords["action"] = "append"
        if self.several:
            keywords["nargs"] = "+"
        if self.alone is not None:
            keywords |= {"nargs": "?", "const": self.alone}
        if self.choices:
            keywords["choices"] = self.choices
        return keywords

    def words(self, value: Any) -> list[str]:
        """The command-line words that give this value."""
        if self.type is bool:
            return [f"--{self.name}" if value else f"--no-{self.name}"]
        if self.repeated:
            return [word for item in value for word in (f"--{self.name}", _word(item))]
        return [f"--{self.name}", _word(value)]


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, tuple) else str(value)
