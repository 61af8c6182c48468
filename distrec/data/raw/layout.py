"""What every reader returns."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

ROWS = "bad timestamps", "rows without user or item"  # what `dropped` counts of interactions; the rest is of items


@dataclass
class Raw:
    """What a reader found.  `dropped` counts what a rule removed, by the rule's name."""

    interactions: pl.DataFrame  # user: str, item: str, time: i64 (absent where the source has none)
    items: pl.DataFrame  # item: str, then attributes as text
    files: list[Path] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    ticks: int = 1  # of `time`, per second, as the reader found it

    @property
    def has_time(self) -> bool:
        return "time" in self.interactions.columns


def no_items() -> pl.DataFrame:
    return pl.DataFrame(schema={"item": pl.String, "title": pl.String})
