"""What a job has found, for people: sections of text, tables and pictures, kept as JSON and shown in many forms.

analyze, compare and experiments write a page beside their pictures; report shows pages of any kind in one HTML file.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from distrec.runtime import write_atomically

PAGE = "page.json"
Cell = str | bool | int | float | None


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` verdict: the one that a hurried reader wants; code: a command or a file, shown as it is.

    `fold`: the title under which a long one is folded away where a page can fold; "": it is not.
    """

    text: str
    kind: str = "text"
    fold: str = ""


@dataclass(frozen=True)
class Table:
    """`digits`: of its floats; None stands for what is not known."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    digits: int = 4

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in self.rows):
            raise ValueError(f"a table with the columns {', '.join(self.head)} has a row of another length")


@dataclass(frozen=True)
class Picture:
    """NAME.svg and NAME.png beside the page; the caption says what is to be seen, also to who cannot see it."""

    name: str
    caption: str


@dataclass(frozen=True)
class Cards:
    """Headline figures: (name, figure, what it is out of or between) each; the last may be empty."""

    figures: tuple[tuple[str, str, str], ...]


Block = Text | Table | Picture | Cards


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    title: str
    sections: tuple[Section, ...]


_KINDS: dict[str, Any] = {"text": Text, "table": Table, "picture": Picture, "cards": Cards}
_READERS = {name: TypeAdapter(kind) for name, kind in _KINDS.items()}


def write(folder: Path, page: Page) -> None:
    """page.json, page.md, and every table as tables.tex."""
    sections = [
        {"title": section.title, "blocks": [_plain(block) for block in section.blocks]} for section in page.sections
    ]
    write_atomically(folder / PAGE, json.dumps({"title": page.title, "sections": sections}, indent=1))
    write_atomically(folder / "page.md", markdown(page))
    tables = [block for section in page.sections for block in section.blocks if isinstance(block, Table)]
    write_atomically(folder / "tables.tex", "\n".join(map(latex, tables)))


def load(folder: Path) -> Page:
    """Raises: ValueError when the folder holds no page, or a broken one."""
    try:
        told = json.loads((folder / PAGE).read_text(encoding="utf-8"))
        sections = [
            {"title": section["title"], "blocks": [_block(**block) for block in section["blocks"]]}
            for section in told["sections"]
        ]
        return TypeAdapter(Page).validate_python({"title": told["title"], "sections": sections})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{folder} holds no page of distrec ({type(error).__name__}: {text})") from None


def shown(cell: Cell, digits: int = 4) -> str:
    """A cell as a reader sees it."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, float):
        return f"{cell:.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def markdown(page: Page) -> str:
    lines = [f"# {page.title}", ""]
    for section in page.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [_markdown(block), ""]
    return "\n".join(lines)


def markdown_table(table: Table) -> str:
    rows = [[_cell(shown(cell, table.digits)) for cell in row] for row in table.rows]
    lines = [[_cell(head) for head in table.head], ["---"] * len(table.head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def latex(table: Table) -> str:
    """A tabular with booktabs' rules; `caption` stands above it as a comment."""
    columns = "l" + "r" * (len(table.head) - 1)
    body = [" & ".join(_tex(shown(cell, table.digits)) for cell in row) + r" \\" for row in table.rows]
    head = " & ".join(map(_tex, table.head)) + r" \\"
    above = [f"% {table.caption}"] if table.caption else []
    lines = [*above, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def _markdown(block: Block) -> str:
    match block:
        case Table():
            return (f"{block.caption}\n\n" if block.caption else "") + markdown_table(block)
        case Picture():
            return f"![{block.caption}]({block.name}.png)\n\n{block.caption}"
        case Cards():
            return "\n".join(f"- {name}: **{figure}** {more}".rstrip() for name, figure, more in block.figures)
        case Text(text, "code"):
            return f"```\n{text}\n```"
        case Text(text, "verdict"):
            return f"**{text}**"
    return block.text


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "σ": r"$\sigma$", "α": r"$\alpha$",
    "ω": r"$\omega$", "β": r"$\beta$", "λ": r"$\lambda$", "≤": r"$\leq$", "≥": r"$\geq$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _plain(block: Block) -> dict[str, Any]:
    kind = next(name for name, each in _KINDS.items() if isinstance(block, each))
    fields = {name: getattr(block, name) for name in block.__dataclass_fields__ if name != "kind"}
    if isinstance(block, Table):
        fields["rows"] = finite(block.rows)
    return {"block": kind, **fields, **({"kind": block.kind} if isinstance(block, Text) else {})}


def finite(tree: Any) -> Any:
    """A tree as JSON holds it: null for what is no finite number."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _block(block: str, **fields: Any) -> Block:
    return _READERS[block].validate_python(fields)
