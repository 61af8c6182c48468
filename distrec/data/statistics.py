"""What a reader of results must know about the data, printed and saved when it is prepared."""

from typing import Any

import numpy as np

from distrec.data import split


def report(
    item: np.ndarray,
    time: np.ndarray | None,
    start: np.ndarray,
    train_end: np.ndarray,
    valid_end: np.ndarray,
    n_items: int,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Counts, length quantiles, tie share, repeats and cold targets, all computed from the arrays as stored."""
    lengths = np.diff(start)
    user = np.repeat(np.arange(len(lengths)), lengths)
    train = np.arange(len(item)) < train_end[user]
    in_train = np.bincount(item[train], minlength=n_items) > 0
    repeats = split.repeats(user, item, None, "first")
    neighbours = user[1:] == user[:-1]
    train_lengths = train_end - start[:-1]

    def again(place: np.ndarray, end: np.ndarray) -> float:
        """The share of targets that their user has had before."""
        target = place[place < end]
        return float(repeats[target].mean()) if len(target) else 0.0

    def cold(place: np.ndarray, end: np.ndarray) -> dict[str, Any]:
        target = item[place[place < end]]
        return {"targets": len(target), "cold": float((~in_train[target]).mean()) if len(target) else 0.0}

    return {
        "users": len(lengths),
        "items": n_items,
        "interactions": len(item),
        "removed": counts,
        "length": {
            name: int(value)
            for name, value in zip(
                ("min", "25%", "median", "75%", "max"),
                np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1], method="nearest"),
                strict=True,
            )
        },
        "train": {
            "interactions": int(train.sum()),
            "prefix samples": int(np.maximum(train_lengths - 1, 0).sum()),
            "items never seen": int((~in_train).sum()),
        },
        "seen by a window of": {
            str(window): int(np.minimum(train_lengths, window).sum()) for window in (20, 50, 100, 200)
        },
        "valid": cold(train_end, valid_end),
        "test": cold(valid_end, start[1:]),
        "held out but no target": int(
            (start[1:] - train_end).sum() - (train_end < valid_end).sum() - (valid_end < start[1:]).sum()
        ),
        "tied with the one before": None
        if time is None
        else float((time[1:] == time[:-1])[neighbours].mean())
        if neighbours.any()
        else 0.0,
        "repeats of an earlier item": int(repeats.sum()),
        "repeats, of all interactions": float(repeats.mean()),
        "targets that are repeats": {"valid": again(train_end, valid_end), "test": again(valid_end, start[1:])},
    }


def table(report: dict[str, Any]) -> str:
    """The report as aligned lines."""
    rows: list[tuple[str, str]] = []
    for key, value in report.items():
        if isinstance(value, dict):
            rows += [(f"{key}: {name}", _show(entry)) for name, entry in value.items()]
        else:
            rows.append((key, _show(value)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {text:>12}" for name, text in rows)


def _show(value: Any) -> str:
    if value is None:
        return "no times"
    return f"{value:.2%}" if isinstance(value, float) else f"{value:,}"
