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
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from distrec.data import batches
from distrec.data.prepared import Prepared, Split
from distrec.engine.evaluation.exact import CHUNK, exact_standing
from distrec.engine.evaluation.metrics import CUTOFFS, TIES, Standing
from distrec.engine.evaluation.precision import exact_products
from distrec.engine.evaluation.shelf import Shelf
from distrec.knobs import Score
from distrec.models.ranking import Places, is_among, to_device
from distrec.runtime import Ranks, Stopped, log

BLOCK = 512
HISTORY = {
    True: "masked where the target is new to the user, kept where the user has had the target before",
    False: "kept",
}  # by score.mask_history
PROTOCOL = f"{HISTORY[True]}; ties: {TIES}"
_ROUNDS = {"cpu": 1, "cuda": 8}  # times batch_users of a group: a GPU goes on without the host until a group's end


@dataclass(frozen=True)
class Ranking:
    """Where each evaluated user's target stands, among all items and, `sampled`, among 1 + M.

    Beyond what a generative model lists no target stands anywhere.  `others`: by each of its ways of decoding; of free
    decoding also among all that came out, items or not (free_ids).  `invalid`: the share of that which is no item.
    `repeats`: whether the user has had the target before.  `short`: whether a generated list, without its history, is too
    short for the largest K and lacks the target.
    """

    user: np.ndarray
    target: np.ndarray
    standing: Standing
    sampled: Standing | None
    others: dict[str, Standing]
    invalid: np.ndarray | None
    repeats: np.ndarray
    short: np.ndarray | None

    @property
    def rank(self) -> np.ndarray:
        """Each target's expected rank among all items."""
        return self.standing.rank


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
        return np.concatenate([target, others], 1).astype(np.int64)

    def history(self, n: int) -> tuple[Places, Bool[np.ndarray, " B"]]:
        """((user, item) of everything that users to whom their target is new have before it, which are no candidates; whether
        a user has had the target before).

        Who has had everything would else find any target alone on the shelf: rivals are only taken from a target that is
        no item of the history itself, which every model may know.
        """
        block = self.rows[n]
        first, target = self.data.start[self.samples.user[block]], self.samples.end[block] - 1
        lengths = target - first
        row = np.repeat(np.arange(len(block)), lengths)
        item = self.data.item[np.arange(len(row)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)]
        repeats = np.zeros(len(block), bool)
        repeats[row[item == self.data.item[target][row]]] = True
        is_new = ~repeats[row]
        return (row[is_new], item[is_new].astype(np.int64)), repeats


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
    masked = config.mask_history is not False
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
    (repeats,), invalid, short = (
        columns.pop("repeats"),
        *(columns.pop(name, [None])[0] for name in ("invalid", "short")),
    )
    found = {name: Standing(*pair) for name, pair in columns.items()}
    return Ranking(
        samples.user,
        data.item[samples.end - 1],
        found.pop("full"),
        found.pop("sampled", None),
        others=found,
        invalid=invalid,
        repeats=repeats > 0,
        short=None if short is None else short > 0,
    )


def working_device(model: Any, device: torch.device) -> torch.device:
    """The device that a model scores on: the CPU for one without weights, which counts there."""
    if device.type == "cpu" or next(model.parameters(), None) is not None:
        return device
    log(f"{type(model).__name__} has no weights: it counts on the CPU, the GPU stays idle")
    return torch.device("cpu")


