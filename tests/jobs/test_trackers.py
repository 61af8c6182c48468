"""A tracker that is not installed is refused before anything is done."""

import accelerate.tracking
import pytest

from distrec import knobs, train
from distrec.engine import launch
from distrec.jobs import experiment
from tune import sweep

SMALL = ["data.synthetic.users=60", "data.synthetic.items=40", "data.root=art"]


@pytest.fixture(autouse=True)
def _bare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # the folder of an earlier run on another machine is no package
    monkeypatch.setattr(launch, "get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(train, "join", lambda *_: pytest.fail("it went on"))
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name != "claim.yaml"] == ["wandb"]


def claim(folder):
    (folder / "claim.yaml").write_text(
        "experiment: {claim: c, source: s, runs: {a: {}, b: {seed: 1}}, judge: [{that: t, of: a, metric: mrr, above: 0}]}\n".replace(
            "{seed: 1}", "{model: {name: markov}}"
        )
    )
    return "claim.yaml"


@pytest.mark.parametrize("value", ["wandb", "[wandb]", "[tensorboard, wandb]"])
@pytest.mark.parametrize("main", [train.main, experiment.main, sweep.main])
def test_23_a_tracker_that_is_not_installed_is_refused_before_any_work(main, value, tmp_path):
    more = {train.main: [], experiment.main: [claim(tmp_path)], sweep.main: ["sweep.space.train.lr=[0.1]"]}[main]
    with pytest.raises(ValueError, match=r"train\.trackers=wandb is not installed: pip install 'distrec\[wandb\]'"):
        main([*SMALL, f"train.trackers={value}", *more])


def test_23_nor_one_that_a_sweep_tries(tmp_path):
    with pytest.raises(ValueError, match=r"pip install 'distrec\[wandb\]'"):
        sweep.main([*SMALL, "sweep.space.train.trackers=[[], [wandb]]"])


def test_23_one_that_is_installed_is_taken():
    launch.check_trackers(knobs.Train(trackers=("tensorboard",)))


def test_23_accelerate_names_trackers_as_we_do():
    assert "tensorboard" in map(str, accelerate.tracking.get_available_trackers())  # of the extra `dev`
