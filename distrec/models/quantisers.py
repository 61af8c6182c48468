"""config.codes → a fit (one match); a fit → tensors; tensors → codes of any rows.

Shapes: N rows on this rank, L levels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from distrec import knobs
from distrec.codes.balanced import BalancedKMeans
from distrec.codes.gmm import GaussianMixture
from distrec.codes.kmeans import KMeans
from distrec.codes.mixture.covariance import Kind
from distrec.codes.mixture.density import Parameters
from distrec.codes.residual import Assignment, Level, Levels, assign
from distrec.codes.rows import Rows
from distrec.codes.rqvae import RqVae, latents
from distrec.codes.spectral import Spectral

_KINDS, _ASSIGNMENTS = get_args(Kind), get_args(Assignment)


Fit = Levels | RqVae  # after a fit: levels_, codes_ (I × L), reports_


def build(config: knobs.Codes, size: int, seed: int) -> Fit:
    """The fit that a section of the config describes.

    Raises: ValueError when its assignment does not go with its quantiser.
    """
    if isinstance(config, knobs.RqVae):
        names = ("hidden", "latent", "epochs", "batch", "lr", "commitment", "usage")
        return RqVae(config.levels, size, seed=seed, **{name: getattr(config, name) for name in names})
    own: dict[str, Assignment] = {"gmm": "cosine", "kmeans": "euclid", "balanced": "fitted", "spectral": "fitted"}
    assignment = config.assignment or own[config.name]
    return Levels(lambda level: quantiser(config, size, 1000 * seed + level), config.levels, assignment)


def quantiser(config: knobs.Codes, size: int, seed: int) -> Any:
    """What fits one level."""
    match config:
        case knobs.Gmm():
            return GaussianMixture(
                size,
                covariance_type=config.covariance,
                tol=config.tol,
                reg_covar=config.reg_covar,
                max_iter=config.max_iter,
                n_init=config.n_init,
                seed=seed,
                precision=config.precision,
            )
        case knobs.KMeansCodes():
            return KMeans(size, init=config.init, tol=config.tol, max_iter=config.max_iter, seed=seed)
        case knobs.BalancedCodes():
            return BalancedKMeans(size, max_iter=config.max_iter, seed=seed)
        case knobs.SpectralCodes():
            return Spectral(size, neighbours=config.neighbours, landmarks=config.landmarks, seed=seed)
    raise ValueError(f"codes.name={config.name} has no levels of its own")


def tensors_of(fit: Fit) -> dict[str, Tensor]:
    """What gives codes to new rows."""
    tensors: dict[str, Tensor] = {}
    for number, level in enumerate(fit.levels_):
        tensors[f"{number}.codebook"] = level.codebook
        tensors[f"{number}.assignment"] = torch.tensor(_ASSIGNMENTS.index(level.assignment))
        if level.mixture is not None:
            tensors[f"{number}.kind"] = torch.tensor(_KINDS.index(level.covariance_type))
            tensors[f"{number}.weights"] = level.mixture.weights
            tensors[f"{number}.covariances"] = level.mixture.covariances
    if isinstance(fit, RqVae):
        tensors |= {f"autoencoder.{name}": value for name, value in fit.model_.state_dict().items()}
    return {name: value.detach().cpu() for name, value in tensors.items()}


def codes_of(rows: Rows, tensors: Mapping[str, Tensor], config: knobs.Codes) -> Int[Tensor, "N L"]:
    """The codes of this rank's rows by a stored fit; nothing is fitted."""
    if "rotation" in tensors:
        centre, rotation = (tensors[name].to(rows.device) for name in ("centre", "rotation"))
        rows = replace(rows, centre=centre, rotation=rotation)
    if isinstance(config, knobs.RqVae):
        size = len(tensors["0.codebook"])
        model = RqVae(config.levels, size, hidden=config.hidden, latent=config.latent).build(rows.width)
        own = {name.removeprefix("autoencoder."): value for name, value in tensors.items() if "autoencoder." in name}
        model.load_state_dict(own)
        rows = latents(model.to(rows.device), rows)
    return assign(rows, [_level(tensors, number, rows.device) for number in range(config.levels)])


def width_of(tensors: Mapping[str, Tensor]) -> int:
    """The dimensions of the vectors that a stored fit is about."""
    for name in ("rotation", "autoencoder.centre"):
        if name in tensors:
            return len(tensors[name])
    return tensors["0.codebook"].shape[1]


def _level(tensors: Mapping[str, Tensor], number: int, device: torch.device | str) -> Level:
    own = {
        key.removeprefix(f"{number}."): value.to(device)
        for key, value in tensors.items()
        if key.startswith(f"{number}.")
    }
    level = Level(own["codebook"], _ASSIGNMENTS[int(own["assignment"])])
    if "kind" not in own:
        return level
    mixture = Parameters(own["weights"], own["codebook"], own["covariances"])
    return replace(level, mixture=mixture, covariance_type=_KINDS[int(own["kind"])])
