"""A run's config: the sections of knobs.py, what must hold between them, and how words become one.

Files and `section.key=value` overrides are merged left to right, then validated once, whether they come from the
command line, from a sweep or from a test.  `python -m distrec.config FILE… KEY=VALUE…` prints the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import ConfigDict, Field, model_validator

from distrec import knobs
from distrec.settings import Schema, plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    __pydantic_config__: ClassVar[ConfigDict] = knobs.STRICT
    data: knobs.Data = field(default_factory=knobs.Data)
    embed: knobs.Embed = field(default_factory=knobs.Embed)
    codes: Annotated[knobs.Codes, Field(discriminator="name")] = field(default_factory=knobs.Gmm)
    model: Annotated[knobs.Model, Field(discriminator="name")] = field(default_factory=knobs.SasRec)
    train: knobs.Train = field(default_factory=knobs.Train)
    score: knobs.Score = field(default_factory=knobs.Score)
    out: Path | None = None  # the run folder; None: runs/<source>-<model>-<hash of this config>
    seed: knobs.Count = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        model, data = self.model, self.data
        if isinstance(model, knobs.SasRec):
            _check_heads(model, "model")
        if isinstance(model, knobs.CodeModel) and self.train.samples == "sequences":
            raise ValueError(f"model.name={model.name} predicts one item a sample: train.samples=prefixes")
        if isinstance(model, knobs.Tone):
            _check_tone(model)
        if isinstance(model, knobs.Frellm):
            _check_heads(model.sasrec, "model.sasrec")
            _check_frellm(model, self.train)
        if self.score.shard_items and not isinstance(model, knobs.SasRec | knobs.Frellm):
            raise ValueError("score.shard_items=true is for models that score by a table: sasrec, frellm")
        if data.source != "synthetic" and data.path is None and data.catalogue is None:
            raise ValueError(f"data.source={data.source} needs data.path=FOLDER_OR_FILE (or data.catalogue=NAME)")
        if data.source == "synthetic" and (data.path or data.items or data.catalogue):
            raise ValueError(
                "data.path, data.items and data.catalogue need a data.source (sequences, table, movielens, …)"
            )
        if data.valid_share + data.test_share >= 1:
            raise ValueError("data.valid_share + data.test_share leave nothing to train on; make them smaller")
        _check_embed(self.embed, isinstance(model, knobs.Frellm))
        return self


def _check_heads(model: knobs.SasRec, section: str) -> None:
    if model.d_model % model.n_heads:
        raise ValueError(f"{section}.d_model {model.d_model} is not a multiple of {section}.n_heads {model.n_heads}")


_OF_SWITCH = {
    "agf": ("sigma", "taps", "agf_axis", "agf_literal"),
    "crfa": ("crfa_tokens", "crfa_place", "bin_embedding", "relative_bias"),
    "rpml": ("rpml_mode", "rpml_mean", "rpml_std", "rpml_centred", "lm_alpha", "learn_alpha"),
}


def _check_tone(model: knobs.Tone) -> None:
    if model.agf and (model.taps % 2 == 0 or not 0.3 < model.sigma < max(model.taps, 0.31)):
        raise ValueError(
            f"model.taps {model.taps}, model.sigma {model.sigma}: taps are odd, so that there is a middle, and sigma lies "
            "between 0.3 and taps, where it can learn"
        )
    if model.agf and not model.zero_pads:
        raise ValueError("model.zero_pads=false does nothing with model.agf=true, which leaves padding out by itself")
    for switch, keys in _OF_SWITCH.items():
        used = getattr(model, switch) or (switch == "rpml" and model.rpml_decoder)
        for key in keys:
            if not used and getattr(model, key) != getattr(knobs.Tone(), key):
                raise ValueError(f"model.{key} does nothing with model.{switch}=false")


def _check_frellm(model: knobs.Frellm, train: knobs.Train) -> None:
    if model.tfm.mode == "global" and train.samples == "sequences" and not model.compat_unsafe:
        raise ValueError(
            "model.tfm.mode=global sees later items, so that a loss at all positions would see its targets: "
            "train.samples=prefixes, model.tfm.mode=causal, or model.compat_unsafe=true to measure the leak"
        )
    if model.compat_unsafe and (model.tfm.mode != "global" or train.samples != "sequences"):
        raise ValueError("model.compat_unsafe=true means model.tfm.mode=global with train.samples=sequences")
    if model.tfm.mode != "global" and model.tfm.boundary != knobs.Filter().boundary:
        raise ValueError(f"model.tfm.boundary does nothing with model.tfm.mode={model.tfm.mode}")
    if model.tfm.boundary == "paper" and model.tfm.cutoff < 0.1:
        raise ValueError(f"model.tfm.cutoff={model.tfm.cutoff}: model.tfm.boundary=paper takes none below 0.1")
    if model.tfm.learn_cutoff and (model.tfm.mode == "none" or model.tfm.boundary == "paper"):
        raise ValueError("model.tfm.learn_cutoff=true needs a filter that is differentiable in it: not off, not paper")
    if model.backbone.quantise == "nf4" and model.backbone.tune == "full":
        raise ValueError("model.backbone.quantise=nf4 cannot be trained whole: model.backbone.tune=lora or frozen")
    if model.backbone.dtype == "bfloat16" and model.backbone.tune == "full":
        raise ValueError(
            "what is trained stays in float32: model.backbone.dtype=float32 with train.precision=bf16, or tune=lora"
        )
    if model.graph.source in ("text", "items") and (model.graph.window or model.graph.weighting != "binary"):
        raise ValueError(f"model.graph.window and weighting do nothing with model.graph.source={model.graph.source}")
    if model.graph.source != "session" and model.graph.gap_hours != knobs.Graph().gap_hours:
        raise ValueError(f"model.graph.gap_hours does nothing with model.graph.source={model.graph.source}")


def _check_embed(embed: knobs.Embed, is_frellm: bool) -> None:
    others = {"builtin": ("revision", "max_tokens", "pooling"), None: () if is_frellm else ("pooling",)}
    for key in (*others.get(embed.encoder, ()), *(() if embed.encoder == "builtin" else ("dimensions", "vocabulary"))):
        if getattr(embed, key) != getattr(knobs.Embed(), key):
            raise ValueError(f"embed.{key} does nothing with embed.encoder={embed.encoder or 'the default'}")


CHOICES = {
    "model": (knobs.Model, "sasrec"),
    "codes": (knobs.Codes, "gmm"),
}  # sections of several classes, and the default
_SCHEMA = Schema(Config, CHOICES)


def load(args: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Config:
    """`load(["configs/model/sasrec.yaml", "train.lr=3e-4"], {"seed": 1})`; later wins.

    Raises: ValueError, one line, naming the file or key, what is allowed and the nearest right key.
    """
    return _SCHEMA.load(args, overrides)


def word(key: str, value: Any) -> str:
    """Write the word that `load` reads as this value of this key.   Raises: ValueError where no word says it."""
    return _SCHEMA.word(key, value)


_UNMEASURED = {"data": ("root", "text"), "score": ("bootstrap", "batch_users", "shard_items")}


def measured(config: Config) -> dict[str, Any]:
    """The settings that decide what a model is measured on, and how: figures stand in one table where all of these are equal.

    All of `data` and `score` but places, texts, and what changes no rank.
    """
    settings = {section: plain(getattr(config, section)) for section in _UNMEASURED}
    for section, keys in _UNMEASURED.items():
        for key in keys:
            del settings[section][key]
    settings["score"]["mask_history"] = (
        config.score.mask_history is not False
    )  # docs/protocol.md; null is for `recommend`
    return settings


def shared(job: Config) -> dict[str, Any]:
    """Of a job with sections of its own (a sweep, an experiment): the config that all its runs share, as files hold it."""
    return plain(Config(**{each.name: getattr(job, each.name) for each in fields(Config)}))


def dump(config: Config) -> str:
    """The whole config as YAML that `load` turns back into an equal one."""
    return yaml.safe_dump(plain(config), sort_keys=False)


if __name__ == "__main__":
    from distrec.runtime import run

    run(lambda argv: print(dump(load(argv)), end=""))
