"""What a run will take, told beforehand, against what it took."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from decoders import CLASSES, saved

from distrec import config as cfg
from distrec.data import batches, prepared
from distrec.engine.costs import budget
from distrec.engine.costs.budget import Weights
from distrec.engine.costs.cards import DEVICES
from distrec.engine.costs.rehearsal import Ranked, Rehearsal, Taken
from distrec.jobs import plan
from distrec.jobs.parts import estimate, sizing
from distrec.runtime import DONE, FAILED
from distrec.settings import Schema

DATA = ["data.synthetic.users=200", "data.synthetic.items=100"]
SMALL = [*DATA, "train.batch_tokens=500", "train.epochs=1", "score.bootstrap=0"]


def row(told, name):
    """The cells of a line of the table."""
    return re.search(rf"^ *{re.escape(name)} {{2,}}(.*)$", told, re.M)[1].split()


def test_a_small_run_is_planned_and_fits(tmp_path, capsys):
    assert plan.main([*SMALL, f"data.root={tmp_path}", "processes=1,2", "gpu=cpu", "usd_hour=2"]) == DONE
    told = capsys.readouterr().out
    assert row(told, "processes") == ["1", "2"]
    assert row(told, "training, MiB")
    assert "yes" in told
    assert "USD" in told
    assert "disk, GiB" in told


@pytest.mark.parametrize("kind", CLASSES)
def test_a_language_model_is_planned_by_its_config_alone(tmp_path, kind):
    folder = saved(tmp_path / "llm", kind)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    words = [*SMALL, "model.name=frellm", f"model.backbone.path={folder}", "model.tfm.mode=causal"]
    assert plan.main([*words, f"data.root={tmp_path}", "processes=1"]) == DONE


@pytest.mark.parametrize(("name", "billions"), [("qwen2.5-7b", 7.07), ("llama-3.1-8b", 7.50), ("mistral-7b", 7.11)])
def test_the_shipped_shapes_are_those_of_the_models(name, billions):
    """Published totals are 7.62, 8.03 and 7.25 billion; the head (vocabulary × width), which nothing here needs, is left out."""
    config = cfg.load(["model.name=frellm", f"model.backbone.path={ROOT / 'configs/backbone' / name}"])
    model = sizing.sketched(config, 100, ROOT / "configs/backbone" / name)
    assert sizing.weights(config, model).elements / 1e9 == pytest.approx(billions, abs=0.01)


def test_what_does_not_fit_is_told_with_a_way_out(tmp_path, capsys):
    words = [*SMALL, f"data.root={tmp_path}", "processes=1"]
    assert plan.main([*words, "memory_gib=0.001"]) == FAILED
    assert "nothing fits: " in capsys.readouterr().out
    big = ["items=100000000", "users=1000000", "interactions=30000000", "model.d_model=128", "model.loss=bce"]
    assert plan.main([*words, *big]) == FAILED
    told = capsys.readouterr().out
    assert float(row(told, "optimiser, GiB")[0]) == pytest.approx(8 * 1e8 * 128 / 2**30, rel=0.01)
    assert "nothing fits: zero=2, or more" in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["gpu=h1000"], "gpu"),
        (["mfu=2"], "mfu"),
        (["processes=0"], "processes"),
        (["items=10"], "items, users and interactions are given together"),
        (["items=10", "users=100", "interactions=5"], "two of each are held out"),
        (["offload=true"], "offload=true is DeepSpeed's"),
        (["model.name=frellm", "embed.encoder=/nowhere/at/all"], "no config.json with hidden_size"),
        (["model.name=markov"], "model.name=markov counts"),
        (["train.lrr=1"], "did you mean 'train.lr'"),
        (["zero=4"], "zero"),
        (["model.name=frellm", "model.backbone.quantise=nf4", "model.backbone.tune=full"], "nf4 cannot be trained whole"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_in_a_line(tmp_path, words, why):
    with pytest.raises(ValueError, match=re.escape(why)) as told:
        plan.main([*DATA, *words, f"data.root={tmp_path}"])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("words", [["model.name=sasrec"], ["model.name=tiger", "train.batch_tokens=800"]])
def test_the_steps_of_an_epoch_are_those_of_the_loop(tmp_path, words):
    config = cfg.load([*DATA, *words, f"data.root={tmp_path}"])
    found = sizing.sizes(config, (None, None, None), sizing.samples_of(config, tmp_path))
    data = prepared.load(prepared.prepare(config.data))
    samples = batches.training(data, sizing.samples_of(config, tmp_path), config.model.max_len)
    assert found.steps == len(batches.steps(samples, config.train.batch_tokens, 0, 3))
    guessed = sizing.sizes(config, (found.items, found.users, found.interactions), sizing.samples_of(config, tmp_path))
    assert guessed.steps == pytest.approx(found.steps, rel=0.3)


def test_time_is_about_the_places_that_are_there(tmp_path):
    """Batches are cut by length: most histories are far shorter than the longest."""
    config = cfg.load([*DATA, "model.name=tiger", "train.batch_tokens=400", f"data.root={tmp_path}"])
    found, data = (
        sizing.sizes(config, (None, None, None), sizing.samples_of(config, tmp_path)),
        prepared.load(prepared.prepare(config.data)),
    )
    samples = batches.training(data, "prefixes", config.model.max_len)
    rows = batches.steps(samples, config.train.batch_tokens, 0, 0)
    real = sum(batches.collate(data, samples, each).items.numel() for each in rows)
    assert found.width * found.samples == pytest.approx(real)
    assert found.width < found.longest


def test_what_zero_2_frees_is_not_taken_off_twice(tmp_path):
    """Activations beside a model that is trained whole: those that one process has, whoever holds the gradients."""
    folder = saved(tmp_path / "llm", width=256)
    words = [
        "model.name=frellm",
        f"model.backbone.path={folder}",
        "model.backbone.tune=full",
        "model.tfm.mode=causal",
        "train.batch_tokens=200",
    ]
    config = cfg.load([*DATA, *words, f"data.root={tmp_path}"])
    data = sizing.sizes(config, (None, None, None), sizing.samples_of(config, folder))
    model = estimate.rehearsed(config, data, folder, "cuda")
    two = estimate.plan(config, Schema(estimate.Cluster, {}).load(["zero=2"]), DEVICES["h100"], data, model, 8)
    alone = estimate.plan(config, Schema(estimate.Cluster, {}).load([]), DEVICES["h100"], data, model, 8)
    assert two.parts["activations"] > 2**20
    whole, freed = (model.rehearsal.train(4, 8, False, 1, False, frees)[0].peak for frees in (False, True))
    assert freed < whole - 8 * model.weights.trained  # neither gradients nor the optimiser's state lie beside them
    assert two.training > alone.training - 4 * 4 * model.weights.trained


def test_zero_cuts_what_it_says():
    held = Weights(frozen=14 * 10**9, elements=7 * 10**9, widest=0, trained=10**8)
    whole, one, two, three = (budget.memory(held, stage, 8) for stage in range(4))
    assert whole["optimiser"] == 8e8
    assert one["optimiser"] == pytest.approx((8e8 + 4e8) / 8)
    assert one["gradients"] == pytest.approx(4e8 * 9 / 8)
    assert two["gradients"] == pytest.approx(4e8 / 8)
    assert three["frozen"] < whole["frozen"] / 3
    assert budget.memory(held, 2, 8, is_offloaded=True)["optimiser"] == 0


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("elements", [4 * 10**8, 7 * 10**9])
def test_the_bytes_of_a_process_are_those_of_the_table(n, elements):
    """The lines at the head of budget.py, summed by hand."""
    W, P = 2 * elements, 6 * 10**8
    held, bucket = Weights(frozen=W, elements=elements, widest=0, trained=P), 4 * 500_000_000
    live = min(W, W * 10**9 / elements)
    wanted = {
        0: W + 4 * P + 4 * P + 8 * P + (4 * P if n > 1 else 0),
        1: W + 4 * P + 4 * P + (4 + 4 + 8) * P / n + bucket,
        2: W + 4 * P + (4 + 4 + 8) * P / n + bucket,
        3: W / n + live + 4 * P + (4 + 4 + 4 + 8) * P / n + bucket,
    }
    for stage, total in wanted.items():
        assert sum(budget.memory(held, stage, n).values()) == pytest.approx(total)
    few = Weights(frozen=0, elements=0, widest=0, trained=1000)
    assert budget.memory(few, 2, n)["launch"] == 4000  # what trains is less than a bucket


def test_an_update_reads_four_numbers_of_a_weight_and_writes_three():
    held, at = Weights(0, 0, 0, trained=10**9), DEVICES["h100"]
    assert budget.update(held, at, 1) == pytest.approx(7 * 4e9 / 3.35e12)
    assert budget.update(held, at, 8) == pytest.approx(7 * 4e9 / 3.35e12 / 8)


def test_zero_3_also_sends_frozen_weights_forward_and_backward_of_each_piece():
    held, at = Weights(frozen=10**9, elements=5 * 10**8, widest=0, trained=0), DEVICES["h100"]
    assert budget.exchange(held, 3, 4, at, 8, 3) == pytest.approx(3 * 2 * 1e9 * 3 / 4 / 450e9)
    assert budget.exchange(held, 2, 4, at, 8, 3) == 0


def test_products_are_added_by_type_and_scaled():
    half, full = torch.bfloat16, torch.float32
    assert budget.total({half: 1}, {full: 2}, {half: 4, full: 8}) == {half: 5, full: 10}
    assert budget.scaled({half: 10, full: 4}, 2.5) == {half: 25, full: 10}


@pytest.mark.parametrize(("precision", "bits"), [("half", 16), ("full", 32)])
def test_the_bytes_on_disk_are_in_the_type_that_a_config_names(tmp_path, precision, bits):
    folder = saved(tmp_path / "llm", width=32)
    config = cfg.load(["model.name=frellm", f"model.backbone.path={folder}"])
    told = json.loads((folder / "config.json").read_text())
    n = sum(p.numel() for p in sizing.pretrained.skeleton(folder).parameters())
    for key in ("dtype", "torch_dtype"):
        told.pop(key, None)
    names = [{}, {"dtype": "float32"}] if precision == "full" else [{"dtype": "bfloat16"}, {"torch_dtype": "float16"}]
    for name in names:
        (folder / "config.json").write_text(json.dumps(told | name))
        assert sizing.stored(config, folder) == n * bits // 8
    assert sizing.stored(cfg.load(["model.name=sasrec"]), folder) == 0


def test_sizes_that_are_asked_hold_two_interactions_of_each_user_out():
    def found(kind, words=(), interactions=1000):
        return sizing.sizes(cfg.load(["train.batch_tokens=100", *words]), (50, 100, interactions), kind)

    whole, prefixes = found("sequences"), found("prefixes")
    assert (whole.samples, whole.width, whole.history, whole.last_only) == (100, 8, 8, False)
    assert whole.steps == 9  # 12 histories of 8 places in 100
    assert (prefixes.samples, prefixes.width, prefixes.last_only) == (100 * 7, 4, True)
    assert whole.longest == cfg.load([]).model.max_len == 50  # one user may have all but three of each other's: 703
    assert found("sequences", ["model.max_len=200"], 400).longest == 400 - 3 * 99
    short = found("sequences", ["model.max_len=5"])
    assert (short.longest, short.width, short.history) == (5, 5, 5)
    with pytest.raises(ValueError, match="interactions=399 for users=100"):
        found("sequences", interactions=399)
    with pytest.raises(ValueError, match="given together"):
        sizing.sizes(cfg.load([]), (50, None, None), "sequences")


def test_time_is_products_over_speed_and_exchange_over_the_link():
    at = DEVICES["a100"]
    assert budget.seconds({torch.bfloat16: 312 * 10**12, torch.float32: 195 * 10**11}, at, 0.5) == pytest.approx(4)
    held = Weights(0, 0, 0, trained=75 * 10**9 // 2)
    assert budget.exchange(held, 0, 1, at, 8, 1) == 0
    assert budget.exchange(held, 0, 8, at, 8, 1) == pytest.approx(1 * 7 / 8)
    assert budget.exchange(held, 0, 16, at, 8, 1) > 10 * budget.exchange(held, 0, 8, at, 8, 1)


def test_the_cluster_of_the_words():
    found = estimate.device(Schema(estimate.Cluster, {}).load(["gpu=h100", "memory_gib=40", "tflops=100", "gb_s=3"]))
    assert (found.gib, found.bf16, found.inside, found.between) == (40, 1e14, 3e9, 3e9)
    assert (found.tf32, found.float32) == (1e14, 1e14)


class Told(Rehearsal):
    """Records what it is asked to rehearse."""

    def __init__(self):
        self.asked = []

    def train(self, *words):
        self.asked.append(words)
        return Taken(peak=1000, scores=100, scratch=60), {torch.float32: 7}


def rehearsed(held, chunk=100):
    taken, none = Taken(0, 0), {}
    usual = Ranked(taken, 2, {torch.float32: 10 * chunk}, {torch.float32: 1000}, {torch.float32: 30 * chunk})
    return estimate.Model(held, Told(), 0, 0, Ranked(Taken(500, 0), 2, none, none, none), usual, chunk)


DATA_SIZES = sizing.Sizes(
    items=250, users=1000, interactions=9000, samples=900, longest=20, width=7.5, history=8.0, steps=30, last_only=False
)


def test_a_step_is_cut_into_passes_for_all_processes_and_time_is_about_a_usual_one():
    config = cfg.load(["train.batch_tokens=1000", "train.micro_tokens=110", "train.precision=bf16"])
    model = rehearsed(Weights(0, 0, 0, trained=1))
    for zero, frees in ((0, False), (1, False), (2, True)):
        cluster = Schema(estimate.Cluster, {}).load([f"zero={zero}"])
        pieces, _ = estimate._training(config, cluster, DATA_SIZES, model, 3)
        assert pieces == 4  # 50 rows of 20 places; 5 fit into a pass; 3 processes
        assert model.rehearsal.asked.pop() == (5, 20, False, 4, True, frees)
    estimate._flops(config, DATA_SIZES, model, 3)
    assert model.rehearsal.asked.pop() == (10, 8, False, 1, True)  # 900 samples in 30 steps, of 7.5 places
    prefixes = replace(DATA_SIZES, last_only=True)
    assert estimate._training(config, cluster, prefixes, model, 3)[0] == 4  # 20 rows of max_len, 2 in a pass
    assert model.rehearsal.asked.pop() == (2, 20, True, 4, True, True)


@pytest.mark.parametrize(("shard", "size", "share", "blocks"), [("false", 4, 250, 1), ("true", 2, 200, 4), ("true", 4, 100, 4)])  # fmt: skip
def test_users_or_items_are_shared_out_while_ranking(monkeypatch, shard, size, share, blocks):
    """Three chunks of 100 items; 4 blocks of 256 users, which all holders of items rank."""
    monkeypatch.setattr(estimate, "BLOCK", 256)
    config, model = cfg.load([f"score.shard_items={shard}"]), rehearsed(Weights(0, 0, 0, trained=1))
    assert estimate._share(config, DATA_SIZES, model, size) == share
    found = estimate._evaluation(config, DATA_SIZES, model, size)
    assert found == {torch.float32: 10 * share + 1000 * -(-4 // size) + 30 * share * blocks}
    assert estimate._ranking(config, DATA_SIZES, model, size) == (2 * share, 500 + 2 * share - 200)


def test_a_process_holds_the_larger_of_training_and_ranking_and_what_is_whole_is_not_in_the_activations_twice():
    config, at, held = cfg.load([]), DEVICES["h100"], Weights(frozen=40, elements=20, widest=3, trained=10)
    for zero, activations, scratch in ((0, 1000 - 120 - 100, 60), (1, 1000 - 120 - 100, 15), (2, 1000 - 100, 15)):
        cluster = Schema(estimate.Cluster, {}).load([f"zero={zero}"])
        found = estimate.plan(config, cluster, at, DATA_SIZES, rehearsed(held), 4)
        lasting = budget.memory(held, zero, 4)
        assert (found.parts["activations"], found.parts["scores"]) == (activations + 3, 100)
        assert found.parts["optimiser's scratch"] == scratch
        assert found.ranking == 500 + 500 - 200 + 3 + sum(lasting.values()) - lasting["gradients"]
    for training, ranking in ((7e9, 3e9), (3e9, 7e9)):
        one = estimate.Plan(1, {"a": training - 1e9, "b": 1e9}, ranking, 0, 0, 0, 0)
        assert one.held("cuda") == pytest.approx(7e9 * 1.05 + 2**30)


def test_a_machine_is_shared_by_the_processes_of_a_node(monkeypatch):
    monkeypatch.setattr(estimate, "matmul_speed", lambda _, kind: 6e9 if kind == torch.bfloat16 else 12e9)
    cluster = Schema(estimate.Cluster, {}).load(["gpu=cpu", "per_node=4"])
    whole = estimate.device(cluster, 1)
    for size, share in ((2, 2), (4, 4), (64, 4)):
        found = estimate.device(cluster, size)
        assert (found.gib, found.memory) == (pytest.approx(whole.gib / share), pytest.approx(whole.memory / share))
        assert (found.bf16, found.tf32, found.float32) == (6e9 / share, 12e9 / share, 12e9 / share)


def test_a_table_that_is_shared_out_is_a_share(tmp_path, capsys):
    folder = saved(tmp_path / "llm", width=64)
    words = ["model.name=frellm", f"model.backbone.path={folder}", "model.tfm.mode=causal", "train.batch_tokens=100"]
    sizes = [
        "items=600000",
        "users=1000",
        "interactions=20000",
        "model.loss=sampled",
        "model.negatives=50",
        "processes=2",
    ]
    plan.main([*words, *sizes])
    whole = capsys.readouterr().out
    plan.main([*words, *sizes, "score.shard_items=true"])
    shared = capsys.readouterr().out
    one, two = (float(re.search(r"of it item table, \wiB +([\d.]+)", told)[1]) for told in (whole, shared))
    assert two == pytest.approx(one * 524288 / 600000, rel=0.02)  # two whole chunks of three


def test_tf32_makes_float32s_products_faster_and_is_said(tmp_path, capsys, monkeypatch):
    told = {}
    for precision in ("no", "tf32"):
        monkeypatch.setattr(
            plan, "words", lambda argv, precision=precision, words=plan.words: _chosen(words(argv), precision)
        )
        plan.main([*SMALL, f"data.root={tmp_path}", "processes=1", "gpu=h100"])
        told[precision] = capsys.readouterr().out
        monkeypatch.undo()
    assert "67 in float32, of which" in told["no"]
    assert "495 in float32 by TF32 products (train.precision=tf32), of which" in told["tf32"]
    for name in ("step, s", "evaluation, s"):
        assert float(row(told["tf32"], name)[0]) < 0.5 * float(row(told["no"], name)[0])


def _chosen(words, precision):
    cluster, config = words
    object.__setattr__(config.train, "precision", precision)
    return cluster, config
