"""Spectral clustering: affinity of neighbours → eigenvectors → k-means; Nyström's extension beyond the landmarks.

    a_ij = exp(−d²_ij / (s_i s_j)) between nearest neighbours, s_i the distance to the last of them
    embedding: the K leading eigenvectors of D^-½ A D^-½, rows of unit length

Source: Ng, Jordan & Weiss 2001; Zelnik-Manor & Perona 2004 (scales); Fowlkes et al. 2004 (Nyström).
The eigenvectors are found in one go: a killed fit starts its level again.

Shapes: I rows of all ranks, N rows on this rank, n rows of a block, M landmarks, D dimensions, K clusters.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from distrec.codes.kmeans import KMeans, Labelled, cluster_means, nearest
from distrec.codes.mixture.precision import tf32
from distrec.codes.rows import Rows, State, largest

_PIECE = 1024  # rows compared with all landmarks at once
_DENSE = 2048  # rows whose affinity may be decomposed whole: a second, 32 MiB
_NOTHING = 1e-10  # below it an eigenvalue is 0, but for rounding


class Spectral(Labelled):
    """Attributes after a fit: cluster_centers_ (K × D, means of the rows), labels_ (I, of all rows), eigenvalues_ (K)."""

    eigenvalues_: Float[Tensor, " K"]

    def __init__(self, n_clusters: int, *, neighbours: int = 10, landmarks: int = 20_000, seed: int = 0):
        self.n_clusters = n_clusters
        self.neighbours = neighbours
        self.landmarks = landmarks
        self.seed = seed

    def adopt(self, state: State) -> None:
        self.cluster_centers_, self.labels_, self.eigenvalues_ = state["means"], state["labels"], state["eigenvalues"]

    def report(self) -> dict[str, Any]:
        return {"least_eigenvalue": float(self.eigenvalues_.min())}

    def run(self, rows: Rows, state: State | None = None) -> Iterator[State]:
        """One state, the last.

        Raises: ValueError when there are not more rows than clusters.
        """
        if state:
            return
        k = self.n_clusters
        m = min(rows.total, self.landmarks)
        if k >= m:
            raise ValueError(f"{k} clusters for {m:,} rows: spectral clustering needs more rows than clusters")
        numbers = torch.arange(rows.total, device=rows.device)
        if m < rows.total:
            numbers = rows.best(lambda place, _: rows.random(place, self.seed, 77), m)[0].sort().values
        marks = Neighbours(rows.at(numbers), self.neighbours)
        embedding, values = self._eigenvectors(rows, marks)
        embedded = Rows.whole(embedding, block=rows.block, dtype=rows.dtype, device=rows.device)
        clusters = KMeans(k, seed=self.seed).fit(embedded)
        if m == rows.total:
            whole = nearest(embedded, clusters.cluster_centers_).int()
        else:
            whole = rows.together(self._labels(rows, marks, embedding, clusters.cluster_centers_))
        yield {
            "means": cluster_means(rows, whole, k, largest(rows)),
            "labels": whole,
            "eigenvalues": values,
            "done": torch.tensor(True),
        }

    def _labels(
        self, rows: Rows, marks: "Neighbours", embedding: Float[Tensor, "M K"], means: Float[Tensor, "K K"]
    ) -> Int[Tensor, " N"]:
        """The nearest mean of each of this rank's rows in the landmarks' embedding."""
        labels = torch.zeros(len(rows.source), dtype=torch.int32, device=rows.device)
        for place, x in rows.blocks():
            with tf32(False):
                parts = [torch.cdist(marks.extend(part, embedding), means.to(x)).argmin(1) for part in x.split(_PIECE)]
            labels[place] = torch.cat(parts).int()
        return labels

    def _eigenvectors(self, rows: Rows, marks: "Neighbours") -> tuple[Float[Tensor, "M K"], Float[Tensor, " K"]]:
        """(embedding of the landmarks, eigenvalues): worked out by the rank that holds the first row, sent to all."""
        m, k = len(marks.x), self.n_clusters
        vectors = torch.zeros(m, k, dtype=rows.dtype, device=rows.device)
        values = torch.zeros(k, dtype=torch.float64, device=rows.device)
        failed = torch.zeros(1, dtype=torch.int64, device=rows.device)
        if rows.first == 0 and len(rows.source):
            try:
                found, basis = leading(*marks.normalised_affinity(), k, self.seed)
                vectors += torch.from_numpy(basis).to(vectors)
                values += torch.from_numpy(found).to(values)
            except ArpackError:
                failed += 1
        rows.sum_(vectors, values, failed)
        if failed:
            raise ValueError(
                f"no {k} eigenvectors of {m:,} rows' affinity were found: lower codes.size, raise codes.neighbours"
            )
        return torch.nn.functional.normalize(vectors, dim=1), values


def leading(
    affinity: sparse.csr_array, root: Float[np.ndarray, " M"], k: int, seed: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "M k"]]:
    """The k largest eigenvalues of a normalised affinity and their vectors, largest first.

    Each connected part has an eigenvalue 1, with D^½ 1 of that part as its vector.  Lanczos finds only one of
    equal eigenvalues, so these are written down and taken out of the matrix that it sees.  Where it finds none of what
    is left, as among rows that repeat, a small matrix is decomposed whole, and vectors of eigenvalue 0, any of which would
    do, are left out as zeros.
    """
    m = len(root)
    n_parts, part = connected_components(affinity, directed=False)
    largest_first = np.argsort(-np.bincount(part), kind="stable")
    known: Any = sparse.csr_array((root, (np.arange(m), np.argsort(largest_first)[part])), shape=(m, n_parts))
    known = known @ sparse.diags_array(1 / np.sqrt(np.asarray(known.power(2).sum(0)).ravel()))
    if n_parts >= k:
        return np.ones(k), known[:, :k].toarray()
    settings: Any = {"shape": (m, m), "matvec": lambda x: affinity @ x - known @ (known.T @ x), "dtype": np.float64}
    rest = LinearOperator(**settings)
    start = np.random.default_rng(seed).standard_normal(m)
    try:
        values, vectors = eigsh(rest, k=k - n_parts, which="LA", v0=start, rng=seed)
    except ArpackNoConvergence:
        if m > _DENSE:
            raise
        values, vectors = np.linalg.eigh((affinity - known @ known.T).toarray())
        values, vectors = values[n_parts - k :], vectors[:, n_parts - k :]
        vectors = np.where(np.abs(values) > _NOTHING, vectors, 0)
    order = np.argsort(-values)
    return np.r_[np.ones(n_parts), values[order]], np.hstack([known.toarray(), vectors[:, order]])


class Neighbours:
    """Rows and their nearest neighbours among themselves; M × k numbers, never M × M."""

    def __init__(self, x: Float[Tensor, "M D"], k: int):
        self.x = x
        self.k = min(k, len(x) - 1)
        self._norms = x.square().sum(1)
        parts = [self._nearest(block, self.k + 1) for block in x.split(_PIECE)]
        square, place = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        itself = place == torch.arange(len(x), device=x.device)[:, None]
        itself[:, -1] |= ~itself.any(1)  # among many equal rows it may not be in its own list
        self.square = square[~itself].view(len(x), self.k)
        self.place = place[~itself].view(len(x), self.k)
        self.scale = self.square[:, -1].sqrt().clamp(min=1e-6 * float(self._norms.mean().sqrt()) + 1e-18)
        self._least = float(self.scale.min())

    def _nearest(self, x: Float[Tensor, "n D"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        with tf32(False):
            square = torch.addmm(self._norms, x, self.x.T, alpha=-2)
        square = square + x.square().sum(1, keepdim=True)
        least, place = square.topk(k, dim=1, largest=False)
        return least.clamp(min=0), place

    def normalised_affinity(self) -> tuple[sparse.csr_array, Float[np.ndarray, " M"]]:
        """(D^-½ A D^-½, D^½ 1): symmetric, two rows are joined when either is a neighbour of the other."""
        m = len(self.x)
        weight = torch.exp(-self.square / (self.scale[:, None] * self.scale[self.place]))
        row = torch.arange(m).repeat_interleave(self.k)
        table = sparse.csr_array(
            (weight.double().cpu().numpy().ravel(), (row.numpy(), self.place.cpu().numpy().ravel())), shape=(m, m)
        )
        table = table.maximum(table.T)
        root = np.sqrt(np.maximum(np.asarray(table.sum(1)).ravel(), 1e-300))
        scaled = sparse.diags_array(1 / root)
        return sparse.csr_array(scaled @ table @ scaled), root

    def extend(self, x: Float[Tensor, "n D"], embedding: Float[Tensor, "M K"]) -> Float[Tensor, "n K"]:
        """The embedding of other rows: that of their nearest landmarks, weighted by affinity, of unit length."""
        square, place = self._nearest(x, self.k)
        own = square[:, -1].sqrt().clamp(min=self._least)
        weight = torch.exp(-square / (own[:, None] * self.scale[place]))
        return torch.nn.functional.normalize((weight[:, :, None] * embedding[place]).sum(1), dim=1)
