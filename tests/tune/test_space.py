"""What may be searched, and what is refused before anything starts."""

import re

import numpy as np
import pytest

from tune.space import Range, drawn, grid, load

WORDS = ["data.synthetic.users=150", "sweep.out=none"]


def test_a_grid_has_every_combination_in_order():
    _, space = load(
        [*WORDS, "sweep.space.model.dropout=[0.1, 0.2]", "sweep.space.train.lr={low: 0.001, high: 0.003, step: 0.001}"]
    )
    assert list(grid(space)) == [
        {"model.dropout": dropout, "train.lr": lr} for dropout in (0.1, 0.2) for lr in (0.001, 0.002, 0.003)
    ]


def test_dotted_and_nested_keys_are_one(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("sweep: {space: {model.dropout: [0.1], train: {lr: [0.5]}}}")
    assert load([*WORDS, str(file)])[1] == {"model.dropout": (0.1,), "train.lr": (0.5,)}


def test_steps_of_integers_stay_integers():
    _, space = load([*WORDS, "sweep.space.model.n_layers={low: 1, high: 5, step: 2}"])
    assert space == {"model.n_layers": (1, 3, 5)}
    assert all(isinstance(value, int) for value in space["model.n_layers"])


def test_draws_do_not_depend_on_how_many_are_asked_for():
    space = {"train.lr": Range(1e-4, 1e-2, True, False), "model.dropout": (0.1, 0.2)}
    assert drawn(space, 20, 3)[:5] == drawn(space, 5, 3)
    assert drawn(space, 5, 3) != drawn(space, 5, 4)


def test_a_log_range_is_drawn_evenly_on_its_scale():
    rng = np.random.default_rng(0)
    logs = np.log10([Range(1e-4, 1e-2, True, False).draw(rng) for _ in range(4000)])
    assert np.histogram(logs, 4, (-4, -2))[0] == pytest.approx(1000, rel=0.12)


def test_whole_numbers_reach_both_ends():
    rng = np.random.default_rng(0)
    assert {Range(1, 3, False, True).draw(rng) for _ in range(200)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["sweep.space.model.dropot=[0.1]"], "did you mean 'model.dropout'"),
        (["sweep.space.model.dropout=[0.1, 2.0]"], "model.dropout=2: model.dropout=2.0: Input should be less than 1"),
        (["sweep.space.model.dropout=[]"], "no values"),
        (["sweep.space.model.dropout=0.1"], "give a list of values"),
        (["sweep.space={}"], "sweep.space is empty"),
        ([], "sweep"),
        (["sweep.space.train.lr={low: 1, high: 0.5}"], "there is nothing"),
        (["sweep.space.train.lr={low: 0.5, high: 0.5}", "sweep.search=tpe"], "from 0.5 to 0.5 there is nothing"),
        (["sweep.space.train.lr={low: 0.0, high: 0.5, log: true}"], "nothing on a log scale"),
        (["sweep.space.train.lr={low: 0.1, high: 0.5}"], "a grid needs a list of values or a step"),
        (["sweep.space.train.lr={low: 0.1, high: 0.5, stepp: 1}"], "unknown 'stepp'"),
        (["sweep.space.train.lr={low: few, high: 1e-2}"], "are numbers"),
        (["sweep.space.out=[a]"], "out is the sweep's own"),
        (["sweep.space.seed=[1]"], "sweep.seeds=[0,1,2]"),
        (["sweep.space.train.lr=[0.1]", "sweep.metric=ndgc@10"], "did you mean 'ndcg@10'"),
        (["sweep.space.train.lr=[0.1]", "sweep.metric=test.ndcg@10"], "unknown sweep.metric"),
        (["sweep.space.train.lr=[0.1]", "sweep.search=tpe", "sweep.seeds=[0,1]"], "several seeds go with"),
        (["sweep.space.train.lr=[0.1]", "sweep.concurent=2"], "did you mean 'sweep.concurrent'"),
        (["sweep.space.train.lr=[0.1]", "out=runs/a"], "sweep.out=DIR"),
        (["sweep.space.train.lr=[0.1, 0.1]"], "a value is there twice"),
        (["sweep.space.train.lr=[0.1]", "sweep.seeds=[1, 1]"], "one is there twice"),
        (["sweep.space.train.lr=[0.1]", "sweep.seeds=[]"], "at least 1 item"),
        (["sweep.space.train.lr=[0.1]", "sweep.launch=launch/nowhere.yaml"], "sweep.launch=launch/nowhere.yaml: no such file"),
        (["sweep.space.train.lr=[0.1]", "sweep.address=nonsense"], "auto, or ADDRESS:PORT"),
        (["sweep.space.train.lr=[0.1]", "sweep.address=ray://n1:10001"], "auto, or ADDRESS:PORT"),
        (["sweep.space.model.sigma=[1]"], "unknown config key 'model.sigma'"),
        (["sweep.space.train.lr=[0.1]", "nowhere.yaml"], "config file nowhere.yaml"),
        (["sweep.space.train.lr=[0.1]", "--resumee"], "'--resumee' is neither"),
        (["sweep.space.model.d_model=[30]", "model.n_heads=4"], "not a multiple"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_line(words, why):
    with pytest.raises(ValueError, match=re.escape(why)) as told:
        load([*WORDS, *words])
    assert "\n" not in str(told.value)


def test_a_grid_too_large_is_refused():
    many = "[" + ",".join(str(i / 1000) for i in range(200)) + "]"
    with pytest.raises(ValueError, match="has 40,000 points"):
        load([*WORDS, f"sweep.space.train.lr={many}", f"sweep.space.train.clip={many}"])


def test_a_random_search_lives_with_some_points_that_are_no_config():
    words = [*WORDS, "sweep.search=random", "sweep.space.model.d_model=[30, 32]", "model.n_heads=4"]
    assert load(words)[1] == {"model.d_model": (30, 32)}
