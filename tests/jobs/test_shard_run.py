"""score.shard_items from the command line: the same files, byte for byte, as without it."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from decoders import saved

SMALL = [
    "data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "score.bootstrap=0", "train.epochs=2",
]  # fmt: skip
MODELS = {
    "sasrec": ["model.name=sasrec", "model.d_model=16", "model.max_len=20"],
    "frellm": [
        "model.name=frellm", "model.tfm.mode=causal", "model.max_len=8", "model.hidden=16", "model.sasrec.d_model=8",
        "model.sasrec_train.epochs=2", "model.sasrec_train.eval_epochs=1", "model.backbone.path=llm",
    ],
}  # fmt: skip
IN_SMALL_CHUNKS = """
from distrec.engine.evaluation import exact
from distrec.jobs.__main__ import main
from distrec.models import ranking

exact.CHUNK["cpu"] = ranking.CHUNK = ranking.PIECE = 32
main()
"""


def launch(n, *words, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", "small.py"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_train_evaluate_and_recommend_write_the_same_bytes(tmp_path, model):
    saved(tmp_path / "llm", width=32, layers=2)
    (tmp_path / "small.py").write_text(IN_SMALL_CHUNKS)
    for name, shard in (("whole", "false"), ("spread", "true")):
        launch(2, "train", *SMALL, *MODELS[model], f"score.shard_items={shard}", f"out={name}", cwd=tmp_path)
        words = [f"score.shard_items={shard}", "data.root=artefacts", f"out={name}"]
        launch(3, "evaluate", "split=valid", *words, cwd=tmp_path)
        launch(2, "recommend", "k=5", *words, cwd=tmp_path)
    files = [
        "test.json",
        "ranks.parquet",
        "evaluate-valid.json",
        "ranks-evaluate-valid.parquet",
        "recommendations.jsonl",
    ]
    for file in (*files, "item_table/item_table.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "spread" / file).read_bytes(), file
