"""distrec recommend out=RUN [histories=FILE] [k=10] [to=FILE] [among=FILE] [unknown=drop] [score.mask_history=true]

The k best items for each history, by the best checkpoint of a run; users need not be those of the training data.
Every process of a launch takes its share: accelerate launch -m distrec.jobs.recommend …

  histories=FILE   user and items (a list of raw item ids, oldest first) as .jsonl, .parquet, .csv (ids apart by blanks) …,
                   or a log with one interaction a row, as data.path is
                   data: every user of the data as they are now, where the log has grown since the run
                   (default: every user of the run's data, after all that they did)
  to=FILE          .jsonl or .parquet: user, items, scores, texts, best first   (default: RUN/recommendations.jsonl)
  among=FILE       one raw item id a line: the only items that may come out
  unknown=drop     leave out items that the catalogue lacks (default: refuse)
  score.mask_history=true|false   leave out what a user has (default: yes, no where a model generates)
  data.columns.…=… data.where=… data.separator=… data.encoding=… data.quoted=… data.bad_times=… data.null_words=…
                   how histories=FILE is read (default: as the run's log was)
  data.root=… data.path=… model.codes=… model.backbone.path=…   where things lie now, if they were moved
  score.batch_users=1024   users at once: memory; scores may differ in their last digits
  score.shard_items=true   the item table shared out over the processes: memory

Example:  distrec recommend out=runs/beauty histories=new_users.jsonl k=5
"""

import difflib
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from distrec import config as cfg
from distrec import knobs
from distrec.data import histories, prepared
from distrec.data.batches import Batch
from distrec.data.files import paths
from distrec.data.histories import Histories
from distrec.data.preparation import growth
from distrec.data.prepared import Prepared
from distrec.engine import memory
from distrec.engine.evaluation import scoring
from distrec.engine.evaluation.listing import best_generated, best_scored
from distrec.engine.evaluation.precision import exact_products
from distrec.engine.evaluation.shelf import Shelf
from distrec.engine.launch import join
from distrec.hints import placed
from distrec.jobs.parts.assemble import best_of
from distrec.models.ranking import CHUNK
from distrec.runtime import Ranks, log, run

_OWN = {"histories": "", "k": "10", "to": "", "among": "", "unknown": "refuse"}
_PLACES = (
    "out",
    "data.root",
    "data.path",
    "data.items",
    "model.codes",
    "model.backbone.path",
    "score.mask_history",
    "score.batch_users",
    "score.shard_items",
)
# how a file of histories is read
_READING = re.compile(r"data\.(columns\.\w+|where|separator|encoding|quoted|bad_times|null_words)")


def main(argv: Sequence[str]) -> None:
    given = {key: value for key, _, value in (arg.partition("=") for arg in argv)}
    reading = [arg for arg in argv if _READING.fullmatch(arg.partition("=")[0])]
    known = (*_OWN, *_PLACES)
    if other := [key for key in given if key not in known and not _READING.fullmatch(key)]:
        near = difflib.get_close_matches(other[0], known, 1, 0.5)
        more = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"recommend takes {', '.join(known)}, not {other[0]}: the run's config holds{more}")
    if reading and given.get("histories", "data") == "data":
        raise ValueError(f"{reading[0]} says how histories=FILE is read; the run's config holds for everything else")
    given = placed(given, "out", "histories", "to", "among")
    own = _OWN | {key: value for key, value in given.items() if key in _OWN}
    if empty := [key for key, value in given.items() if not value]:
        raise ValueError(f"{empty[0]}= has no value")
    out, source, k = Path(given.get("out", "")), own["histories"], _count(own["k"])
    target = Path(own["to"] or out / "recommendations.jsonl")
    if not (out / "config.yaml").is_file():
        raise ValueError(f"out={str(out)!r} is no run folder (no config.yaml in it); give out=RUN")
    if target.suffix not in (".jsonl", ".parquet") or own["unknown"] not in ("refuse", "drop"):
        raise ValueError("to=FILE ends in .jsonl or .parquet; unknown is refuse or drop")
    if not target.parent.is_dir() or target.is_dir() or not os.access(target.parent, os.W_OK):
        raise ValueError(f"to={target}: no file can be written there")
    if source and source != "data":
        paths.parts(Path(source), "histories")
    words = [str(out / "config.yaml"), *(arg for arg in argv if arg.partition("=")[0] in _PLACES)]
    config, how = cfg.load(words), cfg.load([*words, *reading]).data
    accelerator = join(config.train)
    ranks = Ranks.here()
    model, data = best_of(out, config, ranks, accelerator.device, reads_log=not source)
    unknown = "drop" if own["unknown"] == "drop" else "refuse"
    if source == "data":
        now = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
        asked = ranks.main_first(partial(growth.histories, now, data, unknown))
    else:
        asked = (
            ranks.main_first(partial(histories.read, Path(source), data, unknown, how))
            if source
            else histories.known(data)
        )
    if k > getattr(model, "beams", k):
        log(
            f"k={k} is more than model.beams={model.beams}: searched with {k} beams, which may find better first items too"
        )
    among = allowed(Path(own["among"]), data) if own["among"] else None
    items, scores = listed(model, asked, k, among, config.score, data, ranks)
    if ranks.is_main:
        found = named(asked, items, scores, data)
        _write(target, found)
        short = int((found["items"].list.len() < k).sum())
        log(
            f"{len(found):,} users, {k} items each" + (f"; {short:,} of them fewer, for want of items" if short else "")
        )
        print(target)


