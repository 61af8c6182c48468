"""Case 18: sessions need times; where there are none, or they are too coarse, it is said before any work."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared
from distrec.jobs import filter as filter_job
from distrec.jobs.parts import tables
from distrec.jobs.parts.work import Work
from distrec.runtime import Ranks

HOUR = 3_600_000_000  # microseconds
SESSION = partial(knobs.Graph, source="session")


def timed(small, time):
    return replace(small, time=np.asarray(time, np.int64))


def place_in_history(small):
    return np.concatenate([np.arange(n) for n in np.diff(small.start)])


def of_user(small):
    return np.repeat(np.arange(small.n_users), np.diff(small.start))


@pytest.mark.parametrize("kind", ["none", "all equal", "each user's own", "only held-out ones differ"])
def test_sessions_without_times_are_refused(small, kind):
    n = len(small.item)
    time = {
        "none": np.zeros(n),
        "all equal": np.full(n, 1_706_659_200_000_000),
        "each user's own": of_user(small) * HOUR,
        "only held-out ones differ": np.where(small.is_train(), 7, 7 + HOUR * place_in_history(small)),
    }[kind]
    what = "the data have no times" if kind == "none" else "all training interactions of a user have the same time"
    with pytest.raises(ValueError, match=rf"source=session needs times, but {what}: .*source=interactions"):
        tables.check_sessions(SESSION(), timed(small, time))
    for source in ("interactions", "text", "items"):
        assert tables.check_sessions(knobs.Graph(source=source), timed(small, time)) == []


def test_a_pause_between_two_users_is_none(small):
    """Only the last training interaction of one user differs from the others: its pause is within the history."""
    time = np.zeros(len(small.item))
    time[small.train_end[3] - 1] = HOUR
    assert "cuts no history: the longest pause is 1 hours" in tables.check_sessions(SESSION(), timed(small, time))[0]


@pytest.mark.parametrize(
    ("hours", "gap", "message"),
    [
        (
            24,
            1,
            "times are multiples of 24 hours apart, so that any gap below makes a session of the interactions of one",
        ),
        (24, 23.9, "times are multiples of 24 hours apart"),
        (24, 24, None),
        (1, 0.5, "times are multiples of 1 hours apart"),
        (1, 1, None),
        (1, 2, "cuts no history: the longest pause is 2 hours"),
        (1, 24, "cuts no history: the longest pause is 2 hours"),
        (1 / 3600, 1, None),
        (
            1 / 3600,
            1e4,
            r"cuts no history: the longest pause is .* hours; this is the graph of model\.graph\.source=inter",
        ),
    ],
)
def test_times_too_coarse_for_the_gap_and_gaps_that_do_nothing_are_told(small, hours, gap, message):
    k = place_in_history(small)
    steps = np.where(k % 3 == 0, 40_000 if hours < 1 else 2, k % 3 - 1)  # 0, 1 and more units
    time = 1_600_000_000_000_000 + np.cumsum(steps) * int(hours * HOUR)
    told = tables.check_sessions(SESSION(gap_hours=gap), timed(small, time))
    if message is None:
        assert told == []
    else:
        assert len(told) == 1
        assert re.search(message, told[0]), told


def test_a_gap_that_cuts_everything_is_told(small):
    time = timed(small, np.arange(len(small.item)) * 50 * HOUR + np.arange(len(small.item)) % 2)
    (line,) = tables.check_sessions(SESSION(gap_hours=24), time)
    assert "cuts every history into single items" in line


def test_nothing_is_made_before_the_refusal(tmp_path, monkeypatch):
    """The command, and a model that is built on the tables, whose language model comes first."""
    log = "".join(f"{u}\t{' '.join(str((u * 7 + k * 3) % 40) for k in range(8))}\t\n" for u in range(40))
    (tmp_path / "sequences.tsv").write_text("user_id\titem_ids\ttimestamps\n" + log)
    (tmp_path / "items.tsv").write_text("item_id\ttitle\n" + "".join(f"{i}\tThing {i}\n" for i in range(40)))
    words = ["data.source=sequences", f"data.path={tmp_path}", f"data.root={tmp_path}/a", "data.negatives=0"]
    words += ["model.name=frellm", "model.graph.source=session", "model.graph.gap_hours=1"]
    with pytest.raises(ValueError, match="needs times, but the data have no times"):
        filter_job.main(words)
    config = cfg.load(words)
    data = prepared.load(prepared.prepare(config.data))
    monkeypatch.setattr(tables.llm, "locate", lambda *_: pytest.fail("a language model is made first"))
    with pytest.raises(ValueError, match="needs times, but the data have no times"):
        tables.backbone_of(Work(config, data, Ranks(), lambda: False, torch.device("cpu")))
    assert [path.name.split("-")[0] for path in (tmp_path / "a").iterdir()] == ["prepared"]
