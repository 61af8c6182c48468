"""P1, P2, P4: Gaussian mixtures against scikit-learn, streaming from disk, precision on tensor cores.

    python tests/bench/gmm.py [vectors.npy]     P1, P2, precision     (12,101 × 768 and K 256; six minutes)
    python tests/bench/gmm.py --stream          100k and 1M × 768 in float16, memory-mapped
    python tests/bench/gmm.py --cuda            P4: N 10M on a GPU, in each precision, and streamed from the host; two minutes
    python tests/bench/gmm.py --cuda --small    the same of 1,024 rows, to rehearse it

Without a file of vectors a synthetic cloud is used: unit norm, a hierarchy of clusters, as text vectors are.
The iterations of P1 are taken in turn, in one process, on the same threads; medians.  Each fit of P2 has a
process of its own, so that its peak memory can be read.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from distrec.codes.gmm import GaussianMixture, _Fit
from distrec.codes.mixture.covariance import KINDS
from distrec.codes.mixture.density import Density, Parameters, Room
from distrec.codes.rows import Rows, spread
from distrec.jobs.codes.fit import _GPU_BLOCK

N, D, K = 12_101, 768, 256
FLOOR = (
    1e-6  # scikit-learn's default, absolute; with ours, 1e-6 of the variance, its float32 fit fails on tight clusters
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", nargs="?", help="N × 768 as .npy")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of --cuda")
    parser.add_argument("--small", action="store_true", help="of --cuda: few rows in small blocks")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", choices=("ours", "float32", "float64"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        return side(options.side, load(options.vectors))
    if options.stream:
        figures = stream()
    elif options.cuda:
        n, block, rounds, x = (1024, 256, 1, cloud(300)) if options.small else (options.rows, _GPU_BLOCK, 5, cloud(N))
        figures = cuda(n, block, rounds) | errors(x, "cuda")
    else:
        x = load(options.vectors)
        figures = iterations(x, options.rounds) | errors(x) | fits(options.vectors)
    print(json.dumps({**figures, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))
    return None


def cloud(n: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in a hierarchy: 40 groups of 25 kinds, anisotropic, as text vectors are."""
    rng = np.random.default_rng(seed)
    scale = (1 + np.arange(D)) ** -0.4
    kinds = (rng.standard_normal((40, 1, D)) + 0.8 * rng.standard_normal((40, 25, D))).reshape(-1, D)
    x = np.empty((n, D), np.float32)
    for low in range(0, n, 100_000):
        m = min(100_000, n - low)
        part = scale * (kinds[rng.integers(1000, size=m)] + 1.2 * rng.standard_normal((m, D), dtype=np.float32))
        x[low : low + m] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return x


def load(path: str | None) -> np.ndarray:
    return np.load(path).astype(np.float32) if path else cloud(N)


def centred(x: np.ndarray) -> Rows:
    table = torch.from_numpy(x)
    return Rows.whole(table, centre=spread(Rows.whole(table)).mean).held()


def share_of(x: np.ndarray) -> float:
    """scikit-learn's floor in our terms."""
    return FLOOR / float(x.var(0).mean())


def iterations(x: np.ndarray, rounds: int) -> dict[str, float]:
    """One EM iteration of each side, from the same parameters."""
    from sklearn.mixture import GaussianMixture as Reference

    rows = centred(x)
    fit = _Fit(GaussianMixture(K, reg_covar=share_of(x)), rows)
    state = fit.iterate(fit.begin(0), 1)
    table = rows.source.numpy()
    sides = {"ours": lambda: fit.iterate(state, 1)}
    for name in ("float32", "float64"):
        theirs = Reference(K, covariance_type="diag", reg_covar=FLOOR)
        own = table.astype(name)
        theirs.weights_, theirs.means_ = (state[key].numpy().astype(name) for key in ("weights", "means"))
        theirs.covariances_ = state["covariances"].numpy().astype(name)
        theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)
        sides[name] = lambda theirs=theirs, own=own: theirs._m_step(own, theirs._e_step(own)[1])
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            time.sleep(0.3)  # until the other library's threads no longer spin
            work()
            times[name].append(seconds(work))
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(
            f"EM iteration, {name:<8} {1e3 * value:7.1f} ms   ({1e3 * min(times[name]):.1f} – {1e3 * max(times[name]):.1f})"
        )
    return {
        "P1": round(median["float32"] / median["ours"], 2),
        "P1_f64": round(median["float64"] / median["ours"], 2),
    }


