"""What every test has: uvloop, garbage collected at its end, and the marks of contract rules."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from batchline import telemetry
from tests.support.migrated import migrated_postgres, migrated_postgres_url, migrated_sqlite
from tests.support.postgres import postgres_cluster, postgres_database, postgres_url

__all__ = [  # fixtures
    "migrated_postgres",
    "migrated_postgres_url",
    "migrated_sqlite",
    "postgres_cluster",
    "postgres_database",
    "postgres_url",
]

# A shared machine may stop for longer than an example takes.
settings.register_profile("batchline", deadline=None)
settings.load_profile("batchline")


# A script's shell has its background programs ignore it, and what is started here would inherit
# that: Ctrl-C could not be tried.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """A logger made in an earlier test would write to that test's capture of stderr."""
    telemetry.configure_logging()


@pytest.fixture(autouse=True)
def collected_garbage() -> Iterator[None]:
    """A socket or file that nobody closed is reported in the test that left it, not in a later one.

    Autouse fixtures are torn down last, so all others have closed theirs by then.
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def frozen_imports() -> None:
    """Take what is there for good out of every later collection: 1 ms instead of 60 ms a test.

    That is what the collection of tests imported, and what modules before this one did: the schemas
    of one application alone are more objects than all else. At the start of a module nothing of an
    earlier test is held any more, by pytest neither, so what that left has been reported.
    """
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rule",
        action="append",
        default=[],
        metavar="ID",
        help="run only the tests of this rule of docs/compatibility.md (repeatable)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector: what that makes stays, and to look through it again
    and again as it grows is a sixth of its time, in each process of the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the form of each `rule` mark, and apply `--rule`."""
    wanted = set(config.getoption("--rule"))
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        rules = {_rule(item, mark) for mark in item.iter_markers("rule")}
        (chosen if not wanted or rules & wanted else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


def _rule(item: pytest.Item, mark: pytest.Mark) -> str:
    match mark.args:
        case (str(rule),) if rule and not mark.kwargs:
            return rule
    raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.rule('ID'), one id a mark")
