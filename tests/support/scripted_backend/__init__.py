"""An OpenAI-compatible backend on loopback that follows a script and remembers everything.

It is the only thing that the tests fake: the far side of the network. Run in the test's process
(`backend_here`) or in one of its own that survives kills of the others (`backend_process`), both
give the same `BackendControl`.

    script.py    what it does: answers, faults, per-id plans
    witness.py   what it saw: the event log, its counts, waiting for them
    answers.py   the bytes of its answers
    streaming.py the same as event streams
    rate.py      a limit per time that it enforces
    protocol.py  HTTP towards the workers
    server.py    listening, going down and coming up, the control routes
    control.py   the client of the control routes
"""

from tests.support.scripted_backend.control import (
    BackendControl,
    backend_here,
    backend_process,
)
from tests.support.scripted_backend.script import Answer, Fault, Rate, Script
from tests.support.scripted_backend.witness import BackendLog, Event, Kind, Stats, read_log

__all__ = [
    "Answer",
    "BackendControl",
    "BackendLog",
    "Event",
    "Fault",
    "Kind",
    "Rate",
    "Script",
    "Stats",
    "backend_here",
    "backend_process",
    "read_log",
]
