"""The demo as it is told: two batches through a real server, with the official client.

Owns the order of events and what is printed. Every number comes from the downloaded files, the
batch object or the backend's counts, and those are held against each other: a mismatch ends the
demo as failed. There is no other way to a hit than through the output file.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import openai
from openai.types import Batch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from batchline.cli.demo.accounting import (
    Account,
    CancelReceipt,
    Mismatch,
    settle_account,
    settle_cancel,
)
from batchline.cli.demo.batches import (
    MODEL,
    TERMINAL,
    connect,
    counts_of,
    create,
    input_file_of,
    problems_of,
)
from batchline.cli.demo.children import ChildFailed, backend_running, server_running
from batchline.cli.demo.docstrings import Docstring, TooFewDocstrings, collect
from batchline.cli.demo.search import UnusableOutput, nearest, vectors_of
from batchline.cli.demo.witness import read_stats, seen_between, wait_for_quiet

HITS: Final = 5

POLL_S: Final = 0.1  # workers commit every 0.1 s, so the counts move no faster
BATCH_S: Final = 240.0  # an hour's work of this size on two cores takes 20 s; then something hangs

CANCEL_AT: Final = 0.3  # of the lines done: late enough to have results, early enough to matter
# Short, so that there is something to see: in the default ten seconds a model this small would
# finish all that is in flight, and no request would be aborted.
CANCEL_GRACE_S: Final = 0.1
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_CONFIG: Final = f"[cancel]\ngrace_s = {CANCEL_GRACE_S}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for on the command line. `backend` is the directory of a Python package."""

    lines: int
    question: str
    data_dir: Path | None
    keep: bool
    backend: Path


class Unexpected(Exception):
    """The server did something that a batch of good lines gives no reason for."""


def tell(plan: Plan) -> bool:
    """Run the whole demo; True when everything that was printed added up.

    Nothing is left running in either case. The temporary directory goes too, unless `plan.keep` is
    set or a failure asks for a look inside.
    """
    console = Console(highlight=False)
    directory = plan.data_dir or Path(tempfile.mkdtemp(prefix="batchline-demo-"))
    directory.mkdir(parents=True, exist_ok=True)
    keep = plan.keep or plan.data_dir is not None
    started = time.monotonic()
    try:
        with _sigterm_as_exit():
            _Story(plan, directory, console).run()
        _say_goodbye(console, time.monotonic() - started)
        return True
    except (
        *(ChildFailed, Mismatch, TooFewDocstrings, Unexpected, UnusableOutput),
        *(openai.OpenAIError, OSError),
    ) as exc:
        keep = True
        console.print(f"\n[bold red]The demo failed.[/] {escape(f'{type(exc).__name__}: {exc}')}")
        return False
    finally:
        if keep:
            console.print(f"Inputs, outputs and logs are in {directory}", soft_wrap=True)
        else:
            shutil.rmtree(directory)


