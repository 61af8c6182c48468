"""What a run was trained on and other data hold out (case 30), on logs whose parts are given."""

import re

import pytest

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.preparation import growth

T, DAY = 1_600_000_000, 86_400
OTHERS = [(f"o{n}", f"{part[0]}{n}", T + k * DAY, part) for n in range(2) for k, part in enumerate(("train", "valid", "test"))]  # fmt: skip
FIRST = ("u", "p", T - 9 * DAY, "train")


def data(path, rows):
    path.write_text("user,item,time,split\n" + "".join(f"{u},{i},{t},{p}\n" for u, i, t, p in [*OTHERS, FIRST, *rows]))
    words = ["data.source=table", "data.split=given", "data.negatives=0", "data.duplicates=keep"]
    config = cfg.load([*words, f"data.path={path}", f"data.root={path.parent}", "data.columns.split=split"])
    return prepared.load(prepared.prepare(config.data))


def train(*times, item="x"):
    return [("u", item, T + time, "train") for time in times]


def held_out(*times, item="x"):
    return [("u", item, T + time, "test") for time in times]


@pytest.mark.parametrize(
    ("then", "now", "known"),
    [
        (train(0), held_out(0), 1),
        (train(0), train(0) + held_out(0), 0),  # as often as it is trained on now
        (train(0, 0), train(0) + held_out(0), 1),
        (train(0), held_out(0, item="y"), 0),
        # by another time, within a day and no more
        (train(0), held_out(DAY - 1), 1),
        (train(0), held_out(1 - DAY), 1),
        (train(0), held_out(DAY), 0),
        (train(0), held_out(-DAY), 0),
        (train(0), held_out(60, item="y"), 0),
        (held_out(0), held_out(60), 0),  # held out then, too
        (train(0), train(60) + held_out(120), 0),  # the row of then is trained on now, too
        (train(0, 1), train(60) + held_out(120), 1),  # one of the two is
        (train(0, 1), train(0) + held_out(60), 1),  # what stands in both as it is, is not the other
        (train(0), train(0) + held_out(60), 0),
    ],
)
def test_what_was_trained_on_is_not_held_out(tmp_path, then, now, known):
    then, now = data(tmp_path / "then.csv", then), data(tmp_path / "now.csv", now)
    if not known:
        growth.check_held_out(then, now, tmp_path)
        return
    with pytest.raises(ValueError, match=rf"^from={re.escape(str(tmp_path))} was trained on {known} interactions .* item 'x' of user 'u'"):  # fmt: skip
        growth.check_held_out(then, now, tmp_path)
