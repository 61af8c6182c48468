"""P3: k-means of 12,101 × 768 rows into 256 clusters, against faiss-cpu.

    python tests/bench/kmeans.py [vectors.npy] [--rounds 7]

Same rows, K, iterations and threads; both from random rows, so that neither pays for its start, then ours from its
own start (k-means||, pruned) and until it converges.  scikit-learn's default stands beside them.  Medians, in turn.
"""

import argparse
import json
import os
import statistics
import time

import torch
from gmm import K, centred, load, seconds

from distrec.codes.kmeans import KMeans

ITERATIONS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", nargs="?", help="N × 768 as .npy")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows = centred(load(options.vectors))
    table = rows.source.numpy()
    inertia: dict[str, list[float]] = {}

    def ours(init: str, iterations: int, tol: float, name: str):
        def work(seed: int) -> None:
            fitted = KMeans(K, init=init, max_iter=iterations, tol=tol, seed=seed).fit(rows)
            inertia.setdefault(name, []).append(fitted.inertia_)

        return work

    def faiss(seed: int) -> None:
        import faiss

        fitted = faiss.Kmeans(table.shape[1], K, niter=ITERATIONS, seed=seed + 1, max_points_per_centroid=10**7)
        fitted.train(table)
        inertia.setdefault("faiss, random start", []).append(float(fitted.obj[-1]))

    def sklearn(seed: int) -> None:
        from sklearn.cluster import KMeans as Reference

        fitted = Reference(K, n_init=1, random_state=seed).fit(table)
        inertia.setdefault("scikit-learn, default", []).append(fitted.inertia_)

    sides = {
        "faiss, random start": faiss,
        "ours, random start": ours("random", ITERATIONS, -1.0, "ours, random start"),
        "ours, own start": ours("k-means||", ITERATIONS, -1.0, "ours, own start"),
        "ours, own start, to convergence": ours("k-means||", 100, 1e-4, "ours, own start, to convergence"),
        "scikit-learn, default": sklearn,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(options.rounds):
        for name, work in sides.items():
            time.sleep(0.3)  # until the other library's threads no longer spin
            times[name].append(seconds(lambda work=work, seed=seed: work(seed)))
    median = {name: statistics.median(values) for name, values in times.items()}
    reached = {name: statistics.mean(values) for name, values in inertia.items()}
    for name in sides:
        print(f"{name:<32} {median[name]:6.2f} s   inertia {reached[name]:.1f}")
    peer = median["faiss, random start"]
    figures = {
        "P3": round(median["ours, random start"] / peer, 2),
        "P3_inertia": round(reached["ours, random start"] / reached["faiss, random start"], 4),
        "P3_own": round(median["ours, own start, to convergence"] / peer, 2),
        "P3_own_inertia": round(reached["ours, own start, to convergence"] / reached["faiss, random start"], 4),
        "P3_own_25": round(median["ours, own start"] / peer, 2),
    }
    print(json.dumps({**figures, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
