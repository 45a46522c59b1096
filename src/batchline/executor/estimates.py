"""How many tokens a request will be counted for, before anybody has counted them.

A guess by bytes and by what the request allows itself to generate, times what guesses of this
backend have been off so far. Pure; one estimator per backend and worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from batchline.domain.model import Endpoint, Usage

_BYTES_A_TOKEN: Final = 4  # of English JSON; learnt from the first answers on
_FIRST_OUTPUT: Final = 256.0  # of requests that set no bound, until answers have shown better
_SLOWEST: Final = 0.05  # what one answer counts at least, once many have come
_SCALES: Final = (1 / 16, 16.0)
# A file may say any number of digits, and one of 400 is no float. No allowance is as large.
_MOST: Final = 10**9
_GENERATES: Final = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.RESPONSES})


class _Bounds(msgspec.Struct, gc=False):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


_decode: Final = msgspec.json.Decoder(_Bounds).decode


@dataclass(slots=True)
class Estimator:
    """Learns from answers. `scale` is actual over guessed, `output` what is generated without a
    bound."""

    scale: float = 1.0
    output: float = _FIRST_OUTPUT
    answers: int = 0

    def guess(self, body: bytes, endpoint: str) -> float:
        """The tokens of a request, before the scale."""
        tokens = len(body) / _BYTES_A_TOKEN
        if endpoint not in _GENERATES:
            return tokens
        try:
            bounds = _decode(body)
        except (ValueError, RecursionError):  # wrong types are the backend's to judge
            return tokens + self.output
        bound = bounds.max_completion_tokens or bounds.max_output_tokens or bounds.max_tokens
        each = self.output if bound is None or bound < 0 else min(bound, _MOST)
        return tokens + each * min(max(bounds.n or 1, 1), _MOST)

    def learn(self, guess: float, usage: Usage) -> None:
        """A request of which `guess` was made came to `usage`."""
        self.answers += 1
        weight = max(_SLOWEST, 1 / (self.answers + 1))
        least, most = _SCALES
        scale = min(max(total_of(usage) / max(guess, 1.0), least), most)
        self.scale += (scale - self.scale) * weight
        self.output += (usage.output_tokens - self.output) * weight


def total_of(usage: Usage) -> int:
    """All tokens of an answer; 0 when the backend told none."""
    return usage.total_tokens or usage.input_tokens + usage.output_tokens