def _columns(own: dict[int, dict[str, Tensor]], ranks: Ranks, order: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each name, of all blocks, in the order of the samples; a device is read once for all of them."""
    heights = {name: len(rows) for name, rows in next(iter(own.values())).items()}
    table = torch.cat([torch.cat([columns[name].double() for name in heights]) for columns in own.values()], 1)
    sizes = np.cumsum([columns["full"].shape[1] for columns in own.values()])[:-1]
    parts = dict(zip(own, np.split(table.cpu().numpy(), sizes, 1), strict=True))
    whole = {n: part for each in ranks.gather(parts) for n, part in each.items()}
    joined = np.concatenate([whole[n] for n in sorted(whole)], 1)[:, order.argsort()]
    return dict(zip(heights, np.split(joined, np.cumsum([*heights.values()])[:-1]), strict=True))


def _rank_scored(
    shelf: Shelf, blocks: Blocks, group: Sequence[int], mine: list[int], masked: bool
) -> dict[int, dict[str, Tensor]]:
    """By number, the blocks of a group, of which this process works out the users' states of its own."""
    wanted, histories = [blocks.wanted(n) for n in group], [blocks.history(n) for n in group]
    found = exact_standing(
        shelf.scorers([blocks.batch(n) for n in mine], len(group)),
        wanted,
        [places if masked else None for places, _ in histories],
        blocks.data.n_items,
        shelf.items,
        shelf.ranks,
        blocks.device,
    )
    return {
        n: {"full": standing, "repeats": _row(repeats, standing.device)} | _sampled(scores, items)
        for n, items, (_, repeats), (standing, scores) in zip(group, wanted, histories, found, strict=True)
    }


def masks_history(config: Score, model: Any) -> bool:
    """Whether `recommend` leaves out a user's history: asked for, or usual for models of this kind."""
    return hasattr(model, "scorer") if config.mask_history is None else config.mask_history


def _rank_generated(model: Any, blocks: Blocks, n: int, masked: bool, thorough: bool) -> dict[str, Tensor]:
    """Where the target stands in what a generative model lists, by its own and, if `thorough`, each way of decoding."""
    batch, ((row, item), repeats) = blocks.batch(n), blocks.history(n)
    result = {"repeats": _row(repeats, blocks.device)}
    (history,) = to_device(blocks.device, np.unique(row * blocks.data.n_items + item)) if masked else (None,)
    for name, (listed, scores) in model.listings(batch, thorough).items():
        no_item = left_out = listed < 0
        if history is not None:
            numbers = torch.arange(len(listed), device=listed.device)[:, None] * blocks.data.n_items + listed
            left_out = no_item | is_among(numbers, history)
        hit = listed == batch.targets[:, -1:]
        if "full" not in result:
            left, whole = (~left_out).sum(1), (~no_item).sum(1)
            is_short = (left < whole.clamp(max=CUTOFFS[-1])) & ~hit.any(1)
            result |= {"full": _listed(hit, left_out, scores), "short": is_short[None]}
        if thorough:
            result[name] = _listed(hit, left_out, scores)
        if name == "free":
            every = _listed(hit, left_out & ~no_item, scores)
            result |= {"free_ids": every, "invalid": no_item.double().mean(1)[None]}
    if thorough and blocks.data.negatives is not None and hasattr(model, "likelihood"):
        wanted = blocks.wanted(n)
        (items,) = to_device(blocks.device, wanted.ravel())
        result |= _sampled(model.likelihood(batch, items.view(wanted.shape)), wanted)
    return result


def _row(values: np.ndarray, device: torch.device) -> Tensor:
    return to_device(device, values.astype(np.int64))[0][None]


def _listed(hit: Tensor, left_out: Tensor, scores: Tensor) -> Tensor:
    """Where the hit stands among those that are not left out (2 × B); what a list does not hold is not known to tie."""
    own = scores.masked_fill(~hit, -torch.inf).amax(1, keepdim=True)
    better, level = ((~left_out & each).sum(1).double() for each in (scores > own, (scores == own) & ~hit))
    is_lost = ~hit.any(1)
    return torch.stack([better.masked_fill(is_lost, torch.inf), level.masked_fill(is_lost, 0)])


def _sampled(scores: Tensor, wanted: Int[np.ndarray, "B W"]) -> dict[str, Tensor]:
    """Where each target, whose score comes first, stands among itself and the user's sampled negatives; NaN without them."""
    own, others = scores[:, :1], scores[:, 1:]
    if not others.shape[1]:
        return {}
    found = torch.stack([(others > own).sum(1), (others == own).sum(1)]).double()
    if len(without := np.flatnonzero((wanted < 0).any(1))):
        found[:, to_device(found.device, without)[0]] = torch.nan
    return {"sampled": found}
