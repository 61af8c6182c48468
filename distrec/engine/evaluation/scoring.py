"""Exact ranks of a split, by any model, on any number of processes.

Users are ranked in fixed blocks of BLOCK (sorted by history length), whatever the batch size and the
number of processes: a block's shape and content are the same everywhere, so its ranks are too.

Shapes: B users in a block, M sampled negatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from distrec.data import batches
from distrec.data.prepared import Prepared, Split
from distrec.engine.evaluation.exact import CHUNK, exact_ranks
from distrec.engine.evaluation.precision import exact_products
from distrec.engine.evaluation.shelf import Shelf
from distrec.knobs import Score
from distrec.models.ranking import Places, is_among, to_device
from distrec.runtime import Ranks, Stopped, log

BLOCK = 512
_ROUNDS = {"cpu": 1, "cuda": 8}  # times batch_users of a group: a GPU goes on without the host until a group's end


@dataclass(frozen=True)
class Ranking:
    """The rank of each evaluated user's target, 1 is best; `sampled` is its rank among 1 + M items, NaN for a user without negatives.

    Ties get the expected rank (half of the equal ones stand before); beyond what a generative model
    lists the rank is inf.  `others`: ranks by each of its ways of decoding; of free decoding also among all that came
    out, items or not (free_ids), and the share of them that is no item (free_invalid).
    """

    user: np.ndarray
    target: np.ndarray
    rank: np.ndarray
    sampled: np.ndarray | None
    others: dict[str, np.ndarray]


@dataclass(frozen=True)
class Blocks:
    """The users of a split, BLOCK by BLOCK."""

    data: Prepared
    samples: batches.Samples
    rows: list[np.ndarray]
    device: torch.device

    def batch(self, n: int) -> batches.Batch:
        return batches.collate(self.data, self.samples, self.rows[n]).to(self.device)

    def wanted(self, n: int) -> Int[np.ndarray, "B W"]:
        """Each user's target, then the sampled negatives, if there are any."""
        target = self.data.item[self.samples.end[self.rows[n]] - 1][:, None]
        negatives = self.data.negatives
        others = target[:, :0] if negatives is None else negatives[self.samples.user[self.rows[n]]]
        others = np.where(others < 0, target, others)  # of a user without negatives; no figure comes of it
        return np.concatenate([target, others], 1).astype(np.int64)

    def history(self, n: int) -> Places:
        """(user, item) of everything a user has before the target, the whole history and never the target itself."""
        block = self.rows[n]
        first, target = self.data.start[self.samples.user[block]], self.samples.end[block] - 1
        lengths = target - first
        row = np.repeat(np.arange(len(block)), lengths)
        item = self.data.item[np.arange(len(row)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)]
        keep = item != self.data.item[target][row]
        return row[keep], item[keep].astype(np.int64)


