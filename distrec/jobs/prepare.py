"""distrec prepare [FILE.yaml …] [section.key=value …]

Raw logs → numbered, ordered, split sequences in a memory-mapped artefact under data.root, with a
statistics report.  Nothing is done again when the artefact is there and intact.

  data.source=synthetic|sequences|movielens|amazon|lastfm|table
  data.path=FOLDER_OR_FILE    the raw files            data.catalogue=ml-100k  … or download them
  data.k_core=5               iterated k-core          data.split=leave_one_out|global_time|given
  data.cold_items=keep        rows of the item table without interactions: for models that know items by their texts
  data.text='{title}'         template of item texts   data.ties=file_order|shuffle
  ids=FILE                    write the raw item ids in their prepared order (a shuffle): .txt, one a line, or .parquet

Example:  distrec prepare data.source=table data.path=log.csv data.columns.user=customer data.columns.time=date
"""

import json
from collections.abc import Sequence
from pathlib import Path

from distrec import config as cfg
from distrec.data import prepared, statistics, vectors
from distrec.hints import place
from distrec.runtime import run


def main(argv: Sequence[str]) -> None:
    files = [Path(place(arg.partition("=")[2], "ids")) for arg in argv if arg.startswith("ids=")]
    for path in files:
        if path.suffix not in (".txt", ".parquet") or not path.parent.is_dir() or path.is_dir():
            raise ValueError(f"ids={path}: give a file that ends in .txt or .parquet, in a folder that is there")
    config = cfg.load([arg for arg in argv if not arg.startswith("ids=")])
    folder = prepared.prepare(config.data)
    for path in files:
        vectors.write_ids(path, prepared.load(folder))
    print(folder)
    print(statistics.table(json.loads((folder / "statistics.json").read_text())))


if __name__ == "__main__":
    run(main, __doc__)
