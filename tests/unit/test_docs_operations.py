"""`docs/operations.md` says what the code does: signals, exit codes, versions, names, commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from batchline.cli import outcome, serve
from batchline.cli.data_directory import FORMAT, DataDirectory
from batchline.cli.main import EXIT_CONFIG
from batchline.store.schema import HEAD
from tests.unit.test_docs_reference import SOURCE, commands

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
FIRST_CELL = re.compile(r"^\| ((?:`[^`]+`(?:, )?)+) +\|", re.MULTILINE)


def section(name: str) -> str:
    text = PAGE.read_text()
    assert f"\n## {name}\n" in text
    return text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def first_cells(name: str) -> list[str]:
    """What the rows of a section's tables are about, one by one."""
    return [
        one for cell in FIRST_CELL.findall(section(name)) for one in re.findall("`(.+?)`", cell)
    ]


def test_every_signal_and_exit_code_is_there() -> None:
    handled = set(re.findall(r"signal\.(SIG[A-Z]{3,4})\b", (SOURCE / "cli/signals.py").read_text()))
    codes = {"0", str(serve.STOPPED_AT_ONCE), str(EXIT_CONFIG)}
    assert set(first_cells("Stopping")) == (handled - {"SIG_IGN"}) | {"SIGKILL"} | codes
    assert f"exit code {outcome.INTERRUPTED}" in section("Stopping")


def test_the_versions_are_those_of_the_code() -> None:
    """If this fails, raise the number in the page as well."""
    assert re.findall(r"\| `(\d+)` \|$", section("Downgrade"), re.MULTILINE) == [str(FORMAT), HEAD]


def test_every_name_in_the_directory_is_there() -> None:
    directory = DataDirectory(Path("d"), -1)
    ours = [
        *(directory.database, directory.blobs, directory.format, directory.children),
        *(directory.note, directory.admin_socket, directory.validating, directory.drained),
    ]
    written = {path.name for path in ours} | {"lock", "reserve"}
    assert set(first_cells("The data directory")) == written


def test_every_command_on_the_page_can_be_typed() -> None:
    known = commands()
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    typed = [shlex.split(line) for line in blocks.splitlines() if line.startswith("batchline ")]
    assert len(typed) == blocks.count("batchline ")
    for _, *words in typed:
        command = " ".join(words[:2])
        options = {word for word in words if word.startswith("-")}
        assert options <= set(known[command if command in known else words[0]])


def test_events_that_the_page_names_exist() -> None:
    sources = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    for event in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE.read_text()):
        if event not in ("commit_interval_s", "grace_s"):
            assert f'"{event}"' in sources, event
