"""What a rehearsal counts against what torch's own profiler and FLOP counter see of the real thing."""

import pytest
import torch
from decoders import CLASSES, saved, two_steps
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from distrec import config as cfg
from distrec import knobs
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.engine.costs.rehearsal import Rehearsal
from distrec.jobs.parts.sizing import weights
from distrec.models.backbone import Backbone
from distrec.models.build import sketch
from distrec.models.frellm import Frellm
from distrec.models.language.pretrained import open_decoder
from distrec.models.ranking import by_table
from distrec.models.sasrec import SasRec
from distrec.models.tone import Tone

ITEMS, ROWS, WIDTH = 700, 24, 20
SIZES = (16, 16, 16)


def batch(last_only=False, rows=ROWS):
    draw = torch.Generator().manual_seed(0)
    items = torch.randint(ITEMS, (rows, WIDTH + 1), generator=draw)
    everywhere = torch.ones(rows, WIDTH, dtype=torch.bool)
    counts = everywhere.clone()
    if last_only:
        counts[:, :-1] = False
    return Batch(torch.arange(rows), items[:, :-1], everywhere, items[:, 1:], counts)


def peak(work):
    """The most bytes that were there at once, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    now = most = 0
    for event in told.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def products(work):
    """FLOPs of every product, attention as the products that it stands for."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def own(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def frellm(folder, **settings):
    backbone = knobs.Backbone(
        **{key: settings.pop(key) for key in ("dtype", "quantise", "tune", "checkpointing") if key in settings}
    )
    settings = {"tfm": knobs.Filter(mode="causal"), **settings}
    config = knobs.Frellm(backbone=backbone, hidden=64, **settings)
    decoder = open_decoder(folder, backbone.dtype, backbone.quantise)
    tables = torch.randn(ITEMS, 10), torch.randn(ITEMS, 24)
    return config, Frellm(config, Backbone(backbone, config.tfm, decoder), *tables)


CASES = [(kind, {}) for kind in CLASSES] + [("qwen2", settings) for settings in (
    {"tune": "lora"}, {"tune": "full"}, {"checkpointing": True}, {"dtype": "bfloat16"},
    {"loss": "sampled", "negatives": 50}, {"tfm": knobs.Filter(mode="causal", learn_cutoff=True)},
)]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_a_language_model_takes_what_was_rehearsed(tmp_path, kind, settings):
    folder = saved(tmp_path, kind, width=128)
    config, model = frellm(folder, **settings)
    rehearsal = Rehearsal(sketch(config, ITEMS, widths=(10, 24), folder=folder), ITEMS)
    taken, flops = rehearsal.train(ROWS, WIDTH, False, 1, False)
    assert own(rehearsal.model) == pytest.approx(own(model), rel=1e-3)
    real = own(model) + peak(lambda: two_steps(model, batch()))
    assert taken.peak + taken.scratch == pytest.approx(real, rel=0.1 if config.tfm.learn_cutoff else 0.03)
    assert sum(flops.values()) == pytest.approx(products(lambda: model(batch()).backward()), rel=0.02)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
@pytest.mark.parametrize("kind", CLASSES)
def test_four_bits_take_what_was_reckoned(tmp_path, kind, tune):
    folder = saved(tmp_path, kind, width=256)
    config, model = frellm(folder, quantise="nf4", tune=tune)
    sketched = sketch(config, ITEMS, widths=(10, 24), folder=folder)
    held = weights(cfg.Config(model=config), sketched)
    packed = [(p, getattr(p, "quant_state", None)) for p in model.parameters() if not p.requires_grad]
    scales = [value for _, state in packed if state for value in state.as_dict(packed=False).values() if isinstance(value, torch.Tensor)]  # fmt: skip
    real = sum(p.nbytes for p, _ in packed) + sum(value.nbytes for value in scales)
    assert held.frozen == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(
    ("config", "last_only"),
    [(knobs.SasRec(dropout=0.0), False), (knobs.SasRec(loss="bce"), False), (knobs.Tiger(n_layers=2), True), (knobs.Tone(n_layers=2), True)],
    ids=["sasrec", "sasrec bce", "tiger", "tone"],
)  # fmt: skip
def test_other_models_take_what_was_rehearsed(config, last_only):
    if isinstance(config, knobs.SasRec):
        model = SasRec(config, ITEMS)
    else:
        ids = torch.arange(ITEMS)
        codes = torch.stack([ids // 256, ids // 16 % 16, ids % 16], 1)
        model = Tone(config, ItemCodes.of(codes, SIZES))
    rehearsal = Rehearsal(sketch(config, ITEMS, SIZES), ITEMS)
    taken, flops = rehearsal.train(ROWS, WIDTH, last_only, 1, False)
    real = own(model) + peak(lambda: two_steps(model, batch(last_only)))
    assert taken.peak + taken.scratch == pytest.approx(real, rel=0.03)
    assert sum(flops.values()) == pytest.approx(products(lambda: model(batch(last_only)).backward()), rel=0.02)


def test_ranking_takes_what_was_rehearsed(tmp_path):
    folder = saved(tmp_path, width=128)
    config, model = frellm(folder)
    ranked = Rehearsal(sketch(config, ITEMS, widths=(10, 24), folder=folder), ITEMS).rank(ROWS, WIDTH, 256)
    model.eval()

    @torch.no_grad()
    def work():
        scores = by_table(model.user_states(batch()), model.item_vectors(slice(0, 256)))(slice(0, 256))
        scores.sub_(scores[:, :1].clone()).sign_().sum(1)

    assert ranked.taken.peak == pytest.approx(own(model) + peak(work), rel=0.03)
    told = sum(sum(part.values()) for part in (ranked.table, ranked.users, ranked.chunk))
    assert told == pytest.approx(products(work), rel=0.05)  # it takes every place of the histories for another item


def test_accumulated_gradients_are_there_with_the_next_pass():
    config = knobs.SasRec()
    once, twice = (
        Rehearsal(sketch(config, ITEMS), ITEMS).train(ROWS, WIDTH, False, pieces, False)[0].peak for pieces in (1, 3)
    )
    assert twice > once


def test_a_model_that_counts_has_nothing_to_rehearse():
    with pytest.raises(ValueError, match=r"model\.name=markov counts"):
        sketch(knobs.Markov(), ITEMS)
