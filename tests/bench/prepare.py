"""P16: million interactions per second of `distrec prepare`, and its peak memory, on 20M synthetic rows.

    python tests/bench/prepare.py [ROWS]

The rows are written to a Parquet file first (untimed), in file order of time, with text ids; preparing
them reads, de-duplicates, numbers, sorts, splits, draws 99 negatives a user and stamps the artefact.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from distrec import knobs
from distrec.data.raw import synthetic


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "log.parquet")
        subprocess.run([sys.executable, __file__, "--write", str(rows), str(log)], check=True)
        written = pl.scan_parquet(log).select(pl.len()).collect().item()
        started = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "distrec.jobs.prepare",
            "data.source=table",
            f"data.path={log}",
            f"data.root={scratch}",
            "data.k_core=5",
        ]
        _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ), 0)
        seconds = time.perf_counter() - started
        assert status == 0
        peak = usage.ru_maxrss / 2**20
    print(f"{written:,} interactions in {seconds:.1f} s, peak {peak:.2f} GiB (whole process, start included)")
    print(
        json.dumps(
            {
                "P16": round(written / seconds / 1e6, 3),
                "P16_gib": round(peak, 3),
                "rows": written,
                "cores": os.cpu_count(),
            }
        )
    )


def write(rows: int, path: str) -> None:
    made = knobs.Synthetic(users=rows // 20, items=100_000, categories=50, mean_length=20.6)
    log = synthetic.catalogue(made, np.random.default_rng(0))
    order = np.argsort(log.time, kind="stable")
    frame = pl.DataFrame({"user": log.user[order], "item": log.item[order], "time": log.time[order]})
    frame.with_columns(pl.format("U{}", "user").alias("user"), pl.format("I{}", "item").alias("item")).write_parquet(
        path
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(int(sys.argv[2]), sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000_000)
