"""Whether a child is of the same program as the server that started it.

A server starts children from what is installed *now*. After an upgrade in place the installed
program is another one than the server that still runs, and the two must not talk: each could take
the other's words for something else. So the first word in either direction names the program, in a
form that every version reads, and nothing else is looked at until the two are equal.
"""

from __future__ import annotations

from typing import Final

import msgspec

from batchline import __version__

# To be raised whenever a message between processes, or what one means, changes. A test holds the
# shapes of the messages; their meanings are held by whoever changes them.
_REVISION: Final = 4

PROTOCOL: Final = f"{__version__}/{_REVISION}"

UNKNOWN: Final = "one that does not say"


class _First(msgspec.Struct):
    """The part of a first message that all versions agree on."""

    protocol: str = UNKNOWN


_decode: Final = msgspec.msgpack.Decoder(_First).decode


def named_in(first: bytes) -> str:
    """The program that a first message (msgpack) names.

    Raises:
        msgspec.DecodeError: it is no message.
    """
    return _decode(first).protocol


def other_version(theirs: str) -> str:
    """What to tell people of a child that names `theirs`; without a stop at its end."""
    return (
        f"the installed Batchline ({theirs}) is not the one that runs ({PROTOCOL}):"
        " restart the server"
    )
