"""pytest's side: the options of the ``validate`` command, the markers, and the run folder of a session.

Loaded by the ``conftest.py`` at the top; elsewhere with ``-p validation.plugin``.

Work that takes seconds waits until a test needs it: the device is selected for the first test after something has
imported torch, and the op set is loaded for the first test that judges one. Options that name ops load it at once,
since they can be checked in no other way.

With pytest-xdist (``-n N``) the ops are spread over the workers; each sends its records with its tests' reports, and
the process that started the workers writes the one run. With ``--gpu`` each worker sees one GPU.
"""

import argparse
import io
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from validation.errors import UsageError
from validation.extras import require_models
from validation.options import as_pytest_says, options_of, plugin_key, plugin_name
from validation.options import given as given_options
from validation.record import Record, Run
from validation.verdict import Status

if TYPE_CHECKING:
    from validation.session import Session

MARKERS = {
    "unit": "seconds all together: the fast lane, `make quick`",
    "parity": "op level: each op on generated cases against its reference",
    "quality": "sample level: whole sampled outputs, reference against candidate",
    "gpu": "needs a GPU; runs with --gpu only",
}

# Keys of a worker's input, and the attributes of a test's report that carry its records and what was planned.
GPU, FOLDER = "validation_gpu", "validation_folder"
RECORDS, PLANNED = "validation_records", "validation_planned"


class Validation:
    """What pytest was asked to validate.

    Attributes:
        options: as given.
        worker: whether this process is a worker of pytest-xdist.
        ops: those of the collected parity tests, for the plan of the run.
        quality: whether quality tests were collected.
        cut: whether the session ended before all of them had run.
    """

    def __init__(self, options: argparse.Namespace, shared_folder: Path | None) -> None:
        self.options = options
        self.worker = shared_folder is not None
        self.ops: tuple[str, ...] = ()
        self.quality = self.cut = False
        self._folder = shared_folder
        self._session: Session | None = None

    @property
    def folder(self) -> Path:
        """The run folder; without the option ``out`` its name is chosen on first access."""
        if self._folder is None:
            self._folder = self.options.out or Run.new_folder()
        return self._folder

    @property
    def session(self) -> "Session":
        """The session, which loads the op set on first access; usage errors name the options as pytest does."""
        if self._session is None:
            from validation.session import Session

            try:
                options = argparse.Namespace(**vars(self.options) | {"out": self.folder})
                self._session = Session(options, self.folder if self.worker else None)
            except UsageError as error:
                raise pytest.UsageError(as_pytest_says(str(error))) from error
        return self._session

    def set_out(self, ops: Sequence[str], *, quality: bool) -> None:
        """Plan the run, unless it has begun or another process writes it."""
        self.ops, self.quality = tuple(ops), quality
        session = self.session
        if not self.worker and not session.started:
            try:
                session.set_out(self.ops, quality=quality)
            except UsageError as error:
                raise pytest.UsageError(as_pytest_says(str(error))) from error

    @property
    def started(self) -> bool:
        """Whether something was judged."""
        return self._session is not None and self._session.started


VALIDATION = pytest.StashKey[Validation]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; those of one model form their own group."""
    for option in options_of("pytest"):
        group = parser.getgroup(f"validation {option.group}".strip(), f"validation of fused ops {option.group}".strip())
        group.addoption(plugin_name(option), dest=plugin_key(option), **option.keywords())


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; check what can be checked without importing much."""
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    # Under the interpreter NumPy warns wherever a case contains NaN or inf on purpose.
    for module in ("triton", "numpy"):
        config.addinivalue_line("filterwarnings", rf"ignore::RuntimeWarning:{module}.*")
    options = given_options(**{option.key: config.getoption(plugin_key(option)) for option in options_of("pytest")})
    started_with: dict[str, str] = getattr(config, "workerinput", {})
    validation = Validation(options, Path(started_with[FOLDER]) if started_with else None)
    config.stash[VALIDATION] = validation
    if options.gpu or options.compiled or options.races:
        _select(options, started_with.get(GPU))
    else:
        # Before any kernel is decorated; `validation.device.select` does the rest.
        os.environ["TRITON_INTERPRET"] = "1"
    if options.op or options.xfail or options.ops != given_options().ops:
        _ = validation.session


