"""distrec analyze out=RUN [users=1000] [against=RUN] [steps=60] [parts=spectra,…]

Pictures and figures about a finished run, beside it in RUN/analysis: page.md, analysis.json, tables.tex, PNG and SVG.
Reads training histories and the validation split; of the test split nothing but, with `against`, the ranks of both runs.

  users=1000       the most whose histories are read and ranked (drawn once, the same for every model of the same data)
  against=RUN      a run of the same data, whose gain is told by how local a user's history is (TFM on and off)
  steps=60         of Lanczos, where a graph has too many items for all its frequencies
  parts=…          some of: spectra, items, attention, retention, locality, controls, learnt, cost
  data.root, data.path, model.codes, model.backbone.path   where things lie now, if they were moved

Example:  distrec analyze out=runs/beauty
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrec import config as cfg
from distrec.data import store
from distrec.engine import memory
from distrec.engine.evaluation.precision import exact_products
from distrec.engine.launch import join
from distrec.hints import placed
from distrec.jobs.analysis.parts import PARTS
from distrec.jobs.analysis.subject import SETTINGS, Subject, code
from distrec.jobs.pages import page
from distrec.jobs.parts.assemble import best_of
from distrec.runtime import Ranks, log, run

FOLDER = "analysis"
_PLACES = ("data.root", "data.path", "data.items", "model.codes", "model.backbone.path")


def main(argv: Sequence[str]) -> None:
    given: dict[str, str] = {key: value for key, _, value in (arg.partition("=") for arg in argv)}
    given = placed(given, "out", "against")
    own = {key: str(value) for key, value in SETTINGS.items()} | {"parts": ",".join(PARTS)}
    own |= {key: given.pop(key) for key in own if key in given}
    out = Path(given.get("out", ""))
    if other := [key for key in given if key not in ("out", *_PLACES)]:
        raise ValueError(f"analyze takes out, {', '.join(own)} and the places of the data, not {other[0]}")
    if wrong := [name for name in own["parts"].split(",") if name not in PARTS]:
        raise ValueError(f"parts={wrong[0]}: no such part; known: {', '.join(PARTS)}")
    chosen = [name for name in PARTS if name in own["parts"].split(",")]
    asked = {"users": _count(own, "users"), "steps": _count(own, "steps"), "parts": chosen, "against": own["against"]}
    made = made_by(out, asked)
    places = [f"{key}={value}" for key, value in given.items() if key != "out"]
    with store.alone(out / FOLDER, Ranks()):
        make(out, places, made)
    print((out / FOLDER / "page.md").read_text(encoding="utf-8"))
    print(f"analysis: {out / FOLDER}")


def make(out: Path, places: Sequence[str], made: dict[str, Any]) -> None:
    """The analysis of a run, unless all that is asked is there."""
    chosen = kept(out / FOLDER, made)
    if not chosen:
        log(f"{out / FOLDER} is there already")
        return

    def filled(folder: Path) -> None:
        fill(opened(out, places, made, folder), chosen)

    store.write(out / FOLDER, {**made, "parts": chosen}, filled, replace=True)


def made_by(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What an analysis depends on.   Raises: ValueError when the folder is no finished run, or not what was written."""
    runs = {"run": out} | ({"other": Path(asked["against"])} if asked["against"] else {})
    for name, folder in runs.items():
        if not (folder / store.STAMP).is_file() or not (folder / "config.yaml").is_file():
            key = "out" if name == "run" else "against"
            raise ValueError(f"{key}={str(folder)!r} is no finished run: give the folder that distrec train printed")
        store.verify_stamped(folder)
    stamps = {name: store.content(folder) for name, folder in runs.items()}
    if len({store.read_stamp(folder)["made_by"]["data"] for folder in runs.values()}) > 1:
        raise ValueError(f"against={asked['against']} is about other data than {out}")
    protocols = [_protocol(folder) for folder in runs.values()]
    if other := [key for key in protocols[0] | protocols[-1] if protocols[0].get(key) != protocols[-1].get(key)]:
        told = " and ".join(f"{folder}: {each.get(other[0])}" for folder, each in zip(runs.values(), protocols, strict=True))  # fmt: skip
        raise ValueError(f"against={asked['against']} was tested by another protocol, {other[0]} ({told})")
    return {**asked, **stamps, "code": code()}


def _protocol(run: Path) -> dict[str, Any]:
    """How targets were ranked, but for what may differ between models."""
    told = json.loads((run / "test.json").read_text(encoding="utf-8"))["protocol"]
    return {key: value for key, value in told.items() if key not in ("bootstrap", "ranks")}


def kept(folder: Path, made: dict[str, Any]) -> list[str]:
    """The parts that are to be made: none where all are there, else what is asked for with what was there.

    What was analysed with other settings, or of a run that was here before, is analysed again.
    """
    if not folder.exists():
        return made["parts"]
    before = store.verify(folder)["made_by"]
    same = {**before, "parts": made["parts"]} == made
    if same and set(made["parts"]) <= set(before["parts"]):
        return []
    log(
        f"{folder} holds " + ("other parts" if same else "an analysis with other settings") + ": all of it is made anew"
    )
    wanted = {*made["parts"], *before["parts"]}
    return [name for name in PARTS if name in wanted]


def opened(out: Path, places: Sequence[str], made: dict[str, Any], folder: Path) -> Subject:
    config = cfg.load([str(out / "config.yaml"), f"out={out}", *places])
    accelerator = join(config.train)
    found = best_of(out, config, Ranks(), accelerator.device)
    against = Path(made["against"]) if made["against"] else None
    return Subject(
        out, config, found.model, found.data, accelerator.device, folder, made["users"], made["steps"], against
    )


def fill(subject: Subject, chosen: Sequence[str]) -> None:
    sections, figures = [], {}
    for name in chosen:
        log(f"analysis: {name}")
        with exact_products():
            part = PARTS[name](subject)
        sections.append(part.section)
        figures[name] = part.figures
    page.write(subject.folder, page.Page(f"Analysis of {subject.out.resolve().name}", tuple(sections)))
    (subject.folder / "analysis.json").write_text(
        json.dumps(page.finite(figures), indent=1, allow_nan=False), encoding="utf-8"
    )


def _count(given: dict[str, str], key: str) -> int:
    text = given[key]
    if not (text.isascii() and text.isdecimal()) or not 2 <= int(text) < 2**31:
        raise ValueError(f"{key}={text}: a whole number, at least 2")
    return int(text)


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
