"""A generative run on a log that has grown: new items get codes, known ones keep those that the weights know (case 30)."""

from pathlib import Path

import pytest
import torch
from commands import distrec

from distrec import config as cfg
from distrec.data import item_codes, prepared, store
from distrec.jobs.parts import assemble
from distrec.jobs.parts.work import Work
from distrec.runtime import Ranks

WORDS = ["data.source=table", "data.path=log.csv", "data.items=items.csv", "data.negatives=0", "data.root=artefacts", "score.bootstrap=0", "train.epochs=1", "embed.encoder=builtin", "embed.vocabulary=300", "embed.dimensions=32", "model.name=tiger", "model.d_model=16", "model.d_ff=32", "model.n_heads=2", "model.d_kv=8", "model.n_layers=1", "codes.levels=2", "codes.size=16", "codes.gate=false"]  # fmt: skip


def write(folder, n_items):
    rows = [f"u{u},i{(u * 7 + k * 3) % n_items},{1_600_000_000 + 3600 * k}" for u in range(60) for k in range(9)]
    (folder / "log.csv").write_text("user,item,time\n" + "\n".join(rows[: 480 + n_items]) + "\n")
    words = ["red", "blue", "tall", "small", "round"]
    items = [f"i{i},{words[i % 5]} {words[i // 5 % 5]} thing {i}" for i in range(n_items)]
    (folder / "items.csv").write_text("item,title\n" + "\n".join(items) + "\n")


def codes_of(folder, run):
    wanted = store.read_stamp(folder / run)["made_by"]["codes"]
    (codes,) = [path for path in (folder / "artefacts").glob("codes-*") if store.content(path) == wanted]
    return dict(zip(item_codes.raw_ids(codes), item_codes.load(codes).codes.tolist(), strict=True)), codes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    write(folder, 50)
    distrec("train", *WORDS, "out=a", cwd=folder)
    write(folder, 60)
    return folder


def test_known_items_keep_their_codes_and_new_ones_get_some(place):
    done = distrec("train", *WORDS, "from=a", "out=b", cwd=place)
    assert "50 items are known, 10 new" in done.stderr
    (before, _), (now, _) = codes_of(place, "a"), codes_of(place, "b")
    assert len(now) == 60
    assert all(now[name] == codes for name, codes in before.items())
    assert store.read_stamp(place / "b")["made_by"]["from"] == "a"
    distrec("recommend", "out=b", "k=3", cwd=place)


def test_a_run_that_has_begun_finds_its_codes_without_its_parent(place, monkeypatch):
    monkeypatch.chdir(place)
    config = cfg.load([*WORDS, "out=b"])
    data = prepared.load(prepared.prepare(config.data))
    (place / "a").rename(place / "moved")
    try:
        work = Work(config, data, Ranks(), lambda: False, torch.device("cpu"), parent=Path("a"))
        found = assemble.codes_of(work)
    finally:
        (place / "moved").rename(place / "a")
    assert found is not None
    assert found.resolve() == codes_of(place, "b")[1].resolve()


def test_codes_of_another_fit_are_refused_with_the_command_that_makes_the_right_ones(place):
    words = [word for word in WORDS if not word.startswith(("model.", "train.", "codes.size"))]
    other = distrec("quantize", *words, "codes.size=8", cwd=place).stdout.strip().splitlines()[-1]
    refused = distrec("train", *WORDS, "from=a", "out=c", f"model.codes={other}", cwd=place, code=2).stderr
    assert "from=a: its items have other codes now; `distrec quantize --assign-only=" in refused
    assert str(codes_of(place, "a")[1].name) in refused
    assert not (place / "c").exists()


def test_tokens_of_user_numbers_cannot_go_on(place):
    refused = distrec("train", *WORDS, "from=a", "out=c", "model.user_tokens=9", cwd=place, code=2).stderr
    assert "model.user_tokens=9 belong to users' numbers, which new users move" in refused
