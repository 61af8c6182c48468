"""distrec prepare [FILE.yaml …] [section.key=value …]

Raw logs → numbered, ordered, split sequences in a memory-mapped artefact under data.root, with a
statistics report.  Nothing is done again when the artefact is there and intact.

  data.source=synthetic|sequences|movielens|amazon|lastfm|table
  data.path=FOLDER_OR_FILE    the raw files            data.catalogue=ml-100k  … or download them
  data.k_core=5               iterated k-core          data.split=leave_one_out|global_time|given
  data.cold_items=keep        rows of the item table without interactions: for models that know items by their texts
  data.text='{title}'         template of item texts   data.ties=file_order|shuffle

Example:  distrec prepare data.source=table data.path=log.csv data.columns.user=customer data.columns.time=date
"""

import json
from collections.abc import Sequence

from distrec import config as cfg
from distrec.data import prepared, statistics
from distrec.runtime import run


def main(argv: Sequence[str]) -> None:
    config = cfg.load(argv)
    folder = prepared.prepare(config.data)
    print(folder)
    print(statistics.table(json.loads((folder / "statistics.json").read_text())))


if __name__ == "__main__":
    run(main, __doc__)
