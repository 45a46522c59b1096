"""How much of what nobody synced is on the disk after a power cut."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from typing import Final

SECTORS: Final = (512, 4096)  # bytes that a disk writes wholly or not at all: old disks, new ones


class Kept(Enum):
    """How much of what was not synced is on the disk."""

    NONE = "none"
    SOME = "some"
    ALL = "all"

    def moment(self, changes: int, chance: random.Random) -> int:
        """How many of so many changes, from the first on, are on the disk."""
        match self:
            case Kept.NONE:
                return 0
            case Kept.ALL:
                return changes
            case Kept.SOME:
                return chance.randint(0, changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What one power cut does. `garbage`: what was never written reads as anything, not as zeros,
    as on file systems that let sizes go to the disk before bytes."""

    data: Kept
    sizes: Kept
    names: Kept
    sector_bytes: int = 512
    garbage: bool = False


# The corners, which find most, and then chance. A size without bytes is the well-known empty file
# after a rename; names alone or bytes alone find what relies on an order that nobody promised.
CORNERS: Final = (
    Survival(data=Kept.NONE, sizes=Kept.NONE, names=Kept.NONE),
    Survival(data=Kept.NONE, sizes=Kept.NONE, names=Kept.ALL),
    Survival(data=Kept.NONE, sizes=Kept.ALL, names=Kept.ALL, garbage=True),
    Survival(data=Kept.ALL, sizes=Kept.ALL, names=Kept.NONE),
)


def drawn(chance: random.Random) -> Survival:
    """A power cut in which everything is left to chance."""
    return Survival(
        data=Kept.SOME,
        sizes=Kept.SOME,
        names=Kept.SOME,
        sector_bytes=chance.choice(SECTORS),
        garbage=chance.random() < 0.5,
    )
