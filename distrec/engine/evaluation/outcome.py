"""What a finished run reports: test.json and ranks.parquet."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from distrec.data import store
from distrec.data.prepared import Prepared, Split
from distrec.engine.evaluation import metrics, scoring
from distrec.knobs import Score
from distrec.runtime import Ranks, write_atomically

_FORMER = (
    "{0} was measured by a former protocol ({1}), whose figures cannot stand beside those of today: "
    "`distrec evaluate out={0}` measures it again"
)


def measure(
    model: Any,
    data: Prepared,
    split: Split,
    config: Score,
    ranks: Ranks,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], pl.DataFrame]:
    """(metrics of a split under both protocols, where each user's target stands, with raw ids).

    Raises: Stopped, on all ranks, when stop() on any.
    """
    ranking = scoring.rank_split(model, data, split, config, ranks, device, thorough=True, stop=stop)
    beams = getattr(model, "beams", None)
    masked = scoring.masks_history(config, model)
    report: dict[str, Any] = {
        "protocol": {
            "split": split,
            "candidates": "all items",
            "history": "masked (everything the user had, never the target)" if masked else "kept",
            "ties": metrics.TIES,
            "ranks": f"the first {beams} generated" if beams else "exact",
            "bootstrap": config.bootstrap,
        },
        "full": metrics.summarise(ranking.standing, config.bootstrap),
        "users": len(ranking.user),
        "items": data.n_items,
    }
    table = {
        "user": data.users.data.column("raw").take(ranking.user).combine_chunks(),
        "target": data.items.data.column("raw").take(ranking.target).combine_chunks(),
        **ranking.standing.columns(),
    }
    named = dict(ranking.others)
    if ranking.sampled is not None and data.negatives is not None:
        named = {f"sampled_1_{data.negatives.shape[1]}": ranking.sampled} | named
    for name, standing in named.items():
        is_measured = ~np.isnan(standing.better)
        report[name] = metrics.summarise(standing.of(is_measured), config.bootstrap)
        if not is_measured.all():
            report[name]["users"] = int(is_measured.sum())
        table |= standing.columns(name)
    if ranking.invalid is not None:
        report["free_invalid"] = float(ranking.invalid.mean())
        table["free_invalid"] = ranking.invalid
    if hasattr(model, "facts"):
        report["learnt"] = model.facts()
    return report, pl.DataFrame(table)


def read(folder: Path) -> tuple[dict[str, Any], pl.DataFrame]:
    """(test.json, ranks.parquet) of a finished run.   Raises: ValueError when they were measured by a former protocol."""
    report = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    if is_former(report):
        raise ValueError(_FORMER.format(folder, f"ties: {report['protocol'].get('ties')!r}, now {metrics.TIES!r}"))
    return report, ranks(folder)


def ranks(folder: Path) -> pl.DataFrame:
    """The ranks.parquet of a finished run.   Raises: ValueError when it was measured by a former protocol."""
    table = pl.read_parquet(folder / "ranks.parquet")
    if "better" not in table.columns:
        raise ValueError(_FORMER.format(folder, "no column `better` in its ranks.parquet"))
    return table


def is_former(report: dict[str, Any]) -> bool:
    return report["protocol"].get("ties") != metrics.TIES


def renew(folder: Path, report: dict[str, Any], table: pl.DataFrame) -> None:
    """Put these figures of the test split in the place of those that a finished run has from a former protocol; what made
    the run stays as it is, the former figures become former-test.json."""
    stamp, before = store.read_stamp(folder), json.loads((folder / "test.json").read_text(encoding="utf-8"))
    write_atomically(folder / "former-test.json", json.dumps(before, indent=1))
    write(folder, report | {key: before[key] for key in ("model", "seed", "data")}, table)
    store.stamp_files(folder, stamp["made_by"], list(stamp["files"]))


def write(folder: Path, report: dict[str, Any], table: pl.DataFrame, name: str = "test") -> None:
    """Ranks first, then the figures: whoever finds NAME.json finds its ranks too."""
    scratch = folder / f".ranks-{name}.parquet.tmp"
    with scratch.open("wb") as file:
        table.write_parquet(file)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(folder / ("ranks.parquet" if name == "test" else f"ranks-{name}.parquet"))
    write_atomically(folder / f"{name}.json", json.dumps(report, indent=1))


def lines(report: dict[str, Any]) -> str:
    """The figures as a table for people."""
    rows = [f"{report['users']:,} users, {report['items']:,} items, history {report['protocol']['history']}"]
    for name, found in report.items():
        if isinstance(found, dict) and "hr@10" in found:
            figures = "  ".join(
                f"{key.upper()} {found[key]:.4f}"
                for key in ("hr@1", "hr@5", "ndcg@5", "hr@10", "ndcg@10", "hr@20", "ndcg@20", "mrr")
            )
            interval = found.get("ndcg@10_ci")
            rows.append(
                f"  {name:<13} {figures}"
                + (f"  (NDCG@10 95 % {interval[0]:.4f} – {interval[1]:.4f})" if interval else "")
            )
        elif name.endswith("_invalid"):
            rows.append(f"  {name:<13} {found:.4%} of what was generated is no item")
    return "\n".join(rows)