class _Story:
    """One run: what its chapters share."""

    def __init__(self, plan: Plan, directory: Path, console: Console) -> None:
        self._plan = plan
        self._directory = directory
        self._console = console
        self._input = b""

    def run(self) -> None:
        self._heading("1. Real text, and a real model")
        docstrings = collect(self._plan.lines)
        self._input = input_file_of(docstrings)
        (self._directory / "input.jsonl").write_bytes(self._input)
        self._console.print(
            f"{len(docstrings):,} docstrings of the standard library of Python {_PYTHON}: "
            f"{len(self._input) / 1000:,.0f} kB of JSONL."
        )
        with backend_running(self._plan.backend, log=self._directory / "backend.log") as upstream:
            self._console.print(f"The backend runs {MODEL} at {upstream}")
            config = self._directory / "demo.toml"
            config.write_text(_CONFIG)
            with server_running(
                data_dir=self._directory / "data",
                upstream=upstream,
                config=config,
                log=self._directory / "server.log",
            ) as server:
                self._console.print(f"Batchline serves the Batch API at {server}")
                with connect(server) as client, connect(upstream) as live:
                    self._chapters(client, live, upstream, docstrings)
        self._console.print("\nServer and backend have ended; nothing is left running.")

    def _chapters(
        self,
        client: openai.OpenAI,
        live: openai.OpenAI,
        upstream: str,
        docstrings: list[Docstring],
    ) -> None:
        self._heading("2. One batch, from upload to download")
        uploaded = client.files.create(
            file=("docstrings.jsonl", self._input, "application/jsonl"), purpose="batch"
        )
        self._console.print(f"Uploaded {uploaded.filename}: {uploaded.id}")
        output = self._whole_batch(client, upstream, uploaded.id)

        self._heading("3. A question, answered from the downloaded file")
        self._ask(live, output, {one.name: one.text for one in docstrings})

        self._heading("4. A second batch, cancelled in the middle")
        self._cancelled_batch(client, upstream, uploaded.id)

    def _whole_batch(self, client: openai.OpenAI, upstream: str, input_file_id: str) -> bytes:
        """Run the first batch to its end; returns the downloaded output file."""
        before = read_stats(upstream)
        started = time.monotonic()
        batch = create(client, input_file_id)
        self._console.print(f"Created {batch.id}")
        batch = self._watch(client, batch, until=lambda now: now.status in TERMINAL)
        took_s = time.monotonic() - started
        if batch.status != "completed":
            raise Unexpected(f"{batch.id} is {batch.status}: {problems_of(batch)}")
        account, output = self._download(client, batch, "output.jsonl", "errors.jsonl")
        sent = read_stats(upstream).received - before.received
        if output is None or account.failed or sent != account.finished:
            raise Mismatch(f"{account}, but the backend was sent {sent} requests")
        used = batch.usage.input_tokens if batch.usage else 0
        self._console.print(
            f"{account.finished:,} lines in, {account.finished:,} answers out, each sent once: "
            f"{took_s:.1f} s, {account.finished / took_s:,.0f} lines/s, {used:,} tokens."
        )
        return output

    def _ask(self, live: openai.OpenAI, output: bytes, texts: dict[str, str]) -> None:
        """Rank the lines of `output` by the question and show the best."""
        vectors = vectors_of(output)
        asked = live.embeddings.create(model=MODEL, input=self._plan.question)
        hits = nearest(vectors, asked.data[0].embedding, count=HITS)
        table = Table(title=escape(self._plan.question), title_justify="left", box=None)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("found", no_wrap=True)
        table.add_column("its docstring", overflow="fold")
        for hit in hits:
            table.add_row(f"{hit.score:.3f}", escape(hit.custom_id), escape(texts[hit.custom_id]))
        self._console.print(table)

    def _cancelled_batch(self, client: openai.OpenAI, upstream: str, input_file_id: str) -> None:
        """Run the same lines again, cancel on the way, and account for every one of them."""
        before = read_stats(upstream)
        batch = create(client, input_file_id)
        self._console.print(f"Created {batch.id}")
        batch = self._watch(client, batch, until=_is_far_enough)
        cancelled_at = time.time()
        batch = client.batches.cancel(batch.id)
        acknowledged_at = time.time()
        if batch.status not in ("cancelling", "cancelled"):
            raise Unexpected(f"{batch.id} is {batch.status} after its cancel was acknowledged")
        batch = self._watch(client, batch, until=lambda now: now.status in TERMINAL)
        if batch.status != "cancelled":
            raise Unexpected(
                f"{batch.id} was cancelled and is {batch.status}: {problems_of(batch)}"
            )
        account, _ = self._download(
            client, batch, "cancelled-output.jsonl", "cancelled-errors.jsonl"
        )
        seen = seen_between(before, wait_for_quiet(upstream))
        receipt = settle_cancel(
            account, seen, cancelled_at=cancelled_at, acknowledged_at=acknowledged_at
        )
        self._console.print(_receipt_table(account, receipt))

    def _watch(
        self, client: openai.OpenAI, batch: Batch, *, until: Callable[[Batch], bool]
    ) -> Batch:
        """Show a batch's counts as they grow, `until` is content with the batch it is given.

        Raises:
            Unexpected: that took longer than BATCH_S.
        """
        deadline = time.monotonic() + BATCH_S
        columns = (
            TextColumn("{task.description:>11}"),
            *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(batch.status, total=self._plan.lines)
            while not until(batch):
                if time.monotonic() > deadline:
                    raise Unexpected(f"{batch.id} is still {batch.status} after {BATCH_S:.0f} s")
                time.sleep(POLL_S)
                batch = client.batches.retrieve(batch.id)
                counts = counts_of(batch)
                done = counts.completed + counts.failed
                progress.update(bar, description=batch.status, completed=done)
        return batch

    def _download(
        self, client: openai.OpenAI, batch: Batch, output_name: str, errors_name: str
    ) -> tuple[Account, bytes | None]:
        """Fetch what files the batch has, keep them, and hold them against input and counts."""
        contents = []
        for file_id, name in (
            (batch.output_file_id, output_name),
            (batch.error_file_id, errors_name),
        ):
            content = client.files.content(file_id).content if file_id else None
            if content is not None:
                (self._directory / name).write_bytes(content)
            contents.append(content)
        output, errors = contents
        account = settle_account(
            input_file=self._input, output_file=output, error_file=errors, counts=counts_of(batch)
        )
        return account, output

    def _heading(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/]")


def _is_far_enough(batch: Batch) -> bool:
    if batch.status in TERMINAL:
        raise Unexpected(f"{batch.id} was {batch.status} before it could be cancelled")
    counts = counts_of(batch)
    return counts.total > 0 and counts.completed >= CANCEL_AT * counts.total


def _receipt_table(account: Account, receipt: CancelReceipt) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    side = "before" if receipt.last_arrival_ms < 0 else "after"
    for number, meaning in (
        (f"{receipt.finished:,}", "lines finished: their answers are in the output file"),
        (f"{receipt.failed:,}", "lines failed"),
        (f"{receipt.aborted:,}", "lines aborted: sent, then closed by Batchline"),
        (f"{receipt.never_sent:,}", "lines never sent"),
        (f"{account.total:,}", "lines in all, each in exactly one of the two files"),
        (f"{receipt.acknowledged_ms:,.0f} ms", "from the cancel call to its acknowledgement"),
        (f"{receipt.quiet_ms:,.0f} ms", "from the cancel call to a quiet backend"),
        (
            f"{abs(receipt.last_arrival_ms):,.0f} ms",
            f"{side} the cancel call, the last request reached the backend",
        ),
    ):
        table.add_row(number, meaning)
    return table


def _say_goodbye(console: Console, took_s: float) -> None:
    console.print(
        f"\n[bold green]All of it added up[/], in {took_s:.0f} s. What to try next:\n"
        '  batchline demo --question "Which function pauses the program for a while?"\n'
        "  batchline serve --upstream http://127.0.0.1:11434/v1    your own backend, here Ollama\n"
        "  then any OpenAI client with base_url=http://127.0.0.1:8484/v1 (the README has a tour)",
        soft_wrap=True,
    )


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the children are stopped on the way out."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
