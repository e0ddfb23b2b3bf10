"""The fast lane of tests, and fixtures that several files of tests ask for."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Files without kernels, models and other processes.
UNIT = frozenset({"test_diff", "test_drift_band", "test_estimate", "test_imports", "test_op_sets", "test_options"})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files that the fast lane leaves out."""
    is_test = collection_path.suffix == ".py" and collection_path.stem not in UNIT
    return (is_test and config.getoption("markexpr") == "unit") or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the fast lane; sweeps, the longest single tests, come first."""
    for item in items:
        if item.path.stem in UNIT:
            item.add_marker("unit")
    items.sort(key=lambda item: item.get_closest_marker("parity") is None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Equal bits need the same number of threads; `helios.sample` and others use one."""
    from validation.device import threads

    with threads.one_thread():
        yield


@pytest.fixture
def forget_proofs() -> Iterator[None]:
    """Make `helios.mount` check itself again against the installed diffusers."""
    from validation.models.helios import sites

    sites._prove.cache_clear()
    yield
    sites._prove.cache_clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, on a machine without a GPU."""
    import torch

    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available():  # else the environment stays: for another one a fork server is started, in 1.3 s
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str], str], None]:
    """A function that checks that a command line is refused in one line with the reason, and leaves nothing behind."""
    from validation import cli

    def check(arguments: list[str], says: str) -> None:
        assert cli.main(arguments) == cli.USAGE
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1
        assert not list(here.iterdir())

    return check
