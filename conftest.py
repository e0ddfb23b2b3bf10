"""The options, markers and report of `validation.plugin`; and how this repository's own tests are shared out."""

import gc
from pathlib import PurePosixPath
from typing import Any

import pytest

pytest_plugins = ["validation.plugin"]

# Files whose tests share nothing that takes long to make. The tests of any other file stay in one process, for they
# share what they sampled or compiled.
ONE_BY_ONE = frozenset(
    {
        "test_adapters",
        "test_automatic_bound",
        "test_case",
        "test_faults",
        "test_fused_ops",
        "test_judge",
        "test_parity",
        "test_reference_ops",
        "test_same_bits",
    }
)


def pytest_collection_finish() -> None:
    """Keep the collector from looking through what was imported: 8 % of the tests' processor time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files first, those with many tests before those with few; then single tests, until all processes end.

    ``--dist loadgroup`` would say the same with a marker, but pytest-xdist 3.8 does not read it under pytest 9.2.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist is untyped here
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return nodeid if PurePosixPath(path).stem in ONE_BY_ONE else path

    return Scheduling(config, log)
