"""How large a run will be, from its config: its data, its model's shapes; no weight is read, nothing is trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from distrec import config as cfg
from distrec import knobs
from distrec.data import batches, prepared
from distrec.engine.costs.budget import Weights
from distrec.engine.evaluation.scoring import BLOCK
from distrec.jobs.codes.fit import code_size
from distrec.jobs.parts import llm
from distrec.models.build import sketch
from distrec.models.language import pretrained, small_llm
from distrec.runtime import log


@dataclass(frozen=True)
class Sizes:
    """Of the data.   In places: `longest` training sample, and in the mean with its padding `width`, an evaluated `history`;
    optimiser `steps` an epoch; `last_only`: a sample's loss reads its last place alone."""

    items: int
    users: int
    interactions: int
    samples: int
    longest: int
    width: float
    history: float
    steps: int
    last_only: bool


def sizes(config: cfg.Config, asked: tuple[int | None, int | None, int | None], kind: Any) -> Sizes:
    """Of (items, users, interactions) as asked, or of the prepared data; `kind` of samples.

    Raises: ValueError when some are given and others are not, or users have less than four interactions each.
    """
    max_len = getattr(config.model, "max_len", 1)
    last_only = kind == "prefixes"
    if None not in asked:
        items, users, interactions = (int(n or 0) for n in asked)
        if interactions < 4 * users:
            raise ValueError(
                f"interactions={interactions:,} for users={users:,}: two of each are held out; give four a user at least"
            )
        each = interactions / users - 2  # the last two are held out
        samples = int(users * (each - 1)) if last_only else users
        # a prefix is half as long as its history in the mean
        width = max(1.0, min(float(max_len), each / 2 if last_only else each))
        steps = -(-samples // max(1, int(config.train.batch_tokens // (max_len if last_only else width))))
        longest = min(max_len, max(1, interactions - 3 * (users - 1)))
        return Sizes(items, users, interactions, samples, longest, width, min(float(max_len), each), steps, last_only)
    if any(asked):
        raise ValueError("items, users and interactions are given together, or none of them")
    data = prepared.load(prepared.prepare(config.data))
    found = batches.training(data, kind, max_len)
    steps = batches.steps(found, config.train.batch_tokens, config.seed, 0)
    width = sum(len(rows) * int(found.lengths(rows).max()) for rows in steps) / len(found)
    valid = np.sort(batches.evaluation(data, "valid", max_len).lengths())
    blocks = [valid[low : low + BLOCK] for low in range(0, len(valid), BLOCK)]
    history = sum(len(block) * max(1, int(block.max())) for block in blocks) / max(1, len(valid))
    longest, history = int(found.lengths().max()), max(1.0, history)
    return Sizes(data.n_items, data.n_users, len(data.item), len(found), longest, width, history, len(steps), last_only)


def samples_of(config: cfg.Config, folder: Path) -> Any:
    """sequences or prefixes: the config's choice, or the model's own.   Raises: ValueError for a model that counts."""
    return config.train.samples or sketched(config, 64, folder).samples


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


def sketched(config: cfg.Config, n_items: int, folder: Path) -> Any:
    """The config's model without bytes, from sizes alone."""
    model, codes = config.model, config.codes
    levels = (codes.size or code_size(n_items),) * (codes.levels + 1)
    widths = (0, 0)
    if isinstance(model, knobs.Frellm):
        widths = (model.sasrec.d_model, _text_width(config, model, folder))
    return sketch(model, n_items, levels, widths, folder)


def _text_width(config: cfg.Config, model: knobs.Frellm, folder: Path) -> int:
    """Of the items' text vectors.   Raises: ValueError where the encoder is a folder that says nothing of it."""
    encoder = llm.encoder(config).encoder
    if encoder == model.backbone.path:
        return int(pretrained.skeleton(folder).config.hidden_size)  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    known = {"builtin": config.embed.dimensions, "minilm": 384, llm.SMALL: 64, None: 768}
    if encoder in known:
        return known[encoder]
    path = Path(str(encoder)) / "config.json"
    if path.is_file() and isinstance(width := json.loads(path.read_text(encoding="utf-8")).get("hidden_size"), int):
        return width
    if str(encoder).count("/") == 1 and not str(encoder).startswith((".", "/", "~")):
        log(f"embed.encoder={encoder}: 768 dimensions are assumed")
        return 768
    raise ValueError(
        f"embed.encoder={encoder}: no config.json with hidden_size in this folder; its vectors' width is not known"
    )


def stored(config: cfg.Config, folder: Path) -> int:
    """Bytes of a backbone on disk, in the type that its config names, whatever it is held in."""
    if not isinstance(config.model, knobs.Frellm):
        return 0
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = 4 if (told.get("dtype") or told.get("torch_dtype")) in (None, "float32") else 2
    return size * sum(parameter.numel() for parameter in pretrained.skeleton(folder).parameters())


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
