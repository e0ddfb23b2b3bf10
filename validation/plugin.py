"""pytest's side: the options of the ``validate`` command, the markers, and the run folder of a session.

Loaded by the ``conftest.py`` at the top; elsewhere with ``-p validation.plugin``.

With pytest-xdist (``-n N``) the ops are spread over the workers; each sends its records along with its tests'
reports, and the process that started them writes the one run. With ``--gpu`` each worker sees one GPU.
"""

import argparse
import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from validation.device import gpu_of_worker, pin_gpu
from validation.errors import UsageError
from validation.record import Record
from validation.session import DEFAULT_OPS, DEFAULT_SEED, Options, Session
from validation.shape_options import ShapeOptions, add_shape_options
from validation.verdict import Status

MARKERS = {
    "parity": "op level: each op on generated cases against its reference",
    "quality": "sample level: whole sampled outputs, reference against candidate",
    "gpu": "needs a GPU; runs with --gpu only",
}

SESSION = pytest.StashKey[Session]()

# What a worker is told, and the attribute of a test's report that carries its records.
GPU, FOLDER, RECORDS = "validation_gpu", "validation_folder", "validation_records"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, in one group."""
    group = parser.getgroup("validation", "validation of fused ops")
    group.addoption("--ops", metavar="MODULE_OR_FILE", default=DEFAULT_OPS, help="op set to judge (default: fused_ops)")
    group.addoption("--op", action="append", default=[], metavar="NAME", help="judge this op only; may be repeated")
    group.addoption("--profile", default="default", metavar="NAME", help="quick, default or nightly")
    group.addoption("--seed", type=int, default=DEFAULT_SEED, metavar="N", help="everything is drawn from it")
    group.addoption("--gpu", action="store_true", help="run on the GPU; a usage error where there is none")
    group.addoption(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="run candidates in a process of their own (default: all that are not ours)",
    )
    group.addoption("--case-seconds", type=float, metavar="S", help="the most that a case may take there")
    group.addoption("--require", metavar="TIER", help="hold every op to bit-exact, lossless or close")
    group.addoption(
        "--xfail", type=Path, metavar="FILE", help="known failures: op[:status or corner][:dtype]  # reason"
    )
    group.addoption("--model", metavar="NAME", help="model to sample (default: all)")
    group.addoption(
        "--checkpoint", type=Path, metavar="DIR", help="a checkpoint folder, in diffusers' or the official layout"
    )
    group.addoption("--sites", metavar="SITE[,SITE]", help="mount only these sites")
    group.addoption("--prompts", type=Path, metavar="FILE", help="JSON of what to sample")
    group.addoption("--replays", type=int, default=8, metavar="N", help="legal replays a prompt; 0: floors alone")
    group.addoption("--cache", type=Path, metavar="DIR", help="where the replays' distances are kept")
    add_shape_options(parser.getgroup("validation of shapes", "with --model hunyuan3d").addoption)
    group.addoption("--json", type=Path, metavar="FILE", help="write environment and records as JSON as well")
    group.addoption("--out", type=Path, metavar="DIR", help="run folder (default: a new one under runs/)")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; check the options and select the device before any kernel is imported."""
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    # NumPy says so under the interpreter wherever a case holds NaN or inf on purpose.
    for module in ("triton", "numpy"):
        config.addinivalue_line("filterwarnings", rf"ignore::RuntimeWarning:{module}.*")
    sites = config.getoption("--sites")
    options = Options(
        ops=config.getoption("--ops"),
        names=tuple(config.getoption("--op")),
        profile=config.getoption("--profile"),
        seed=config.getoption("--seed"),
        gpu=config.getoption("--gpu"),
        isolate=config.getoption("--isolate"),
        case_seconds=config.getoption("--case-seconds"),
        require=config.getoption("--require"),
        xfail=config.getoption("--xfail"),
        json=config.getoption("--json"),
        out=config.getoption("--out"),
        model=config.getoption("--model"),
        checkpoint=config.getoption("--checkpoint"),
        sites=tuple(sites.split(",")) if sites else None,
        prompts=config.getoption("--prompts"),
        replays=config.getoption("--replays"),
        cache=config.getoption("--cache"),
        shape=ShapeOptions.read(config.option),
    )
    started_with: dict[str, str] = getattr(config, "workerinput", {})
    try:
        if started_with and options.gpu:
            pin_gpu(started_with[GPU])
        config.stash[SESSION] = Session(options, Path(started_with[FOLDER]) if started_with else None)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist its GPU, and the folder of the run."""
    session = node.config.stash[SESSION]
    node.workerinput[FOLDER] = str(session.folder.resolve())
    if session.options.gpu:
        node.workerinput[GPU] = gpu_of_worker(int(node.gateway.id.removeprefix("gw")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In a worker, send the test's records with its report."""
    report = yield
    session = item.config.stash[SESSION]
    if hasattr(item.config, "workerinput") and call.when == "call" and session.started:
        setattr(report, RECORDS, [record.to_json() for record in session.run.records])
        session.run.records.clear()
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the records that came with a worker's report to the run."""
    node = getattr(report, "node", None)  # pytest-xdist says whence it came, in the process that gathers
    if node is not None:
        for text in getattr(report, RECORDS, ()):
            node.config.stash[SESSION].run.add(Record.from_json(text))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is judged, where, and from which seed."""
    session = config.stash[SESSION]
    lines = [
        (
            f"validation: {session.ops.name} on {session.device.name}, profile {session.profile.name}, "
            f"seed {session.options.seed}"
        )
    ]
    if session.ops.missing:
        lines.append(f"validation: {session.ops.name} does not provide: {', '.join(session.ops.missing)}")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that need a GPU out unless --gpu was given."""
    if config.getoption("--gpu"):
        return
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu:
        config.hook.pytest_deselected(items=needs_gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Check what the quality tests ask for before the first of them runs."""
    if any(item.get_closest_marker("quality") for item in session.items):
        from validation.quality import check_request

        try:
            check_request(session.config.stash[SESSION])
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that take ``op_name`` one call for each op that is judged."""
    if "op_name" in metafunc.fixturenames:
        metafunc.parametrize("op_name", metafunc.config.stash[SESSION].names)


@pytest.fixture(scope="session")
def validation_session(request: pytest.FixtureRequest) -> Session:
    """The session that the options describe."""
    return request.config.stash[SESSION]


def check(session: Session, records: Iterator[Record]) -> None:
    """Add records to the run; fail with the messages of those that failed, each kind of failure once.

    Raises:
        AssertionError: a record failed, or there was none.
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the report and print the table, if anything was judged."""
    session = config.stash[SESSION]
    if not session.started:
        return
    from validation.report.terminal import print_table

    path = session.finish()
    terminalreporter.section("validation")
    text = io.StringIO()
    print_table(session.run.records, report=path, file=text)
    terminalreporter.write(text.getvalue())
