"""What every reader returns."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

# how the rules begin by which `dropped` counts interactions; the others are about items
_OF_INTERACTIONS = ("bad timestamps", "rows without user or item", "dropped by data.where")


@dataclass
class Raw:
    """What a reader found.  `dropped` counts what a rule removed, by the rule's name."""

    interactions: pl.DataFrame  # user: str, item: str, time: i64 (absent where the source has none)
    items: pl.DataFrame  # item: str, then attributes as text
    files: list[Path] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    ticks: int = 1  # of `time`, per second, as the reader found it

    @property
    def n_read(self) -> int:
        """The interactions that were read, with those that a rule removed."""
        rules = [rule for rule in self.dropped if rule.startswith(_OF_INTERACTIONS)]
        return self.interactions.height + sum(self.dropped[rule] for rule in rules)

    @property
    def has_time(self) -> bool:
        return "time" in self.interactions.columns


def no_items() -> pl.DataFrame:
    return pl.DataFrame(schema={"item": pl.String, "title": pl.String})
