"""Parts of an analysis: what was learnt, ranks of attention, and what each part of a model costs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decoders import frellm, saved
from tones import SIZES, SMALL
from torch.profiler import ProfilerActivity, profile

from distrec import config as cfg
from distrec import knobs
from distrec.data import batches
from distrec.data.item_codes import ItemCodes
from distrec.engine.costs import anatomy
from distrec.engine.costs.meter import flop_counter
from distrec.jobs.analysis import cost as costs
from distrec.jobs.analysis.attention import Layer, attention
from distrec.jobs.analysis.cost import cost
from distrec.jobs.analysis.learnt import learnt
from distrec.jobs.analysis.subject import Subject
from distrec.jobs.analysis.tables import vectors
from distrec.jobs.pages.learnt import blocks, curves, short
from distrec.jobs.pages.page import Picture, Table, Text
from distrec.models.attention import Seen, observe
from distrec.models.baselines.counting import Popularity
from distrec.models.sasrec import SasRec
from distrec.models.tone import Tone


def subject(folder, data, model=None, words=()):
    return Subject(folder, cfg.load(list(words)), model, data, torch.device("cpu"), folder, users=40)


def journal(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_of_what_was_learnt_start_before_the_first_step(small, tmp_path):
    name = "crfa.real.layers.0.attention.rpml"
    facts = [{"sigma": 3.0 - n, f"{name}.lm_alpha": 0.4, f"{name}.rank@0.01": 7 + n, "cutoff.1": 0.3} for n in (0, 1)]
    journal(tmp_path, {"event": "train", "loss": 1}, *({"epoch": 2 * n, "learnt": facts[n]} for n in (0, 1)))
    part = learnt(subject(tmp_path, small))
    assert part.figures["sigma"] == {"": [(0, 3.0), (2, 2.0)]}
    assert part.figures["rank@0.01"] == {"crfa.real 1": [(0, 7.0), (2, 8.0)]}
    assert part.figures["cutoff"] == {"layer 2": [(0, 0.3), (2, 0.3)]}
    table, *pictures = part.section.blocks
    assert isinstance(table, Table)
    assert table.rows[0] == ("σ of the Gaussian filter (tokens)", "", 3.0, 2.0, -1.0)
    assert [block.name for block in pictures if isinstance(block, Picture)] == [
        "learnt-sigma", "learnt-lm-alpha", "learnt-rank-0-01", "learnt-cutoff"
    ]  # fmt: skip
    assert all((tmp_path / f"{block.name}.svg").is_file() for block in pictures)
    json.dumps(part.figures)


def test_one_evaluation_gives_no_curve(tmp_path):
    found = curves([{"event": "valid", "epoch": 1, "learnt": {"sigma": 3.0}}])
    (table,) = blocks(found, tmp_path)
    assert isinstance(table, Table)
    assert table.rows == (("σ of the Gaussian filter (tokens)", "", 3.0, 3.0, 0.0),)
    assert blocks(curves([{"event": "valid", "epoch": 1}]), tmp_path) == ()


def test_a_model_that_learns_no_such_thing_says_so(small, tmp_path):
    journal(tmp_path, {"event": "valid", "epoch": 1})
    part = learnt(subject(tmp_path, small))
    assert part.figures == {}
    assert isinstance(part.section.blocks[0], Text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("crfa.real.layers.0.attention.rpml", "crfa.real 1"),
        ("encoder.layers.11.attention", "encoder 12"),
        ("backbone.decoder.layers.3.self_attn", "backbone.decoder 4"),
        ("blocks.1", "layer 2"),
        ("layers.30", "layer 31"),
    ],
)
def test_names_of_layers_are_short(name, wanted):
    assert short(name) == wanted


def sasrec_of(data):
    torch.manual_seed(0)
    return SasRec(knobs.SasRec(d_model=16, n_heads=2, max_len=12), data.n_items).eval()


def tone_of(data, **settings):
    n = torch.arange(data.n_items)
    codes = ItemCodes.of(torch.stack([n // 64, n // 8 % 8, n % 8, 0 * n], 1), SIZES)
    torch.manual_seed(0)
    return Tone(knobs.Tone(**{**SMALL, "max_len": 6, **settings}), codes).eval()


def rank_of(matrix, tolerance):
    values = np.linalg.svd(matrix, compute_uv=False)
    return (values > tolerance * values[0]).sum()


def test_ranks_of_attention_are_those_of_each_user_s_own_places(small, tmp_path):
    one = subject(tmp_path, small, sasrec_of(small))
    part = attention(one)
    wanted, lengths = [], []
    for batch in one.batches():
        seen = observe(one.model, batch)[1]
        for user, is_place in enumerate(seen.is_place):
            own = seen.weights[user][:, is_place][:, :, is_place].double().numpy()
            wanted.append([[rank_of(matrix, tolerance) for matrix in own] for tolerance in (1e-2, 1e-6)])
            lengths.append(int(is_place.sum()))
    assert part.figures["users"] == len(wanted) == 40
    found = part.figures["layers"]["layer 2"]["by_head"]
    np.testing.assert_allclose([found["rank@0.01"], found["rank@1e-06"]], np.mean(wanted, 0))
    assert found["n"] == [pytest.approx(np.mean(lengths))] * 2
    assert min(lengths) < max(lengths)  # so that padding matters
    assert all(1 <= rank <= np.mean(lengths) for rank in found["effective_rank"])
    decay = part.figures["layers"]["layer 2"]["decay"]
    assert decay[0] == pytest.approx(1)
    assert decay == sorted(decay, reverse=True) or max(lengths) > min(lengths)
    assert [type(block) for block in part.section.blocks] == [Text, Table, Table, Picture]
    assert (tmp_path / "attention-decay.png").is_file()
    json.dumps(part.figures)


def test_a_tone_s_ranks_stand_beside_those_before_and_those_of_m(small, tmp_path):
    model = tone_of(small)
    part = attention(subject(tmp_path, small, model))
    layers = part.figures["layers"]
    assert list(layers) == ["crfa.real 1", "crfa.real 2", "crfa.imaginary 1", "crfa.imaginary 2"]
    matrix = model.crfa.real.layers[0].attention.rpml.matrix.detach()
    own = layers["crfa.real 1"]
    assert own["softplus(M)"]["rank@0.01"] == rank_of(torch.nn.functional.softplus(matrix).double().numpy(), 1e-2)
    assert own["by_head"]["n"] == [13.0, 13.0]  # 24 tokens: 13 frequencies
    assert set(own["by_head"]) >= {"before.rank@0.01", "rank@1e-06", "before.effective_rank", "kept"}
    verdict, _, table, by_head, _ = part.section.blocks
    assert verdict.kind == "verdict"
    assert len(table.head) == len(table.rows[0]) == 12
    assert len(by_head.rows) == 8
    plain = attention(subject(tmp_path, small, tone_of(small, agf=False, crfa=False, rpml=False)))
    assert "kept" not in plain.figures["layers"]["encoder 1"]["by_head"]
    assert [len(block.head) for block in plain.section.blocks if isinstance(block, Table)] == [5, 6]
    counting = attention(subject(tmp_path, small, Popularity(small)))
    assert counting.figures == {}


def hooks_of(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def costs_of(one):
    before = hooks_of(one.model)
    figures = cost(one).figures
    assert hooks_of(one.model) == before
    assert sum(figures["seconds"].values()) == pytest.approx(figures["profiled"], rel=0.02)
    assert figures["seconds"]["rest"] < 0.95 * figures["profiled"]
    assert not one.model.training
    assert all(parameter.grad is None for parameter in one.model.parameters())
    return figures


def whole_flops(one, n_rows):
    samples = batches.training(one.data, one.model.samples, one.model.max_len)
    steps = batches.steps(samples, one.config.train.batch_tokens, 0, 0)
    rows = next(rows for rows in steps if len(rows) == n_rows[0] and samples.lengths(rows).max() == n_rows[1])
    batch = batches.collate(one.data, samples, rows)
    one.model.train()  # dropout has attention worked out otherwise
    with flop_counter() as counter:
        one.model(batch).backward()
    one.model.eval()
    return counter.get_total_flops()


def event(name, start, end, number=-1, is_gradient=False):
    """What torch's profiler tells, in microseconds."""
    time_range = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(
        name=name, time_range=time_range, sequence_nr=number, scope=int(is_gradient), device_time_total=0
    )


