"""Residual-quantised autoencoder, trained end to end.

    z = encoder(x),  code_l = argmin_k ‖r_l − e_lk‖,  ẑ = Σ_l e_l[code_l],  x̂ = decoder(z + stop(ẑ − z))
    loss = ‖x − x̂‖² + Σ_l ‖stop(r_l) − e_l‖² + β ‖r_l − stop(e_l)‖² + usage

Source: Lee et al. 2022 (RQ-VAE); Rajput et al. 2023 (TIGER).  Codebooks start as k-means of the latents; a code
that an epoch did not use moves to a random row's residual.

Shapes: N rows on this rank, n rows of a batch, D dimensions, E latent, L levels, K codes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distrec.codes.kmeans import KMeans
from distrec.codes.residual import Level, assign, energy
from distrec.codes.rows import Reduce, Rows, State, alone, spread, tally
from distrec.codes.transfer import sent


class Autoencoder(nn.Module):
    """The two halves and the codebooks (L × K × E).  Rows come centred and scaled to unit mean energy."""

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, hidden: Sequence[int], latent: int, n_levels: int, size: int):
        super().__init__()
        self.encoder = _mlp([width, *hidden, latent])
        self.decoder = _mlp([latent, *reversed(hidden), width])
        self.codebooks = nn.Parameter(torch.zeros(n_levels, size, latent))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
        return self.encoder((x - self.centre) * self.scale)

    def forward(
        self, x: Float[Tensor, "n D"], commitment: float, usage: float, sum_: Reduce = alone
    ) -> tuple[Float[Tensor, ""], Int[Tensor, "n L"]]:
        """(loss summed over rows, codes).  The usage term, minus the entropy of a batch's mean soft assignment, is one
        for the batch: every rank has its whole value, and its gradient through its own rows."""
        x = (x - self.centre) * self.scale
        latent = self.encoder(x)
        left, quantised, codes, loss = latent, torch.zeros_like(latent), [], latent.new_zeros(())
        for book in self.codebooks:
            square = torch.cdist(left, book).square()
            code = square.argmin(1)
            word = book[code]
            loss = loss + (left.detach() - word).square().sum() + commitment * (left - word.detach()).square().sum()
            if usage:
                loss = loss + usage * _unevenness(square, sum_)
            left, quantised = left - word, quantised + word
            codes.append(code)
        decoded = self.decoder(latent + (quantised - latent).detach())
        return loss + (x - decoded).square().sum(), torch.stack(codes, 1)


class RqVae:
    """Attributes after a fit: model_, levels_ (over latents), codes_ (I × L), reports_."""

    model_: Autoencoder
    levels_: list[Level]
    codes_: Int[Tensor, "I L"]
    reports_: list[dict[str, Any]]

    def __init__(
        self,
        n_levels: int,
        size: int,
        *,
        hidden: Sequence[int] = (512, 256, 128),
        latent: int = 32,
        epochs: int = 200,
        batch: int = 1024,
        lr: float = 1e-3,
        commitment: float = 0.25,
        usage: float = 0.0,
        seed: int = 0,
    ):
        self.n_levels, self.size = n_levels, size
        self.hidden, self.latent = tuple(hidden), latent
        self.epochs, self.batch, self.lr = epochs, batch, lr
        self.commitment, self.usage, self.seed = commitment, usage, seed

    def run(self, rows: Rows, state: State | None = None) -> Iterator[State]:
        """The state after each epoch; goes on from `state` bit for bit on the same number of ranks."""
        rows = rows.held()
        model = self.build(rows.width).to(rows.device) if state else self._start(rows)
        foreach = torch.device(rows.device).type == "cuda"  # the same steps in a tenth of the kernels
        optimiser = torch.optim.Adam(model.parameters(), self.lr, foreach=foreach)
        epoch = _restore(state, model, optimiser) if state else 0
        for number in range(epoch, self.epochs):
            loss = self._epoch(rows, model, optimiser, number)
            yield _snapshot(model, optimiser, number + 1) | {"loss": torch.tensor(loss)}
        self._finish(rows, model)

    def build(self, width: int) -> Autoencoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Autoencoder(width, self.hidden, self.latent, self.n_levels, self.size)

    def _start(self, rows: Rows) -> Autoencoder:
        """The model before the first epoch: codebooks are k-means of the untrained latents, level by level."""
        model = self.build(rows.width).to(rows.device)
        about = spread(rows)
        model.centre.copy_(about.mean)
        model.scale.fill_(1 / max(float(about.variance.sum()), 1e-300) ** 0.5)
        left = latents(model, rows)
        for level in range(self.n_levels):
            clusters = KMeans(self.size, max_iter=10, seed=1000 * self.seed + level).fit(left)
            model.codebooks.data[level] = clusters.cluster_centers_.to(model.codebooks)
            left = left.less(clusters.cluster_centers_, clusters.codes(left)).held()
        return model

    def _epoch(self, rows: Rows, model: Autoencoder, optimiser: torch.optim.Optimizer, number: int) -> float:
        """One pass over all rows in seeded batches; each rank works on those of a batch's rows that it holds."""
        rng = np.random.default_rng([self.seed, number])
        order = torch.from_numpy(rng.permutation(rows.total))
        used = torch.zeros(self.n_levels, self.size, dtype=torch.int64, device=rows.device)
        total = torch.zeros(1, dtype=torch.float64, device=rows.device)
        last = rows.first + len(rows.source)
        for batch in order.split(self.batch):
            own = batch[(batch >= rows.first) & (batch < last)] - rows.first
            optimiser.zero_grad()
            loss, codes = model(rows.read(own), self.commitment, self.usage, rows.sum_)
            (loss / len(batch)).backward()
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
            rows.sum_(*gradients)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            total += loss.detach()
            for level in range(self.n_levels):
                used[level] += tally(codes[:, level], self.size)
        rows.sum_(used, total)
        if number + 1 < self.epochs:  # the last epoch's codes stay as they were learnt
            self._revive(rows, model, used, rng)
        return float(total) / rows.total

    @torch.no_grad()
    def _revive(self, rows: Rows, model: Autoencoder, used: Int[Tensor, "L K"], rng: np.random.Generator) -> None:
        """Codes that no row took move to the residuals of random rows."""
        dead = (used == 0).cpu()
        if not dead.any():
            return
        chosen = torch.from_numpy(rng.integers(rows.total, size=(self.n_levels, self.size)))
        for level in range(self.n_levels):
            place = dead[level].nonzero()[:, 0]
            if len(place):
                numbers, place = sent(chosen[level, place], rows.device), sent(place, rows.device)
                left = model.encode(rows.at(numbers))
                for book in model.codebooks[:level]:
                    left = left - book[torch.cdist(left, book).argmin(1)]
                model.codebooks[level, place] = left

    @torch.no_grad()
    def _finish(self, rows: Rows, model: Autoencoder) -> None:
        self.model_ = model
        left = latents(model, rows)
        self.levels_ = [Level(book.detach().double(), "euclid") for book in model.codebooks]
        self.codes_ = rows.together(assign(left, self.levels_))
        energies = [energy(left)]
        own = self.codes_[rows.first : rows.first + len(rows.source)]
        for number, level in enumerate(self.levels_):
            left = left.less(level.codebook, own[:, number].long())
            energies.append(energy(left))
        lost = self._lost(rows, model, own)
        self.reports_ = [
            {
                "residual_before": before,
                "residual": after,
                "residual_share": after / max(energies[0], 1e-300),
                "reconstruction": lost,
            }
            for before, after in itertools.pairwise(energies)
        ]

    def _lost(self, rows: Rows, model: Autoencoder, codes: Int[Tensor, "N L"]) -> float:
        """Share of the rows' variance that the decoder does not give back."""
        lost = torch.zeros(1, dtype=torch.float64, device=rows.device)
        for place, x in rows.blocks():
            words = torch.stack([book[codes[place, i].long()] for i, book in enumerate(model.codebooks)]).sum(0)
            lost += ((x - model.centre) * model.scale - model.decoder(words)).square().sum(dtype=torch.float64)
        rows.sum_(lost)
        return float(lost) / rows.total


