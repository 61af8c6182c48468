"""distrec report FOLDER [FOLDER …] [out=FILE.html] [data.root=DIR …]

One HTML file, complete in itself, about a run (finished, stopped or running), a comparison, or any folder with a
page.json; of a run also what was analysed in it.  Every byte that is shown, and all that a run was made of, is verified
first: what was changed is refused by name.

  out=FILE.html   default: FOLDER/report.html of a run, FOLDER.html beside another; to be given for several folders
  data.root=… model.codes=… model.items=… model.backbone.path=…   where the artefacts of the runs lie now, if they were moved

Example:  distrec report runs/beauty
"""

import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distrec import hints
from distrec.data import store
from distrec.jobs.pages import html, of_run, run_facts
from distrec.jobs.pages.html import Chapter
from distrec.jobs.pages.page import PAGE, Page, Section, Table, Text, load
from distrec.jobs.parts.chain import Known
from distrec.runtime import run, write_atomically

_PLACES = ("data.root", "model.codes", "model.items", "model.backbone.path")


def main(argv: Sequence[str]) -> None:
    folders, given = _asked(argv)
    out = _target(folders, given.pop("out", None))
    words = [f"{key}={value}" for key, value in given.items()]
    known: Known = {}
    with tempfile.TemporaryDirectory() as scratch:
        chapters: list[Chapter] = []
        for n, folder in enumerate(folders):
            chapters += _run(folder, words, known, Path(scratch) / str(n)) if _is_run(folder) else [_stored(folder)]
        told = Page("This page", (Section("How it is made again", (Text(_commands(folders, argv), "code"),)),))
        names = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
        text = html.document(f"Report on {names}", [*chapters, Chapter(told, Path(scratch))])
    try:
        write_atomically(out, text)
    except OSError as error:
        raise ValueError(f"out={out}: no file can be written there ({error.strerror})") from None
    print(out)


def _asked(argv: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """(folders, words by key); a word is a folder where there is one of that name."""
    words = [word for word in argv if "=" in word and not Path(word).is_dir()]
    given = hints.placed({key: value for key, _, value in (word.partition("=") for word in words)}, "out")
    folders = list(dict.fromkeys(Path(hints.place(word, "report")) for word in argv if word not in words))
    if other := [key for key in given if key not in ("out", *_PLACES)]:
        raise ValueError(f"report takes folders, out=FILE.html, {', '.join(_PLACES)}, not {other[0]}")
    if empty := [key for key, value in given.items() if not value]:
        raise ValueError(f"{empty[0]}= has no value")
    if not folders:
        raise ValueError("report needs a folder: distrec report runs/NAME (see --help)")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        if not _is_run(folder) and not (folder / PAGE).is_file():
            raise ValueError(f"{folder} is neither a run folder (no config.yaml in it) nor holds a {PAGE}")
    return folders, given


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _target(folders: Sequence[Path], given: str | None) -> Path:
    """Where the file goes: never into an artefact, to which it would not belong."""
    if given is None and len(folders) > 1:
        raise ValueError("a report on several folders needs a place of its own: out=FILE.html")
    folder = folders[0].resolve() if str(folders[0]) in (".", "..") else folders[0]
    usual = folder / "report.html" if _is_run(folder) else folder.with_name(f"{folder.name}.html")
    out = Path(given) if given else usual
    if out.suffix != ".html":
        raise ValueError(f"out={out}: the name of a report ends in .html")
    if not out.parent.is_dir() or out.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"out={out}: no file can be written there")
    if (out.parent / store.STAMP).is_file() and not _is_run(out.parent):
        raise ValueError(f"out={out} lies in an artefact, which would be corrupt with it: choose another folder")
    return out


def _run(folder: Path, words: Sequence[str], known: Known, scratch: Path) -> list[Chapter]:
    """A run, and every page in its folder.   Raises: ValueError when one is about a run that stood here before."""
    scratch.mkdir()
    facts = run_facts.read(folder, words, known)
    chapters = [Chapter(of_run.page(facts, scratch), scratch)]
    for place in sorted(folder.glob(f"[!.]*/{PAGE}")):  # one with a dot is being written
        chapters.append(_stored(place.parent))
        of = store.read_stamp(place.parent)["made_by"].get("run")
        if of and of not in {link.content for link in facts.links if link.name == "run"}:
            raise ValueError(f"{place.parent} is about another run than the one that stands there now: make it anew")
    return chapters


def _stored(folder: Path) -> Chapter:
    """The page of an artefact, and what made it.   Raises: ValueError naming the file that is not what was written."""
    made_by = store.flat(store.verify(folder)["made_by"])
    rows = tuple((key, value if isinstance(value, str) else json.dumps(value)) for key, value in made_by.items())
    told = f"Every file of {folder} is what was written; together their sha256 is {store.content(folder)}."
    page = load(folder)
    own = Section("What made this part", (Text(told), Table(("Input", "Value"), rows)))
    return Chapter(Page(page.title, (*page.sections, own)), folder)


def _commands(folders: Sequence[Path], argv: Sequence[str]) -> str:
    """Those that make the parts of this page, and the page."""
    analysed = [
        ["distrec", "analyze", f"out={folder}", *_settings(folder / "analysis")]
        for folder in folders
        if _is_run(folder) and (folder / "analysis" / PAGE).is_file()
    ]
    return "\n".join(map(shlex.join, [*analysed, ["distrec", "report", *argv]]))


def _settings(analysis: Path) -> list[str]:
    made = store.read_stamp(analysis)["made_by"]
    told = {**made, "parts": ",".join(made.get("parts", ()))}
    return [f"{key}={told[key]}" for key in ("users", "steps", "parts", "against") if told.get(key)]


if __name__ == "__main__":
    run(main, __doc__)
