"""An artefact is complete or absent, and whoever touches it is found out."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distrec.data import store
from distrec.runtime import Ranks


def fill(folder):
    (folder / "a.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "below").mkdir()
    (folder / "below" / "b.json").write_text('{"x": 1}')


@pytest.fixture
def artefact(tmp_path):
    return store.write(tmp_path / "thing-1", {"k": 5, "data": "abc"}, fill)


def test_what_was_written_is_verified_and_made_once(artefact):
    assert store.verify(artefact, {"k": 5})["made_by"] == {"k": 5, "data": "abc"}
    assert store.make(artefact, {"k": 5}, lambda _: pytest.fail("made twice")) == artefact


@pytest.mark.parametrize("name", ["a.bin", "below/b.json", store.STAMP])
def test_every_flipped_byte_is_found(artefact, name):
    path = artefact / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="thing-1"):
            store.verify(artefact)
    path.write_bytes(whole)
    store.verify(artefact)


@pytest.mark.parametrize("name", ["a.bin", "below/b.json", store.STAMP])
def test_a_truncated_or_deleted_file_is_found(artefact, name):
    path = artefact / name
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="thing-1"):
            store.verify(artefact)
    path.unlink()
    with pytest.raises(ValueError, match=path.name):
        store.verify(artefact)


def test_a_foreign_file_a_moved_folder_and_other_inputs_are_found(artefact):
    with pytest.raises(ValueError, match="stale: made with k=5, now 6"):
        store.verify(artefact, {"k": 6})
    (artefact / "extra").write_text("")
    with pytest.raises(ValueError, match="extra does not belong"):
        store.verify(artefact)
    (artefact / "extra").unlink()
    artefact.rename(artefact.with_name("thing-2"))
    with pytest.raises(ValueError, match="moved or renamed"):
        store.verify(artefact.with_name("thing-2"))


def test_files_swapped_between_two_artefacts_are_found(artefact, tmp_path):
    def other(folder):
        fill(folder)
        (folder / "a.bin").write_bytes(b"y" * 1024)

    second = store.write(tmp_path / "thing-2", {"k": 5}, other)
    for name in ("a.bin", store.STAMP):
        one, two = (artefact / name).read_bytes(), (second / name).read_bytes()
        (artefact / name).write_bytes(two)
        (second / name).write_bytes(one)
        for folder in (artefact, second):
            with pytest.raises(ValueError, match=folder.name):
                store.verify(folder)
        (artefact / name).write_bytes(one)
        (second / name).write_bytes(two)


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def fails(folder):
        fill(folder)
        raise OSError(28, "No space left on device", "x")

    with pytest.raises(OSError, match="No space"):
        store.write(tmp_path / "thing", {}, fails)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_the_same_artefact_agree(tmp_path):
    def slow(folder):
        fill(folder)
        store.write(tmp_path / "thing", {"k": 1}, fill) if not (tmp_path / "thing").exists() else None

    store.write(tmp_path / "thing", {"k": 1}, slow)
    store.verify(tmp_path / "thing", {"k": 1})


WRITER = """
import sys, pathlib
from distrec.data import store
from distrec.runtime import Ranks
def fill(folder):
    for i in range(40): (folder / f"{i}.bin").write_bytes(b"z" * 200_000)
n = 0
while True:
    store.write(pathlib.Path(sys.argv[1]) / f"thing-{n}", {"n": n}, fill)
    print(n, flush=True); n += 1
