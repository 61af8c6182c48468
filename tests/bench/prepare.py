"""P16: `distrec prepare` beside polars, which reads, sorts by user and time, and writes the same file.

    python tests/bench/prepare.py [ROWS] [--peer PYTHON]

Our time ÷ the time of polars alone, from Parquet (P16), CSV with epoch numbers (P16_csv) and CSV with ISO texts
(P16_iso); both are whole processes, in turn, medians of the rounds.  P16_gib: peak resident memory of ours;
P16_m: million interactions per second from Parquet.  The rows are written first (untimed), in file order of time, with
text ids; preparing them reads, de-duplicates, numbers, sorts, splits, draws 99 negatives a user and stamps the artefact.

--peer adds P16b: the time in which RecBole loads the same rows ÷ ours.  PYTHON is an interpreter that has RecBole
(1.2.1 needs numpy < 2, which is why it is not this one).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from distrec import knobs
from distrec.data.raw import synthetic

KINDS = {"P16": "log.parquet", "P16_csv": "log.csv", "P16_iso": "iso.csv"}


def main(rows: int, peer: str | None) -> None:
    rounds = 3 if rows <= 5_000_000 else 1
    figures: dict[str, float | int | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, __file__, "--write", str(rows), scratch], check=True)
        written = pl.scan_parquet(Path(scratch, "log.parquet"), glob=False).select(pl.len()).collect().item()
        peaks = []
        for key, name in KINDS.items():
            ours, floor = [], []
            for _ in range(rounds):
                seconds, peak = prepare(Path(scratch, name))
                ours.append(seconds)
                peaks.append(peak)
                floor.append(timed([sys.executable, __file__, "--floor", str(Path(scratch, name))])[0])
            mine, theirs = statistics.median(ours), statistics.median(floor)
            figures[key] = round(mine / theirs, 3)
            print(
                f"{name:12} {written:,} interactions: {mine:.1f} s, polars alone {theirs:.1f} s, ratio {mine / theirs:.2f}"
            )
            if key == "P16":
                figures["P16_m"] = round(written / mine / 1e6, 3)
            if peer and key == "P16_csv":
                figures["P16b"] = recbole(peer, Path(scratch, name), mine)
        figures["P16_gib"] = round(max(peaks), 3)
        print(f"peak {max(peaks):.2f} GiB (whole process, start included)")
    print(json.dumps({**figures, "rows": written, "cores": os.cpu_count()}))


def timed(command: list[str]) -> tuple[float, float]:
    """(seconds, peak GiB) of a whole process."""
    started = time.perf_counter()
    _, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
    assert status == 0, command
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def prepare(log: Path) -> tuple[float, float]:
    root = log.parent / "artefacts"
    words = ["data.source=table", f"data.path={log}", f"data.root={root}", "data.k_core=5"]
    result = timed([sys.executable, "-m", "distrec.jobs.prepare", *words])
    shutil.rmtree(root)
    return result


def floor(log: Path) -> None:
    """Read, sort and write by polars."""
    if log.suffix == ".parquet":
        pl.read_parquet(log, glob=False).sort("user", "time").write_parquet(log.with_name("floor.parquet"))
    else:
        table = pl.read_csv(log, glob=False, try_parse_dates=True)
        table.sort("user", "time").write_csv(log.with_name("floor.csv"))


def recbole(python: str, log: Path, ours: float) -> float:
    """RecBole's time from its own atomic file of the same rows to data that are filtered, sorted and split, ÷ ours."""
    folder = log.parent / "recbole/log"
    folder.mkdir(parents=True)
    table = pl.read_csv(log, glob=False)
    table = table.rename({"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"})
    table.write_csv(folder / "log.inter", separator="\t")
    seconds = timed([python, str(Path(__file__).with_name("load_recbole.py")), str(folder.parent)])[0]
    print(f"recbole      {seconds:.1f} s, ÷ ours {seconds / ours:.2f}")
    return round(seconds / ours, 3)


def write(rows: int, folder: str) -> None:
    made = knobs.Synthetic(users=rows // 20, items=100_000, categories=50, mean_length=20.6)
    log = synthetic.catalogue(made, np.random.default_rng(0))
    order = np.argsort(log.time, kind="stable")
    frame = pl.DataFrame({"user": log.user[order], "item": log.item[order], "time": log.time[order]})
    frame = frame.with_columns(pl.format("U{}", "user").alias("user"), pl.format("I{}", "item").alias("item"))
    frame.write_parquet(Path(folder, "log.parquet"))
    frame.write_csv(Path(folder, "log.csv"))
    frame.with_columns(pl.from_epoch("time").dt.to_string("%Y-%m-%dT%H:%M:%S")).write_csv(Path(folder, "iso.csv"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--write", rows, folder]:
            write(int(rows), folder)
        case ["--floor", log]:
            floor(Path(log))
        case [*rows, "--peer", python]:
            main(int(rows[0]) if rows else 20_000_000, python)
        case rows:
            main(int(rows[0]) if rows else 20_000_000, None)
