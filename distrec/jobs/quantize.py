"""distrec quantize [FILE.yaml …] [section.key=value …]
distrec quantize --assign-only=CODES [FILE.yaml …] [section.key=value …]

Item vectors → codes (semantic ids): levels of a quantiser, each on what the ones before left over, and a last
code that tells items apart.  Prints and saves a health report; a collapsed codebook stops here (codes.gate=false:
goes on).  A killed fit goes on from its last iteration (spectral: its last level); every process of a launch takes
its share, and the codes are the same on any number of them (rqvae: to rounding only, so that the number of
processes is part of its artefact): accelerate launch -m distrec.jobs.quantize …

  codes.name=gmm|kmeans|balanced|spectral|rqvae      codes.levels=3     codes.size=256 (default: from the catalogue)
  codes.assignment=cosine|posterior|euclid|fitted    codes.pca=64       codes.covariance=diag|spherical|tied|full
  codes.vectors=FOLDER_OR_FILE   vectors made elsewhere; without it the items' texts are embedded (distrec embed)
  codes.category=COLUMN          item column for the category figures

--assign-only gives codes to the items of a grown catalogue by a finished artefact: known items keep theirs, nothing
is fitted.

Example:  distrec quantize configs/data/beauty.yaml configs/codes/resgmm.yaml embed.encoder=minilm
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from distrec import config as cfg
from distrec import train
from distrec.codes import health
from distrec.codes.collisions import check_space, running_digit
from distrec.codes.residual import zero_rows
from distrec.codes.rows import BLOCK, Rows, largest, principal_axes, share, spread
from distrec.data import item_codes, prepared, store, vectors
from distrec.data.item_codes import ItemCodes
from distrec.data.prepared import Prepared
from distrec.engine.states import SavedStates, drain
from distrec.jobs import codes_report, embed
from distrec.models import quantisers
from distrec.runtime import FAILED, REQUEUE, Ranks, Stop, log, run

_KEYS = {"text": "data.text", "max_tokens": "embed.max_tokens", "normalize": "embed.normalize"}
_FREE = ("gate", "min_used", "max_collisions", "vectors", "category")  # shape no code


class Collapsed(Exception):
    """Codes that are not worth training on."""


def main(argv: Sequence[str]) -> int | None:
    flags = [arg for arg in argv if arg.partition("=")[0] == "--assign-only"]
    known = flags[0].partition("=")[2] if flags else None
    if flags and (len(flags) > 1 or not known):
        raise ValueError("--assign-only=CODES, with an equals sign, names one folder of codes made by distrec quantize")
    settled = [arg for arg in argv if arg.startswith("codes.") and arg[6:].partition("=")[0] not in _FREE]
    if known and settled:
        raise ValueError(f"{settled[0]}: with --assign-only the codes' settings are those of {known}")
    config = cfg.load([arg for arg in argv if arg not in flags])
    accelerator = train.join(config)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    try:
        with Stop() as stop:
            make = partial(extend, Path(known)) if known else quantize
            folder = make(config, data, ranks, stop, accelerator.device)
    except Collapsed as error:
        log(str(error))
        return FAILED
    if folder is None:
        log("stopped; the same command goes on from there")
        return REQUEUE
    if ranks.is_main:
        print(codes_report.table(json.loads((folder / "health.json").read_text())))
        print(folder)
    return None


def quantize(
    config: cfg.Config, data: Prepared, ranks: Ranks, stop: Callable[[], bool], device: torch.device
) -> Path | None:
    """The folder of the items' codes, made now unless it is there and intact; None when stopped before the end.

    Raises: ValueError on vectors that cannot be quantised; Collapsed, with the report, when the gate is shut.
    """
    check_category(config.codes, data)
    size = config.codes.size or code_size(data.n_items)
    check_size(size, data.n_items)
    check_space((size,) * (config.codes.levels + 1))
    fit = quantisers.build(config.codes, size, config.seed)
    source = config.codes.vectors or embed.embed(config.embed, config.data, data, ranks, stop)
    if source is None:
        return None
    table, identity = vectors.load(source, data)
    settings = {key: value for key, value in cfg.plain(config.codes).items() if key not in _FREE}
    made = origin(source, identity, data) | {"codes": settings | {"size": size}, "seed": config.seed}
    if isinstance(config.codes, cfg.RqVae):
        made["processes"] = ranks.size  # gradients are summed in floating point
    target = store.folder(config.data.root, "codes", made)
    if ranks.gather(target.exists())[0]:
        store.verify(target, made)
        judge_again(target, config.codes)
        return target
    check_texts(data, config.codes, size)
    with store.alone(config.data.root / "checkpoints" / target.name, ranks):
        return _fit(config, fit, table, size, made, target, data, ranks, stop, device)


def _fit(
    config: cfg.Config,
    fit: quantisers.Fit,
    table: np.ndarray,
    size: int,
    made: dict[str, Any],
    target: Path,
    data: Prepared,
    ranks: Ranks,
    stop: Callable[[], bool],
    device: torch.device,
) -> Path | None:
    """Run the fit from where it was left, judge and write its codes; None when stopped."""
    sizes = (size,) * (config.codes.levels + 1)
    rows = rows_of(table, ranks, device)
    check_spread(rows)
    n_zero = zero_rows(rows)
    log(f"quantising {data.n_items:,} × {table.shape[1]} vectors into {config.codes.levels} × {size} codes: {target}")
    started = time.perf_counter()
    rows, basis = turned(rows, getattr(config.codes, "pca", None))
    saved = SavedStates(config.data.root / "checkpoints" / target.name, made, ranks)
    if not drain(fit.run(rows, saved.load(device)), saved, ranks, stop, how_far):
        return None
    codes = fit.codes_.cpu()
    report = {
        "quantiser": config.codes.name,
        "items": data.n_items,
        "dimensions": table.shape[1],
        "zero_vectors": n_zero,
        "seconds": round(time.perf_counter() - started, 1),
        "levels": [health.use(codes[:, i], size) | told for i, told in enumerate(fit.reports_)],
    }
    tensors = {name: value.cpu() for name, value in basis.items()} | quantisers.tensors_of(fit)
    fill = partial(_fill, codes=codes, sizes=sizes, report=report, tensors=tensors, config=config.codes, data=data)
    ranks.main_first(partial(store.make, target, made, fill))
    saved.remove()
    return target


def extend(
    known: Path, config: cfg.Config, data: Prepared, ranks: Ranks, stop: Callable[[], bool], device: torch.device
) -> Path | None:
    """Codes for a grown catalogue by a finished artefact: its items keep theirs, nothing is fitted.

    Raises: ValueError when the vectors come from another encoder than the artefact's, or a bucket is full.
    """
    if not (known / "levels.safetensors").is_file():
        raise ValueError(f"--assign-only={known} is no folder of codes (made by distrec quantize)")
    stamp = store.verify(known)["made_by"]
    check_category(config.codes, data)
    embedding = config.embed
    if config.codes.vectors is None:
        if stamp["encoder"] is None:
            raise ValueError(f"{known} was made from a file of vectors: give codes.vectors=FILE for these items too")
        if embedding.encoder == "builtin":
            embedding = replace(embedding, encoder=str(find_encoder(config.data.root, stamp["encoder"])))
        place = ranks.main_first(partial(embed.locate, embedding, config.data.root, data))
        check_same(known, stamp, embed.made_by(embedding, config.data.text, place, data))
    source = config.codes.vectors or embed.embed(embedding, config.data, data, ranks, stop)
    if source is None:
        return None
    table, identity = vectors.load(source, data)
    made = origin(source, identity, data)
    check_same(known, stamp, made)
    if made["encoder"] is None:
        log("warning: nothing says that these vectors are of the same kind as those the codes were made from")
    made |= {"codes": stamp["codes"], "seed": stamp["seed"], "extends": store.content(known)}
    target = store.folder(config.data.root, "codes", made)
    if ranks.gather(target.exists())[0]:
        store.verify(target, made)
        judge_again(target, config.codes)
        return target
    tensors = safetensors.torch.load_file(known / "levels.safetensors")
    if (width := quantisers.width_of(tensors)) != table.shape[1]:
        raise ValueError(f"{known} is about vectors of {width} dimensions, {source} has {table.shape[1]}")
    rows = rows_of(table, ranks, device)
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
    common = {"report": report, "tensors": tensors, "config": config.codes, "data": data}
    fill = partial(_fill, codes=codes, sizes=before.sizes, digit=digit, **common)
    ranks.main_first(partial(store.make, target, made, fill))
    return target


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


def origin(source: Path, identity: str, data: Prepared) -> dict[str, Any]:
    """What a stamp of codes says about the items and vectors they were made from."""
    stamp = store.read_stamp(source)["made_by"] if source.is_dir() else {}
    return {
        "fitted_on": stamp.get("fitted_on", "file"),
        "items": item_codes.items_digest(data),
        "vectors": identity,
        **{key: stamp.get(key) for key in ("encoder", "text", "max_tokens", "normalize")},
    }


def check_same(known: Path, stamp: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Raises: ValueError when vectors are made otherwise than those that known codes were made from."""
    if made["encoder"] != stamp.get("encoder"):
        raise ValueError(
            f"{known} was made from another encoder's vectors: give embed.encoder the one it was made with"
        )
    for key, name in _KEYS.items():
        if made[key] != stamp.get(key):
            raise ValueError(f"{known} was made with {name}={stamp.get(key)!r}, now {made[key]!r}: give the former")


