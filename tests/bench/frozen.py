"""P9, P10, P11: what a frozen backbone saves, what the filter costs, what all-position training saves.   P12, P13 on a GPU.

    python tests/bench/frozen.py [--rounds 7] [--lengths FOLDER_OF_A_CATALOGUE]
    python tests/bench/frozen.py --cuda [--rounds 7] [--small]

A Qwen2-shaped decoder with random weights (8 layers of 512), batches of 64 sequences of 32 places.  A step is forward and backward from
the item vectors (full fine-tuning: SGD on top).  P11 counts the backbone's FLOPs over an epoch of Beauty's sequences and of their
prefixes, as the batches are cut in training.  Medians, in turn, in one process.

--cuda: Qwen2.5-7B's shape in bf16 and nf4, sequences of 256 places, as many as fit; a line a case, and the JSON of all cases so far after
each.  Some 90 seconds on an H100 [estimate].  --small: a rehearsal at two layers of 64, on the CPU where there is no GPU.
"""

import argparse
import json
import os
import time
from pathlib import Path
from unittest import mock

import torch
from beam import timed
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, Qwen2Config

from distrec import config as cfg
from distrec import knobs
from distrec.data import batches, prepared
from distrec.models import backbone as module
from distrec.models.backbone import Backbone

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}  # fmt: skip
SEVEN = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CAUSAL, OFF = knobs.Filter(mode="causal"), knobs.Filter(mode="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=Path, default=Path("../shared/data/amazon_beauty_2014"))
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    figures = large(options.rounds, options.small) if options.cuda else shares(options.rounds) | epochs(options.lengths)
    print(json.dumps({**figures, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))


def backbone(tfm: knobs.Filter, tune: str = "frozen", shape: dict = SMALL) -> Backbone:
    torch.manual_seed(0)
    decoder = AutoModel.from_config(Qwen2Config(vocab_size=64, **shape), attn_implementation="sdpa")
    return Backbone(knobs.Backbone(tune=tune), tfm, decoder).train()


def step(
    model: Backbone,
    n: int,
    length: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    is_window: bool = True,
):
    x = torch.randn(n, length, model.width, device=device, dtype=dtype)
    segment = torch.ones(n, length, dtype=torch.long, device=device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, 1e-6) if trained else None

    def run() -> None:
        own = x.clone().requires_grad_()
        model(own, segment, is_window).float().square().mean().backward()
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


def large(rounds: int, small: bool = False) -> dict[str, float]:
    """Tokens a second of a 7B decoder, frozen.

    One decoder for all cases.  A case builds a Backbone on it, takes the filters off again, and leaves nothing that looks at
    the decoder; then it can be packed where it lies.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder, length = (tiny(device), 16) if small else (drawn(SEVEN, device), 256)
    n_weights = sum(p.numel() for p in decoder.layers.parameters())
    n, figures = rows_that_fit(decoder, length, device, 4 if small else 64), {}
    cases = [("bf16", CAUSAL, True), ("bf16_off", OFF, True), ("bf16_mask", CAUSAL, False), ("nf4", CAUSAL, True)]
    for key, tfm, is_window in cases:
        if key == "nf4":
            began = time.perf_counter()
            four_bits(decoder)
            print(f"packed in {time.perf_counter() - began:.1f} s")
        speed, peak = case(decoder, tfm, n, length, device, rounds, is_window)
        figures[key] = round(speed)
        print(f"{key:<9} {speed:9.0f} tokens/s, {4 * n_weights * speed / 1e12:7.2f} TFLOP/s by 4·N, {n} × {length} places, {peak:5.1f} GiB")  # fmt: skip
        if key == "bf16":
            figures["seal_gb_s"] = seal(decoder)
        print(json.dumps(summary(figures)), flush=True)
    return summary(figures)


def drawn(shape: dict, device: str):
    torch.manual_seed(0)
    with torch.device(device):
        config = Qwen2Config(vocab_size=64, **shape)
        return AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)


def tiny(device: str):
    return drawn(TINY, device)


def summary(figures: dict[str, float]) -> dict[str, float]:
    """The benchmarks' figures that the cases so far give."""
    bf16 = figures["bf16"]
    found = {**figures, "P12": bf16}
    if "bf16_off" in figures:
        found["P10_7B"] = round(1 - bf16 / figures["bf16_off"], 4)
    if "nf4" in figures:
        found["P13"] = round(figures["nf4"] / bf16, 3)
    return found


def over(decoder: torch.nn.Module, tfm: knobs.Filter) -> Backbone:
    """A Backbone without the sha256 of its weights, which go through the host at some GB/s."""
    with mock.patch.object(module, "digest", return_value=""):
        return Backbone(knobs.Backbone(dtype="bfloat16"), tfm, decoder).train()


def case(decoder, tfm, n, length, device, rounds, is_window=True) -> tuple[float, float]:
    """(tokens a second, GiB at the peak)."""
    model = over(decoder, tfm)
    reset(device)
    took = timed({"step": step(model, n, length, device, torch.bfloat16, is_window)}, rounds)["step"]
    if model.attached is not None:
        model.attached.remove()
    return n * length / took, peak(device)


def rows_that_fit(decoder, length, device, most) -> int:
    """Sequences for four fifths of the memory that is left, by what two and four take."""
    if device == "cpu":
        return most
    taken = {n: case(decoder, CAUSAL, n, length, device, 1)[1] for n in (2, 4)}
    reset(device)
    free = torch.cuda.mem_get_info()[0] / 2**30
    each = max((taken[4] - taken[2]) / 2, 1e-3)
    n = int(max(1, min(most, 0.8 * free / each)))
    print(f"{each:.2f} GiB a sequence of {length}, {free:.1f} GiB free: {n} sequences")
    return n


def seal(decoder) -> float:
    """GB/s of the fingerprint of all weights."""
    model = over(decoder, OFF)
    began = time.perf_counter()
    model.check_seal()  # ends with a read from the device
    took = time.perf_counter() - began
    size = sum(p.nbytes for p in decoder.parameters())
    print(f"seal      {size / took / 1e9:9.2f} GB/s: {took:.3f} s")
    return round(size / took / 1e9, 2)


def reset(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    return 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30


def four_bits(decoder: torch.nn.Module) -> None:
    """Pack its linear layers in nf4 where they lie; biases keep their type."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(decoder.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                with torch.device("meta"):
                    new = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, torch.bfloat16, True, "nf4", torch.bfloat16)  # fmt: skip
                packed = Params4bit(layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", quant_storage=torch.bfloat16, module=new)  # fmt: skip
                new.weight, new.bias = packed.to(layer.weight.device), layer.bias
                new.support_avx512bf16_for_cpu = False
                setattr(parent, name, new)


if __name__ == "__main__":
    main()
