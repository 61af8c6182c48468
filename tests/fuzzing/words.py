"""Words of a command line: whatever somebody types is read as it stands, or refused in one line."""

import random
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from distrec.config import Config

TEXTS = (
    "runs/try #2", "2024-05-01", "20240501", "1e3", "007", "yes", "no", "on", "true", "12:30", "a: b", "{title}. {brand}", "[x]", "x[1]", "'quoted'",
    '"quoted"', " leading", "trailing ", "a=b", "~", "~/x", "#x", "&x", "*x", "!x", "%x", "@x", "- x", "?", "|", ">", "ü 名", "a,b", "null x", "0x10",
    "1_000", ".5", "-1", "x" * 3000, "a\tb", "<<", "=", "{", "}", "[", "]", "{a: 1}", "\\n", "$HOME", "nan", ".inf", "1:2:3", "\u200b", "*.csv", "..",
)  # fmt: skip


def keys(root: type = Config, before: str = "") -> Iterator[str]:
    """Every key of a run, with those of the default model and codes."""
    for each in fields(root):
        hint: Any = get_type_hints(root)[each.name]
        kinds = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
        if kinds:
            for kind in kinds:
                yield from keys(kind, f"{before}{each.name}.")  # pyright: ignore[reportArgumentType]
        else:
            yield before + each.name


def draw(rng: random.Random, known: list[str]) -> str:
    """A key, now and then misspelt, and a text, now and then of two."""
    key = rng.choice(known)
    if rng.random() < 0.1:
        place = rng.randrange(len(key))
        key = key[:place] + rng.choice("x._-0 ") + key[place + 1 :]
    text = rng.choice(TEXTS) + (rng.choice(TEXTS) if rng.random() < 0.2 else "")
    return f"{key}{rng.choice(['=', '=', '=', '=', '==', ' = ', ''])}{text}"
