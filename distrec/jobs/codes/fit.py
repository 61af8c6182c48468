"""Item vectors → codes, fitted now."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrec import config as cfg
from distrec import knobs
from distrec.codes import health
from distrec.codes.collisions import check_space
from distrec.codes.residual import zero_rows
from distrec.codes.rows import BLOCK, Rows, principal_axes, share, spread
from distrec.data import store, vectors
from distrec.data.prepared import Prepared
from distrec.engine.states import SavedStates, drain
from distrec.jobs import embed
from distrec.jobs.codes.artefact import FREE, check_category, check_informative, finished, origin, write
from distrec.jobs.parts import llm
from distrec.jobs.parts.work import Work
from distrec.models import quantisers
from distrec.runtime import Ranks, log

_GPU_BLOCK = 131_072  # rows: one iteration's kernels then take longer than their launches


def quantize(work: Work) -> Path | None:
    """The folder of the items' codes, made now unless it is there and intact; None when stopped before the end.

    Raises: ValueError on vectors that cannot be quantised; Collapsed, with the report, when the gate is shut.
    """
    config, data, ranks = work.config, work.data, work.ranks
    check_category(config.codes, data)
    size = config.codes.size or code_size(data.n_items)
    check_size(size, data.n_items)
    check_space((size,) * (config.codes.levels + 1))
    fit = quantisers.build(config.codes, size, config.seed)
    source = config.codes.vectors or embed.embed(llm.encoder(config), config.data, data, ranks, work.stop)
    if source is None:
        return None
    table, identity = vectors.load(source, data, config.codes.vectors_order, config.codes.vectors_missing)
    settings = {key: value for key, value in cfg.plain(config.codes).items() if key not in FREE}
    made = origin(source, identity, data) | {"codes": settings | {"size": size}, "seed": config.seed}
    if isinstance(config.codes, knobs.RqVae):
        made["processes"] = ranks.size  # gradients are summed in floating point
    target = store.folder(config.data.root, "codes", made)
    if finished(target, made, work):
        return target
    check_texts(data, config.codes, size)
    with store.alone(config.data.root / "checkpoints" / target.name, ranks):
        return _fit(work, fit, table, size, made, target)


def _fit(
    work: Work, fit: quantisers.Fit, table: np.ndarray, size: int, made: Mapping[str, Any], target: Path
) -> Path | None:
    """Run the fit from where it was left, judge and write its codes; None when stopped."""
    config, ranks = work.config, work.ranks
    rows = rows_of(table, ranks, work.device)
    check_spread(rows)
    n_zero = zero_rows(rows)
    check_informative(n_zero, len(table), config.codes)
    log(f"quantising {len(table):,} × {table.shape[1]} vectors into {config.codes.levels} × {size} codes: {target}")
    started = time.perf_counter()
    rows, basis = turned(rows, getattr(config.codes, "pca", None))
    saved = SavedStates(config.data.root / "checkpoints" / target.name, made, ranks)
    if not drain(fit.run(rows, saved.load(work.device)), saved, ranks, work.stop, how_far):
        return None
    log(f"fitted in {time.perf_counter() - started:.1f} s")
    codes = fit.codes_.cpu()
    report = {
        "quantiser": config.codes.name,
        "items": len(table),
        "dimensions": table.shape[1],
        "zero_vectors": n_zero,
        "levels": [health.use(codes[:, i], size) | told for i, told in enumerate(fit.reports_)],
    }
    tensors = {name: value.cpu() for name, value in basis.items()} | quantisers.tensors_of(fit)
    write(target, made, work, codes, (size,) * (config.codes.levels + 1), report, tensors)
    saved.remove()
    return target


def check_texts(data: Prepared, config: knobs.Codes, size: int) -> None:
    """Raises: ValueError when more items share a text than their last code can tell apart."""
    if config.vectors or isinstance(config, knobs.BalancedCodes):
        return
    count = Counter(text for batch in vectors.text_batches(data, 65_536) for text in batch)
    text, n = count.most_common(1)[0]
    if n > size:
        raise ValueError(
            f"{n:,} items have the same text {text[:40]!r}, the last code tells {size} apart: "
            "take a richer data.text, a larger codes.size, or codes.name=balanced"
        )


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


def rows_of(table: np.ndarray, ranks: Ranks, device: torch.device) -> Rows:
    """Return this rank's rows of the table, in blocks that suit the device.

    On a GPU in the table's own type where two thirds of its free memory hold them, else streamed from the host.
    """
    on_gpu = device.type == "cuda"
    block = BLOCK
    if on_gpu:  # large blocks, but enough of them for every GPU
        block = min(max(2 ** int(np.log2(max(1, len(table) / 64))), BLOCK), _GPU_BLOCK)
    place = share(len(table), ranks.rank, ranks.size, block)
    rows = Rows(
        source=torch.from_numpy(table)[place],
        total=len(table),
        first=place.start,
        sum_=ranks.sum_,
        block=block,
        device=device,
        memory=None if on_gpu else Rows.memory,
    )
    return rows.resident() if on_gpu else rows


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