def test_seconds_are_those_of_a_part_s_segments_and_of_the_gradients_of_what_ran_in_them():
    events = [
        event("distrec whole", 0, 1000),
        event("part/rest", 0, 10), event("part/a", 10, 50), event("part/b", 50, 70), event("part/a", 70, 100),
        event("op", 10, 20, 1), event("op", 49, 50, 2), event("op", 50, 60, 3), event("op", 75, 80, 4), event("op", 5, 6, 5),
        event("grad", 200, 201, 4, True), event("grad", 210, 212, 3, True), event("grad", 220, 224, 2, True),
        event("grad", 230, 238, 1, True), event("grad", 240, 256, 5, True), event("inside", 241, 250, 1),
        event("grad", 300, 400, 99, True),  # of no forward operator
    ]  # fmt: skip
    taken, whole = anatomy._sorted(events[::-1], on_gpu=False)
    assert whole == pytest.approx(1e-3)
    assert taken == {"a": pytest.approx((40 + 30 + 1 + 4 + 8) * 1e-6), "b": pytest.approx((20 + 2) * 1e-6)}


def test_a_layer_s_figures_are_means_over_users_and_their_own_places_however_batches_cut_them():
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([2, 3, 3])
    weights, kept = torch.rand(3, 2, 3, 3, generator=draw), torch.rand(3, 2, 3, generator=draw)
    is_place = torch.arange(3).flip(0) < lengths[:, None]  # padding on the left
    whole = Seen("layers.0.attention", weights, is_place, kept=kept)
    layer = Layer(whole)
    for rows in (slice(0, 1), slice(1, 3)):
        layer.add(Seen(whole.name, weights[rows], is_place[rows], kept=kept[rows]))
    found = layer.by_head()
    for head in range(2):
        own = [kept[user, head, 3 - n :].mean() for user, n in enumerate(lengths)]
        assert float(found["kept"][head]) == pytest.approx(float(torch.stack(own).mean()))
        assert float(found["n"][head]) == pytest.approx(8 / 3)
    values = [np.linalg.svd(weights[user, :, 3 - n :, 3 - n :].double().numpy(), compute_uv=False) for user, n in enumerate(lengths)]  # fmt: skip
    logs = [np.log(each / each[:, :1]).mean(0) for each in values]
    wanted = [np.exp(np.mean([each[i] for each in logs if len(each) > i])) for i in range(3)]
    assert layer.decay()["decay"].tolist() == pytest.approx(wanted)


