"""A checkpoint is complete or refused; a run goes on from the last good one, never silently from the start."""

import os
import shutil

import pytest
import torch

from distrec.engine.checkpoint import Checkpoints, Progress
from distrec.engine.parallel import Copies

MADE = {"data": "abc", "train.lr": 0.1}


def model(seed=0):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    return net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)


def step(net, optimizer):
    net(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def run(tmp_path):
    """A run folder with three steps done and saved each time."""
    net, optimizer = model()
    checkpoints = Checkpoints(tmp_path / "checkpoints", MADE)
    for n in range(1, 4):
        step(net, optimizer)
        checkpoints.save(Copies(net, optimizer), Progress(step=n))
    return checkpoints, net, optimizer


def test_weights_moments_and_place_come_back_bit_for_bit(run):
    checkpoints, net, optimizer = run
    other, other_optimizer = model(1)
    with torch.no_grad():
        other[0].bias.copy_(net[0].bias)  # frozen: not in the checkpoint
    assert checkpoints.load(checkpoints.latest_good(), Copies(other, other_optimizer)) == Progress(step=3)
    for _ in range(3):
        step(net, optimizer)
        step(other, other_optimizer)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_what_trains_is_stored(run):
    from safetensors import safe_open

    checkpoints, _, _ = run
    with safe_open(checkpoints.folder / "step-00000003-0000" / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["0.weight", "1.bias", "1.weight"]
    names = {path.suffix for path in checkpoints.folder.rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    net, optimizer = model()
    checkpoints = Checkpoints(tmp_path, MADE)
    for n in range(1, 7):
        step(net, optimizer)
        checkpoints.save(
            Copies(net, optimizer), Progress(step=n, best_checkpoint="step-00000002-0000" if n >= 2 else "")
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{n}-0000" for n in (2, 5, 6)]
    assert checkpoints.best() == "step-00000002-0000"


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "stamp.json"]


def flipped(whole):
    for place in range(0, len(whole), max(1, len(whole) // 97)):
        yield whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]


def truncated(whole):
    return (whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [flipped, truncated])
def test_every_flipped_byte_and_cut_is_detected(run, name, harm):
    checkpoints, _, _ = run
    path = checkpoints.folder / "step-00000003-0000" / name
    whole = path.read_bytes()
    for harmed in harm(whole):
        path.write_bytes(harmed)
        with pytest.raises(ValueError, match="step-00000003-0000"):
            checkpoints.load("step-00000003-0000", Copies(*model()))
    path.write_bytes(whole)
    checkpoints.load("step-00000003-0000", Copies(*model()))


@pytest.mark.parametrize("name", FILES)
def test_a_deleted_or_swapped_file_is_detected(run, name):
    checkpoints, _, _ = run
    last, before = (checkpoints.folder / f"step-0000000{n}-0000" for n in (3, 2))
    whole, other = (last / name).read_bytes(), (before / name).read_bytes()
    assert whole != other
    (last / name).write_bytes(other)
    (before / name).write_bytes(whole)
    for folder in (last, before):
        with pytest.raises(ValueError, match=folder.name):
            checkpoints.load(folder.name, Copies(*model()))
    (last / name).unlink()
    with pytest.raises(ValueError, match=name):
        checkpoints.load(last.name, Copies(*model()))


def test_swapped_folders_are_detected(run):
    checkpoints, _, _ = run
    last, before = (checkpoints.folder / f"step-0000000{n}-0000" for n in (3, 2))
    last.rename(checkpoints.folder / "x")
    before.rename(last)
    (checkpoints.folder / "x").rename(before)
    with pytest.raises(ValueError, match="no good checkpoint is left"):
        checkpoints.latest_good()


def test_a_corrupt_checkpoint_gives_way_to_the_one_before_with_a_warning(run, capsys):
    checkpoints, _, _ = run
    path = checkpoints.folder / "step-00000003-0000" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    assert checkpoints.latest_good() == "step-00000002-0000"
    said = capsys.readouterr().err
    assert "WARNING" in said
    assert "step-00000003-0000" in said
    assert len(list(checkpoints.folder.glob("corrupt-step-00000003-0000-*"))) == 1
    for _ in range(2):  # the same one may be hit again
        checkpoints.save(Copies(*model()), Progress(step=3))
        assert checkpoints.latest_good() == "step-00000003-0000"
        path.write_bytes(b"")
        assert checkpoints.latest_good() == "step-00000002-0000"


def test_with_no_good_one_left_nothing_starts_over(run):
    checkpoints, _, _ = run
    for path in checkpoints.folder.rglob("model.safetensors"):
        path.write_bytes(b"")
    for _ in range(3):  # nor on a later start
        with pytest.raises(ValueError, match="nothing was started over"):
            checkpoints.latest_good()


def test_a_checkpoint_of_another_run_or_shape_is_refused_by_name(run):
    checkpoints, _, _ = run
    other = Checkpoints(checkpoints.folder, {**MADE, "train.lr": 0.2})
    with pytest.raises(ValueError, match=r"train\.lr=0\.1, now 0\.2"):
        other.latest_good()
    net = torch.nn.Sequential(torch.nn.Linear(3, 5))
    with pytest.raises(ValueError, match="does not fit this model"):
        checkpoints.load("step-00000003-0000", Copies(net))


def test_a_checkpoint_that_is_asked_for_by_name_is_of_this_run_too(run):
    checkpoints, _, _ = run
    with pytest.raises(ValueError, match=r"train\.lr=0\.1, now 0\.2"):
        Checkpoints(checkpoints.folder, {**MADE, "train.lr": 0.2}).load("step-00000003-0000", Copies(*model()))


@pytest.mark.parametrize("change", ["more", "fewer", "wider"])
def test_a_model_with_more_or_fewer_or_wider_weights_is_refused_by_the_weight(run, change):
    checkpoints, _, _ = run
    first, second = model()[0]
    net = {
        "more": torch.nn.Sequential(first, second, torch.nn.Linear(2, 2)),
        "fewer": torch.nn.Sequential(first),
        "wider": torch.nn.Sequential(first, torch.nn.Linear(4, 3)),
    }[change]
    name = {"more": r"2\.bias", "fewer": r"1\.bias", "wider": r"1\.bias"}[change]
    with pytest.raises(ValueError, match=f"step-00000003-0000: {name} does not fit this model"):
        checkpoints.load("step-00000003-0000", Copies(net))


def test_weights_alone_leave_the_optimiser_where_it_was(run):
    checkpoints, net, optimizer = run
    before = {name: value.clone() for name, value in Copies(net, optimizer).moments().items()}
    checkpoints.load("step-00000002-0000", Copies(net, optimizer), only_weights=True)
    after = Copies(net, optimizer).moments()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    checkpoints.load("step-00000002-0000", Copies(net, optimizer))
    assert float(Copies(net, optimizer).moments()["1.bias/step"]) == 2


def test_weights_that_are_not_finite_are_read_back_as_they_are(tmp_path):
    """A run that diverged is saved, not called a broken disk."""
    net, optimizer = model()
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([torch.nan, -torch.inf]))
    Checkpoints(tmp_path, MADE).save(Copies(net, optimizer), Progress(step=1))
    assert (tmp_path / "step-00000001-0000").is_dir()


def test_the_best_of_either_of_the_latest_is_kept(tmp_path):
    """The latest may fall to a broken disk: the one before names another best."""
    net, optimizer = model()
    checkpoints = Checkpoints(tmp_path, MADE)
    bests = {1: "", 2: "step-00000001-0000", 3: "step-00000001-0000", 4: "step-00000001-0000", 5: "step-00000005-0000"}
    for n, best in bests.items():
        step(net, optimizer)
        checkpoints.save(Copies(net, optimizer), Progress(step=n, best_checkpoint=best))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{n}-0000" for n in (1, 4, 5)]
    (tmp_path / "step-00000005-0000" / "state.json").write_bytes(b"")
    assert checkpoints.latest_good() == "step-00000004-0000"
    assert checkpoints.best() == "step-00000001-0000"


def test_without_any_checkpoint_a_run_begins(tmp_path):
    assert Checkpoints(tmp_path / "none", MADE).latest_good() is None


def test_a_lost_best_checkpoint_is_told_before_any_work(tmp_path):
    net, optimizer = model()
    checkpoints = Checkpoints(tmp_path, MADE)
    for n in range(1, 5):
        step(net, optimizer)
        checkpoints.save(Copies(net, optimizer), Progress(step=n, best_checkpoint="step-00000001-0000"))
    (tmp_path / "step-00000001-0000" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="the best checkpoint is lost"):
        checkpoints.latest_good()


def test_a_full_disk_keeps_the_last_good_one(run, monkeypatch):
    checkpoints, net, optimizer = run
    real = os.fsync

    def full(handle):
        raise OSError(28, "No space left on device", "checkpoints")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(Copies(net, optimizer), Progress(step=4))
    monkeypatch.setattr(os, "fsync", real)
    assert checkpoints.latest_good() == "step-00000003-0000"
    assert not list(checkpoints.folder.glob(".*"))
    shutil.rmtree(checkpoints.folder)
