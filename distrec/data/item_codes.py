"""Item codes (semantic ids): item id → codes and back.

An artefact `codes-…` holds
    codes.safetensors    codes: int32, I × L, the last one a running number; keys, order: the way back
    levels.safetensors   what gives codes to new items: codebooks, mixtures, rotation, encoder
    items.arrow          raw: the items' own names, in the order of ids
    health.json          sizes and report
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import safetensors.torch
import torch
from jaxtyping import Int
from torch import Tensor

from distrec.codes.collisions import pack
from distrec.data import store
from distrec.data.prepared import Prepared


@dataclass(frozen=True)
class ItemCodes:
    """Both maps.

    Shapes: I items, L codes an item.
    """

    codes: Int[Tensor, "I L"]
    sizes: tuple[int, ...]  # codes 0 … size-1 of each place
    keys: Int[Tensor, " I"]  # packed codes, ascending
    order: Int[Tensor, " I"]  # whose they are

    @classmethod
    def of(cls, codes: Int[Tensor, "I L"], sizes: tuple[int, ...]) -> "ItemCodes":
        """Raises: ValueError when two items have the same codes, or a code is outside its size."""
        if bool(((codes < 0) | (codes >= torch.tensor(sizes))).any()):
            raise ValueError(f"codes lie outside 0 … size-1 of {sizes}")
        keys, order = pack(codes, sizes).sort(stable=True)
        if len(same := (keys[1:] == keys[:-1]).nonzero()):
            first, second = order[same[0, 0]], order[same[0, 0] + 1]
            raise ValueError(f"items {int(first)} and {int(second)} have the same codes {codes[first].tolist()}")
        return cls(codes.int(), sizes, keys, order)

    def items(self, codes: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
        """Whose codes these are; -1 where nobody's."""
        inside = ((codes >= 0) & (codes < torch.tensor(self.sizes))).all(1)
        wanted = pack(codes, self.sizes)
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(inside & (self.keys[place] == wanted), self.order[place], -1)


def items_digest(data: Prepared) -> str:
    """sha256 of the items' own names in the order of ids."""
    total = hashlib.sha256()
    for low in range(0, data.n_items, 65_536):
        total.update(json.dumps(list(data.items[low : low + 65_536]["raw"])).encode())
    return total.hexdigest()


def save(
    folder: Path, codes: ItemCodes, levels: Mapping[str, Tensor], health: Mapping[str, Any], data: Prepared
) -> None:
    """All files of an artefact; the way back is tried for every item first."""
    if not torch.equal(codes.items(codes.codes), torch.arange(len(codes.codes))):
        raise RuntimeError("codes do not lead back to their items")
    tensors = {"codes": codes.codes, "keys": codes.keys, "order": codes.order}
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "codes.safetensors"
    )
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in levels.items()}, folder / "levels.safetensors"
    )
    names = pa.table({"raw": list(data.items["raw"])})
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, names.schema) as writer:
        writer.write_table(names)
    (folder / "health.json").write_text(json.dumps({**health, "sizes": codes.sizes}, indent=1))


def load(folder: Path, data: Prepared | None = None) -> ItemCodes:
    """The codes of a verified artefact.   Raises: ValueError when it is broken or about other items than `data`'s."""
    made_by = store.verify(folder)["made_by"]
    if data is not None and made_by.get("items") != items_digest(data):
        raise ValueError(f"{folder} is about other items than {data.folder}: run distrec quantize for these")
    tensors = safetensors.torch.load_file(folder / "codes.safetensors")
    sizes = tuple(json.loads((folder / "health.json").read_text())["sizes"])
    return ItemCodes(tensors["codes"], sizes, tensors["keys"], tensors["order"])


def raw_ids(folder: Path) -> list[str]:
    """The items' own names in the order of ids."""
    with pa.memory_map(str(folder / "items.arrow")) as source:
        return pa.ipc.open_file(source).read_all().column("raw").to_pylist()