def test_what_a_tone_takes_is_told_by_part_and_adds_up(small, tmp_path):
    one = subject(tmp_path, small, tone_of(small), ["train.batch_tokens=200"])
    figures = costs_of(one)
    parts = {
        "embedding", "Gaussian filter (AGF)", "Fourier transforms (CRFA)", "attention", "feed-forward", "decoder",
        "logits and loss", "rest",
    }  # fmt: skip
    assert set(figures["seconds"]) == parts
    assert set(figures["flops"]) <= parts - {"rest"}
    shape = figures["batch"]
    assert sum(figures["flops"].values()) == whole_flops(one, (shape["users"], shape["positions"]))
    rows, layers, frequencies, width = shape["users"], 2 * 2, 13, (16, 32)  # of both stacks; d_model, d_ff
    assert figures["flops"]["feed-forward"] == 3 * 2 * rows * layers * frequencies * 2 * width[0] * width[1]
    assert figures["bytes"]["AdamW's two moments"] == 2 * figures["bytes"]["trained weights"]
    assert figures["bytes"]["passes at their peak"] > figures["bytes"]["trained weights"]


def test_the_batch_is_the_median_step_s_and_memory_is_what_torchs_profiler_sees(small, tmp_path):
    one = subject(tmp_path, small, sasrec_of(small), ["train.batch_tokens=200"])
    batch, n_pieces = costs._usual(one)
    samples = batches.training(small, "sequences", 12)
    sizes = sorted(len(rows) * int(samples.lengths(rows).max()) for rows in batches.steps(samples, 200, 0, 0))
    assert batch.items.numel() == sizes[len(sizes) // 2] != sizes[0]
    assert n_pieces == 1
    one.model.train()
    found = costs._memory(one, batch)
    one.model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        one.model(batch).backward()
    changes = [event.nbytes() for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    weights = sum(parameter.nbytes for parameter in one.model.parameters())  # which are not in it
    assert found["passes at their peak"] == pytest.approx(max(np.cumsum(changes)), abs=weights / 3)
    sizes = {True: 0, False: 0}
    one.model.item.weight.requires_grad_(False)
    for parameter in one.model.parameters():
        sizes[parameter.requires_grad] += parameter.nbytes
    found = costs._memory(one, batch)
    assert (found["trained weights"], found["frozen weights"]) == (sizes[True], sizes[False])
    assert found["AdamW's two moments"] == 2 * sizes[True]
    assert found["buffers"] == sum(buffer.nbytes for buffer in one.model.buffers())


def test_what_a_model_knows_of_items_is_its_table_or_the_mean_of_their_codes(small):
    tone, sasrec = tone_of(small), sasrec_of(small)
    ((name, found),) = vectors(tone, "")
    assert name == "codes' embeddings, mean"
    for item in (0, 7, small.n_items - 1):
        torch.testing.assert_close(found[item], torch.stack([tone.shared.weight[token] for token in tone.token_of[item]]).mean(0))  # fmt: skip
    ((name, found),) = vectors(sasrec, "")
    assert name == "item table"
    assert torch.equal(found, sasrec.item_vectors(slice(0, small.n_items)))
    assert not list(vectors(Popularity(small), ""))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_language_model_s_filters_have_their_own_line(small, tmp_path, checkpointing):
    model = frellm(saved(tmp_path / "llm"), n_items=small.n_items, tfm={"learn_cutoff": True}).eval()
    if checkpointing:
        model.backbone.decoder.activation_checkpointing_enable()
    figures = costs_of(subject(tmp_path, small, model, ["train.batch_tokens=200"]))
    rows, width, layers = figures["batch"]["users"], figures["batch"]["positions"], 3
    filters = figures["flops"]["temporal filter (TFM)"]
    # a matrix by the states; backward by the states and by the matrix, as the cutoff is learnt
    assert filters >= 3 * 2 * rows * width * width * 64 * layers
    assert figures["seconds"]["temporal filter (TFM)"] > 0
    assert set(figures["seconds"]) >= {"item table", "attention", "feed-forward", "logits and loss"}
    assert figures["bytes"]["frozen weights"] > 0


def test_a_sasrec_s_attention_and_feed_forward_are_told_apart(small, tmp_path):
    one = subject(tmp_path, small, sasrec_of(small), ["train.batch_tokens=200"])
    figures = costs_of(one)
    rows = figures["batch"]["users"] * figures["batch"]["positions"]
    assert figures["flops"]["feed-forward"] == 3 * 2 * rows * 2 * 2 * 16 * 64
    assert figures["flops"]["attention"] > 3 * 2 * rows * 2 * (3 * 16 * 16 + 16 * 16)
    assert [type(block) for block in cost(one).section.blocks] == [Text, Table, Picture, Table]
    assert cost(subject(tmp_path, small, Popularity(small))).figures == {}
