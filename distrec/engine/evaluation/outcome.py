"""What a finished run reports: test.json and ranks.parquet."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from distrec.data.prepared import Prepared, Split
from distrec.engine.evaluation import metrics, scoring
from distrec.knobs import Score
from distrec.runtime import Ranks, write_atomically


def measure(
    model: Any,
    data: Prepared,
    split: Split,
    config: Score,
    ranks: Ranks,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], pl.DataFrame]:
    """(metrics of a split under both protocols, the rank of each user's target with raw ids).

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
            "ties": "expected rank",
            "ranks": f"the first {beams} generated" if beams else "exact",
            "bootstrap": config.bootstrap,
        },
        "full": metrics.summarise(ranking.rank, config.bootstrap),
        "users": len(ranking.user),
        "items": data.n_items,
    }
    table = {
        "user": data.users.data.column("raw").take(ranking.user).combine_chunks(),
        "target": data.items.data.column("raw").take(ranking.target).combine_chunks(),
        "rank": ranking.rank,
    }
    has_sampled = np.zeros(0, bool) if ranking.sampled is None else ~np.isnan(ranking.sampled)
    if ranking.sampled is not None and data.negatives is not None and has_sampled.any():
        name = f"sampled_1_{data.negatives.shape[1]}"
        report[name] = metrics.summarise(ranking.sampled[has_sampled], config.bootstrap)
        if not has_sampled.all():
            report[name]["users"] = int(has_sampled.sum())
        table[f"rank_{name}"] = ranking.sampled
    for name, values in ranking.others.items():
        is_share = name.endswith("_invalid")
        report[name] = float(values.mean()) if is_share else metrics.summarise(values, config.bootstrap)
        table[name if is_share else f"rank_{name}"] = values
    if hasattr(model, "facts"):
        report["learnt"] = model.facts()
    return report, pl.DataFrame(table)


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
                + (f"  ({found['users']:,} users who have negatives)" if "users" in found else "")
            )
        elif name.endswith("_invalid"):
            rows.append(f"  {name:<13} {found:.4%} of what was generated is no item")
    return "\n".join(rows)
