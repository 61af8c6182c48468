"""What a process knows of its siblings, its journal, and how it is asked to stop."""

import json
import os
import signal

import pytest
from ranks import run_on

from distrec.runtime import Journal, Ranks, Stop


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 7, 20])
def test_shards_hold_every_row_once_and_alike(size, n):
    shards = [range(n)[Ranks(rank, size).shard(n)] for rank in range(size)]
    assert [row for shard in shards for row in shard] == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_what_is_dealt_is_collected_in_its_order(size, n):
    group = [f"part {i}" for i in range(n)]
    dealt = [Ranks(rank, size).deal(group) for rank in range(size)]
    assert len({len(own) for own in dealt}) == 1
    assert {each for own in dealt for each in own} == set(group)
    for rank, own in enumerate(dealt):  # a rank that has none left takes the last again
        assert own == [group[min(i * size + rank, n - 1)] for i in range(-(-n // size))]

    def share():
        ranks = Ranks.here() if size > 1 else Ranks()
        return ranks.collect(ranks.deal(group), n)

    assert (run_on(size, share) if size > 1 else [share()]) == [group] * size


def test_who_fails_first_is_told_by_the_main_rank_alone():
    def share():
        def build():
            raise ValueError("no")

        try:
            Ranks.here().main_first(build)
        except ValueError as error:
            return str(error), getattr(error, "told", None)
        return None

    assert run_on(2, share) == [("no", False), ("no", True)]


def journal(path, *steps):
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    return Journal(path, Ranks())


def test_a_journal_is_rewound_to_a_step_with_it(tmp_path):
    one = journal(tmp_path / "j", 1, 2, 3, 5)
    assert one.last_step() == 5
    one.rewind(3)
    assert [json.loads(line)["step"] for line in (tmp_path / "j").read_text().splitlines()] == [1, 2, 3]
    one.write(step=4)
    assert one.last_step() == 4
    one.rewind(0)
    assert (tmp_path / "j").read_text() == ""


@pytest.mark.parametrize("cut", ['{"step": 2', "", "[1]", "null", '{"step": "x"}'])
def test_a_line_that_a_kill_cut_off_is_dropped_and_no_step_is_lost(tmp_path, cut):
    one = journal(tmp_path / "j", 1, 2)
    with (tmp_path / "j").open("a") as file:
        file.write(cut)
    one.rewind(10)
    assert [json.loads(line)["step"] for line in (tmp_path / "j").read_text().splitlines()] == [1, 2]


def test_a_line_without_a_step_stays(tmp_path):
    one = journal(tmp_path / "j", 1)
    one.write(event="start")
    one.rewind(0)
    assert (tmp_path / "j").read_text() == '{"event": "start"}\n'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_once_and_a_second_interrupt_leaves_at_once(number, capfd):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err.count("finishing this step, then saving") == 1


def test_only_the_main_rank_writes(tmp_path):
    Journal(tmp_path / "j", Ranks(1, 2)).write(step=1)
    assert not (tmp_path / "j").exists()
    assert (Ranks(0, 2).is_main, Ranks(1, 2).is_main) == (True, False)