@torch.no_grad()
@exact_products()
def rank_split(
    model: Any,
    data: Prepared,
    split: Split,
    config: Score,
    ranks: Ranks,
    device: torch.device,
    thorough: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Ranking:
    """Ranks of every user of the split; the same on every process.  `thorough`: by every way of decoding as well.

    Scores are float32 whatever `train.precision` says; a GPU keeps the ranks until the end.

    Raises: ValueError when the split has no target, or a score is not finite; Stopped, on all ranks, when stop() on any.
    """
    samples = batches.evaluation(data, split, model.max_len)
    if not len(samples):
        raise ValueError(f"{data.folder}: the {split} split has no target")
    model.eval()
    device = working_device(model, device)
    order = np.lexsort((samples.user, samples.lengths()))
    blocks = Blocks(data, samples, [order[low : low + BLOCK] for low in range(0, len(order), BLOCK)], device)
    masked = masks_history(config, model)
    holders = ranks if config.shard_items else Ranks()
    shelf = Shelf(model, data.n_items, CHUNK[device.type], holders) if hasattr(model, "scorer") else None
    together = max(1, config.batch_users // BLOCK) * _ROUNDS[device.type] * ranks.size
    own: dict[int, dict[str, Tensor]] = {}
    numbers = range(len(blocks.rows))
    with tqdm(
        total=len(numbers), desc=f"rank {split}", unit="block", disable=not ranks.is_main, leave=False, delay=2
    ) as bar:
        for low in numbers[::together]:
            if any(ranks.gather(stop())):
                raise Stopped
            group = numbers[low : low + together]
            mine = ranks.deal(group)  # all run as often: ZeRO-3 gathers weights as they go
            if shelf:
                found = _rank_scored(shelf, blocks, group if config.shard_items else mine, mine, masked)
            else:
                found = {n: _rank_generated(model, blocks, n, masked, thorough) for n in mine}
            own |= {n: found[n] for n in mine}
            bar.update(len(group))
    columns = _columns(own, ranks, order)
    if "sampled" in columns and data.negatives is not None:
        columns["sampled"] = np.where(data.negatives[samples.user, 0] < 0, np.nan, columns["sampled"])
    return Ranking(
        samples.user, data.item[samples.end - 1], columns.pop("rank"), columns.pop("sampled", None), others=columns
    )


def working_device(model: Any, device: torch.device) -> torch.device:
    """The device that a model scores on: the CPU for one without weights, which counts there."""
    if device.type == "cpu" or next(model.parameters(), None) is not None:
        return device
    log(f"{type(model).__name__} has no weights: it counts on the CPU, the GPU stays idle")
    return torch.device("cpu")


def _columns(own: dict[int, dict[str, Tensor]], ranks: Ranks, order: np.ndarray) -> dict[str, np.ndarray]:
    """Each column of all blocks, in the order of the samples; a device is read once for all of them."""
    names = list(next(iter(own.values())))
    table = torch.cat([torch.stack([columns[name].double() for name in names]) for columns in own.values()], 1)
    sizes = np.cumsum([len(columns[names[0]]) for columns in own.values()])[:-1]
    parts = dict(zip(own, np.split(table.cpu().numpy(), sizes, 1), strict=True))
    whole = {n: part for each in ranks.gather(parts) for n, part in each.items()}
    joined = np.concatenate([whole[n] for n in sorted(whole)], 1)[:, order.argsort()]
    return dict(zip(names, joined, strict=True))


def _rank_scored(
    shelf: Shelf, blocks: Blocks, group: Sequence[int], mine: list[int], masked: bool
) -> dict[int, dict[str, Tensor]]:
    """By number, the blocks of a group, of which this process works out the users' states of its own."""
    found = exact_ranks(
        shelf.scorers([blocks.batch(n) for n in mine], len(group)),
        [blocks.wanted(n) for n in group],
        [blocks.history(n) if masked else None for n in group],
        blocks.data.n_items,
        shelf.items,
        shelf.ranks,
        blocks.device,
    )
    return {n: {"rank": rank} | _sampled(scores) for n, (rank, scores) in zip(group, found, strict=True)}


def masks_history(config: Score, model: Any) -> bool:
    """Whether a user's history is left out: asked for, or usual for models of this kind."""
    return hasattr(model, "scorer") if config.mask_history is None else config.mask_history


def _rank_generated(model: Any, blocks: Blocks, n: int, masked: bool, thorough: bool) -> dict[str, Tensor]:
    """Where the target stands in what a generative model lists, by its own and, if `thorough`, each way of decoding."""
    result, batch = {}, blocks.batch(n)
    row, item = blocks.history(n)
    (history,) = to_device(blocks.device, np.unique(row * blocks.data.n_items + item)) if masked else (None,)
    every = thorough and hasattr(model, "listings")
    listings = model.listings(batch) if every else {"": model.rank(batch, model.beams)}
    for name, listed in listings.items():
        no_item = left_out = listed < 0
        if history is not None:
            numbers = torch.arange(len(listed), device=listed.device)[:, None] * blocks.data.n_items + listed
            left_out = no_item | is_among(numbers, history)
        hit = listed == batch.targets[:, -1:]
        place = _place(hit, left_out)
        result.setdefault("rank", place)
        if every:
            result[name] = place
        if name == "free":
            result |= {"free_ids": _place(hit, left_out & ~no_item), "free_invalid": no_item.double().mean(1)}
    if thorough and blocks.data.negatives is not None and hasattr(model, "likelihood"):
        wanted = blocks.wanted(n)
        (items,) = to_device(blocks.device, wanted.ravel())
        result |= _sampled(model.likelihood(batch, items.view(wanted.shape)))
    return result


def _place(hit: Tensor, left_out: Tensor) -> Tensor:
    """The place of the hit among those not left out, from 1; inf where there is none."""
    place = (~left_out).cumsum(1)  # of whole numbers: of others it has no deterministic form on a GPU
    return torch.where(hit, place.double(), torch.inf).amin(1)


def _sampled(scores: Tensor) -> dict[str, Tensor]:
    """The expected rank of each target, whose score comes first, among itself and the user's sampled negatives."""
    own, others = scores[:, :1], scores[:, 1:]
    if not others.shape[1]:
        return {}
    return {"sampled": 1 + (others > own).sum(1).double() + (others == own).sum(1).double() / 2}
