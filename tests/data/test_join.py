"""An item table that belongs to another log is refused, with one id of either side (case 17)."""

import json

import pytest

from distrec import config as cfg
from distrec.data import prepared
from distrec.data.raw import sources


def files(folder, logged, table):
    rows = "".join(f"u{n % 3},{item},{1_600_000_000 + n}\n" for n, item in enumerate(logged))
    (folder / "log.csv").write_text("user,item,time\n" + rows)
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{item},Title {item}\n" for item in table))
    return "data.source=table", f"data.path={folder}/log.csv", f"data.items={folder}/items.csv", "data.negatives=0"


@pytest.mark.parametrize(
    ("spelled", "difference"),
    [
        ("{:05d}", "the log has '00000', the table '0': they differ in leading zeros"),
        ("{:d}.0x", "the log has '0.0x', the table '0'"),
        ("'{:d}'", "the log has \"'0'\", the table '0': they differ in marks around it"),
        ("item_{:d}", "the log has 'item_0', the table '0': they differ in what stands before its number"),
    ],
)
def test_case_17_ids_that_do_not_match_are_refused_with_an_example(tmp_path, spelled, difference):
    logged = [spelled.format(n) for n in range(80)]
    args = files(tmp_path, logged, range(80))
    with pytest.raises(ValueError, match=r"items.csv: 0 of 80 items of the log are in items.csv; ") as caught:
        sources.read(cfg.load(args).data)
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)
    raw = sources.read(cfg.load([*args, "data.min_joined=0"]).data)
    assert raw.of_items["item rows that join with nothing"] == 80


def test_case_17_few_are_refused_as_none_are(tmp_path):
    logged = [f"I{n}" for n in range(80)]
    for table, wrong in (([*logged[:7], *map(str.lower, logged[7:])], True), (logged[:8], False), (logged[:7], True)):
        config = cfg.load(files(tmp_path, logged, table)).data
        if not wrong:
            assert sources.read(config).items.height == 8
            continue
        with pytest.raises(ValueError, match=r"7 of 80 items of the log are in items.csv; the log has 'I"):
            sources.read(config)


def test_partial_joins_are_told_both_ways_and_counted(tmp_path, capsys):
    args = [*files(tmp_path, list("abcdeabcde"), [*"bcde", *"yz", "z"]), f"data.root={tmp_path}"]
    folder = prepared.prepare(cfg.load(args).data)
    said = capsys.readouterr().err
    assert (
        "4 of 5 items of the log are in items.csv; 1 have no row there (first 'a'), 2 of its items are not in the log (first 'y')"
        in said
    )
    removed = json.loads((folder / "statistics.json").read_text())["removed"]
    assert removed["item rows that join with nothing"] == 3
    sources.read(cfg.load(files(tmp_path, list("abc"), "abc")).data)
    assert "items of the log" not in capsys.readouterr().err
