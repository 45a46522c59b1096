"""Instants as people read them."""

from __future__ import annotations

from batchline.cli import wording


def test_an_instant_that_no_calendar_has_is_told_in_seconds() -> None:
    assert wording.instant(1_795_903_039) == "2026-11-28 21:57:19Z"
    assert wording.instant(8_641_795_818_149) == "8641795818149 s after 1970"
    assert wording.instant(None) == "-"