"""


def test_killed_at_any_instant_an_artefact_is_absent_or_complete(tmp_path):
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(0.013 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        for artefact in folder.glob("thing-*"):
            store.verify(artefact)
        store.write(folder / "next", {}, fill)  # whoever writes next clears away what the killed one left
        assert not list(folder.glob(".*"))


def test_all_files_of_an_artefact_can_be_read_by_whom_its_stamp_can(tmp_path):
    target = store.write(
        tmp_path / "a-1", {}, lambda folder: (folder / "x").write_text("1") and (folder / "x").chmod(0o600)
    )
    assert (target / "x").stat().st_mode == (target / store.STAMP).stat().st_mode


def test_every_byte_is_on_disk_before_the_name_and_the_name_before_anybody_hears_of_it(tmp_path, monkeypatch):
    happened = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), sync(fd)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (happened.append((self, to)), rename(self, to))[1])
    target = store.write(tmp_path / "thing-1", {}, fill)
    ((scratch, name),) = (event for event in happened if isinstance(event, tuple))
    place = happened.index((scratch, name))
    whole = {scratch, *(scratch / path.relative_to(target) for path in target.rglob("*"))}
    assert name == target
    assert set(happened[:place]) == whole
    assert happened[place + 1 :] == [tmp_path]


def test_of_two_writers_of_other_inputs_under_one_name_the_second_is_refused(tmp_path):
    def slow(folder):
        fill(folder)
        store.write(tmp_path / "thing", {"k": 2}, fill)

    with pytest.raises(ValueError, match="stale: made with k=2, now 1"):
        store.write(tmp_path / "thing", {"k": 1}, slow)
    assert store.verify(tmp_path / "thing")["made_by"] == {"k": 2}


def test_a_sweep_leaves_a_living_writer_alone(tmp_path):
    def sweeping(folder):
        fill(folder)
        store.sweep(tmp_path)

    store.verify(store.write(tmp_path / "thing", {}, sweeping))


def test_what_is_removed_is_never_half_there_under_its_name(artefact, monkeypatch):
    monkeypatch.setattr(store.shutil, "rmtree", lambda path, **_: (Path(path) / "a.bin").unlink())  # killed within it
    store.remove(artefact)
    assert not artefact.exists()


def test_inputs_name_their_folder_whatever_their_order_and_a_stage_has_its_own(tmp_path):
    assert store.digest({"a": 1, "b": {"c": 2, "d": 3}}) == store.digest({"b": {"d": 3, "c": 2}, "a": 1})
    names = [
        store.folder(tmp_path, stage, {"k": k}).name.split("-")[1] for stage in ("codes", "tables") for k in (1, 2)
    ]
    assert len(set(names)) == 4
    assert store.flat({"a": {"b": {"c": 1}, "d": 2}, "e": 3}) == {"a.b.c": 1, "a.d": 2, "e": 3}


def test_nothing_may_lie_within_an_artefact_by_any_path_but_in_a_run_folder_it_may(artefact, tmp_path):
    (tmp_path / "link").symlink_to(artefact / "below")
    for inside in (artefact / "below" / "new", tmp_path / "link" / "new"):
        with pytest.raises(ValueError, match="would lie in the artefact"):
            store.check_apart(inside)
    store.check_apart(artefact)
    (artefact / "config.yaml").write_text("")
    store.check_apart(artefact / "below" / "new")


def test_of_a_folder_that_also_holds_others_the_stamped_files_alone_are_checked(tmp_path):
    fill(tmp_path)
    store.stamp_files(tmp_path, {"k": 1}, ["a.bin"])
    (tmp_path / "below" / "b.json").write_text("changed")
    store.verify_stamped(tmp_path)
    whole = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(whole[::-1])
    with pytest.raises(ValueError, match=r"a\.bin is not what was written"):
        store.verify_stamped(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(ValueError, match=r"a\.bin is not what was written"):
        store.verify_stamped(tmp_path)


def test_the_lock_of_a_launch_is_its_main_process_s(tmp_path):
    class Second(Ranks):
        def main_first(self, build):
            return build()

    place, busy = tmp_path / "thing", pytest.raises(ValueError, match="another process is making thing")
    with store.alone(place, Ranks()), store.alone(place, Second(rank=1, size=2)), busy, store.alone(place, Ranks()):
        pass


@pytest.mark.parametrize("where", ["checkpoints/step-1", "run", "artefact"])
@pytest.mark.parametrize("fault", ["changed", "missing", "foreign", "stamp"])
def test_nobody_is_told_to_remove_what_training_made(tmp_path, where, fault):
    target = store.write(tmp_path / where, {"a": 1}, lambda folder: [(folder / name).write_text("x") for name in ("w", *(["config.yaml"] * (where == "run")))])  # fmt: skip
    match fault:
        case "changed":
            (target / "w").write_text("y")
        case "missing":
            (target / "w").unlink()
        case "foreign":
            (target / "more").write_text("y")
        case _:
            (target / store.STAMP).write_text("{}")
    with pytest.raises(ValueError, match="is corrupt") as error:
        store.verify(target)
    assert bool(re.search("remove (it|the)", str(error.value))) == (where == "artefact")
    with pytest.raises(ValueError, match=r"is stale|is corrupt") as error:
        store.check_made_by(target, {"a": 1}, {"a": 2})
    assert bool(re.search("remove (it|the)", str(error.value))) == (where == "artefact")


def test_a_change_of_stamped_files_that_was_killed_is_made_again(tmp_path):
    (tmp_path / "a").write_text("1")
    store.stamp_files(tmp_path, {"x": 1}, ["a"])

    def change(text, is_killed=False):
        (tmp_path / "a").write_text(text)
        if is_killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.restamp(tmp_path, lambda: change("2", is_killed=True))
    assert not (tmp_path / store.STAMP).exists()
    store.restamp(tmp_path, lambda: change("3"))
    store.verify_stamped(tmp_path)
    assert store.read_stamp(tmp_path)["made_by"] == {"x": 1}
    assert (tmp_path / "a").read_text() == "3"
    assert not (tmp_path / store.FORMER).exists()
