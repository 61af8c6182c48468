"""The training loop on a small model, in this process."""

import json

import torch
from accelerate.state import AcceleratorState, PartialState

from distrec import knobs
from distrec.engine.checkpoint import Checkpoints
from distrec.engine.launch import join
from distrec.engine.trainer import Trainer
from distrec.models.build import build
from distrec.runtime import Journal, Ranks

SASREC = knobs.SasRec(d_model=16, max_len=20, dropout=0.0)


def never():
    return False


def trainer(data, folder, model=SASREC, seed=0, shard_items=False, **train):
    PartialState._reset_state()
    AcceleratorState._reset_state(True)
    ranks = Ranks.here()
    config = knobs.Train(**{"epochs": 2, "batch_tokens": 300, "log_steps": 1, "patience": 100, **train})
    accelerator = join(config)
    folder.mkdir(parents=True, exist_ok=True)
    net = build(model, data, seed) if isinstance(model, knobs.SasRec) else model
    return Trainer(
        config,
        knobs.Score(bootstrap=0, shard_items=shard_items),
        net.to(accelerator.device),
        data,
        Checkpoints(folder / "checkpoints", {"a": 1}, config.async_save),
        Journal(folder / "metrics.jsonl", ranks),
        accelerator,
        ranks,
        seed,
    )


def fit(data, folder, **more):
    one = trainer(data, folder, **more)
    assert one.fit(never)
    return one


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


class Poisoned(torch.nn.Module):
    """A model whose loss, or gradient, is not finite for one user."""

    def __init__(self, net, user, what, times=1):
        super().__init__()
        self.net, self.user, self.what, self.times = net, user, what, times
        self.max_len, self.samples = net.max_len, net.samples
        self.is_counted = False

    def forward(self, batch):
        loss = self.net(batch)
        if not self.is_counted:  # the first pass teaches nothing: its FLOPs are counted
            self.is_counted = True
            return loss
        if self.times == 0 or self.user not in (None, *batch.user[batch.is_target.any(1)].tolist()):
            return loss
        self.times -= 1
        if self.what == "loss":
            return loss + torch.nan  # its gradient is finite
        return loss + (self.net.item.weight.sum() * 0).sqrt() * 0  # finite, but its gradient is 0 · ∞

    def scorer(self, batch):
        return self.net.scorer(batch)