def errors(x: np.ndarray, device: str = "cpu") -> dict[str, float]:
    """Error of a row's log-density in each precision, in nats, against float64; after three iterations."""
    rows = centred(x)
    fit = _Fit(GaussianMixture(K), rows)
    state = fit.begin(0)
    for _ in range(3):
        state = fit.iterate(state, 1)
    parameters = Parameters(state["weights"], state["means"], state["covariances"])
    block = torch.from_numpy(x[:4096]) - spread(Rows.whole(torch.from_numpy(x))).mean.float()

    def best(dtype: torch.dtype, precision: str) -> torch.Tensor:
        own = Rows.whole(block.to(device), dtype=dtype, block=4096, device=device)
        moved = Parameters(*(value.to(device) for value in parameters))
        density = Density(moved, own, spread(own), Room(KINDS["diag"], own, K, precision))
        return torch.cat([piece.scores.double().logsumexp(1) for piece in density(own.read(slice(0, 4096)))])

    exact = best(torch.float64, "float32")
    figures = {}
    for precision in ("float32", "tf32", "bf16x3"):
        off = (best(torch.float32, precision) - exact).abs()
        print(
            f"log-density in {precision:<8} off by {float(off.mean()):.1e} nat on average, {float(off.max()):.1e} at most"
        )
        figures[f"nats_{precision}"] = float(f"{off.max():.2e}")
    return figures


def fits(path: str | None) -> dict[str, float]:
    """Whole fits, n_init 3, defaults, one process each."""
    told = {}
    for name in ("ours", "float32", "float64"):
        command = [sys.executable, __file__, *([path] if path else []), "--side", name]
        told[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"whole fit, {name:<8} {told[name]['seconds']:6.1f} s   {told[name]['nats']:.3f} nat an item   {told[name]['extra']:5.0f} MiB more"
        )
    ours, theirs = told["ours"], told["float32"]
    return {
        "P2": round(theirs["seconds"] / ours["seconds"], 2),
        "P2_f64": round(told["float64"]["seconds"] / ours["seconds"], 2),
        "P2_nats": round(ours["nats"] - max(theirs["nats"], told["float64"]["nats"]), 3),
        "P2_mem": round(ours["extra"] / theirs["extra"], 3),
    }


def side(name: str, x: np.ndarray) -> None:
    """One side's fit; prints its time, likelihood and the memory it took beyond the vectors."""
    warnings.filterwarnings("ignore")
    x -= x.mean(0)
    table = x.astype(name) if name == "float64" else x
    whole_fit(name, table[:2000], 8)  # libraries load and threads start
    forget_peak()
    before = resident()
    started = time.perf_counter()
    nats = whole_fit(name, table, K)
    took = time.perf_counter() - started
    print(json.dumps({"seconds": took, "nats": float(nats), "extra": resident("VmHWM") - before}))


def whole_fit(name: str, table: np.ndarray, k: int) -> float:
    """Mean log-likelihood of a row, in nats."""
    from sklearn.mixture import GaussianMixture as Reference

    if name == "ours":
        return GaussianMixture(k, reg_covar=share_of(table)).fit(Rows.whole(torch.from_numpy(table))).lower_bound_
    return Reference(k, covariance_type="diag", n_init=3, reg_covar=FLOOR, random_state=0).fit(table).lower_bound_


