"""What every reader returns."""

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl


@dataclass
class Raw:
    """What a reader found.  `dropped` counts the interactions that a rule removed, `of_items` what rules did to item rows and
    their texts, by the rule's name."""

    interactions: pl.DataFrame  # user: str, item: str, time: i64 (absent where the source has none)
    items: pl.DataFrame  # item: str, then attributes as text
    files: list[Path] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    of_items: dict[str, int] = field(default_factory=dict, kw_only=True)
    ticks: int = 1  # of `time`, per second, as the reader found it
    moved: int = 0  # interactions of a user that came before an earlier one, where `read` put them in order

    @property
    def n_read(self) -> int:
        """The interactions that were read, with those that a rule removed."""
        return self.interactions.height + sum(self.dropped.values())

    @property
    def has_time(self) -> bool:
        return "time" in self.interactions.columns


def no_items() -> pl.DataFrame:
    return pl.DataFrame(schema={"item": pl.String, "title": pl.String})
