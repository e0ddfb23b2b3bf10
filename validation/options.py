"""One table of all options: command lines, pytest's options, the record of a run and repeat lines come from it."""

import argparse
import dataclasses
import functools
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from validation.errors import UsageError
from validation.files import check_writable
from validation.option import Option
from validation.samples import registry
from validation.verdict import DEFAULT_TIER, TIERS

DEFAULT_OPS = "fused_ops"
PROGRAM = "validate"
MODELS = ", ".join(registry.names())

# `validate run`, its two halves, and a session of pytest.
SAMPLED = ("run", "quality", "pytest")
JUDGED = ("run", "parity", "pytest")
SESSIONS = ("run", "parity", "quality", "pytest")
BENCHES = ("bench ops", "bench denoise")


def at_least(least: int) -> Callable[[str], int]:
    """A parser of integers from ``least`` up."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}, expected an integer >= {least}")
        return int(text)

    return read


def new_file(text: str) -> Path:
    """Parse the path of a file that can be written."""
    try:
        check_writable(Path(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def names(text: str) -> tuple[str, ...] | None:
    """Parse names separated by commas; None for the empty text."""
    return tuple(text.split(",")) if text else None


# In the order of help texts.
OPTIONS = (
    Option(
        "op",
        "this op only",
        ("parity", "faults", "bench ops", "predict", "confirm", "pytest"),
        metavar="NAME",
        repeated=True,
    ),
    Option("op", "the op (default: that of --case)", ("explain",), metavar="NAME"),
    Option("model", f"model to sample: {MODELS} (default: all)", SAMPLED, metavar="NAME"),
    Option(
        "model",
        f"workloads of {MODELS}, or shapes that no model has (default: all)",
        ("bench ops", "predict"),
        metavar="NAME",
        repeated=True,
    ),
    Option("model", f"one of: {MODELS}", ("bench denoise",), metavar="NAME", required=True),
    Option(
        "ops",
        "op set to judge: an importable module, a .py file or an entry point's name",
        (*SESSIONS, "bench denoise"),
        default=DEFAULT_OPS,
        metavar="MODULE_OR_FILE",
    ),
    Option(
        "ops",
        "op set to predict: an importable module, a .py file or an entry point's name",
        ("predict",),
        default=DEFAULT_OPS,
        metavar="MODULE_OR_FILE",
    ),
    Option(
        "ops",
        "op set to explain: an importable module, a .py file or an entry point's name",
        ("explain",),
        metavar="MODULE_OR_FILE",
        required=True,
    ),
    Option(
        "against",
        "the op set that it differs from: an importable module, a .py file or an entry point's name",
        ("explain",),
        default=DEFAULT_OPS,
        metavar="MODULE_OR_FILE",
    ),
    Option(
        "case",
        "JSON text of a case, or the path of a file that holds it (default: cases are drawn until one differs)",
        ("explain",),
        metavar="CASE",
    ),
    Option("ops", "op set to call (default: the one that was predicted)", ("confirm",), metavar="MODULE_OR_FILE"),
    Option(
        "ops",
        "op set to judge: an importable module, a .py file or an entry point's name (default: that of the failure in "
        f"the file, else {DEFAULT_OPS})",
        ("repro",),
        metavar="MODULE_OR_FILE",
    ),
    Option(
        "isolate",
        "run candidates in a process of their own, which may hang or crash (default: all that are not ours)",
        (*JUDGED, "repro"),
        type=bool,
    ),
    Option(
        "case-seconds",
        "the most that a case may take there (default: 120)",
        (*JUDGED, "repro"),
        type=float,
        metavar="S",
    ),
    Option(
        "results-only",
        "judge numbers and memory alone: no empty tensors, no calls to refuse, no parameters that require grad",
        JUDGED,
        type=bool,
        default=False,
    ),
    Option("arm", "beside the first arm, time this one only", BENCHES, metavar="NAME", repeated=True),
    Option("fault", "this fault only", ("faults",), metavar="NAME", repeated=True),
    Option(
        "sites",
        "mount only these sites (default: every site whose op the set provides)",
        ("quality", "pytest"),
        type=names,
        metavar="SITE[,SITE]",
    ),
    Option(
        "checkpoint",
        "a checkpoint: Helios in diffusers' folder format, Hunyuan3D-2 in the official one (default: the embedded one; "
        "of bench random weights)",
        ("quality", "pytest", "bench denoise"),
        type=Path,
        metavar="DIR",
    ),
    Option(
        "tiny",
        "a tiny size, which runs on the CPU too: a test of the harness, no measurement",
        ("bench denoise",),
        type=bool,
        default=False,
    ),
    Option("tiny", "a few tokens of each workload, not all of them", ("predict",), type=bool, default=False),
    Option("prompts", "JSON of what to sample (default: embedded)", ("quality", "pytest"), type=Path, metavar="FILE"),
    Option(
        "profile",
        "how many cases an op gets",
        (*JUDGED, "faults"),
        default="default",
        choices=("quick", "default", "nightly"),
    ),
    Option(
        "profile",
        "how many cases are drawn",
        ("explain",),
        default="quick",
        choices=("quick", "default", "nightly"),
    ),
    Option(
        "profile",
        "write a table of kernels by arm as well; needs --gpu",
        ("bench denoise",),
        type=bool,
        default=False,
    ),
    Option(
        "seed",
        "everything is drawn from it",
        (*SESSIONS, "faults", "explain"),
        type=at_least(0),
        default=0,
        metavar="N",
    ),
    Option(
        "seeds",
        "so many seeds, --seed the first",
        ("faults",),
        type=at_least(1),
        default=1,
        metavar="N",
    ),
    Option(
        "steps",
        "timed steps of a visit",
        ("bench denoise",),
        type=at_least(1),
        default=4,
        metavar="N",
    ),
    Option(
        "rounds",
        "samples of each",
        ("bench ops",),
        type=at_least(1),
        default=9,
        metavar="N",
    ),
    Option(
        "rounds",
        "rounds of two visits of each arm; an interval needs 6",
        ("bench denoise",),
        type=at_least(1),
        default=6,
        metavar="N",
    ),
    Option("decodes", "timed decodes, for end to end", ("bench denoise",), type=int, default=2, choices=(0, 1, 2)),
    Option(
        "drift",
        "measure it on the embedded checkpoint, or on the model that is timed (default: embedded; model if tiny)",
        ("bench denoise",),
        choices=("embedded", "model", "none"),
    ),
    Option(
        "replays",
        "legal replays of each kind for each prompt, for the band; 0: no drift, floors alone",
        SAMPLED,
        type=int,
        default=8,
        metavar="N",
    ),
    Option("replays", "legal replays of each kind", ("bench denoise",), type=int, default=8, metavar="N"),
    Option(
        "require",
        "hold every op, and the drift, to bit-exact, lossless or close",
        SESSIONS,
        default=str(DEFAULT_TIER),
        metavar="TIER",
        choices=tuple(TIERS),
    ),
    Option(
        "xfail",
        "known failures: op[:status or corner][:dtype]  # reason",
        JUDGED,
        type=Path,
        metavar="FILE",
    ),
    Option(
        "until",
        "end with the latents, or with a rung (default: the last)",
        ("quality", "pytest"),
        metavar="RUNG",
    ),
    Option("steps", "denoising steps (default: the prompt's)", ("quality", "pytest"), type=int, metavar="N"),
    Option("guidance", "guidance scale (default: the prompt's)", ("quality", "pytest"), type=float, metavar="X"),
    Option("seeds", "seeds of each prompt", ("quality", "pytest"), type=int, default=1, metavar="N"),
    Option(
        "floors",
        "bounds that belong to these files: a JSON file as fixtures/tolerances has them, or the name of an embedded "
        "checkpoint whose floors were measured (default: none; then files that differ are not judged)",
        ("compare",),
        metavar="FILE_OR_CHECKPOINT",
    ),
    Option(
        "second-reference",
        "measure the floor: another right sample of the reference, such as one of another kernel library; a candidate "
        "may have eight times its squared error",
        ("compare",),
        type=Path,
        metavar="FILE_OR_FOLDER",
        repeated=True,
    ),
    Option(
        "merge",
        "time nothing: one table and picture of earlier results",
        ("bench ops",),
        type=Path,
        metavar="FILE",
        several=True,
    ),
    Option(
        "cache",
        "folder of the bands (default: ~/.cache/fused-op-validation)",
        (*SAMPLED, "bench denoise"),
        type=Path,
        metavar="DIR",
    ),
    Option(
        "json",
        "write the results as JSON as well",
        (*SESSIONS, "faults", "diff", "compare"),
        type=new_file,
        metavar="FILE",
    ),
    # pytest writes JUnit XML itself.
    Option(
        "junit",
        "write JUnit XML as well, for a CI system to show",
        ("run", "parity", "quality", "faults"),
        type=new_file,
        metavar="FILE",
    ),
    Option("out", "run folder (default: a new one under runs/)", (*SESSIONS, "faults"), type=Path, metavar="DIR"),
    Option("out", "write a run folder with a report as well", ("compare",), type=Path, metavar="DIR"),
    Option(
        "out",
        "file to write (default: benchmarks/predictions/<op set>-<target>.json)",
        ("predict",),
        type=new_file,
        metavar="FILE",
    ),
    Option(
        "out",
        "folder of the JSON and the picture",
        BENCHES,
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIR",
    ),
)

# The only options that pytest has without the prefix.
GPU = Option(
    "gpu",
    "run on the GPU; a usage error where there is none",
    (*SESSIONS, "repro", "faults", "confirm", *BENCHES),
    type=bool,
    default=False,
)
COMPILED = Option(
    "compiled",
    "compile kernels for this target and execute their PTX on the CPU: sm_80, sm_90 (where no target is given) or "
    "sm_100",
    (*SESSIONS, "repro", "faults", "predict", "confirm", "explain"),
    metavar="TARGET",
    choices=("sm_80", "sm_90", "sm_100"),
    alone="sm_90",
)
RACES = Option(
    "races",
    "with --compiled: look for races in every case (default: in one of eight)",
    (*SESSIONS, "repro", "faults"),
    type=bool,
    default=False,
)
DEVICES = (GPU, COMPILED, RACES)


@functools.cache
def table() -> tuple[Option, ...]:
    """All options: the suite's, those of one model alone, and those that choose the device."""
    own = [
        dataclasses.replace(option, group=f"with --model {name}")
        for name in registry.names()
        for option in registry.options_of(name)
    ]
    return (*OPTIONS, *own, *DEVICES)


