"""Pages as one HTML file that needs nothing else: no network, no script; light, dark, paper and phone.

Everything that comes from data passes through `escape`; there is no other way into the text.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from distrec.jobs.pages.page import Block, Cards, Cell, Page, Picture, Section, Table, Text, shown

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_HEAVY = 400_000  # bytes of an SVG; above it the PNG is shown
_SEAM = re.compile(r"(?<=[^\W\d])([._/=])(?=\w)")  # where a long key or path may go on in the next line
_SIZE = re.compile(rb'viewBox="0 0 ([\d.]+) ')
_WIDE = 500  # points of a picture; above it has a row of its own
_NUMBER = re.compile(r"[-−+±<≤\d.,%\[\] ]*\d[-–−+±\d.,%e\[\] ]*|–")  # an interval and a range, too


@dataclass(frozen=True)
class Chapter:
    """A page, and the folder where its pictures lie."""

    page: Page
    folder: Path


def document(title: str, chapters: Sequence[Chapter]) -> str:
    """The whole file.   Raises: ValueError naming a picture that is missing."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(_chapter(chapter, f"c{n}") for n, chapter in enumerate(chapters, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<nav aria-label="Contents">
{_contents(chapters)}
</nav>
<main>
{body}
</main>
</body>
</html>
"""


def _contents(chapters: Sequence[Chapter]) -> str:
    lines = ["<ol>"]
    for n, chapter in enumerate(chapters, 1):
        lines.append(f'<li><a href="#c{n}">{escape(chapter.page.title)}</a><ol>')
        for m, section in enumerate(chapter.page.sections, 1):
            lines.append(f'<li><a href="#c{n}s{m}">{escape(section.title)}</a></li>')
        lines.append("</ol></li>")
    return "\n".join([*lines, "</ol>"])


def _chapter(chapter: Chapter, name: str) -> str:
    sections = [_section(section, f"{name}s{n}", chapter.folder) for n, section in enumerate(chapter.page.sections, 1)]
    title = f'<h2 id="{name}">{escape(chapter.page.title)}</h2>'
    return "\n".join([f'<article aria-labelledby="{name}">', title, *sections, "</article>"])


def _section(section: Section, name: str, folder: Path) -> str:
    title = f'<h3 id="{name}">{escape(section.title)}</h3>'
    blocks = _blocks(section, name, folder)
    return "\n".join([f'<section aria-labelledby="{name}">', title, *blocks, "</section>"])


def _blocks(section: Section, name: str, folder: Path) -> Iterator[str]:
    """Pictures that follow each other stand side by side where there is room."""
    n = 0
    for is_picture, group in groupby(section.blocks, lambda block: isinstance(block, Picture)):
        shown_ = [_block(block, f"{name}b{n + i}", section.title, folder) for i, block in enumerate(group)]
        n += len(shown_)
        yield "\n".join(['<div class="pictures">', *shown_, "</div>"] if is_picture else shown_)


def _block(block: Block, name: str, title: str, folder: Path) -> str:
    match block:
        case Table():
            return _table(block, name, title)
        case Picture():
            return _picture(block, folder)
        case Cards():
            return _cards(block)
    return _text(block)


def _text(text: Text) -> str:
    if text.kind != "code":
        kind = ' class="verdict"' if text.kind == "verdict" else ""
        return f"<p{kind}>{escape(text.text)}</p>"
    code = f"<pre><code>{escape(text.text)}</code></pre>"
    return f"<details><summary>{escape(text.fold)}</summary>\n{code}\n</details>" if text.fold else code


def _cards(cards: Cards) -> str:
    each = [
        f'<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd><dd class="more">{escape(more)}</dd></div>'
        for name, figure, more in cards.figures
    ]
    return "\n".join(['<dl class="cards">', *each, "</dl>"])


def _table(table: Table, name: str, title: str) -> str:
    """In a box of its own that scrolls; what is a number stands to the right."""
    right = [_is_number(table, n) for n in range(len(table.head))]
    kinds = [' class="number"' if is_number else "" for is_number in right]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(table.head, kinds, strict=True))
    rows = ["<tr>" + "".join(_cells(row, kinds, table.digits)) + "</tr>" for row in table.rows]
    caption = f'<figcaption id="{name}">{escape(table.caption)}</figcaption>' if table.caption else ""
    label = f'aria-labelledby="{name}"' if caption else f'aria-label="{escape(title)}"'
    return "\n".join(
        [
            f'<figure class="table">{caption}<div class="wide" tabindex="0" role="region" {label}><table {label}>',
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody></table></div></figure>",
        ]
    )


def _cells(row: Sequence[Cell], kinds: Sequence[str], digits: int) -> Iterator[str]:
    for n, (cell, kind) in enumerate(zip(row, kinds, strict=True)):
        opening, closing = (f'<th scope="row"{kind}>', "</th>") if n == 0 else (f"<td{kind}>", "</td>")
        yield opening + _SEAM.sub(r"\1<wbr>", escape(shown(cell, digits))) + closing


def _is_number(table: Table, column: int) -> bool:
    return column > 0 and all(_NUMBER.fullmatch(shown(row[column], table.digits)) for row in table.rows)


def _picture(picture: Picture, folder: Path) -> str:
    data, kind = _image(picture.name, folder)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    caption = escape(picture.caption)
    image = f'<img class="{kind.partition("+")[0]}" src="{source}" alt="{caption}">'
    below = f'<figcaption aria-hidden="true">{caption}</figcaption>'
    if not _is_panorama(picture.name, folder):
        return f"<figure>{image}{below}</figure>"
    box = f'<div class="wide" tabindex="0" role="region" aria-label="{caption}">{image}</div>'
    return f'<figure class="panorama">{box}{below}</figure>'


def _is_panorama(name: str, folder: Path) -> bool:
    """Whether it wants a row of its own, and on a phone a box that scrolls."""
    size = _SIZE.search((folder / f"{name}.svg").read_bytes()[:4096])
    return size is not None and float(size[1]) > _WIDE


def _image(name: str, folder: Path) -> tuple[bytes, str]:
    """(bytes, kind) of a picture that lies in this very folder."""
    vector, raster = folder / f"{name}.svg", folder / f"{name}.png"
    if Path(name).name != name or not vector.is_file():
        raise ValueError(f"{folder} lacks the picture {name!r} that its page shows")
    if vector.stat().st_size > _HEAVY and raster.is_file():
        return raster.read_bytes(), "png"
    return vector.read_bytes(), "svg+xml"