def check_texts(data: Prepared, config: cfg.Codes, size: int) -> None:
    """Raises: ValueError when more items share a text than their last code can tell apart."""
    if config.vectors or isinstance(config, cfg.BalancedCodes):
        return
    count = Counter(text for batch in vectors.text_batches(data, 65_536) for text in batch)
    text, n = count.most_common(1)[0]
    if n > size:
        raise ValueError(
            f"{n:,} items have the same text {text[:40]!r}, the last code tells {size} apart: "
            "take a richer data.text, a larger codes.size, or codes.name=balanced"
        )


def judge_again(folder: Path, config: cfg.Codes) -> None:
    """Raises: Collapsed when finished codes do not pass the limits asked now."""
    report = json.loads((folder / "health.json").read_text())
    report["complaints"] = health.complaints(
        report["levels"], report["collisions"], config.min_used, config.max_collisions
    )
    if report["complaints"] and config.gate:
        raise Collapsed(_collapse(report))


def _collapse(report: Mapping[str, Any]) -> str:
    return f"{codes_report.table(report)}\nerror: the codebook collapsed; codes.gate=false takes it all the same"


def find_encoder(root: Path, digest: str | None) -> Path:
    """The built-in encoder with these bytes under data.root."""
    for folder in sorted(root.glob("encoder-*")):
        if embed.encoder_digest(folder) == digest:
            return folder
    raise ValueError(f"{root} holds no built-in encoder that these codes were made with: give embed.encoder=FOLDER")


