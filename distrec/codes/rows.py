"""The rows of a table of item vectors, read in blocks, and sums over them that nobody's share changes.

Each rank holds some whole blocks of a table of `total` rows.  Blocks are the same however many ranks there
are, and sums over blocks are taken in integers, so every result is the same to the last bit on 1 or 64 ranks.

Shapes: N rows on this rank, D dimensions, K components, M rows picked.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.mixture.precision import tf32
from distrec.codes.transfer import is_afar, picked, sent, spare_memory, streamed

BLOCK = 2048  # rows; a block, its squares and its scores stay near the caches
Reduce = Callable[..., None]
State = dict[str, Tensor]  # what a fit needs to go on; the same on every rank


def on_host(state: State) -> State:
    """The same state, its single numbers in host memory: a loop reads them, and must not wait for a GPU."""
    return {name: value if value.ndim else value.cpu() for name, value in state.items()}


def alone(*_: Tensor) -> None:
    """The reduction of a single process: none."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """This rank's rows of a table, read as  (x − centre) · rotation − Σ codewords that earlier levels took.

    `source` may be a memory map in any floating type; a block of it is converted when it is read, on the device.
    """

    source: Float[Tensor, "N D"]
    total: int  # rows of all ranks
    first: int = 0  # number of this rank's first row in the whole table: a multiple of `block`
    sum_: Reduce = alone  # sums tensors over ranks, in place
    block: int = BLOCK
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    centre: Float[Tensor, " D"] | None = None
    rotation: Float[Tensor, "D E"] | None = None
    taken: tuple[tuple[Float[Tensor, "K E"], Int[Tensor, " N"]], ...] = ()
    memory: int | None = 2**29  # bytes that worked-out rows may take on this rank; None: half of what a GPU has free

    @classmethod
    def whole(cls, source: Float[Tensor, "N D"], **more) -> "Rows":
        """All rows on one process."""
        return cls(source=source, total=len(source), **more)

    @property
    def width(self) -> int:
        return (self.rotation if self.rotation is not None else self.source).shape[1]

    def read(self, place: slice | Tensor) -> Float[Tensor, "n E"]:
        """Some of this rank's rows, to be read only."""
        return self._worked(picked(self.source, place, self.device), place)

    def _worked(self, x: Float[Tensor, "n D"], place: slice | Tensor) -> Float[Tensor, "n E"]:
        x = x.to(self.dtype)
        if self.centre is not None:
            x = x - self.centre.to(x)
        if self.rotation is not None:
            with tf32(False):
                x = x @ self.rotation.to(x)
        for codebook, codes in self.taken:
            x = x - codebook.to(x)[picked(codes, place, x.device)]
        return x

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "n E"]]]:
        """(place among this rank's rows, the rows), block after block."""
        if is_afar(self.source, self.device):
            for place, x in streamed(self.source, self._places(), self.device):
                yield place, self._worked(x, place)
        else:
            for place in self._places():
                yield place, self.read(place)

    def _places(self) -> list[slice]:
        n = len(self.source)
        return [slice(low, min(low + self.block, n)) for low in range(0, n, self.block)]

    def number(self, place: slice) -> int:
        """Which block of the whole table stands at this place."""
        return (self.first + place.start) // self.block

    def less(self, codebook: Float[Tensor, "K E"], codes: Int[Tensor, " N"]) -> "Rows":
        """The same rows without the codeword that each of them took."""
        return replace(self, taken=(*self.taken, (codebook, codes)))

    def held(self) -> "Rows":
        """The same rows, worked out once and kept if the rank's share fits into `memory`.

        A GPU converts a type as fast as it reads: that alone is not worth a copy there.
        """
        on_gpu = torch.device(self.device).type == "cuda"
        worked = self.centre is not None or self.rotation is not None or self.taken
        if not worked and (on_gpu or self.source.dtype == self.dtype):
            return self
        memory = spare_memory(self.device) // 2 if self.memory is None else self.memory
        if len(self.source) * self.width * self.dtype.itemsize > memory:
            return self
        kept = torch.empty(len(self.source), self.width, dtype=self.dtype, device=self.device)
        for place, x in self.blocks():
            kept[place] = x
        return replace(self, source=kept, centre=None, rotation=None, taken=())

    def resident(self) -> "Rows":
        """The same rows, their table on the GPU in its own type if two thirds of the free memory hold it.

        A type wider than the rows' is narrowed on the way.
        """
        dtype = min(self.source.dtype, self.dtype, key=lambda kind: kind.itemsize)
        if self.source.numel() * dtype.itemsize > spare_memory(self.device) * 2 // 3:
            return self
        table = torch.empty(self.source.shape, dtype=dtype, device=self.device)
        for place, x in streamed(self.source, self._places(), self.device):
            table[place] = x
        return replace(self, source=table)

    def at(self, numbers: Int[Tensor, " M"]) -> Float[Tensor, "M E"]:
        """The rows with these numbers in the whole table, on every rank."""
        n, local = len(self.source), numbers - self.first
        is_here = (local >= 0) & (local < n)
        rows = torch.zeros(len(numbers), self.width, dtype=self.dtype, device=self.device)
        if self.rotation is None and n:
            rows = torch.where(is_here[:, None], self.read(local.clamp(0, n - 1)), rows)
        elif n:  # a product of a few rows rounds otherwise than that of their block
            inside: dict[int, list[tuple[int, int]]] = {}
            for row, number in enumerate(local.tolist()):
                if 0 <= number < n:
                    inside.setdefault(number // self.block, []).append((row, number % self.block))
            for low, places in sorted(inside.items()):
                x = self.read(slice(low * self.block, min((low + 1) * self.block, n)))
                row, place = sent(torch.tensor(places), self.device).unbind(1)
                rows[row] = x[place]
        self.sum_(rows)
        return rows

    def together(self, values: Tensor) -> Tensor:
        """One value a row on this rank → one value a row of the whole table, on every rank."""
        whole = torch.zeros(self.total, *values.shape[1:], dtype=values.dtype, device=values.device)
        whole[self.first : self.first + len(values)] = values
        self.sum_(whole)
        return whole

    def best(self, keys: Callable[[slice, Tensor], Float[Tensor, " n"]], m: int) -> tuple[Tensor, Tensor]:
        """(numbers, keys) of the m rows of the whole table with the largest keys, largest first, on every rank."""
        n_blocks = -(-self.total // self.block)
        width = min(m, self.block)
        numbers = torch.zeros(n_blocks, width, dtype=torch.int64, device=self.device)
        values = torch.zeros(n_blocks, width, dtype=torch.float64, device=self.device)
        filled = torch.zeros(n_blocks, width, dtype=torch.int64, device=self.device)
        for place, x in self.blocks():
            top = keys(place, x).double().topk(min(width, len(x)))
            row = self.number(place)
            numbers[row, : len(top.indices)] = top.indices + self.first + place.start
            values[row, : len(top.values)] = top.values
            filled[row, : len(top.values)] = 1
        self.sum_(numbers, values, filled)
        top = values.masked_fill(filled == 0, -torch.inf).view(-1).topk(min(m, self.total))
        return numbers.view(-1)[top.indices], top.values

    def random(self, place: slice, *seed: int) -> Float[Tensor, " n"]:
        """One exponentially distributed number a row, the same for a row whichever rank holds it.

        Drawn on the host on purpose: a GPU's generator has other numbers than a CPU's.
        """
        drawn = np.random.default_rng([*seed, self.number(place)]).exponential(size=place.stop - place.start)
        return sent(torch.from_numpy(drawn), self.device)


def share(total: int, rank: int, size: int, block: int = BLOCK) -> slice:
    """The rows of a rank: whole blocks, as equally as blocks allow."""
    n_blocks = -(-total // block)
    return slice(*(min(total, n_blocks * r // size * block) for r in (rank, rank + 1)))


def tally(codes: Int[Tensor, " n"], k: int) -> Int[Tensor, " K"]:
    """How many rows have each code; on a GPU without torch.bincount, which reads the largest code first."""
    if codes.device.type == "cpu":
        return torch.bincount(codes, minlength=k)
    return torch.zeros(k, dtype=torch.int64, device=codes.device).index_add_(0, codes, torch.ones_like(codes))


def sum_by(
    codes: Int[Tensor, " P"], rows: Int[Tensor, " P"], weights: Tensor | None, x: Float[Tensor, "n E"], k: int
) -> Float[Tensor, "K E"]:
    """Σ weight · x[row] for each code; pairs (code, row) come sorted by code."""
    ends = tally(codes, k).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return torch.nn.functional.embedding_bag(
        rows, x, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def sum_by_code(code: Int[Tensor, " n"], x: Float[Tensor, "n E"], k: int) -> Float[Tensor, "K E"]:
    """Σ x of the rows with each code."""
    order = code.argsort(stable=True)
    return sum_by(code[order], order, None, x, k)


class ExactSum:
    """A sum over all rows of all ranks in 62-bit fixed point: no order of addition changes a bit of it.

    `bound`: what the absolute value of no partial sum exceeds, over any of the rows.  A second word takes up what
    the first rounds off, where the bound is far above the sum.
    """

    def __init__(self, shape: tuple[int, ...], bound: float, device: torch.device | str = "cpu", words: int = 1):
        self.scale = 2.0 ** (61 - math.frexp(bound)[1])
        self.units = [torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(words)]

    def add(self, part: Tensor) -> None:
        left = part.double() * self.scale
        for units in self.units[:-1]:
            whole = left.round()
            units += whole.long()
            left = left.sub_(whole).mul_(2.0**30)
        self.units[-1] += left.round_().long()

    def over(self, sum_: Reduce) -> Tensor:
        """The sum over all ranks, float64."""
        sum_(*self.units)
        parts = (units.double().div_(self.scale * 2.0 ** (30 * word)) for word, units in enumerate(self.units))
        return reduce(Tensor.add_, parts)


def largest(rows: Rows) -> float:
    """A power of two that no |x| reaches, over all ranks (1 for a table of zeros).

    Raises: ValueError when a row is not finite.
    """
    tops = [x.abs().max() for _, x in rows.blocks()]
    reached = torch.zeros(2201, dtype=torch.int64, device=rows.device)  # blocks by exponent; the last: not finite
    if tops:
        top = torch.stack(tops).double()
        exponent = torch.frexp(top.masked_fill(~top.isfinite(), 0)).exponent.long() + 1100
        exponent = exponent.masked_fill(~top.isfinite(), 2200)
        reached.index_add_(0, exponent, (top != 0).long())
    rows.sum_(reached)
    *blocks, n_bad = reached.tolist()
    if n_bad:
        bad = torch.zeros(1, dtype=torch.int64, device=rows.device)
        for _, x in rows.blocks():
            bad += (~x.isfinite()).any(1).sum()
        rows.sum_(bad)
        raise ValueError(
            f"{int(bad)} of {rows.total:,} rows hold NaN or infinity, the first of them row {_first_bad(rows)}"
        )
    return max((2.0 ** (number - 1100) for number, n in enumerate(blocks) if n), default=1.0)


def _first_bad(rows: Rows) -> int:
    def early(place: slice, x: Tensor) -> Tensor:
        number = torch.arange(place.start, place.stop, device=x.device) + rows.first
        return torch.where(x.isfinite().all(1), -torch.inf, -number.double())

    return int(rows.best(early, 1)[0])


@dataclass(frozen=True)
class Spread:
    """Where the rows lie: their mean and variance in each dimension, and a bound of |x|."""

    mean: Float[Tensor, " E"]
    variance: Float[Tensor, " E"]
    bound: float

    @property
    def energy(self) -> float:
        """E‖x‖²."""
        return float((self.variance + self.mean.square()).sum())


def spread(rows: Rows) -> Spread:
    """Two passes: the bound, then the moments (float64).   Raises: ValueError when a row is not finite."""
    bound = largest(rows)
    first = ExactSum((rows.width,), bound * rows.total, rows.device)
    second = ExactSum((rows.width,), bound**2 * rows.total, rows.device)
    for _, x in rows.blocks():
        first.add(x.sum(0, dtype=torch.float64))
        second.add(x.square().sum(0, dtype=torch.float64))
    mean, square = first.over(rows.sum_) / rows.total, second.over(rows.sum_) / rows.total
    return Spread(mean, (square - mean.square()).clamp(min=0), bound)


def scatter(rows: Rows, bound: float) -> Float[Tensor, "E E"]:
    """Σ x xᵀ over all rows, float64; `bound`: what no |x| reaches."""
    total = ExactSum((rows.width, rows.width), bound**2 * rows.total, rows.device)
    for _, x in rows.blocks():
        total.add(x.T.double() @ x.double())
    return total.over(rows.sum_)


def principal_axes(rows: Rows, n: int) -> tuple[Float[Tensor, " E"], Float[Tensor, "E n"], float]:
    """(centre, rotation onto the n axes of largest variance, the share of the variance they hold).

    Raises: ValueError when there are not that many dimensions.
    """
    if n > rows.width:
        raise ValueError(f"{n} principal axes of vectors with {rows.width} dimensions: lower codes.pca")
    about = spread(rows)
    second = scatter(rows, about.bound) / rows.total - about.mean[:, None] * about.mean
    values, axes = torch.linalg.eigh(second)
    axes = axes.flip(1)[:, :n]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return about.mean, axes, float(values.flip(0)[:n].sum() / values.sum().clamp(min=1e-300))
