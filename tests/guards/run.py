"""Breaks each guard of the product, one at a time, and expects each of its tests to fail.

    python -m tests.guards.run [--only NAME]...

Each `NAME.patch` beside this file takes one guard out and says in its head what that guard is for
and which tests hold it. It is applied to a copy of the working tree, never to the tree itself.
Exit code 0: every broken guard was noticed. See README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
TEST_LIMIT_S: Final = 30  # one test: broken code may wait for ever
LIMIT_S: Final = 300.0  # all tests of one guard, should even that not end them

_GUARD: Final = re.compile(r"^# guard: (.+)$", re.MULTILINE)
_TEST: Final = re.compile(r"^# test: (\S+)$", re.MULTILINE)
_FAILED: Final = re.compile(r"^FAILED (\S+)", re.MULTILINE)
_ERROR: Final = re.compile(r"^ERROR (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One way to break the product. `purpose` is what then no longer holds."""

    name: str
    patch: Path
    purpose: str
    tests: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the tests said about a broken guard; `noticed` is what we want."""

    noticed: bool
    said: str


def guards() -> list[Guard]:
    """Every patch beside this file, by name."""
    return [_read(patch) for patch in sorted(HERE.glob("*.patch"))]


def _read(patch: Path) -> Guard:
    head = patch.read_text(encoding="utf-8").partition("\n--- ")[0]
    purpose, tests = _GUARD.findall(head), _TEST.findall(head)
    if len(purpose) != 1 or not tests:
        raise ValueError(f"{patch.name}: begins with one '# guard:' line and '# test:' lines")
    return Guard(name=patch.stem, patch=patch, purpose=purpose[0], tests=tests)


# -- one copy ----------------------------------------------------------------------------------


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of what git knows or would add; nothing that was started in it runs afterwards."""
    with tempfile.TemporaryDirectory(prefix="batchline-guard-") as made:
        copy = Path(made).resolve()
        for name in _tracked_and_new():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        try:
            yield copy
        finally:
            _end_what_runs_in(copy)


def _tracked_and_new() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607  # where git is differs between systems
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [name for name in listed.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]  # not those deleted just now


def apply(guard: Guard, tree: Path, *, check: bool = False) -> str:
    """Apply the patch to `tree`, or only see whether it would; what git has against it, or ""."""
    ran = subprocess.run(
        ["git", "apply", *(["--check"] if check else []), str(guard.patch)],  # noqa: S607  # as above
        cwd=tree,
        # In a copy below some repository git would take the paths for that repository's.
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)},
        check=False,
        capture_output=True,
        text=True,
    )
    return ran.stderr.strip() if ran.returncode else ""


def _environment(copy: Path) -> dict[str, str]:
    """Python finds the copy's code before the installed one, in children too."""
    return {**os.environ, "PYTHONPATH": str(copy / "src")}


def _must_run_the_copy(copy: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import batchline; print(batchline.__file__)"],
        cwd=copy,
        env=_environment(copy),
        check=True,
        capture_output=True,
        text=True,
    )
    if not Path(found.stdout.strip()).resolve().is_relative_to(copy):
        raise RuntimeError(f"the tests would run {found.stdout.strip()}, not the copy")


def run_tests(
    copy: Path, tests: Sequence[str], *, limit_s: float = LIMIT_S
) -> tuple[int | None, str]:
    """Exit code and output of pytest in the copy; None when it did not end in time."""
    _must_run_the_copy(copy)
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", "--basetemp", str(copy / "tmp")]
    options += ["--timeout", str(TEST_LIMIT_S)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env=_environment(copy),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _end_what_runs_in(copy)  # whoever holds the pipe open
        said, _ = process.communicate()
        return None, said
    return process.returncode, said


def _end_what_runs_in(copy: Path) -> None:
    """Kill what a broken server left behind: processes that were given this copy's code."""
    mark = f"PYTHONPATH={copy / 'src'}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)


# -- what is concluded -------------------------------------------------------------------------


def broken(guard: Guard) -> Finding:
    """Break the guard and run its tests."""
    with copied_tree() as copy:
        refused = apply(guard, copy)
        if refused:
            return Finding(noticed=False, said=f"the patch does not apply: {refused}")
        code, said = run_tests(copy, guard.tests)
    failed = _FAILED.findall(said)
    blind = [test for test in guard.tests if not any(_is_of(test, one) for one in failed)]
    if code == 1 and not blind:
        return Finding(noticed=True, said=", ".join(failed))
    if code in (0, 1) and not _ERROR.search(said):
        return Finding(noticed=False, said=f"pass without the guard: {', '.join(blind)}")
    # An error while collecting or in a fixture says nothing about the guard.
    what = "no end in time" if code is None else f"exit code {code}"
    return Finding(noticed=False, said=f"{what}: {_ERROR.findall(said) or said[-500:]}")


def _is_of(test: str, failed: str) -> bool:
    """Whether a failed test is `test`, or `test` with some parameters."""
    return failed == test or failed.startswith(f"{test}[")


def whole(tests: Sequence[str]) -> str:
    """Run the tests on an unbroken copy; "" when they pass, else what they said."""
    with copied_tree() as copy:
        # There are hundreds of them, and each has its own limit.
        code, said = run_tests(copy, tests, limit_s=LIMIT_S + TEST_LIMIT_S * len(tests))
    return "" if code == 0 else said


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so remove the copy
    parser = argparse.ArgumentParser(prog="python -m tests.guards.run", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="repeat for more")
    parser.add_argument("--list", action="store_true", help="only say which guards there are")
    arguments = parser.parse_args()
    chosen = [
        guard for guard in guards() if arguments.only in (None, []) or guard.name in arguments.only
    ]
    unknown = set(arguments.only or ()) - {guard.name for guard in chosen}
    if unknown:
        parser.error(f"no such guard: {', '.join(sorted(unknown))}")
    if arguments.list:
        for guard in chosen:
            _say(f"{guard.name:<28} {guard.purpose}")
        return 0
    tests = sorted({test for guard in chosen for test in guard.tests})
    _say(f"{len(chosen)} guards, {len(tests)} tests; first all of them with every guard in place")
    if said := whole(tests):
        _say(f"{said}\nThe tests must pass before it means anything that they fail.")
        return 1
    missed = [guard.name for guard in chosen if not _report(guard)]
    if missed:
        _say(f"{len(missed)} of {len(chosen)} guards can be taken out unseen: {', '.join(missed)}")
        return 1
    _say(f"all {len(chosen)} guards are held by a test")
    return 0


def _report(guard: Guard) -> bool:
    began = time.monotonic()
    finding = broken(guard)
    mark = "failed as it should" if finding.noticed else "PROBLEM"
    _say(f"{guard.name:<28} {mark:<20} {time.monotonic() - began:5.1f} s  {finding.said}")
    return finding.noticed


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # the program's output


if __name__ == "__main__":
    sys.exit(main())
