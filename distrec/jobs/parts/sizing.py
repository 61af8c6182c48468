"""How large a run will be, from its config: its data, its model's shapes; no weight is read, nothing is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distrec import config as cfg
from distrec import knobs
from distrec.data import batches, prepared
from distrec.engine.budget import Weights
from distrec.jobs.codes.fit import code_size
from distrec.jobs.parts import llm
from distrec.jobs.parts.assemble import GENERATIVE
from distrec.models.build import sketch
from distrec.models.language import pretrained, small_llm

_WIDTHS = {"minilm": 384, None: 768}  # of an encoder's vectors; None: sentence-t5-base


@dataclass(frozen=True)
class Sizes:
    """Of the data: `longest` training sample, in places; optimiser `steps` an epoch."""

    items: int
    users: int
    interactions: int
    samples: int
    longest: int
    steps: int


def sizes(config: cfg.Config, asked: tuple[int | None, int | None, int | None]) -> Sizes:
    """Of (items, users, interactions) as asked, or of the prepared data.

    Raises: ValueError when some are given and others are not.
    """
    max_len = getattr(config.model, "max_len", 1)
    kind = kind_of(config)
    if None not in asked:
        items, users, interactions = (int(n or 0) for n in asked)
        trained = max(users, interactions - 2 * users)  # the last two of each are held out
        samples = trained if kind == "prefixes" else users
        positions = samples * max_len if kind == "prefixes" else min(trained, users * max_len)
        steps = -(-positions // max(config.train.batch_tokens, max_len))
        return Sizes(items, users, interactions, samples, min(max_len, max(1, trained)), steps)
    if any(asked):
        raise ValueError("items, users and interactions are given together, or none of them")
    data = prepared.load(prepared.prepare(config.data))
    found = batches.training(data, kind, max_len)
    steps = len(batches.steps(found, config.train.batch_tokens, config.seed, 0))
    return Sizes(data.n_items, data.n_users, len(data.item), len(found), int(found.lengths().max()), steps)


def kind_of(config: cfg.Config) -> Any:
    """Of the training samples: sequences or prefixes."""
    model = config.model
    if config.train.samples:
        return config.train.samples
    if isinstance(model, knobs.Frellm):
        return "prefixes" if model.tfm.mode == "global" and not model.compat_unsafe else "sequences"
    return "prefixes" if isinstance(model, GENERATIVE) else "sequences"


def decoder(config: cfg.Config, scratch: Path) -> Path:
    """A folder with the config of the model's language model, checked."""
    model = config.model
    if not isinstance(model, knobs.Frellm):
        return scratch
    place = model.backbone
    if place.path == llm.SMALL:
        small_llm.shape().save_pretrained(scratch)
        folder = scratch
    elif Path(place.path).is_dir():
        folder = Path(place.path)
    else:
        folder = llm.download(place.path, place.revision, only="config.json")
    pretrained.check_use(folder, place, model.max_len)
    return folder


def sketched(config: cfg.Config, n_items: int, folder: Path) -> nn.Module:
    """The config's model without bytes, from sizes alone."""
    model, codes = config.model, config.codes
    levels = (codes.size or code_size(n_items),) * (codes.levels + 1)
    widths = (0, 0)
    if isinstance(model, knobs.Frellm):
        encoder = llm.encoder(config).encoder
        own = int(pretrained.skeleton(folder).config.hidden_size)  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
        text = {"builtin": config.embed.dimensions, model.backbone.path: own}.get(encoder or "", 0)
        widths = (model.sasrec.d_model, text or _WIDTHS.get(encoder, _WIDTHS[None]))
    return sketch(model, n_items, levels, widths, folder)


def weights(config: cfg.Config, model: nn.Module) -> Weights:
    """How much there is of it, with what nf4 packs packed: half a byte a weight, and a scale for each 64, itself in a byte."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    own = sum(p.nbytes for p in frozen)
    widest = 0
    if getattr(getattr(config.model, "backbone", None), "quantise", "none") == "nf4":
        packed = [m.weight for m in model.backbone.decoder.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]  # pyright: ignore[reportAttributeAccessIssue]  # fmt: skip
        own += sum(int(w.numel() * (1 / 2 + 1 / 64 + 4 / 64 / 256)) - w.nbytes for w in packed)
        widest = max(w.nbytes for w in packed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Weights(own, sum(p.numel() for p in frozen), widest, trained)
