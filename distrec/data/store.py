"""Artefacts: folders that are complete or absent, and say what made them.

Every artefact and every checkpoint is a folder with a `stamp.json`: what it is, what made it, and
the sha256 and size of each file in it.  The stamp's last key is the hash of all its other bytes.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distrec.runtime import Ranks, write_atomically

STAMP = "stamp.json"
FORMER = f"former-{STAMP}"  # the stamp of a run whose files are being changed
BUSY = "another process is "  # how the refusal begins where another launch is at work on what this one needs


def digest(value: Any) -> str:
    """sha256 of a JSON-ready value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, so that a difference can be named."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return result


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder(root: Path, stage: str, made_by: Mapping[str, Any]) -> Path:
    """Where the artefact of this stage and these inputs lives: other inputs, another folder."""
    return root / f"{stage}-{digest({'stage': stage, **made_by})[:12]}"


def write(target: Path, made_by: Mapping[str, Any], fill: Callable[[Path], None], replace: bool = False) -> Path:
    """Let `fill` write files into a temporary folder, stamp and fsync it, then rename it to `target`.

    `replace`: what is there gives way at the last moment.

    A crash at any instant leaves `target` absent or complete.

    Raises: OSError naming the file when the disk is full or read-only.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch, alive = _claim(target)
    sweep(target.parent)
    try:
        fill(scratch)
        files = {
            path.relative_to(scratch).as_posix(): {"sha256": file_digest(path), "bytes": path.stat().st_size}
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        (scratch / STAMP).write_bytes(_seal({"artefact": target.name, "made_by": made_by, "files": files}))
        usual = (scratch / STAMP).stat().st_mode
        for path in scratch.rglob("*"):
            if path.is_file():
                path.chmod(usual)  # safetensors writes for the owner alone
            _fsync(path)
        _fsync(scratch)
        if replace and target.exists():
            remove(target)
        try:
            scratch.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            verify(target, made_by)  # another process finished the same artefact first
    finally:
        os.close(alive)
        shutil.rmtree(scratch, ignore_errors=True)
    _fsync(target.parent)
    return target


def verify(target: Path, made_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The stamp of `target`, after every byte of every file in it was checked.

    Raises: ValueError naming the artefact and the first file that is missing, foreign or changed, or the
    first input that differs from `made_by`.
    """
    stamp = _unseal(target)
    if stamp["artefact"] != Path(os.path.abspath(target)).name:
        raise ValueError(f"{target} holds {stamp['artefact']}: it was moved or renamed; give it its name again")
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} - {STAMP}
    for name in sorted(present ^ set(stamp["files"])):
        what = "is missing" if name not in present else "does not belong there"
        raise ValueError(f"{target} is corrupt: {name} {what}; {_remedy(target)}")
    for name, entry in stamp["files"].items():
        path = target / name
        if path.stat().st_size != entry["bytes"] or file_digest(path) != entry["sha256"]:
            raise ValueError(f"{target} is corrupt: {name} is not what was written; {_remedy(target)}")
    check_made_by(target, stamp["made_by"], made_by or {})
    return stamp


def check_made_by(target: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first input in which an artefact differs from what is asked."""
    remedy = "choose another out=DIR" if _is_trained(target) else "remove it to have it made anew"
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{target} is stale: made with {key}={before.get(key)!r}, now {value!r}: use the former, or {remedy}"
            )


def content(target: Path) -> str:
    """The hash of all that an artefact holds, apart from what made it."""
    return digest(_unseal(target)["files"])


def read_stamp(target: Path) -> dict[str, Any]:
    """The stamp of a folder, itself intact; its files are not read.   Raises: ValueError naming a broken one."""
    return _unseal(target)


def stamp_files(target: Path, made_by: Mapping[str, Any], names: Sequence[str]) -> None:
    """Stamp some files of a folder that also holds others (a run folder)."""
    files = {name: {"sha256": file_digest(target / name), "bytes": (target / name).stat().st_size} for name in names}
    write_atomically(target / STAMP, _seal({"artefact": target.name, "made_by": made_by, "files": files}).decode())


def restamp(target: Path, change: Callable[[], None]) -> None:
    """Change the stamped files of a run folder.  While they are neither the old nor the new ones the folder has no stamp,
    and after a kill the next call finds the old one aside."""
    aside = target / FORMER
    if not aside.exists():
        (target / STAMP).rename(aside)
    stamp = _unseal(target, FORMER)
    change()
    stamp_files(target, stamp["made_by"], list(stamp["files"]))
    aside.unlink()


def verify_stamped(target: Path) -> None:
    """Check the stamped files of a folder that also holds others.   Raises: ValueError naming the changed one."""
    for name, entry in _unseal(target)["files"].items():
        if not (target / name).is_file() or file_digest(target / name) != entry["sha256"]:
            raise ValueError(f"{target} is corrupt: {name} is not what was written; {_remedy(target)}")


def make(target: Path, made_by: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """`target` verified when it is there, else written."""
    if target.exists():
        verify(target, made_by)
        return target
    return write(target, made_by, fill)


def check_apart(target: Path) -> None:
    """Raise ValueError when `target` lies within an artefact, which would be corrupt with it; run folders hold others."""
    for parent in target.resolve().parents:
        if (parent / STAMP).is_file() and not (parent / "config.yaml").is_file():
            raise ValueError(f"{target} would lie in the artefact {parent}: choose another folder")


def sweep(parent: Path) -> None:
    """Remove what killed writers left behind; a living writer holds the lock of its scratch folder."""
    for scratch in parent.glob(".*.tmp"):
        try:
            handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        except (NotADirectoryError, FileNotFoundError):
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


@contextlib.contextmanager
def alone(place: Path, ranks: Ranks) -> Iterator[None]:
    """Be the only launch at work on what will stand at `place`; a lock of the main process, gone with it.

    Raises: ValueError, on every rank, when another is.
    """
    handle = ranks.main_first(lambda: _lock(place) if ranks.is_main else None)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(place: Path) -> int:
    place.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(place.with_name(f".{place.name}.lock"), os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{BUSY}making {place.name}: wait for it, then give the command again") from None
    return handle


def _claim(target: Path) -> tuple[Path, int]:
    """A scratch folder beside `target` and the handle of its lock; again, should a sweep have come between the two."""
    while True:
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        scratch.mkdir()
        try:
            alive = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(alive, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, alive
        os.close(alive)


def _seal(stamp: Mapping[str, Any]) -> bytes:
    body = json.dumps(stamp, indent=1)
    return (json.dumps({**stamp, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1) + "\n").encode()


def _is_trained(target: Path) -> bool:
    """Whether a folder is a checkpoint or a run, which only training makes anew: nobody is told to remove those."""
    return target.parent.name == "checkpoints" or (target / "config.yaml").is_file()


def _remedy(target: Path) -> str:
    if _is_trained(target):
        return "bring it back from a copy, or train anew into another folder"
    return "remove the folder to have it made again"


def _unseal(target: Path, name: str = STAMP) -> dict[str, Any]:
    path = target / name
    if not path.is_file():
        raise ValueError(
            f"{target} has no {STAMP}: no finished artefact of distrec; choose another folder, or move this one away"
        )
    text = path.read_bytes()
    stamp: dict[str, Any] = {}
    try:
        stamp = json.loads(text)
        seal = stamp.pop("sha256")
        intact = _seal(stamp) == text and isinstance(seal, str)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError(f"{target} is corrupt: {STAMP} is not what was written; {_remedy(target)}")
    return stamp


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(target: Path) -> None:
    """Remove an artefact so that no crash leaves half of it under its name."""
    doomed = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    target.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
