"""A split that comes with the data: a column `split`, or a folder that holds train, valid and test files.

Shapes: N interactions, U users.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from distrec.data import split
from distrec.data.files import paths
from distrec.data.files.paths import Part
from distrec.data.raw import lines
from distrec.runtime import brief, log, several

PARTS = {"train": 0, "valid": 1, "test": 2}
_SYNONYMS = {"training": "train", "validation": "valid", "val": "valid", "dev": "valid"}
_NAMED = re.compile(
    rf"(?:(?P<prefix>.*)\.)?(?P<word>{'|'.join((*PARTS, *_SYNONYMS))})"
    r"(?:[-_.]?(?:part[-_.]?)?(?P<number>\d+)(?:-of-(?P<of>\d+)(?:-[0-9a-f]+)?)?)?(?P<end>(?:\.\w+)*)",
    re.IGNORECASE,
)


def members(folder: Path) -> list[Part]:
    """The files of each part in a folder, train before valid before test; none where nothing in it is named so.

    A name is train.csv, books.train.csv, train-0.csv, train-00000-of-00002.parquet, or that of a folder of such parts.

    Raises: ValueError when one part has no file there, or files of several names or data sets, or lacks some.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name[0] not in "._")
    named = {name: match for name in names if (match := _NAMED.fullmatch(name))}
    if not named:
        return []
    found: list[Part] = []
    for part in PARTS:
        own = {name: match for name, match in named.items() if _word(match) == part}
        alike = {
            (match["prefix"], match["word"], match["of"], match["end"], not match["number"]) for match in own.values()
        }
        if len(alike) != 1:
            what = f"{len(own)} files ({', '.join(list(own)[:2])})" if own else "no file"
            raise ValueError(
                f"data.path={folder} holds {what} for the part {part!r}; data.split=given takes train, valid and test as a "
                "file each (train.csv, valid.csv, test.csv), as numbered files (train-0.csv, train-1.csv), as a folder "
                f"each, or a table with a column data.columns.split; found: {several(names)}"
            )
        announced = next(iter(own.values()))["of"]
        if announced and int(announced) != len(own):
            raise ValueError(
                f"{folder / next(iter(own))}: {len(own):,} of its {int(announced):,} files are there; fetch the rest"
            )
        found += [replace(each, subset=part) for name in own for each in paths.parts(folder / name, "data.path")]
    if len(sets := {match["prefix"]: name for name, match in named.items()}) > 1:
        raise ValueError(
            f"data.path={folder}: {' and '.join(list(sets.values())[:2])} are of two data sets; move the files of one away"
        )
    return found


def tell_unread(folder: Path, files: Sequence[Part], items: Path | None) -> None:
    """Log what lies beside train, valid and test and is not read."""
    read = {part.path.relative_to(folder).parts[0] for part in files}
    left = sorted(
        path.name for path in folder.iterdir() if path.name[0] not in "._" and path.name not in read and path != items
    )
    if left:
        log(f"{folder}: train, valid and test are read, and not {several(left)}")


def _word(match: re.Match[str]) -> str:
    word = match["word"].lower()
    return _SYNONYMS.get(word, word)


def parts(table: pl.DataFrame, path: Path) -> pl.Series:
    """The column `split` of a table with `line` as numbers: 0 train, 1 valid, 2 test.

    Raises: ValueError naming the first line whose part is another word.
    """
    words = table["split"].cast(pl.String).str.strip_chars().str.to_lowercase()
    known = {**PARTS, **{word: PARTS[part] for word, part in _SYNONYMS.items()}}
    numbers = words.replace_strict(known, default=None, return_dtype=pl.Int8)
    unknown = pl.lit(numbers).is_null()
    lines.require(table, "split", unknown, path, "is none of train, valid and test")
    for word in sorted(set(words.unique()) & _SYNONYMS.keys()):
        log(f"{path}: the part {word!r} is read as {_SYNONYMS[word]!r}")
    return numbers.alias("split")


def repeated_across(
    user: Int[np.ndarray, " N"],
    item: Int[np.ndarray, " N"],
    time: Int[np.ndarray, " N"] | None,
    part: Int[np.ndarray, " N"],
    rule: split.Rule,
    names: tuple[pl.Series, pl.Series],
) -> dict[str, int]:
    """Tell which held-out rows of an ordered log repeat one of an earlier part by the rule of its duplicates, and count them.

    `names`: the raw ids of the users and of the items, by number.
    """
    lost = split.repeats(user, item, time, rule) & (part > 0)
    if lost.any():  # a repeat inside one part is a plain one
        lost &= ~split.repeats(user.astype(np.int64) * len(PARTS) + part, item, time, rule)
    if not lost.any():
        return {}
    counts = " and ".join(f"{n:,} of {name}" for name, k in PARTS.items() if (n := int((lost & (part == k)).sum())))
    first = [brief(name[int(code[lost][0])]) for name, code in zip(names, (user, item), strict=True)]
    log(
        f"data.split=given: rows of a part that an earlier part has too: {counts} (the first: user {first[0]}, item "
        f"{first[1]}); the earlier part keeps them, and they are no targets: remove them from one of the parts, or set "
        "data.duplicates=keep to measure on them all the same"
    )
    return {"held-out rows dropped, as an earlier part has them": int(lost.sum())}


def ends(
    start: Int[np.ndarray, " U1"], part: Int[np.ndarray, " N"], users: pl.Series
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"]]:
    """(train_end, valid_end) of users whose interactions stand in order: train before valid before test.

    A user's target of a part is the first interaction in it, as of global_time.

    Raises: ValueError when a part has no interaction at all, or naming a user who has a part before an earlier one.
    """
    names = list(PARTS)
    for name, number in PARTS.items():
        if not (part == number).any():
            raise ValueError(f"data.split=given: no interaction is {name!r}; each of train, valid and test needs some")
    user = np.repeat(np.arange(len(start) - 1), np.diff(start))
    is_back = (part[1:] < part[:-1]) & (user[1:] == user[:-1])
    if is_back.any():
        place = int(is_back.argmax())
        n_users = len(np.unique(user[1:][is_back]))
        raise ValueError(
            f"data.split=given: user {users[int(user[place])]!r} has a {names[part[place]]} interaction before a "
            f"{names[part[place + 1]]} one ({n_users:,} of {len(start) - 1:,} users have such): a history would hold what it "
            "is tested on; correct the parts, or use data.split=leave_one_out or global_time"
        )
    train_end, valid_end = (
        start[:-1] + np.bincount(user[part <= number], minlength=len(start) - 1) for number in (0, 1)
    )
    return train_end, valid_end