def code_size(n_items: int) -> int:
    """Codes a level for so many items: a power of two, about 50 items a code; 64 to 4096 where items suffice."""
    wanted = 2 ** round(np.log2(max(1, n_items / 50)))
    return int(min(max(wanted, 64), 4096, 2 ** int(np.log2(max(2, n_items / 4)))))


def check_size(size: int, n_items: int) -> None:
    """Raises: ValueError when there are more codes than items."""
    if size > n_items:
        raise ValueError(
            f"codes.size={size} for {n_items:,} items: "
            + (f"take at most {max(2, n_items // 2)}" if n_items > 1 else "codes need more items than one")
        )
    if n_items / size > 1000:
        log(f"warning: {n_items / size:,.0f} items a code in the first level; consider a larger codes.size than {size}")


def check_spread(rows: Rows) -> None:
    """Raises: ValueError when vectors are not finite, all the same, or of a size that float32 cannot square."""
    about = spread(rows)
    if not 1e-15 < about.bound < 1e15:
        raise ValueError(f"vectors reach {about.bound:.0e}: scale them to about 1")
    if float(about.variance.sum()) <= 1e-12 * about.energy:
        raise ValueError(
            f"all {rows.total:,} vectors are the same: nothing tells the items apart (codes.vectors, data.text)"
        )


