"""The model of a config; what it needs and lacks is made first."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from distrec import config as cfg
from distrec import knobs
from distrec.data import item_codes, prepared, store
from distrec.data.preparation import growth
from distrec.data.prepared import Prepared
from distrec.engine.checkpoint import Checkpoints
from distrec.engine.parallel import Copies
from distrec.jobs.codes.extend import extend
from distrec.jobs.codes.fit import quantize
from distrec.jobs.embed import encoder_digest
from distrec.jobs.parts import llm
from distrec.jobs.parts.identity import CHECKPOINT, check_settings, data_of, made_by, settings
from distrec.jobs.parts.tables import backbone_of, tables, verify_run
from distrec.jobs.parts.tables import load as load_tables
from distrec.jobs.parts.work import Work
from distrec.models.build import build
from distrec.runtime import Ranks

GENERATIVE = knobs.Tiger | knobs.Tone
COUNTING = knobs.Popularity | knobs.ItemKnn | knobs.Markov


class Parts(NamedTuple):
    """What a model is built on, beside the data, and the hash of each."""

    found: dict[str, Path]  # codes; or tables and backbone
    hashes: dict[str, str]

    def __add__(self, other: "Parts") -> "Parts":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Parts(self.found | other.found, self.hashes | other.hashes)

    @classmethod
    def of(cls, found: dict[str, Path]) -> "Parts":
        return cls(found, {name: _hash(name, folder) for name, folder in found.items()})


class Loaded(NamedTuple):
    model: Any  # a Recommender
    data: Prepared


def codes_of(work: Work) -> Path | None:
    """The folder of the codes that the config's model generates; None when making them was stopped.

    Raises: ValueError when the folder that it names is broken or about other items; Collapsed when the gate is shut.
    """
    model = work.config.model
    assert isinstance(model, GENERATIVE)
    begun = made_by(work.config.out) if work.config.out else {}
    if model.codes is None and begun.get(CHECKPOINT):  # the run has them, whatever became of its parent
        return find_part(work.config, "codes", begun["codes"])
    if model.codes is None and work.parent is not None:  # the weights know the codes that items had
        before = cfg.load([str(work.parent / "config.yaml"), f"data.root={work.config.data.root}"])
        return extend(find_part(before, "codes", made_by(work.parent)["codes"]), work)
    if model.codes is None:
        return quantize(work)
    if not (model.codes / "codes.safetensors").is_file():
        raise ValueError(f"model.codes={model.codes} is no folder of codes (made by distrec quantize)")
    return model.codes


def parts_of(work: Work, train: Callable[[Work], Path | None]) -> Parts | None:
    """What the config's model is built on, made where it is missing; None when that was stopped.

    `train`: makes a run of a config, for models that are built on another's.
    """
    model = work.config.model
    if isinstance(model, GENERATIVE):
        codes = codes_of(work)
        return Parts.of({"codes": codes}) if codes else None
    if isinstance(model, knobs.Frellm):
        if model.items is not None:
            verify_run(model.items, work.data)
        backbone = Parts.of({"backbone": backbone_of(work)})
        if work.config.out:
            work.ranks.main_first(partial(check_settings, work.config.out, backbone.hashes))
        made = tables(work, train)
        return backbone + Parts.of({"tables": made}) if made else None
    return Parts({}, {})


def assemble(config: cfg.Config, data: Prepared, parts: Parts, device: torch.device) -> nn.Module:
    """The model of a config, on the device, to which a language model's weights go straight."""
    codes, tables = None, None
    if "codes" in parts.found:
        codes = item_codes.load(parts.found["codes"], data)
    if "tables" in parts.found:
        tables = load_tables(parts.found["tables"], data)
    return build(config.model, data, config.seed, codes, tables, parts.found.get("backbone"), device)


def best_of(out: Path, config: cfg.Config, ranks: Ranks, device: torch.device, reads_log: bool = True) -> Loaded:
    """The model of a run with the weights of its best checkpoint; nothing is fitted.

    `reads_log`: whether the data must still be those of the run; else the run's own are taken where they lie.

    Raises: ValueError when the run has no good checkpoint, was about other data, or what it was built on is not there.
    """
    learns = not isinstance(config.model, COUNTING)
    if (out / store.STAMP).exists():
        store.verify_stamped(out)
    check_settings(
        out,
        {k: v for k, v in settings(config).items() if not k.startswith("score.") and k != "train.schedule"},
    )
    best = Checkpoints(out / "checkpoints", {}).best() if learns else ""
    before = store.read_stamp(out / "checkpoints" / best)["made_by"] if learns else {}
    wanted = {name: before[name] for name in ("codes", "tables", "backbone") if name in before}
    parts = Parts({name: find_part(config, name, digest) for name, digest in wanted.items()}, wanted)
    then = None if reads_log else growth.find(config.data.root, made_by(out).get("data", ""))
    if then is None:
        now = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
        data = data_of(out, config, now)
    else:
        store.verify(then)
        data = prepared.load(then)
    model = assemble(config, data, parts, device)
    if learns:
        Checkpoints(out / "checkpoints", {"data": data.stamp, **wanted}).load(best, Copies(model), only_weights=True)
    return Loaded(model.eval(), data)


def find_part(config: cfg.Config, name: str, wanted: str) -> Path:
    """The folder with this content: the one that the config names, or one under data.root."""
    model, broken = config.model, ""
    is_drawn = isinstance(model, knobs.Frellm) and model.backbone.init == "random"
    named = {
        "codes": getattr(model, "codes", None),
        # a twin lies where it was drawn
        "backbone": Path(model.backbone.path) if isinstance(model, knobs.Frellm) and not is_drawn else None,
    }.get(name)
    if name == "backbone" and isinstance(model, knobs.Frellm) and named and not named.is_dir():
        try:
            named = (
                None if model.backbone.path == llm.SMALL else llm.download(model.backbone.path, model.backbone.revision)
            )
        except ValueError as error:
            raise ValueError(f"{error}: give model.backbone.path=FOLDER") from None
    pattern = {"backbone": "llm-*"}.get(name, f"{name}-*")
    for folder in [named] if named else sorted(config.data.root.glob(pattern)):
        try:
            if folder.is_dir() and _hash(name, folder) == wanted:
                return folder
        except ValueError as error:  # an artefact of another run may be broken
            broken = f" ({error})"
    key = {"codes": "model.codes", "backbone": "data.root" if is_drawn else "model.backbone.path"}.get(
        name, "data.root"
    )
    raise ValueError(f"{named or config.data.root} does not hold the {name} of this run: give {key}=FOLDER{broken}")


def _hash(name: str, folder: Path) -> str:
    """Of what a folder holds; a language model need not be an artefact of ours."""
    return encoder_digest(folder) if name == "backbone" else store.content(folder)
