"""Imports run one way: which folder may import which, and no circle between files, over the syntax trees."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Names, files, progress and the table of options: every folder may import them.
_PLAIN = ("errors", "verdict", "equivalence", "files", "progress", "options")
# Where kernels run.
_DEVICE = ("device", "device/private", "compiled/ptx")


# A unit is a package, a folder or a file of `validation`; a file with its own line does not belong to its folder.
ALLOWED: dict[str, tuple[str, ...]] = {
    "reference_ops/contract": (),
    "reference_ops": ("reference_ops/contract",),
    "fused_ops": ("reference_ops", "reference_ops/contract"),
    "errors": (),
    "verdict": (),
    "equivalence": (),
    "progress": (),
    "files": ("errors",),
    "output": (),
    "forking": ("files",),
    "options": ("errors", "files", "option", "samples/registry", "verdict"),
    "extras": ("errors",),
    "option": (),
    "samples/registry": ("errors", "option", "samples"),
    "run_plan": _PLAIN,
    "record": (*_PLAIN, "run_plan"),
    "diff": (*_PLAIN, "record", "run_plan"),
    # Every private name of torch and Triton; what executes PTX on plain tensors. Launches are taken by the device.
    "device/private": ("errors",),
    "compiled/ptx": ("cases", "device/private", "errors"),
    # Tensors, arithmetic and judgement import no record, no model and no test framework.
    "cases": (*_PLAIN, "reference_ops/contract"),
    "device": (*_PLAIN, "compiled/ptx", "device/private"),
    # What a GPU can do: numbers alone.
    "compiled/counters/gpus": (),
    # The GPU that candidates believe in: op sets are loaded and called inside.
    "adapters/shells": (*_DEVICE, "compiled/counters/gpus"),
    "ops": (*_PLAIN, *_DEVICE, "adapters/shells", "reference_ops", "reference_ops/contract"),
    "chains": (*_PLAIN, "cases", *_DEVICE, "ops", "reference_ops", "reference_ops/contract"),
    "judge": (*_PLAIN, "cases", "chains", *_DEVICE, "ops", "reference_ops", "reference_ops/contract"),
    "compiled": (
        *_PLAIN,
        "cases",
        "compiled/counters/gpus",
        *_DEVICE,
        "forking",
        "fused_ops",
        "judge",
        "reference_ops",
        "reference_ops/contract",
    ),
    "executor": (*_PLAIN, "cases", *_DEVICE, "forking", "judge", "ops"),
    "parity": (
        *_PLAIN,
        "cases",
        "compiled",
        *_DEVICE,
        "executor",
        "forking",
        "fused_ops",
        "judge",
        "ops",
        "record",
        "samples/registry",
    ),
    # Sampled models. `samples` imports the contract of a model, but no model.
    "media": (*_PLAIN, *_DEVICE),
    # What all models share: hooks on sites.
    "models/mount": (*_PLAIN, "ops"),
    "drift/band": (*_PLAIN,),  # distances and ranks: only numbers
    "drift": (
        *_PLAIN,
        "chains",
        "drift/band",
        "models/mount",
        "ops",
        "reference_ops",
        "reference_ops/contract",
        "samples",
    ),
    "samples": (*_PLAIN, *_DEVICE, "drift", "drift/band", "media", "models/mount", "ops", "option", "record"),
    # A model's planted faults replace reference ops.
    "samples/planted": (*_PLAIN, "models/mount", "ops", "reference_ops", "reference_ops/contract", "samples"),
    "models": (
        *_PLAIN,
        "cases",
        *_DEVICE,
        "media",
        "models/mount",
        "ops",
        "reference_ops",
        "reference_ops/contract",
        "samples",
        "samples/planted",
        "option",
    ),
    # Built on all of the above.
    "kept": (*_PLAIN, "media", "record", "samples"),
    "report": (*_PLAIN, "drift/band", "record", "run_plan"),
    "adapters": (*_PLAIN, "adapters/shells", "chains", *_DEVICE, "ops", "reference_ops", "reference_ops/contract"),
}
# Drivers: no unit above imports them.
DRIVERS = (
    "bench",
    "cli",
    "commands",
    "controls",
    "explain",
    "faults",
    "plugin",
    "predictions",
    "session",
    "__main__",
    "test_parity",
    "test_quality",
)


def _unit(path: Path) -> str:
    """The unit of `ALLOWED` or `DRIVERS` to which a file of the three packages belongs: the longest matching name."""
    parts = path.with_suffix("").parts
    parts = parts[1:] if parts[0] == "validation" else parts
    names = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return next((name for name in reversed(names) if name in ALLOWED), names[0])


@cache
def _files() -> dict[str, Path]:
    """Files by module name, without tests."""
    found = {}
    for package in ("reference_ops", "fused_ops", "validation"):
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if "meta_tests" not in relative.parts and relative != Path("validation/__init__.py"):
                parts = relative.with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = relative
    return found


def _imports(source: str, module: str, modules: Mapping[str, object], is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and name of each of our modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                here = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            found = next((part for part in (name, name.rpartition(".")[0]) if part in modules), None)
            if found is not None and found != module:
                yield node.lineno, found


@cache
def _edges() -> dict[str, list[tuple[int, str]]]:
    files = _files()
    return {
        module: list(_imports((ROOT / path).read_text(), module, files, path.name == "__init__.py"))
        for module, path in files.items()
    }


def violations(edges: Mapping[str, list[tuple[int, str]]], files: Mapping[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Importing unit, imported unit and a line that names both files, for each import that `ALLOWED` does not list."""
    for module, imported in edges.items():
        unit = _unit(files[module])
        for line, name in imported:
            other = _unit(files[name])
            if unit not in DRIVERS and other not in (unit, *ALLOWED.get(unit, ())):
                yield unit, other, f"{files[module]}:{line} imports {name}: {unit} may not import {other}"


def circles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Groups of modules that import one another, directly or by way of others (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph.get(module, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[len(stack) - len(group) :]
            if len(group) > 1:
                found.append(tuple(sorted(group)))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_every_file_has_a_place_in_the_order() -> None:
    units = {_unit(path) for path in _files().values()}
    assert units - {*ALLOWED, *DRIVERS} == set()


def test_imports_run_one_way() -> None:
    found = [line for _, _, line in violations(_edges(), _files())]
    assert not found, "\n".join(found)


def test_no_files_import_one_another() -> None:
    graph = {module: {name for _, name in imported} for module, imported in _edges().items()}
    assert circles(graph) == []


@pytest.mark.parametrize(
    "source",
    [
        "import validation.drift.teacher",
        "from validation.drift import teacher",
        "from validation.drift.teacher import Site",
        "def late():\n    from validation.drift.teacher import Site",
        "from ..drift import teacher",
    ],
)
def test_a_wrong_import_is_named_with_its_file_and_line(source: str) -> None:
    files = {
        "validation.drift.teacher": Path("validation/drift/teacher.py"),
        "validation.media.mesh": Path("validation/media/mesh.py"),
    }
    imported = list(_imports(source, "validation.media.mesh", files, is_package=False))
    (found,) = violations({"validation.media.mesh": imported}, files)
    assert found[:2] == ("media", "drift")
    line = source.count("\n") + 1
    assert found[2] == (f"validation/media/mesh.py:{line} imports validation.drift.teacher: media may not import drift")


def test_a_circle_is_found_however_long() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}}
    assert circles(graph) == [("a", "b", "c")]
    assert circles(graph | {"c": set()}) == []
