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


LOOKS = {
    "accents": ("e\u0301{}", "\u00e9{}", "the log has 'e\\u03010', the table '\\xe90': they differ in the Unicode form of accents"),
    "right to left mark": ("{}\u200f", "{}", "the log has '0\\u200f', the table '0': they differ in marks that are not seen"),
    "word joiner": ("\u2060x{}", "x{}", "the log has '\\u2060x0', the table 'x0': they differ in marks that are not seen"),
    "soft hyphen": ("a\u00adb{}", "ab{}", "the log has 'a\\xadb0', the table 'ab0': they differ in marks that"),
    "cyrillic": ("\u0410{}", "A{}", "the log has '\\u04100', the table 'A0': they differ in letters of another alphabet"),
    "greek": ("\u0391{}", "A{}", "the log has '\\u03910', the table 'A0': they differ in letters of another alphabet"),
    "full width": ("\uff21{}", "A{}", "the log has '\\uff210', the table 'A0': they differ in wide or joined characters"),
    "ligature": ("\ufb01{}", "fi{}", "the log has '\\ufb010', the table 'fi0': they differ in wide or joined characters"),
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("n_exact", [0, 40])
def test_ids_that_look_the_same_are_shown_with_what_is_different(tmp_path, capsys, look, n_exact):
    """All of them (refused), or those of one export (told)."""
    logged, table, words = LOOKS[look]
    args = files(
        tmp_path,
        [f"{n}q" for n in range(n_exact)] + [logged.format(n) for n in range(40)],
        [f"{n}q" for n in range(n_exact)] + [table.format(n) for n in range(40)],
    )
    if n_exact:
        sources.read(cfg.load(args).data)
        said = capsys.readouterr().err
        assert f"40 are there in another spelling, {words}" in said
        is_marked = "marks that" in words  # of which the log itself tells, too
        assert said.count("\n") == 1 + is_marked
        assert ("has marks that nobody sees in 40 values" in said) == is_marked
        return
    with pytest.raises(ValueError, match=r"0 of 40 items of the log are in items\.csv") as caught:
        sources.read(cfg.load(args).data)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("logged", "table", "words"),
    [
        (
            "{:03d}",
            "{}",
            "10 are there in another spelling, the log has '000', the table '0': they differ in leading zeros",
        ),
        (
            "a{}",
            "A{}",
            "10 are there in another spelling, the log has 'a0', the table 'A0': they differ in upper and lower",
        ),
        ("x{}", "y{}", None),
    ],
)
def test_the_spelling_of_some_is_told_among_others_that_are_missing(tmp_path, capsys, logged, table, words):
    exact = [f"{n}q" for n in range(40)]
    missing = [f"m{n}z" for n in range(30)]
    log = [*exact, *missing, *(logged.format(n) for n in range(10))]
    sources.read(cfg.load(files(tmp_path, log, [*exact, *(table.format(n) for n in range(10))])).data)
    said = capsys.readouterr().err
    assert "40 of 80 items of the log are in items.csv; 40 have no row there (first " in said
    assert (words in said) if words else ("spelling" not in said)


def test_one_item_with_two_rows_of_another_spelling_counts_once(tmp_path, capsys):
    exact = [f"{n}q" for n in range(40)]
    sources.read(cfg.load(files(tmp_path, [*exact, "ab"], [*exact, "AB", "Ab"])).data)
    assert "; 1 are there in another spelling, the log has 'ab', the table 'A" in capsys.readouterr().err


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
