"""An event loop without time and without threads, that knows when nothing happens any more.

`time()` moves only when the test moves it. What the product gives to threads runs in the loop, one
step later, so that a run depends on nothing but the test's own choices.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Args = TypeVarTuple("Args")


class QuietLoop(asyncio.SelectorEventLoop):
    """Runs until it would have to wait for something."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self.stop))

    def time(self) -> float:
        return self._now

    def run_in_executor(
        self,
        executor: Executor | None,  # noqa: ARG002  # whatever it is, nothing goes to it
        func: Callable[[Unpack[Args]], T],
        *args: *Args,
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            # Also when nobody waits any more: a thread would not stop either.
            try:
                result = func(*args)
            except Exception as exc:  # noqa: BLE001  # it is the caller's
                if not future.done():
                    future.set_exception(exc)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_soon(work)
        return future

    def skip(self, seconds: float) -> None:
        """Let `seconds` pass at once; what waited for any of them is due."""
        self._now += seconds

    def settle(self) -> None:
        """Run until nothing can go on without time."""
        self.run_forever()

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of what needs no time."""
        task = self.create_task(work)
        self.settle()
        assert task.done(), f"this waits for something: {task}"
        return task.result()

    def end_all_tasks(self) -> None:
        """Cancel whatever still runs, until nothing does."""
        while tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            self.settle()
            for task in tasks:
                with contextlib.suppress(BaseException):
                    task.result()


class _Selector(selectors.DefaultSelector):
    def __init__(self, when_quiet: Callable[[], None]) -> None:
        super().__init__()
        self._when_quiet = when_quiet

    def select(self, timeout: float | None = None) -> Any:
        if timeout != 0:
            self._when_quiet()
        return super().select(0)
