"""The texts of items as a reader should see them: decoded rightly, without HTML, control characters or two forms of é.

What is changed is counted by kind.  Ids are never changed here.
"""

import html
import re
from collections.abc import Callable
from html.entities import html5
from pathlib import Path

import polars as pl

from distrec.data.raw import ids, lines
from distrec.runtime import log

# Names of HTML elements: "<Untitled>", "<3" and "a < b" are no markup.
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|ins|kbd|mark|nobr|q|s|samp|small|span|strike|strong|sub|"
    "sup|time|tt|u|var|wbr"
)
_BLOCK = (
    "address|area|article|aside|audio|base|blockquote|body|br|button|canvas|caption|center|col|colgroup|dd|details|dir|"
    "div|dl|dt|embed|fieldset|figcaption|figure|footer|form|frame|h[1-6]|head|header|hr|html|iframe|img|input|label|"
    "legend|li|link|main|map|meta|nav|noscript|object|ol|optgroup|option|p|param|picture|pre|section|select|source|"
    "summary|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|track|ul|video"
)
_ATTRIBUTES = r"""(?:\s+[a-z_:][-a-z0-9_:.]*\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>=]+))*\s*/?"""
_SPAN = rf"(?i)</?(?:{_INLINE}){_ATTRIBUTES}>"
_BREAK = (
    rf"(?i)</?(?:{_BLOCK}){_ATTRIBUTES}>|<!--.*?-->|<!doctype[^>]*>|<(?:script|style)\b.*?(?:</(?:script|style)\s*>|$)"
)
_CUT_OFF = rf"""(?i)<(?:{_INLINE}|{_BLOCK})\s+[a-z-]+=(?:"[^"]*|'[^']*|[^<>]*)$"""
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff]"
_ROUNDS = 4  # of entities within entities: &amp;amp;amp;


def clean(items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return (the items with clean attributes, how many texts each rule changed)."""
    counts: dict[str, int] = {}
    for name in items.columns:
        if name == "item" or items.schema[name] != pl.String:
            continue
        text = items[name]
        if len(words := text.filter(text.is_in(ids.WORDS))):
            counts[_WORDS] = counts.get(_WORDS, 0) + len(words)
            most = ", ".join(f"{word!r} in {n:,} rows" for word, n in words.value_counts(sort=True).head(3).rows())
            log(
                f"items: {name} is {most}: words for a missing value, kept as texts; empty those cells if nothing is meant"
            )
        for rule, change in _RULES.items():
            changed = change(text)
            if n := int((changed != text).sum()):
                counts[rule] = counts.get(rule, 0) + n
                text = changed
        if lost := int(text.str.contains("\ufffd", literal=True).sum()):
            counts[_LOST] = counts.get(_LOST, 0) + lost
        items = items.with_columns(text.alias(name))
    if lost := counts.get(_LOST):
        log(f"{lost:,} texts of items hold U+FFFD: characters that the program which wrote the file has lost")
    return items, counts


def encoding(path: Path) -> str:
    """Return utf-8 where all of a file is, else latin-1; told where it makes a difference."""
    is_ascii = True
    try:
        for _, block in lines.blocks(path):
            is_ascii &= block.isascii()
    except ValueError:  # any other fault than the encoding comes again when the file is read
        log(f"{path}: read as latin-1, as it is no utf-8")
        return "latin-1"
    if not is_ascii:
        log(f"{path}: read as utf-8")
    return "utf-8"


_WORDS = "texts that are a word for nothing"
_LOST = "texts with lost characters (U+FFFD)"


def _without_markup(text: pl.Series) -> pl.Series:
    tagged = text.str.contains("<", literal=True).fill_null(False)
    if not tagged.any():
        return text
    bare = text.filter(tagged)
    plain = bare.str.replace_all(rf"(?s){_BREAK}", " ").str.replace_all(_SPAN, "").str.replace_all(_CUT_OFF, "")
    plain = _tidy(plain).zip_with(plain != bare, bare)
    return text.clone().scatter(tagged.arg_true(), plain)


def _without_entities(text: pl.Series) -> pl.Series:
    coded = text.str.contains(r"&#?[0-9A-Za-z]+;").fill_null(False)
    if not coded.any():
        return text
    plain = pl.Series([_decoded(value) for value in text.filter(coded)], dtype=pl.String)
    return text.clone().scatter(coded.arg_true(), plain)


def _decoded(text: str) -> str:
    """Undo entities that end in a semicolon, and those within them; AT&T and R&B stay."""
    for _ in range(_ROUNDS):
        fresh = _ENTITY.sub(_character, text)
        if fresh == text:
            break
        text = fresh
    return text.replace("\xa0", " ")


def _character(entity: re.Match[str]) -> str:
    is_known = entity[0][1] == "#" or entity[0][1:] in html5
    return html.unescape(entity[0]) if is_known else entity[0]


def _without_controls(text: pl.Series) -> pl.Series:
    odd = text.str.contains(rf"{_CONTROL}|[\t\n\r]").fill_null(False)
    return _tidy(text.str.replace_all(_CONTROL, "")).zip_with(odd, text) if odd.any() else text


def _tidy(text: pl.Series) -> pl.Series:
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


_RULES: dict[str, Callable[[pl.Series], pl.Series]] = {
    "texts with markup": _without_markup,
    "texts with entities": _without_entities,
    "texts with markup in entities": _without_markup,
    "texts with control characters": _without_controls,
    "texts not in NFC": lambda text: text.str.normalize("NFC"),
}


def of(value: object) -> str:
    """A value of an item's record as one line: a list of them joined by a bar, as the table source has it."""
    if isinstance(value, list):
        return "|".join(text for text in map(of, value) if text)
    return " ".join(str(value).split()) if value else ""
