"""Codes of big catalogues: what docs/scale.md reckons against what drawing them gives, at 10⁶ and 10⁷ items.

    python tests/bench/catalogue.py [--items 1000000 10000000]

Codes are drawn evenly: three levels of 256, 1024 and 4096.  Told: items that share all their codes and the largest bucket,
reckoned and drawn; seconds and bytes an item of the running digit, of both maps and of the index that a search needs.
"""

import argparse
import time

import torch

from distrec.codes.collisions import expected_largest, expected_shared, running_digit
from distrec.codes.prefix import PrefixIndex
from distrec.data.item_codes import ItemCodes


def measure(n: int, size: int) -> str:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(size, (n, 3), generator=draw)
    cells = size**3
    began = time.perf_counter()
    digit = running_digit(codes, (size,) * 3, 2**20)
    ended = time.perf_counter()
    key = (codes[:, 0] * size + codes[:, 1]) * size + codes[:, 2]
    counts = key.unique(return_counts=True)[1]
    shared = 1 - int((counts == 1).sum()) / n
    sizes = (size, size, size, int(digit.max()) + 1)
    maps = time.perf_counter()
    both = ItemCodes.of(torch.cat([codes, digit[:, None]], 1), sizes)
    mapped = time.perf_counter()
    index = PrefixIndex.of(both.codes, sizes)
    indexed = time.perf_counter()
    held = both.codes.nbytes + both.keys.nbytes + both.order.nbytes
    return (
        f"{n:>12,}{size:>7}{expected_shared(n, cells):>10.4f}{shared:>9.4f}{expected_largest(n, cells):>10}{int(counts.max()):>7}"
        f"{ended - began:>9.1f}{mapped - maps:>7.1f}{indexed - mapped:>8.1f}{held / n:>8.1f}{index.n_bytes / n:>8.1f}"
    )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--items", type=int, nargs="+", default=[10**6, 10**7])
    print(
        f"{'items':>12}{'codes':>7}{'shared: reckoned, drawn':>19}{'largest: r., d.':>17}{'digit s':>9}{'maps s':>7}{'index s':>8}{'B/item':>8}{'index':>8}"
    )
    for n in words.parse_args().items:
        for size in (256, 1024, 4096):
            print(measure(n, size), flush=True)


if __name__ == "__main__":
    main()
