"""Codes for a grown catalogue by a finished artefact; nothing is fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distrec import config as cfg
from distrec.codes import health
from distrec.codes.collisions import running_digit
from distrec.codes.residual import zero_rows
from distrec.codes.rows import largest
from distrec.data import item_codes, store, vectors
from distrec.data.item_codes import ItemCodes
from distrec.jobs import embed
from distrec.jobs.codes.artefact import check_category, finished, origin, write
from distrec.jobs.codes.fit import rows_of
from distrec.jobs.parts import llm
from distrec.jobs.parts.work import Work
from distrec.models import quantisers
from distrec.runtime import log

_KEYS = {"text": "data.text", "max_tokens": "embed.max_tokens", "normalize": "embed.normalize"}


def extend(known: Path, work: Work) -> Path | None:
    """Codes for a grown catalogue by a finished artefact: its items keep theirs, nothing is fitted.

    Raises: ValueError when the vectors come from another encoder than the artefact's, or a bucket is full.
    """
    config, data, ranks = work.config, work.data, work.ranks
    if not (known / "levels.safetensors").is_file():
        raise ValueError(f"--assign-only={known} is no folder of codes (made by distrec quantize)")
    stamp = store.verify(known)["made_by"]
    check_category(config.codes, data)
    embedding = llm.encoder(config)
    if config.codes.vectors is None:
        if stamp["encoder"] is None:
            raise ValueError(f"{known} was made from a file of vectors: give codes.vectors=FILE for these items too")
        if embedding.encoder == "builtin":
            embedding = replace(embedding, encoder=str(find_encoder(config.data.root, stamp["encoder"])))
        place = ranks.main_first(partial(embed.locate, embedding, config.data.root, data))
        check_same(known, stamp, embed.made_by(embedding, config.data.text, place, data))
    source = config.codes.vectors or embed.embed(embedding, config.data, data, ranks, work.stop)
    if source is None:
        return None
    table, identity = vectors.load(source, data, config.codes.vectors_order, config.codes.vectors_missing)
    made = origin(source, identity, data)
    check_same(known, stamp, made)
    if made["encoder"] is None:
        log("warning: nothing says that these vectors are of the same kind as those the codes were made from")
    made |= {"codes": stamp["codes"], "seed": stamp["seed"], "extends": store.content(known)}
    target = store.folder(config.data.root, "codes", made)
    if finished(target, made, work):
        return target
    tensors = safetensors.torch.load_file(known / "levels.safetensors")
    if (width := quantisers.width_of(tensors)) != table.shape[1]:
        raise ValueError(f"{known} is about vectors of {width} dimensions, {source} has {table.shape[1]}")
    rows = rows_of(table, ranks, work.device)
    largest(rows)  # refuses what is not finite
    asked = cfg.load([], {f"codes.{key}": value for key, value in stamp["codes"].items()}).codes
    found = rows.together(quantisers.codes_of(rows, tensors, asked)).cpu()
    before = item_codes.load(known)
    codes, digit, is_new = grown(before, item_codes.raw_ids(known), list(data.items["raw"]), found)
    report = {
        "quantiser": asked.name,
        "items": data.n_items,
        "kept_items": int((~is_new).sum()),
        "new_items": int(is_new.sum()),
        "gone_items": len(before.codes) - int((~is_new).sum()),
        "dimensions": table.shape[1],
        "zero_vectors": zero_rows(rows),
        "levels": [health.use(codes[:, i], size) for i, size in enumerate(before.sizes[:-1])],
    }
    return write(target, made, work, codes, before.sizes, report, tensors, digit)


def grown(
    before: ItemCodes, known: Sequence[str], items: Sequence[str], found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, last codes, which items are new): known items keep theirs, new ones take the next free last code."""
    places = {raw: i for i, raw in enumerate(known)}
    was = torch.tensor([places.get(raw, -1) for raw in items])
    is_new = was < 0
    kept = before.codes[was.clamp(min=0)].long()
    codes = torch.where(is_new[:, None], found.long(), kept[:, :-1])
    digit = kept[:, -1].clone()
    digit[is_new] = running_digit(codes[is_new], before.sizes[:-1], before.sizes[-1], before.codes)
    return codes, digit, is_new


def check_same(known: Path, stamp: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raises: ValueError when vectors are made otherwise than those that known codes were made from."""
    if made["encoder"] != stamp.get("encoder"):
        raise ValueError(
            f"{known} was made from another encoder's vectors: give embed.encoder the one it was made with"
        )
    for key, name in _KEYS.items():
        if made[key] != stamp.get(key):
            raise ValueError(f"{known} was made with {name}={stamp.get(key)!r}, now {made[key]!r}: give the former")


def find_encoder(root: Path, digest: str | None) -> Path:
    """The built-in encoder with these bytes under data.root."""
    for folder in sorted(root.glob("encoder-*")):
        if embed.encoder_digest(folder) == digest:
            return folder
    raise ValueError(f"{root} holds no built-in encoder that these codes were made with: give embed.encoder=FOLDER")
