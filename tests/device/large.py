"""A frozen 7B: tokens a second, 4-bit weights, shapes that were not seen before."""

import gc
import statistics
import time

import torch
from device.inputs import histories
from device.visit import failed, gib, left, say, section, sync, timed, visit

SEVEN = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def decoder_of(layers=None):
    from transformers import AutoModel, Qwen2Config

    shape = dict(TINY if visit.small else SEVEN)
    if layers:
        shape["num_hidden_layers"] = layers
    torch.manual_seed(0)
    with torch.device(visit.device):
        return AutoModel.from_config(
            Qwen2Config(vocab_size=64, **shape), attn_implementation="sdpa", dtype=torch.bfloat16
        )


def four_bits(decoder):
    """Packed where they lie: no detour over the host, biases stay bfloat16."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for module in list(decoder.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear:
                with torch.device("meta"):
                    new = Linear4bit(
                        layer.in_features,
                        layer.out_features,
                        layer.bias is not None,
                        torch.bfloat16,
                        True,
                        "nf4",
                        torch.bfloat16,
                    )
                new.weight = Params4bit(
                    layer.weight.data,
                    requires_grad=False,
                    compress_statistics=True,
                    quant_type="nf4",
                    quant_storage=torch.bfloat16,
                    module=new,
                )
                new.bias = layer.bias
                new.weight = new.weight.to(visit.device)
                layer.weight = None
                setattr(module, name, new)


def passes(backbone, n, length, is_window=True):
    """Forward and backward pass of windows; as packed rows, which take a dense mask, where `is_window` is false."""
    x = torch.randn(n, length, backbone.width, device=visit.device, dtype=torch.bfloat16)
    segment = torch.ones(n, length, dtype=torch.long, device=visit.device)

    def run():
        own = x.clone().requires_grad_()
        backbone(own, segment, is_window).float().square().mean().backward()

    return run


@section(75)
def seven():
    """A frozen 7B: tokens a second by filter, length and attention kernel; the seal; a real FreLLM4Rec step."""
    from distrec import knobs
    from distrec.models import backbone as module
    from distrec.models.backbone import Backbone
    from distrec.models.frellm import Frellm

    real, module.digest = module.digest, lambda *_: ""
    decoder = decoder_of()
    weights = sum(p.numel() for p in decoder.layers.parameters())
    say("weights", billion=weights / 1e9, gib=gib())
    off, causal = knobs.Filter(mode="none"), knobs.Filter(mode="causal")
    tokens = 64 if visit.small else 8192
    for name, tfm, length, tf32, is_window, cudnn in (
        ("off, T 50", off, 50, False, True, False), ("causal, T 50", causal, 50, False, True, False), ("causal, T 50, tf32", causal, 50, True, True, False),
        ("causal, T 50, dense mask", causal, 50, False, False, False), ("causal, T 50, dense mask, cuDNN", causal, 50, False, False, True),
        ("off, T 256", off, 256, False, True, False), ("causal, T 256", causal, 256, False, True, False),
        ("causal, T 256, dense mask", causal, 256, False, False, False), ("causal, T 256, tf32", causal, 256, True, True, False),
    ):  # fmt: skip
        if left() < 40:
            break
        try:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            one = Backbone(knobs.Backbone(dtype="bfloat16"), tfm, decoder).train()
            length = min(length, 16) if visit.small else length
            n = max(1, tokens // length)
            if visit.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            took = timed(passes(one, n, length, is_window), 3, 1)
            say(
                name,
                **{
                    "tokens/s": n * length / took,
                    "TFLOP/s by 4N": 4 * weights * n * length / took / 1e12,
                    "gib": gib(),
                },
            )
            if one.attached is not None:
                one.attached.remove()
        except Exception as error:
            failed(name, error)
            for layer in decoder.layers:
                layer._forward_hooks.clear(), layer._forward_hooks_with_kwargs.clear()
                layer.__dict__.pop(module.__dict__.get("_MARK", "_distrec_filter"), None)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    one = Backbone(knobs.Backbone(dtype="bfloat16"), causal, decoder)
    width = one.width
    items, batch = (400, histories(4, 16, 400)) if visit.small else (12_101, histories(160, 50, 12_101))
    for name, tf32, auto in (
        ("frellm step, float32 around", False, False),
        ("frellm step, tf32 around", True, False),
        ("frellm step, bf16 autocast", False, True),
    ):
        if left() < 30:
            break
        torch.backends.cuda.matmul.allow_tf32 = tf32
        model = (
            Frellm(
                knobs.Frellm(backbone=knobs.Backbone(dtype="bfloat16"), tfm=causal, head="linear"),
                one,
                torch.randn(items, 50),
                torch.randn(items, width),
            )
            .to(visit.device)
            .train()
        )
        there = batch.to(visit.device)

        def step(model=model, auto=auto, there=there):
            with torch.autocast(visit.device.type, torch.bfloat16, enabled=auto):
                loss = model(there)
            loss.backward()

        if visit.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        took = timed(step, 3, 1)
        say(name, **{"ms": 1e3 * took, "places/s": batch.items.numel() / took, "gib": gib()})
        del model
    torch.backends.cuda.matmul.allow_tf32 = False
    module.digest = real
    say("the seal, at a save", s=timed(one.check_seal, 3, 1))
    began = time.perf_counter()
    module.digest(module._frozen(decoder))
    say("the seal, at load and at the end", s=time.perf_counter() - began)


@section(25)
def four():
    """nf4: the same passes, and against the unpacked weights."""
    from distrec import knobs
    from distrec.models import backbone as module
    from distrec.models.backbone import Backbone

    real, module.digest = module.digest, lambda *_: ""
    decoder = decoder_of()
    four_bits(decoder)
    gc.collect()  # the sections before leave a decoder in cycles
    if visit.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    one = Backbone(knobs.Backbone(dtype="bfloat16"), knobs.Filter(mode="causal"), decoder).train()
    say("type", backbone=str(one.dtype))
    for tokens in (64,) if visit.small else (8192, 16384):
        try:
            n = max(1, tokens // (16 if visit.small else 50))
            took = timed(passes(one, n, 16 if visit.small else 50), 3, 1)
            say(f"nf4, {tokens} places", **{"tokens/s": n * (16 if visit.small else 50) / took, "gib": gib()})
        except Exception as error:
            failed(f"nf4, {tokens} places", error)
    module.digest = real


@section(25)
def shapes():
    """What a shape costs that was not seen before: cuDNN builds a plan for each."""
    from distrec import knobs
    from distrec.models import backbone as module
    from distrec.models.backbone import Backbone

    module.digest, real = (lambda *_: ""), module.digest
    decoder = decoder_of(layers=2)
    one = Backbone(knobs.Backbone(dtype="bfloat16"), knobs.Filter(mode="none"), decoder).train()
    for name, cudnn in (("cuDNN allowed", True), ("without cuDNN", False)):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        new, again = [], []
        for length in range(9, 29 if not visit.small else 11):
            run = passes(one, 512 // length, length, is_window=False)
            for took in (new, again):
                sync()
                began = time.perf_counter()
                run()
                sync()
                took.append(time.perf_counter() - began)
        say(name, **{"ms at first": 1e3 * statistics.median(new), "ms again": 1e3 * statistics.median(again)})
    torch.backends.cuda.enable_cudnn_sdp(False)
    module.digest = real
