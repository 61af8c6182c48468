"""P9, P10, P11: what a frozen backbone saves, what the filter costs, what all-position training saves.   P12, P13 on a GPU.

    python tests/bench/frozen.py [--rounds 7] [--lengths FOLDER_OF_A_CATALOGUE]
    python tests/bench/frozen.py --cuda

A Qwen2-shaped decoder with random weights (8 layers of 512 by default; --cuda: Qwen2.5-7B's shape in bf16 and nf4), batches of 64
sequences of 32 places.  A step is forward and backward from the item vectors (full fine-tuning: SGD on top).  P11 counts the backbone's
FLOPs over an epoch of Beauty's sequences and of their prefixes, as the batches are cut in training.  Medians, in turn, in one process.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from beam import timed
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, Qwen2Config

from distrec import config as cfg
from distrec import knobs
from distrec.data import batches, prepared
from distrec.models.backbone import Backbone

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}  # fmt: skip
SEVEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
CAUSAL, OFF = knobs.Filter(mode="causal"), knobs.Filter(mode="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=Path, default=Path("../shared/data/amazon_beauty_2014"))
    parser.add_argument("--cuda", action="store_true")
    options = parser.parse_args()
    figures = large(options.rounds) if options.cuda else shares(options.rounds) | epochs(options.lengths)
    print(json.dumps({**figures, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))


def backbone(tfm: knobs.Filter, tune: str = "frozen", shape: dict = SMALL) -> Backbone:
    torch.manual_seed(0)
    decoder = AutoModel.from_config(Qwen2Config(vocab_size=64, **shape), attn_implementation="sdpa")
    return Backbone(knobs.Backbone(tune=tune), tfm, decoder).train()


def step(model: Backbone, n: int, length: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    x = torch.randn(n, length, model.width, device=device, dtype=dtype)
    segment = torch.ones(n, length, dtype=torch.long, device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, 1e-6) if trained else None

    def run() -> None:
        own = x.clone().requires_grad_()
        model(own, segment).float().square().mean().backward()
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()

    run()
    return run


def saved(model: Backbone, n: int, length: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights not among them."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(t), keep(t))[1], lambda t: t):
        model(torch.randn(n, length, model.width).requires_grad_(), torch.ones(n, length, dtype=torch.long))
    return sum(kept.values())


def shares(rounds: int) -> dict[str, float]:
    n, length = 64, 32
    models = {"frozen": backbone(OFF), "filtered": backbone(CAUSAL), "full": backbone(OFF, "full")}
    times = timed({name: step(model, n, length) for name, model in models.items()}, rounds)
    memory = {name: saved(model, n, length) for name, model in models.items()}
    for name, value in times.items():
        print(f"{name:<9} {1e3 * value:7.0f} ms a step, {n * length / value:7.0f} tokens/s, {memory[name] / 2**20:6.0f} MiB kept")  # fmt: skip
    return {
        "P9": round(times["frozen"] / times["full"], 3),
        "P9_mem": round(memory["frozen"] / memory["full"], 3),
        "P10": round(1 - times["frozen"] / times["filtered"], 3),
    }


def epochs(folder: Path) -> dict[str, float]:
    if not folder.is_dir():
        print(f"no catalogue in {folder}: P11 left out")
        return {}
    config = cfg.load([f"data.path={folder}", "data.source=sequences", "data.root=artefacts"])
    data = prepared.load(prepared.prepare(config.data))
    model, cost = backbone(CAUSAL, shape={**SMALL, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}), {}  # fmt: skip
    total = {}
    for kind in ("sequences", "prefixes"):
        samples = batches.training(data, kind, 50)
        total[kind] = 0.0
        for rows in batches.steps(samples, 4096, 0, 0):
            longest = max(1, int(samples.lengths(rows).max()))
            if longest not in cost:
                with FlopCounterMode(display=False) as counter:
                    model(torch.randn(1, longest, 64).requires_grad_(), torch.ones(1, longest, dtype=torch.long)).sum().backward()  # fmt: skip
                cost[longest] = counter.get_total_flops()
            total[kind] += len(rows) * cost[longest]
        print(f"{kind:<9} {len(samples):>7,} samples, {total[kind] / 1e12:8.3f} TFLOP an epoch (2 layers of 64)")
    return {"P11": round(total["prefixes"] / total["sequences"], 2)}


def large(rounds: int) -> dict[str, float]:
    """Tokens a second of a 7B decoder, frozen, filter on."""
    figures: dict[str, float] = {}
    for name in ("bf16", "nf4"):
        torch.manual_seed(0)
        with torch.device("cuda"):
            decoder = AutoModel.from_config(Qwen2Config(vocab_size=64, **SEVEN), attn_implementation="sdpa", dtype=torch.bfloat16)  # fmt: skip
        if name == "nf4":
            four_bits(decoder)
        for tfm in (CAUSAL, OFF) if name == "bf16" else (CAUSAL,):
            model = Backbone(knobs.Backbone(dtype="bfloat16"), tfm, decoder).train()
            n, length = 64, 256
            took = timed({"step": step(model, n, length, "cuda", torch.bfloat16)}, rounds)["step"]
            speed, key = n * length / took, f"{name}{'' if tfm is CAUSAL else '_off'}"
            weights = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
            figures[key] = round(speed)
            print(f"{key:<9} {speed:9.0f} tokens/s, {4 * weights * speed / 1e12:6.0f} TFLOP/s by 4·N, {torch.cuda.max_memory_allocated() / 2**30:5.1f} GiB")  # fmt: skip
            if model.attached is not None:
                model.attached.remove()
        del decoder, model
        torch.cuda.empty_cache()
    return {"P12": figures["bf16"], "P13": round(figures["nf4"] / figures["bf16"], 3), "P10_7B": round(1 - figures["bf16"] / figures["bf16_off"], 4)}  # fmt: skip


def four_bits(decoder: torch.nn.Module) -> None:
    """Its linear layers in nf4, in place."""
    from bitsandbytes.nn import Linear4bit

    for module in list(decoder.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear:
                new = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, torch.bfloat16, True, "nf4", torch.bfloat16)  # fmt: skip
                new.load_state_dict(layer.state_dict())
                setattr(module, name, new.to("cuda"))


if __name__ == "__main__":
    main()
