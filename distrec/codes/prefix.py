"""Which codes may follow which: the trie of a catalogue's codes, in flat arrays, level by level.

Nodes of a level stand in the order of their codes, so the children of a node are one stretch of the next level.

Shapes: I items, L levels, M nodes asked, C children of the widest node.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

from distrec.codes.collisions import pack

_BLOCK = 64


@dataclass(frozen=True)
class Ascending:
    """Whole numbers that never fall, in a byte or two each: the first of each block, and how far each lies above it."""

    base: Int[Tensor, " _"]
    above: Integer[Tensor, " _"]

    @classmethod
    def of(cls, values: Int[Tensor, " _"]) -> "Ascending":
        base = values[::_BLOCK]
        return cls(base.int(), _least(values - base.repeat_interleave(_BLOCK)[: len(values)]))

    def at(self, places: Int[Tensor, " *M"]) -> Int[Tensor, " *M"]:
        return self.base[places // _BLOCK].long() + self.above[places].long()

    def to(self, device: torch.device | str) -> "Ascending":
        return Ascending(self.base.to(device), self.above.to(device))

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.above.nbytes


@dataclass(frozen=True)
class PrefixIndex:
    """`code[l]`: the code of each node of level l.  `edges[l]`: where the children of each node begin in level l,
    the root's in level 0, and where the last one's end.  `item`: whose codes end in each node of the last level.
    """

    code: tuple[Integer[Tensor, " _"], ...]
    edges: tuple["Ascending", ...]
    item: Int[Tensor, " _"]
    widest: tuple[int, ...]  # most children that a node has in each level
    sizes: tuple[int, ...]

    @classmethod
    def of(
        cls, codes: Int[Tensor, "I L"], sizes: Sequence[int], items: Int[Tensor, " S"] | None = None
    ) -> "PrefixIndex":
        """The index of these items' codes, of all when `items` is None.

        Raises: ValueError when there is no item, or two have the same codes.
        """
        own = torch.arange(len(codes)) if items is None else items.unique().cpu()
        if not len(own):
            raise ValueError("no item is allowed: nothing can be generated")
        keys, order = pack(codes[own].cpu(), sizes).sort()
        if bool((keys[1:] == keys[:-1]).any()):
            raise ValueError("two items have the same codes")
        code, edges, widest = [], [], []
        parents = torch.zeros(1, dtype=torch.int64)  # place of each node's first item
        below = 1
        for size in reversed(sizes):
            below *= size
        for size in sizes:
            below //= size
            prefix = keys // below
            starts = torch.cat([prefix.new_ones(1, dtype=torch.bool), prefix[1:] != prefix[:-1]]).nonzero()[:, 0]
            begin = torch.cat([torch.searchsorted(starts, parents), torch.tensor([len(starts)])])
            code.append(_least(prefix[starts] % size))
            edges.append(Ascending.of(begin))
            widest.append(int(begin.diff().max()))
            parents = starts
        return cls(tuple(code), tuple(edges), own[order].int(), tuple(widest), tuple(sizes))

    def to(self, device: torch.device | str) -> "PrefixIndex":
        code, edges = (tuple(part.to(device) for part in parts) for parts in (self.code, self.edges))
        return replace(self, code=code, edges=edges, item=self.item.to(device))

    def children(
        self, level: int, nodes: Int[Tensor, " *M"]
    ) -> tuple[Int[Tensor, "*M C"], Int[Tensor, "*M C"], Bool[Tensor, "*M C"]]:
        """(nodes of `level`, their codes, whether they are there) below nodes of the level before; -1 has none.

        Level 0 lies below the root, node 0.
        """
        parent = nodes.clamp(min=0)
        low, high = self.edges[level].at(parent), self.edges[level].at(parent + 1)
        child = low[..., None] + torch.arange(self.widest[level], device=nodes.device)
        is_child = (child < high[..., None]) & (nodes >= 0)[..., None]
        child = child.masked_fill(~is_child, 0)
        return child, self.code[level][child].long(), is_child

    def items(self, leaves: Int[Tensor, " *M"]) -> Int[Tensor, " *M"]:
        """The item of each node of the last level; -1 for -1."""
        return torch.where(leaves >= 0, self.item[leaves.clamp(min=0)].long(), -1)

    def leaves(self, codes: Int[Tensor, "*M L"]) -> Int[Tensor, " *M"]:
        """The node of the last level in which each row of codes ends; -1 where no item has them."""
        node = torch.zeros_like(codes[..., 0])
        for level in range(len(self.sizes)):
            child, code, is_child = self.children(level, node)
            node = child.masked_fill(~is_child | (code != codes[..., level, None]), -1).amax(-1)
        return node

    @property
    def n_bytes(self) -> int:
        return sum(part.nbytes for part in (*self.code, *self.edges, self.item))


def _least(values: Tensor) -> Tensor:
    """The same whole numbers in the smallest type that holds them."""
    top = int(values.max())
    return values.to(torch.uint8 if top < 256 else torch.int16 if top < 2**15 else torch.int32)
