"""An artefact is complete or absent, and whoever touches it is found out."""

import os
import signal
import subprocess
import sys
import time

import pytest

from distrec.data import store


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