def check_category(config: cfg.Codes, data: Prepared) -> None:
    if config.category and config.category not in data.items.column_names:
        known = ", ".join(data.items.column_names)
        raise ValueError(f"codes.category={config.category}: items have no such column; they have: {known}")


def rows_of(table: np.ndarray, ranks: Ranks, device: torch.device) -> Rows:
    """This rank's rows of the table, in blocks that suit the device."""
    block, memory = BLOCK, 2**29
    if device.type == "cuda":  # large blocks, but enough of them for every GPU; three copies may be alive at once
        block = min(max(2 ** int(np.log2(max(1, len(table) / 64))), BLOCK), 65_536)
        memory = torch.cuda.mem_get_info(device)[0] // 5
    own = share(len(table), ranks.rank, ranks.size, block)
    source = torch.from_numpy(table)[own]
    if device.type == "cuda" and source.nbytes <= memory:
        source = source.to(device)
    return Rows(
        source=source,
        total=len(table),
        first=own.start,
        sum_=ranks.sum_,
        block=block,
        device=device,
        memory=memory,
    )


def turned(rows: Rows, n: int | None) -> tuple[Rows, dict[str, Tensor]]:
    """(the rows along their n principal axes, centre and rotation to keep); as they are when n is None."""
    if n is None:
        return rows, {}
    centre, rotation, held = principal_axes(rows, n)
    log(f"{n} principal axes hold {held:.1%} of the variance")
    return replace(rows, centre=centre, rotation=rotation), {"centre": centre, "rotation": rotation}


def how_far(state: Mapping[str, Tensor]) -> str:
    if "epoch" in state:
        return f"loss {float(state['loss']):.4f}"
    level = max(int(key.split(".")[0]) for key in state)
    told = [f"level {level + 1}"]
    for key, word in (("lower_bound", "nat"), ("inertia", "inertia")):
        if f"{level}.{key}" in state and state[f"{level}.{key}"].isfinite():
            told.append(f"{float(state[f'{level}.{key}']):.2f} {word}")
    return ", ".join(told)


def _fill(
    folder: Path,
    codes: Tensor,
    sizes: tuple[int, ...],
    report: dict[str, Any],
    tensors: dict[str, Tensor],
    config: cfg.Codes,
    data: Prepared,
    digit: Tensor | None = None,
) -> None:
    """Judge the codes, tell items with equal ones apart, write everything."""
    report = report | {"collisions": health.collisions(codes, sizes[:-1])}
    category = codes_report.category_of(config.category or "category", data.items)
    if category is not None:
        codes_report.add_nmi(report["levels"], category, codes.numpy())
    limits = (config.min_used, config.max_collisions)
    report["complaints"] = health.complaints(report["levels"], report["collisions"], *limits)
    if report["complaints"] and config.gate:
        raise Collapsed(_collapse(report))
    digit = running_digit(codes, sizes[:-1], sizes[-1]) if digit is None else digit
    whole = ItemCodes.of(torch.cat([codes, digit[:, None].to(codes)], 1), sizes)
    item_codes.save(folder, whole, tensors, report, data)
    if category is not None:
        title = f"{report['quantiser']}: {report['items']:,} items, first level"
        codes_report.picture(folder / "categories.png", category, codes[:, 0].numpy(), sizes[0], title)


if __name__ == "__main__":
    run(main, __doc__)
