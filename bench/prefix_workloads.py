"""Batch inputs whose lines share prefixes in the ways that real ones do, or share none."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from bench.fast_backend import MODEL
from bench.inputs import CHAT

_TOKEN_BYTES: Final = 4
_SYLLABLES: Final = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se")

Messages = list[dict[str, str]]


class _Writer:
    """Texts of so many tokens that nobody wrote before."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # a workload

    def text(self, tokens: int) -> str:
        # Three bytes a word would be too even: two syllables or three, and a space.
        size = tokens * _TOKEN_BYTES
        words: list[str] = []
        length = 0
        while length < size:
            word = "".join(self.random.choices(_SYLLABLES, k=self.random.choice((2, 3))))
            words.append(word)
            length += len(word) + 1
        return " ".join(words)[:size]


def _asked(system: str | None, *turns: str) -> Messages:
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def one_system_prompt(lines: int) -> list[Messages]:
    """One system prompt of 1,200 tokens, and questions of their own of 150."""
    writer = _Writer(1)
    system = writer.text(1_200)
    return [_asked(system, writer.text(150)) for _ in range(lines)]


def documents(lines: int) -> list[Messages]:
    """Ten questions each about documents of 1,500 tokens, under one system prompt, shuffled."""
    writer = _Writer(2)
    system = writer.text(100)
    made = []
    for _ in range(-(-lines // 10)):
        document = writer.text(1_500)
        made += [_asked(system, f"{document}\n\n{writer.text(40)}") for _ in range(10)]
    writer.random.shuffle(made)
    return made[:lines]


def few_shot(lines: int) -> list[Messages]:
    """100 tasks with six examples of 250 tokens each, tails of 120 tokens, in turn."""
    writer = _Writer(3)
    tasks = [[writer.text(50), *(writer.text(125) for _ in range(12))] for _ in range(100)]
    return [_asked(*tasks[number % len(tasks)], writer.text(120)) for number in range(lines)]


def conversations(lines: int) -> list[Messages]:
    """Conversations of eight turns of 250 tokens, a line for each state of them, by turn; half of
    them part from another one in the middle."""
    writer = _Writer(4)
    system = writer.text(200)
    talks: list[list[str]] = []
    for number in range(-(-lines // 4)):
        begun = talks[-1][:4] if number % 2 else []
        talks.append([*begun, *(writer.text(250) for _ in range(8 - len(begun)))])
    states = [_asked(system, *talk[: turn + 1]) for turn in range(0, 8, 2) for talk in talks]
    return states[:lines]


def nothing_shared(lines: int) -> list[Messages]:
    """Prompts of 600 tokens that have nothing in common."""
    writer = _Writer(5)
    return [_asked(None, writer.text(600)) for _ in range(lines)]


WORKLOADS: Final[Mapping[str, Callable[[int], list[Messages]]]] = MappingProxyType(
    {
        "one system prompt": one_system_prompt,
        "documents, shuffled": documents,
        "few-shot tasks, in turn": few_shot,
        "conversations, by turn": conversations,
        "nothing shared": nothing_shared,
    }
)


def as_lines(messages: Sequence[Messages], limits: Sequence[int]) -> bytes:
    """A batch input of them; `limits` has the most tokens of each one's answer."""
    return b"".join(
        msgspec.json.encode(
            {
                "custom_id": f"line-{number:07d}",
                "method": "POST",
                "url": CHAT,
                "body": {"model": MODEL, "messages": one, "max_tokens": limit},
            }
        )
        + b"\n"
        for number, (one, limit) in enumerate(zip(messages, limits, strict=True))
    )


def as_prompt(messages: Messages) -> str:
    """The messages as a chat template writes them."""
    return "".join(f"<|{one['role']}|>{one['content']}<|end|>" for one in messages)
