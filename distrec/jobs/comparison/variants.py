"""Finished runs that can be compared, put together where they differ in their seed alone, and named by what they differ in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared, store
from distrec.data.preparation import growth
from distrec.engine.evaluation import outcome
from distrec.jobs.codes.artefact import FREE
from distrec.jobs.parts import llm
from distrec.jobs.parts.assemble import GENERATIVE
from distrec.jobs.parts.chain import Known, Link, chain, opened
from distrec.jobs.parts.identity import DATA, settings

_PLACES = ("embed.encoder", "codes.vectors", "model.codes", "model.items")  # may differ under one label
_SHOWN_AS_PLACE = ("model.backbone.path", "model.codes", "model.items")  # compared by content
_SAMPLED = "users of "
_FEW = 3  # differing settings that a name holds
_REMEDY = {"protocol.history": "; give all the same score.mask_history"}


@dataclass(frozen=True)
class Run:
    """`table`: ranks.parquet in the order of users; `settings`: what shapes the model, without its seed."""

    folder: Path
    label: str
    config: cfg.Config
    report: dict[str, Any]
    table: pl.DataFrame
    links: list[Link]
    settings: dict[str, Any]

    def shown(self, key: str) -> str:
        """A setting for people."""
        told = store.flat(cfg.plain(self.config)) if key in _SHOWN_AS_PLACE else self.settings
        value = told.get(key, "–")
        return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Variant:
    name: str
    runs: tuple[Run, ...]  # by seed


def read(folder: Path, label: str, words: Sequence[str], known: Known) -> Run:
    """A run, after it and all that is at hand of what it was made of were read again.

    Raises: ValueError naming what is no finished run, or what was changed.
    """
    config = opened(folder, words)
    links = chain(folder, config, known)
    report, table = outcome.read(folder)
    return Run(folder, label, config, report, table.sort("user"), links, _settings(config, links))


def check_same(runs: Sequence[Run]) -> None:
    """Raise ValueError naming the first run that was not measured as the first one was, and in what it differs."""
    first = runs[0]
    wanted = _measured(first)
    for run in runs[1:]:
        told = _measured(run)
        for key in wanted | told:
            if key.startswith(_SAMPLED) and not (key in wanted and key in told):
                continue  # not every model has scores to rank them by
            if (value := told.get(key)) != wanted.get(key):
                if key == "data":
                    raise ValueError(f"{run.folder} cannot be compared with {first.folder}: {_other_data(first, run)}")
                raise ValueError(
                    f"{run.folder} cannot be compared with {first.folder}: {key} is {value!r}, not {wanted.get(key)!r}"
                    + _REMEDY.get(key, "")
                )
        for key in ("user", "target"):
            if not run.table[key].equals(first.table[key]):
                raise ValueError(
                    f"{run.folder} cannot be compared with {first.folder}: ranks.parquet has another {key}"
                )


def _other_data(first: Run, run: Run) -> str:
    folders = [
        link.folder for each in (first, run) for link in each.links if link.name == "prepared data" and link.folder
    ]
    if len(folders) < 2:
        return "other data"
    return f"other data: {growth.changes(folders[0], prepared.load(folders[1]), first.folder)}"


def variants(runs: Sequence[Run]) -> list[Variant]:
    """Runs of one label, or without one of the same settings, by seed; in the order in which the first of each was given.

    Raises: ValueError when a seed stands twice in a variant, when runs of one label differ in more than their seed, or
    when two variants have one name.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(f"label {run.label}" if run.label else store.digest(run.settings), []).append(run)
    for group in groups.values():
        _check_group(group)
    firsts = [group[0] for group in groups.values()]
    names = [run.label or name for run, name in zip(firsts, _names(firsts), strict=True)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two variants are called {twice[0]!r}: give one of them a name, NAME:RUN")
    return [
        Variant(name, tuple(sorted(group, key=lambda run: run.config.seed)))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which some of these runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({store.digest(run.settings.get(key)) for run in runs}) > 1]


def _settings(config: cfg.Config, links: Sequence[Link]) -> dict[str, Any]:
    """What shapes the model, but no seed and no place: what a config names by its place stands as its content."""
    found = {key: value for key, value in settings(config).items() if key != "seed" and not key.startswith("score.")}
    model, by_name = config.model, {link.name: link for link in links}
    if isinstance(model, knobs.Frellm):
        found |= {"embed.encoder": config.embed.encoder, "model.backbone.init": model.backbone.init}
        found["model.backbone.path"] = _language_model(by_name["language model"])
        if model.items is not None:
            found = {key: value for key, value in found.items() if not key.startswith("model.sasrec")}
            origin = by_name.get("SASRec run", by_name["item tables"])
            found["model.items"] = _without_seed(origin, ("model.", "train."))
    if isinstance(model, GENERATIVE) and model.codes is not None:
        codes = by_name["codes"]
        origin = "encoder" if codes.made_by.get("encoder") else "vectors"
        found["model.codes"] = _without_seed(codes, (origin, "text", "max_tokens", "normalize"))
        found |= store.flat({"codes": codes.made_by.get("codes", {})})
    elif isinstance(model, GENERATIVE):
        found |= {f"codes.{key}": value for key, value in cfg.plain(config.codes).items() if key not in FREE}
        found["codes.vectors"] = config.codes.vectors and str(config.codes.vectors)
        embed = {} if config.codes.vectors else cfg.plain(llm.encoder(config))
        found |= {f"embed.{key}": value for key, value in embed.items() if key != "batch"}
    made_by = by_name["run"].made_by
    found["from.data"] = " ".join(made_by.get(DATA, ())) or None  # of the parents, whatever their seeds
    return found | {"train.schedule": made_by.get("train.schedule")}  # as it was then


def _language_model(link: Link) -> str:
    """Its content; of random weights what they were drawn for, but the seed."""
    if "random" not in link.made_by:
        return link.content
    return store.digest({key: value for key, value in link.made_by.items() if key != "seed"})


def _without_seed(link: Link, keys: tuple[str, ...]) -> str:
    """What shaped an artefact, where it is at hand; else its content, which also says its seed."""
    return store.digest({k: v for k, v in link.made_by.items() if k.startswith(keys)}) if link.folder else link.content


def _measured(run: Run) -> dict[str, Any]:
    """What must be the same for figures to be comparable."""
    protocol = {key: value for key, value in run.report["protocol"].items() if key not in ("bootstrap", "ranks")}
    told = {key: run.report[key] for key in ("data", "items", "users", "repeats")}
    sampled = {name: part for name, part in run.report.items() if name.startswith("sampled_")}
    told |= {f"{_SAMPLED}{name}": part["users"] for name, part in sampled.items()}
    return told | {f"protocol.{key}": value for key, value in protocol.items()}


def _check_group(group: Sequence[Run]) -> None:
    first, seeds = group[0], {}
    for run in group:
        if other := [key for key in differing([first, run]) if key not in _PLACES]:
            raise ValueError(
                f"{run.folder} and {first.folder} are both named {run.label!r} but differ in {other[0]} "
                f"({run.shown(other[0])}, {first.shown(other[0])}): a variant's runs differ in seed alone"
            )
        if run.config.seed in seeds:
            raise ValueError(
                f"{run.folder} has seed={run.config.seed} as {seeds[run.config.seed]} has, and the same settings: "
                "a variant holds each seed once"
            )
        seeds[run.config.seed] = run.folder


def _names(runs: Sequence[Run]) -> list[str]:
    """By the model where that tells them apart, else by the settings that differ between those of one model."""
    return [
        _name(run, [other for other in runs if other.config.model.name == run.config.model.name], runs) for run in runs
    ]


def _name(run: Run, rivals: Sequence[Run], runs: Sequence[Run]) -> str:
    model = run.config.model.name
    keys = _telling(rivals)
    told = [f"{key.removeprefix('model.')}={run.shown(key)}" for key in keys]
    return ", ".join(([model] if len(rivals) < len(runs) or not keys else []) + told)


def _telling(runs: Sequence[Run]) -> list[str]:
    """All settings that differ, if they are few; else as few as tell these runs apart, those with most values first."""
    every = differing(runs)
    named = tuple(key.removesuffix("name") for key in every if key.endswith(".name"))  # their kind says the rest
    every = [key for key in every if key.endswith(".name") or not key.startswith(named)]
    common = [key for key in every if all(key in run.settings for run in runs)]
    if len(common) <= _FEW and _kinds(runs, common) == _kinds(runs, every):
        return common
    chosen: list[str] = []
    while _kinds(runs, chosen) < _kinds(runs, every):
        chosen.append(max((key for key in every if key not in chosen), key=lambda key: _kinds(runs, [*chosen, key])))
    return chosen


def _kinds(runs: Sequence[Run], keys: Sequence[str]) -> int:
    return len({store.digest([run.settings.get(key) for key in keys]) for run in runs})


def told_apart(variants: Sequence[Variant]) -> Mapping[str, list[str]]:
    """setting → its value in each variant, for all in which they differ."""
    firsts = [variant.runs[0] for variant in variants]
    return {key: [run.shown(key) for run in firsts] for key in differing(firsts)}