def options_of(command: str) -> tuple[Option, ...]:
    """The options of a command (``parity``, ``bench ops``, ``pytest``), in order."""
    return tuple(option for option in table() if command in option.commands)


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Add a command's options to its parser."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options_of(command):
        if option.group and option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        to = groups[option.group] if option.group else parser
        to.add_argument(f"--{option.name}", required=option.required, **option.keywords())


def given(**values: Any) -> argparse.Namespace:
    """The options of a session: these values, and the defaults of all others.

    Raises:
        TypeError: an unknown option.
    """
    known = {option.key: option.unset for command in SESSIONS for option in options_of(command)}
    if unknown := values.keys() - known.keys():
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}, expected some of: {', '.join(known)}")
    return argparse.Namespace(**known | values)


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a session that are not at their default, by name, as JSON takes them."""
    known = {option.key: option for command in SESSIONS for option in options_of(command)}
    values = {key: getattr(options, key, option.unset) for key, option in known.items()}
    return {
        known[key].name: _as_json(value)
        for key, value in values.items()
        if value is not None and value != known[key].unset
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def repeat_line(command: str, *words: str, always: Collection[str] = (), **values: Any) -> str:
    """The command line that repeats a verdict.

    Args:
        command: such as ``parity``.
        words: positional words.
        always: options to write even at their default; others are left out then.
        values: values of the options, in the order in which they are written; None is left out.

    Raises:
        TypeError: a value for an option that the command does not have.
    """
    options = {option.key: option for option in options_of(command)}
    line = [PROGRAM, *command.split(), *words]
    for key, value in values.items():
        if key not in options:
            raise TypeError(f"{command} has no option {key}, expected some of: {', '.join(options)}")
        if value is not None and (value != options[key].unset or key in always):
            line += options[key].words(value)
    return shlex.join(line)


PREFIX = "validate-"


def plugin_name(option: Option) -> str:
    """The option's name for pytest: prefixed, because other plugins have a --seed and a --profile too."""
    return f"--{option.name}" if option in DEVICES else f"--{PREFIX}{option.name}"


def plugin_key(option: Option) -> str:
    """The option's ``dest`` in pytest."""
    return plugin_name(option).removeprefix("--").replace("-", "_")


def as_pytest_says(text: str) -> str:
    """Rewrite the option names in a message to pytest's."""
    known: Sequence[str] = [option.name for option in options_of("pytest") if option not in DEVICES]
    return re.sub(rf"(?<![\w-])--({'|'.join(known)})(?![\w-])", rf"--{PREFIX}\1", text)