def stream() -> dict[str, float]:
    """One EM iteration over float16 vectors that stay on disk."""
    took: dict[int, float] = {}
    extra = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for n in (100_000, 1_000_000):
            path = Path(folder) / "vectors.npy"
            table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, D))
            for low in range(0, n, 100_000):
                table[low : low + 100_000] = cloud(min(100_000, n), seed=low)
            table.flush()
            del table
            forget_peak()
            before = resident()
            source = torch.from_numpy(np.load(path, mmap_mode="c"))
            mean = spread(Rows.whole(source[:50_000], dtype=torch.float32)).mean
            rows = Rows.whole(source, dtype=torch.float32, centre=mean)
            small = Rows.whole(source[:20_000], dtype=torch.float32, centre=mean)
            state = _Fit(GaussianMixture(K), small).begin(0)
            fit = _Fit(GaussianMixture(K), rows)
            repeats = 1_000_000 // n  # as many rows for either size: the luckiest of short runs would look too fast

            def work(fit=fit, state=state, repeats=repeats) -> None:
                for _ in range(repeats):
                    fit.iterate(state, 1)

            took[n] = min(seconds(work) for _ in range(2)) / repeats
            extra = max(extra, resident("VmHWM") - before)
            print(
                f"{n:>9,} rows: {took[n]:6.1f} s an iteration, {1e6 * took[n] / n:.1f} µs an item, "
                f"{resident('VmHWM') - before:,.0f} MiB more at most (of them {resident('RssFile'):,.0f} MiB pages of the file)"
            )
    exponent = np.log10(took[1_000_000] / took[100_000])
    return {
        "stream_us_item": round(took[1_000_000], 2),
        "stream_exponent": round(float(exponent), 3),
        "stream_gib": round(extra / 1024, 2),
    }


def cuda(n: int, block: int, rounds: int) -> dict[str, float | str]:
    """P4, for the default precision and the others; each figure is printed as soon as it is known.

    The rows are drawn on the GPU, in float16; `host`: the same rows in host memory, streamed.
    """
    if not torch.cuda.is_available():
        sys.exit("--cuda needs a GPU")
    card = torch.cuda.get_device_name()
    print(f"{card}: {n:,} × {D} rows in float16, K {K}, blocks of {block:,}", flush=True)
    source, start = drawn(n)
    figures: dict[str, float | str] = {}
    for name in ("float32", "tf32", "bf16x3", "host"):
        torch.cuda.reset_peak_memory_stats()
        if name == "host":
            source = source.cpu()
        rows = Rows.whole(source, dtype=torch.float32, block=block, device="cuda")
        fit = _Fit(GaussianMixture(K, precision="float32" if name == "host" else name), rows)
        state = fit.begin(0, start)
        times = [seconds(lambda fit=fit, state=state: fit.iterate(state, 1), sync=True) for _ in range(1 + rounds)]
        took = 1e3 * statistics.median(times[1:])
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"{name:<8} {took:8.1f} ms an iteration (the first {1e3 * times[0]:.1f}), {peak:.1f} GiB at most",
            flush=True,
        )
        figures |= {f"P4_{name}": round(took, 1), f"P4_{name}_gib": round(peak, 1)}
    return {"P4": figures["P4_float32"], **figures, "card": card}


def drawn(n: int) -> tuple[torch.Tensor, Parameters]:
    """Rows around K centres, and parameters near theirs, on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    centres = torch.randn(K, D, generator=generator, device="cuda", dtype=torch.float16)
    source = torch.empty(n, D, device="cuda", dtype=torch.float16)
    for low in range(0, n, 1_000_000):
        part = source[low : low + 1_000_000]
        label = torch.randint(K, (len(part),), generator=generator, device="cuda")
        part.normal_(generator=generator).mul_(1.5).add_(centres[label]).mul_(0.02)
    weights = torch.full((K,), 1 / K, dtype=torch.float64, device="cuda")
    return source, Parameters(weights, centres.double() * 0.02, torch.full_like(centres, 9e-4, dtype=torch.float64))


def seconds(work, sync: bool = False) -> float:
    if sync:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if sync:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def resident(name: str = "VmRSS") -> float:
    """MiB now; of VmHWM: the most since forget_peak()."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
