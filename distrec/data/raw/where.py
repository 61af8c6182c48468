"""`data.where`: which rows of a log count, by a column: `rating >= 4 and event in purchase, cart`, or as a mapping.

    data.where: {rating: ">= 4", event: [purchase, cart], verified: true}

All conditions must hold.  A condition is a value, a list of values of which one must hold, or a comparison.  Numbers
are compared as numbers (4 is 4.0), true and false in any case, everything else as text.  A row without a value is not kept.
A value with a sign, a comma, or the word and, or, not or in in it stands in quotes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from distrec.data.raw import lines
from distrec.runtime import brief, log, several

_SIGNS = {">=": "ge", "<=": "le", "!=": "ne", "==": "eq", "=": "eq", ">": "gt", "<": "lt"}
_COMPARISON = re.compile(r"\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*", re.DOTALL)
_AND = re.compile(r"""\s+and\s+(?=(?:[^'"]|'[^']*'|"[^"]*")*$)""", re.IGNORECASE)  # outside of quotes
_COMMA = re.compile(r""",(?=(?:[^'"]|'[^']*'|"[^"]*")*$)""")
_MORE = re.compile(r"[=<>!&|,()]|\b(?:and|or|not|in|is|like|between)\b", re.IGNORECASE)  # what no bare value holds
_CLAUSE = re.compile(
    r"""\s*("[^"]*"|'[^']*'|.+?)\s*(?:(>=|<=|!=|==|=|>|<)|\s(in)\s)\s*(.+?)\s*""", re.DOTALL | re.IGNORECASE
)
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
Seen = set[
    tuple["Condition", Any]
]  # the values that some row had; (a value, a text) where a row had that number otherwise
_SPEAKING = {
    *("rating", "ratings", "score", "stars", "overall", "weight", "play_count", "playcount"),
    *(
        "event",
        "event_type",
        "eventtype",
        "action",
        "action_type",
        "behavior",
        "behaviour",
        "behavior_type",
        "feedback",
    ),
}


@dataclass(frozen=True)
class Condition:
    """`sign` is a comparison of polars; of several `values` one must hold."""

    column: str
    sign: str
    values: tuple[float | str, ...]
    text: str

    @property
    def is_truth(self) -> bool:
        return {*self.values} <= {"true", "false"}

    @property
    def is_number(self) -> bool:
        return all(isinstance(value, float) for value in self.values)


def parse(where: str | Mapping[str, Any] | None) -> list[Condition]:
    """The conditions of `data.where`.   Raises: ValueError for one that is none, with an example."""
    if not where:
        return []
    if isinstance(where, Mapping):
        return [_condition(name, value) for name, value in where.items()]
    conditions = []
    for clause in _AND.split(where):
        match = _CLAUSE.fullmatch(clause)
        if match is None or _says_more(match):
            raise ValueError(
                f"data.where={where!r}: {clause!r} is no condition; write 'rating >= 4 and event in purchase, cart', or "
                '{rating: ">= 4", event: [purchase, cart]}; all must hold; a text with a sign or such a word in it stands in quotes'
            )
        name, sign, is_in, value = match.groups()
        parts = [part.strip() for part in _COMMA.split(value.strip("[]()"))]
        values = [_plain(part) for part in parts]
        if not all(isinstance(each, float) for each in values):
            values = [_unquoted(part) for part in parts]  # texts, as they stand: 007 is not 7
        conditions.append(_condition(_unquoted(name), values if is_in else f"{sign} {value}"))
    return conditions


def _says_more(clause: re.Match[str]) -> bool:
    """Whether a name or a value that is not in quotes reads like a condition of its own: `view or rating > 3`."""
    name, _, is_in, value = clause.groups()
    values = _COMMA.split(value.strip("[]()")) if is_in else [value]
    bare = [part.strip() for part in (name, *values) if _unquoted(part.strip()) == part.strip()]
    return any(_MORE.search(part) for part in bare)


def keep(
    table: pl.DataFrame, conditions: Sequence[Condition], path: Path, prefix: str = ""
) -> tuple[pl.DataFrame, dict[str, int], Seen]:
    """(the rows for which all conditions hold, how many each of them dropped, the values that some row had: `Seen`).

    `table` has `line`; the column of a condition is called `prefix` and its name.

    Raises: ValueError naming file and line for a value that is no number where one is compared, and for a column of a
    type that is neither number nor text.
    """
    dropped, seen = {}, set()
    for condition in conditions:
        name = prefix + condition.column
        column = table[name]
        _require_comparable(column.dtype, condition, path)
        if condition.is_number:
            column = _numbers(table, name, condition, path)
        else:
            column = column.cast(pl.String)
            column = column.str.to_lowercase() if condition.is_truth else column
            seen |= {(condition, pair) for pair in _spelt_otherwise(column, condition)}
        seen |= {(condition, wanted) for wanted in condition.values if (column == wanted).any()}
        holds = pl.any_horizontal(
            getattr(pl.lit(column), condition.sign)(pl.lit(wanted)) for wanted in condition.values
        )
        missing = int(column.is_null().sum())
        kept = table.filter(holds.fill_null(False))
        dropped[f"dropped by data.where ({condition.text})"] = table.height - kept.height - missing
        if missing:
            dropped[f"dropped by data.where ({condition.column} is missing)"] = missing
        table = kept
    return table, dropped, seen


def _require_comparable(kind: Any, condition: Condition, path: Path) -> None:
    """Raises: ValueError for lists and objects, durations, and for a date that is compared with a number."""
    if kind.is_nested() or kind == pl.Duration or (kind.is_temporal() and condition.is_number):
        raise ValueError(
            f"{path}: data.where ({condition.text}): the column {condition.column!r} holds {kind}, which is compared with "
            "no such value; write it as numbers or texts, or filter the rows before"
        )


def _spelt_otherwise(text: pl.Series, condition: Condition) -> list[tuple[str, str]]:
    """(a value in quotes that reads like a number, another text of that number that some row has: 4 and 4.0)."""
    pairs = []
    for value in condition.values if condition.sign in ("eq", "ne") else ():
        if isinstance(value, str) and _NUMBER.fullmatch(value) and abs(float(value)) < 2**53:
            others = text.filter((text.cast(pl.Float64, strict=False) == float(value)) & (text != value))
            pairs += [(value, str(others[0]))] if len(others) else []
    return pairs


def select(
    table: pl.DataFrame, where: str | Mapping[str, Any] | None, path: Path
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows of a log that count, and how many were dropped by each reason.

    Raises: ValueError for a column that the source does not read, for a value that cannot be compared, and where no
    row is left.
    """
    conditions, known = parse(where), [name for name in table.columns if name != "line"]
    if absent := [condition.column for condition in conditions if condition.column not in known]:
        raise ValueError(
            f"data.where: {path} has no column {absent[0]!r}, or this source does not read it; known here: "
            f"{several(known)} (data.source=table reads any)"
        )
    kept, dropped, seen = keep(table, conditions, path)
    tell_absent(conditions, seen, path)
    require_some(kept.height, conditions, dropped, path)
    return kept, dropped


def tell_absent(conditions: Sequence[Condition], seen: Seen, path: Path) -> None:
    """Log the values of = and != that no row had: misspelt, or never there; and numbers compared as texts."""
    for condition, value in {(condition, pair[0]): pair for condition, pair in seen if isinstance(pair, tuple)}.items():
        log(
            f"{path}: data.where ({condition[0].text}) compares texts, so that {condition[1]!r} is not {brief(value[1])}, "
            "which some rows have: write numbers alone, without quotes, to compare numbers"
        )
    for condition in conditions:
        for value in condition.values if condition.sign in ("eq", "ne") else ():
            if (condition, value) not in seen:
                log(f"{path}: data.where ({condition.text}): no row has {condition.column} {_shown([value])!r}")


def require_some(kept: int, conditions: Sequence[Condition], dropped: Mapping[str, int], path: Path) -> None:
    """Raises: ValueError where rows were read and the conditions leave none of them."""
    if conditions and not kept and sum(dropped.values()):
        told = "; ".join(f"{count:,} rows {rule}" for rule, count in dropped.items())
        raise ValueError(f"{path}: data.where leaves no row: {told}; loosen the condition")


def tell_unused(names: Iterable[str], used: Iterable[str], path: Path) -> None:
    """Log which columns say how much or what a row means, while every row counts alike."""
    speaking = [name for name in names if name.strip().lower() in _SPEAKING and name not in set(used)]
    if speaking:
        log(
            f"{path} has a column {speaking[0]!r} that is not used: every row counts as a positive; data.where keeps some "
            f"(data.where='{speaking[0]} …', see README)"
        )


def _numbers(table: pl.DataFrame, name: str, condition: Condition, path: Path) -> pl.Series:
    column = table[name]
    if isinstance(column.dtype, pl.Categorical | pl.Enum | pl.Binary):
        column = column.cast(pl.String)
    if column.dtype == pl.String:
        column = column.str.strip_chars().replace("", None)
    number = column.cast(pl.Float64, strict=False)
    wrong = number.is_null() & column.is_not_null()
    if wrong.any():
        shown = table.select("line", value=table[name], wrong=wrong).rename({"value": condition.column})
        what = f"is no number, but data.where compares it ({condition.text})"
        lines.require(shown, condition.column, pl.col("wrong"), path, what)
    return number.fill_nan(None)


def _condition(name: str, value: Any) -> Condition:
    if isinstance(value, list):
        if not value:
            raise ValueError(f"data.where: {name} has an empty list, so that no row would be kept; name its values")
        values: list[float | str] = [_value(name, each) for each in value]
        if not all(isinstance(each, float) for each in values):  # all are texts then, numbers as they were written
            values = [each if isinstance(each, str) else _shown([raw]) for each, raw in zip(values, value, strict=True)]
        return Condition(name, "eq", tuple(values), f"{name} in {_shown(value)}")
    sign, rest = "==", value
    if isinstance(value, str) and (match := _COMPARISON.fullmatch(value)):
        sign, rest = match[1], _plain(match[2])
        if isinstance(rest, str) and rest == match[2] and _MORE.search(rest):
            raise ValueError(
                f"data.where: {name} {value!r} is no condition; give one comparison, with a text that has a sign or the "
                "word and, or, not or in in it in quotes; data.where='a != x and a != y' takes several"
            )
    wanted = _value(name, rest)
    if _SIGNS[sign] in ("ge", "le", "gt", "lt") and not isinstance(wanted, float):
        raise ValueError(f"data.where: {name} {sign} {rest!r}: {sign} compares with a number; write '{name} {sign} 4'")
    return Condition(name, _SIGNS[sign], (wanted,), f"{name} {sign} {_shown([rest])}")


def _value(name: str, value: Any) -> float | str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return float(value) if abs(value) < 2**53 else str(value)
    if isinstance(value, str) and value:
        return value.lower() if value.lower() in ("true", "false") else value
    raise ValueError(
        f"data.where: {name}: {value!r} is no value; give a number, a text, true, false, a list of them, or a comparison"
    )


def _plain(text: str) -> float | str:
    text = text.strip()
    bare = _unquoted(text)
    is_number = bare == text and _NUMBER.fullmatch(text)
    return float(text) if is_number and abs(float(text)) < 2**53 else bare


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values
    )
