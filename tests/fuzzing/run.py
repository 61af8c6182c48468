"""Try many files, sound and damaged, and print what came of them by reader.

    PYTHONPATH=.:tests python -m fuzzing.run [--seeds 200] [--from 0] [--kinds text,parquet,published,items,histories,vectors,settings,sweeps]

Ends with 1 when one outcome is wrong; each is printed with its seed, which belongs into test_fuzz.py.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzzing.beside import READERS
from fuzzing.judge import judge
from fuzzing.logs import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--kinds", default=",".join([*KINDS, *READERS]))
    options = parser.parse_args()
    table: Counter[tuple[str, str, str]] = Counter()
    faults = 0
    for kind in options.kinds.split(","):
        for seed in range(options.first, options.first + options.seeds):
            for is_damaged in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    verdict = judge(kind, seed, is_damaged, Path(folder))
                outcome = verdict.outcome if not verdict.fault or verdict.outcome == "traceback" else "WRONG"
                table[kind, "damaged" if is_damaged else "sound", outcome] += 1
                if verdict.fault:
                    faults += 1
                    print(
                        f"{kind} {seed} {is_damaged} [{verdict.what}] {verdict.outcome}: {verdict.fault}",
                        flush=True,
                    )
    for key, n in sorted(table.items()):
        print(*key, n)
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
