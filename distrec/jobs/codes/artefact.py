"""What a fit and an extension of codes share: the limits that codes must keep, and the artefact they are written to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distrec import knobs
from distrec.codes import health
from distrec.codes.collisions import running_digit
from distrec.data import item_codes, store
from distrec.data.item_codes import ItemCodes
from distrec.data.prepared import Prepared
from distrec.jobs.codes import report as reports
from distrec.jobs.parts.work import Work

# keys of config.codes that shape no code
FREE = (
    *("gate", "min_used", "max_collisions", "max_uninformative"),
    *("vectors", "vectors_order", "vectors_missing", "category"),
)


class Collapsed(Exception):
    """Codes that are not worth training on."""


def origin(source: Path, identity: str, data: Prepared) -> dict[str, Any]:
    """What a stamp of codes says about the items and vectors they were made from."""
    stamp = store.read_stamp(source)["made_by"] if source.is_dir() else {}
    return {
        "fitted_on": stamp.get("fitted_on", "file"),
        "items": item_codes.items_digest(data),
        "vectors": identity,
        **{key: stamp.get(key) for key in ("encoder", "text", "max_tokens", "normalize")},
    }


def finished(target: Path, made: Mapping[str, Any], work: Work) -> bool:
    """Whether these codes are there, intact and good enough by the limits asked now.

    Raises: Collapsed when they are not good enough.
    """
    if not work.ranks.gather(target.exists())[0]:
        return False
    store.verify(target, made)
    judge(json.loads((target / "health.json").read_text()), work.config.codes)
    return True


def judge(report: Mapping[str, Any], config: knobs.Codes) -> dict[str, Any]:
    """The report with its complaints.   Raises: Collapsed when there are any and the gate is not open."""
    limits = (config.min_used, config.max_collisions)
    complaints = health.complaints(report["levels"], report["collisions"], *limits)
    complaints += uninformative(report["zero_vectors"], report["items"], config)
    report = {**report, "complaints": complaints}
    if complaints and config.gate:
        raise Collapsed(
            f"{reports.table(report)}\nerror: the codebook collapsed; codes.gate=false takes it all the same"
        )
    return report


def uninformative(n_zero: int, n_items: int, config: knobs.Codes) -> list[str]:
    """The complaint about items of which the vectors say nothing; empty when they are few enough."""
    if n_zero <= config.max_uninformative * n_items:
        return []
    return [
        f"{n_zero:,} of {n_items:,} items ({n_zero / n_items:.1%}) have a zero vector, above "
        f"codes.max_uninformative={config.max_uninformative:g}: nothing tells them apart. "
        "Give data.text more fields, or take another embed.encoder or codes.vectors"
    ]


def check_informative(n_zero: int, n_items: int, config: knobs.Codes) -> None:
    """Raises: Collapsed, before anything is fitted, when too many vectors say nothing and the gate is shut."""
    complaints = uninformative(n_zero, n_items, config)
    if complaints and config.gate:
        raise Collapsed(f"error: {complaints[0]}; codes.gate=false takes it all the same")


def write(
    target: Path,
    made: Mapping[str, Any],
    work: Work,
    codes: Tensor,
    sizes: tuple[int, ...],
    report: dict[str, Any],
    tensors: Mapping[str, Tensor],
    digit: Tensor | None = None,
) -> Path:
    """Judge the codes, tell items with equal ones apart (by `digit` where it is given), write everything."""
    config, data = work.config.codes, work.data

    def fill(folder: Path) -> None:
        told: dict[str, Any] = report | {"collisions": health.collisions(codes, sizes[:-1])}
        category = reports.category_of(config.category or "category", data.items)
        if category is not None:
            reports.add_nmi(told["levels"], category, codes.numpy())
        told = judge(told, config)
        last = running_digit(codes, sizes[:-1], sizes[-1]) if digit is None else digit
        whole = ItemCodes.of(torch.cat([codes, last[:, None].to(codes)], 1), sizes)
        item_codes.save(folder, whole, tensors, told, data)
        if category is not None:
            title = f"{told['quantiser']}: {told['items']:,} items, first level"
            reports.picture(folder / "categories.png", category, codes[:, 0].numpy(), sizes[0], title)

    return work.ranks.main_first(lambda: store.make(target, made, fill))


def check_category(config: knobs.Codes, data: Prepared) -> None:
    if config.category and config.category not in data.items.column_names:
        known = ", ".join(data.items.column_names)
        raise ValueError(f"codes.category={config.category}: items have no such column; they have: {known}")
