"""The programs of the suite and of `examples/clients/`, each with an official client of its own.

`make interop` installs the clients into `.venv-interop/`, in exactly the versions that `python1/`,
`node/` and `go/` name. The newest Python client is the one of the tests' own environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio import to_thread

from tests.support.installed import lacking

_ROOT: Final = Path(__file__).parents[2]
_HERE: Final = _ROOT / "tests" / "interop"
_EXAMPLES: Final = _ROOT / "examples" / "clients"
_CLIENTS: Final = _ROOT / ".venv-interop"
_TIMEOUT_S: Final = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How one program is started. `needs` is what it cannot run without."""

    name: str
    command: tuple[str | Path, ...]
    needs: tuple[Path, ...] = ()
    node_modules: bool = False

    def __str__(self) -> str:
        return self.name

    async def run(self, directory: Path, base_url: str, *arguments: str | Path) -> str:
        """Run it in `directory`; what it printed. A program that fails shows its standard error.

        Skips, or fails in CI, when the client or its language is not installed.
        """
        command = self._command_in(directory)
        ran = await to_thread.run_sync(
            lambda: subprocess.run(
                [*command, *map(str, arguments)],
                cwd=directory,
                env={**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "any"},
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        )
        assert ran.returncode == 0, f"{self.name}: {ran.stderr}"
        return ran.stdout

    def _command_in(self, directory: Path) -> list[str]:
        missing = [str(path.relative_to(_ROOT)) for path in self.needs if not path.exists()]
        starter = shutil.which(self.command[0])
        if missing or starter is None:
            lacking(f"{self.name} needs {missing or self.command[0]}; `make interop` installs it")
        if not self.node_modules:
            return [starter, *map(str, self.command[1:])]
        # Node looks for packages beside the program, so the program comes to the packages.
        (directory / "node_modules").symlink_to(_NODE_MODULES)
        return [starter, str(shutil.copy(self.command[1], directory))]


_NODE_MODULES: Final = _CLIENTS / "node" / "node_modules"
_PYTHON1: Final = _CLIENTS / "python1" / "bin" / "python"


def _node(name: str, program: Path) -> Program:
    return Program(
        name=name, command=("node", program), needs=(_NODE_MODULES / "openai",), node_modules=True
    )


def _go(name: str, binary: str) -> Program:
    built = _CLIENTS / "go" / binary
    return Program(name=name, command=(built,), needs=(built,))


PYTHON: Final = Program(name="python", command=(sys.executable, _HERE / "whole_job.py"))
PYTHON1: Final = Program(
    name="python-1.x", command=(_PYTHON1, _HERE / "whole_job.py"), needs=(_PYTHON1,)
)
NODE: Final = _node("node", _HERE / "node" / "whole_job.mjs")
GO: Final = _go("go", "whole-job")
WHOLE_JOBS: Final = (PYTHON, PYTHON1, NODE, GO)

EXAMPLES: Final = (
    Program(name="curl", command=("bash", _EXAMPLES / "curl.sh")),
    Program(name="python", command=(sys.executable, _EXAMPLES / "python.py")),
    _node("node", _EXAMPLES / "node.mjs"),
    _go("go", "example"),
)
