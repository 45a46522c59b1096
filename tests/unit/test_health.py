"""When looks at a backend are reason to send it nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from batchline.executor.catalogue import BackendReport, Listing, after_answer, after_failure
from batchline.executor.health import Health


@dataclass(slots=True)
class Watch:
    said: list[str] = field(default_factory=list)
    report: BackendReport = field(default=BackendReport(name="a", base_url="http://a/v1"))
    health: Health = field(init=False)

    def __post_init__(self) -> None:
        self.health = Health(
            on_down=lambda report: self.said.append(f"down: {report.trouble}"),
            on_up=lambda _: self.said.append("up"),
        )

    def look(
        self, reason: str | None, *, connected: bool = False, silent: bool = True
    ) -> list[str]:
        """One look, with an answer or a reason; all that was said so far."""
        if reason is None:
            listing = Listing(models=("m",))
            self.report = after_answer(self.report, listing, configured=None, now_s=0)
        else:
            self.report = after_failure(
                self.report, reason, now_s=0, connected=connected, silent=silent
            )
        self.health.looked(self.report)
        return self.said


def test_a_refused_connection_is_enough() -> None:
    assert Watch().look("refused") == ["down: refused"]


def test_one_look_without_an_answer_is_not() -> None:
    watch = Watch()
    assert watch.look("silent", connected=True) == []
    assert watch.look("silent", connected=True) == ["down: silent"]


def test_an_answer_between_makes_it_the_first_again() -> None:
    watch = Watch()
    for _ in range(3):
        watch.look("silent", connected=True)
        assert watch.look(None) == []


def test_garbage_is_an_answer() -> None:
    watch = Watch()
    for _ in range(3):
        assert watch.look("not HTTP", connected=True, silent=False) == []


def test_it_goes_down_once_and_comes_up_once() -> None:
    watch = Watch()
    for _ in range(3):
        watch.look("refused")
    for _ in range(3):
        watch.look(None)
    watch.look("refused")
    assert watch.said == ["down: refused", "up", "down: refused"]


def test_an_answer_that_lists_nothing_is_an_answer() -> None:
    watch = Watch()
    watch.report = after_answer(
        watch.report, Listing(trouble="refuses the key"), configured=None, now_s=0
    )
    watch.health.looked(watch.report)
    assert watch.said == []