@exact_products()
def listed(
    model: Any, asked: Histories, k: int, among: Any, score: knobs.Score, data: Prepared, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """(item ids, scores), best first; a row a history, in their order, on every rank."""
    drop = scoring.masks_history(score, model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if among is not None:
        among = model.index(device, among) if hasattr(model, "index") else among.to(device)
    holders = ranks if score.shard_items else Ranks()
    shelf = Shelf(model, data.n_items, CHUNK, holders, among) if hasattr(model, "scorer") else None
    lows = range(0, len(asked), score.batch_users)

    def owned(low: int) -> Batch | None:
        return asked.batch(slice(low, low + score.batch_users)) if drop else None

    own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for first in tqdm(range(0, len(lows), ranks.size), unit="batch", disable=not ranks.is_main, delay=2):
        group = lows[first : first + ranks.size]
        (mine,) = ranks.deal(group)
        batch = asked.batch(slice(mine, mine + score.batch_users), model.max_len).to(device)
        if shelf:
            lists = group if score.shard_items else [mine]
            found = best_scored(shelf, [batch], [owned(low) for low in lists], k)
            own[mine] = found[lists.index(mine)]
        else:
            own[mine] = best_generated(model, batch, k, data.n_items, among, owned(mine))
    whole = {low: part for parts in ranks.gather(own) for low, part in parts.items()}
    items, scores = (torch.cat([whole[low][i] for low in lows]) for i in (0, 1))
    return items, scores


def named(asked: Histories, items: torch.Tensor, scores: torch.Tensor, data: Prepared) -> pl.DataFrame:
    """user, items, scores, texts; in the order of the histories."""
    flat = pl.DataFrame(
        {
            "row": torch.arange(len(asked)).repeat_interleave(items.shape[1]).numpy(),
            "item": items.flatten().numpy(),
            "scores": scores.flatten().double().numpy(),
        }
    ).filter(pl.col("item") >= 0)
    shown = flat["item"].to_numpy()
    names = {key: data.items.data.column(column).take(shown) for key, column in (("items", "raw"), ("texts", "text"))}
    table = flat.with_columns(**{key: pl.Series(pl.from_arrow(column)) for key, column in names.items()})
    lists = table.group_by("row", maintain_order=True).agg("items", "scores", "texts")
    users = pl.DataFrame({"row": range(len(asked)), "user": asked.user})
    whole = users.join(lists, on="row", how="left", maintain_order="left").drop("row")
    return whole.with_columns(pl.col("items", "scores", "texts").fill_null([]))


def allowed(path: Path, data: Prepared) -> torch.Tensor:
    """The ids of the items that a file names.   Raises: ValueError naming one that the catalogue lacks."""
    if not path.is_file():
        raise ValueError(f"among={path}: no such file")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    places = {raw: i for i, raw in enumerate(data.items.data.column("raw").to_pylist())}
    if missing := [name for name in names if name not in places]:
        raise ValueError(f"{path}: {len(missing):,} items are not in the catalogue, the first of them {missing[0]!r}")
    if not names:
        raise ValueError(f"{path} names no item")
    return torch.tensor(sorted({places[name] for name in names}))


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) < 2**31:
        raise ValueError(f"k={text}: how many items, a whole number from 1 to {2**31 - 1}")
    return int(text)


def _write(target: Path, table: pl.DataFrame) -> None:
    """Complete or absent."""
    scratch = target.with_name(f".{target.name}.tmp")
    table.write_parquet(scratch) if target.suffix == ".parquet" else table.write_ndjson(scratch)
    scratch.rename(target)


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
