"""The options that one model alone has, as data: imported for every command line, so it imports nothing heavy."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Option:
    """An option that one model alone has.

    Attributes:
        name: such as ``octree_resolution``, which is ``--octree-resolution`` on the command line.
        type: reads a word of the command line.
        help, metavar: for the command's help.
        default: where it is not given.
        repeated: may be given several times; its value is a tuple.
    """

    name: str
    type: Callable[[str], Any]
    help: str
    metavar: str
    default: Any = None
    repeated: bool = False
