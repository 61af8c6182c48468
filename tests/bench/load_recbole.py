"""Load FOLDER/log/log.inter as RecBole's training does: filtered, sorted, split, with 99 negatives (prepare.py times it).

python tests/bench/load_recbole.py FOLDER        (an interpreter that has RecBole, and needs nothing else)
"""

import sys
import time

from recbole.config import Config  # pyright: ignore[reportMissingImports]
from recbole.data import create_dataset, data_preparation  # pyright: ignore[reportMissingImports]

words = {
    "data_path": sys.argv[1],
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "user_inter_num_interval": "[5,inf)",
    "item_inter_num_interval": "[5,inf)",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni99"},
    "train_neg_sample_args": None,
    "use_gpu": False,
}
config = Config(model="SASRec", dataset="log", config_dict=words)
started = time.perf_counter()
dataset = create_dataset(config)
print(f"recbole's create_dataset alone: {time.perf_counter() - started:.1f} s")
data_preparation(config, dataset)