def _select(options: argparse.Namespace, gpu: str | None = None) -> None:
    from validation.device import pin_gpu, select

    try:
        if gpu is not None:
            pin_gpu(gpu)
        select(options.gpu, options.compiled, options.races)
    except UsageError as error:
        raise pytest.UsageError(as_pytest_says(str(error))) from error


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Select the device, once something has imported torch."""
    if "torch" in sys.modules:
        _select(item.config.stash[VALIDATION].options)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist its GPU, and the folder of the run."""
    validation = node.config.stash[VALIDATION]
    node.workerinput[FOLDER] = str(validation.folder.resolve())
    if validation.options.gpu:
        from validation.device import gpu_of_worker

        node.workerinput[GPU] = gpu_of_worker(int(node.gateway.id.removeprefix("gw")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In a worker, send the test's records with its report."""
    report = yield
    validation = item.config.stash[VALIDATION]
    if validation.worker and call.when == "call" and validation.started:
        records = validation.session.run.records
        setattr(report, RECORDS, [record.to_json() for record in records])
        setattr(report, PLANNED, (validation.ops, validation.quality))
        records.clear()
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the records that came with a worker's report to the run."""
    node = getattr(report, "node", None)  # the worker, set by pytest-xdist in the controlling process
    if node is not None:
        validation = node.config.stash[VALIDATION]
        if hasattr(report, PLANNED):
            ops, quality = getattr(report, PLANNED)
            validation.set_out(ops, quality=quality)
        for text in getattr(report, RECORDS, ()):
            validation.session.run.add(Record.from_json(text))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is judged, where, and from which seed."""
    options = config.stash[VALIDATION].options
    where = "the GPU" if options.gpu else options.compiled or "the interpreter"
    return [f"validation: {options.ops} on {where}, profile {options.profile}, seed {options.seed}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that need a GPU unless --gpu was given."""
    if config.getoption("--gpu"):
        return
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu:
        config.hook.pytest_deselected(items=needs_gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Plan the run, and check what the quality tests ask for before the first of them runs."""
    quality = any(item.get_closest_marker("quality") for item in session.items)
    if quality:
        try:
            require_models("pytest -m quality")
            session.config.stash[VALIDATION].session.check_quality()
        except UsageError as error:
            raise pytest.UsageError(as_pytest_says(str(error))) from error
    of_parity = [item for item in session.items if item.get_closest_marker("parity")]
    named = [item.callspec.params for item in of_parity if hasattr(item, "callspec")]
    ops = [params["op_name"] for params in named if "op_name" in params]
    if (ops or quality) and not session.config.option.collectonly:
        session.config.stash[VALIDATION].set_out(ops, quality=quality)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that take ``op_name`` with the ops that are judged."""
    if "op_name" in metafunc.fixturenames:
        metafunc.parametrize("op_name", metafunc.config.stash[VALIDATION].session.names)


@pytest.fixture(scope="session")
def validation_session(request: pytest.FixtureRequest) -> "Session":
    """The session that the options describe."""
    return request.config.stash[VALIDATION].session


def check(session: "Session", records: Iterator[Record]) -> None:
    """Add records to the run; fail with the messages of those that failed, each kind of failure once.

    Raises:
        AssertionError: there were no records.
        pytest.fail.Exception: a record failed or is inconclusive.
    """
    seen: dict[tuple[str, Status], Record] = {}
    count = failed = 0
    inconclusive = []
    for record in session.keep(records):
        count += 1
        failed += record.status.failed
        if record.status.failed:
            # The last of a kind is the shrunk one.
            seen[record.subject, record.status] = record
        elif record.status is Status.INCONCLUSIVE:
            inconclusive.append(record)
    assert count, "nothing was judged"
    if seen:
        pytest.fail(f"{failed} of {count} failed\n\n" + "\n\n".join(r.message for r in seen.values()), pytrace=False)
    if inconclusive:
        pytest.fail("inconclusive: " + "; ".join(r.reason for r in inconclusive), pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Note whether all tests ran: not after Ctrl-C, an error of pytest's own, or with ``-x``."""
    whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    session.config.stash[VALIDATION].cut = not whole or bool(session.shouldstop or session.shouldfail)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the report and print the table, if anything was judged."""
    validation = config.stash[VALIDATION]
    if not validation.started:
        return
    from validation.report.terminal import print_table
    from validation.report.unfinished import left_of

    session = validation.session
    if not validation.cut:
        session.run.close()
    path = session.finish()
    terminalreporter.section("validation")
    text = io.StringIO()
    print_table(session.run.records, report=path, file=text, left=left_of(session.run.state, session.run.records))
    terminalreporter.write(text.getvalue())
