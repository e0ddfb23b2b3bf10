"""Fixtures that several files of tests ask for."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from validation import cli
from validation.device import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Equal bits need the same number of threads; `helios.sample` and others use one."""
    with threads.one_thread():
        yield


@pytest.fixture
def forget_proofs() -> Iterator[None]:
    """Lets `helios.mount` prove itself against the installed diffusers anew."""
    from validation.models.helios import sites

    sites._prove.cache_clear()
    yield
    sites._prove.cache_clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str], str], None]:
    """Called with a command line: it must be refused in one line that says why, and leave nothing behind."""

    def check(arguments: list[str], says: str) -> None:
        assert cli.main(arguments) == cli.USAGE
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1
        assert not list(here.iterdir())

    return check