@torch.no_grad()
def latents(model: Autoencoder, rows: Rows) -> Rows:
    """The latents of this rank's rows, in memory."""
    width = model.codebooks.shape[2]
    table = torch.empty(len(rows.source), width, dtype=rows.dtype, device=rows.device)
    for place, x in rows.blocks():
        table[place] = model.encode(x)
    return replace(rows, source=table, centre=None, rotation=None, taken=())


def _unevenness(square: Float[Tensor, "n K"], sum_: Reduce) -> Float[Tensor, ""]:
    """Rows of the batch × Σ_k p_k log p_k, p the mean soft assignment of the batch's rows on all ranks."""
    total = torch.stack([square.detach().amin(1).sum(), square.new_full((), len(square))]).double()
    sum_(total)
    n, typical = total[1], total[0] / total[1]  # softened by how far the rows' own codes are
    own = (-square / typical.clamp(min=1e-12).to(square)).softmax(1).sum(0)
    others = -own.detach()
    everywhere = own.detach().clone()
    sum_(everywhere)
    share = (own + (others + everywhere)) / n.to(square)
    return n.to(square) * (share * (share + 1e-12).log()).sum()


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _snapshot(model: Autoencoder, optimiser: torch.optim.Optimizer, epoch: int) -> State:
    """Copies, for the next epoch changes both in place."""
    state = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    for i, moments in optimiser.state_dict()["state"].items():
        state |= {f"adam.{i}.{name}": torch.as_tensor(value).clone() for name, value in moments.items()}
    return state | {"epoch": torch.tensor(epoch)}


def _restore(state: Mapping[str, Tensor], model: Autoencoder, optimiser: torch.optim.Optimizer) -> int:
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("adam."):
            _, number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value.cpu() if name == "step" else value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return int(state["epoch"])
