"""What a command did with a file: refused in one clear line, or took it, and then every row of it."""

import contextlib
import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from distrec import config as cfg
from distrec.data import prepared
from fuzzing.beside import READERS
from fuzzing.damage import DAMAGES, damaged
from fuzzing.logs import KINDS, Log, sequences_of, write

TOO_SMALL = ("nothing is left", "target", "no user")  # honest refusals of what is left of a file


@dataclass
class Verdict:
    """`fault` is empty where the outcome is right."""

    what: str
    seed: int
    outcome: str
    fault: str = ""


def draw(kind: str, seed: int, is_damaged: bool) -> Log:
    """The log of a seed."""
    rng = random.Random(f"{kind} {seed}")
    log = KINDS[kind](rng)
    return damaged(log, rng) if is_damaged else log


def judge(kind: str, seed: int, is_damaged: bool, folder: Path) -> Verdict:
    """Prepare the log of a seed, or read what lies beside a log, in a fresh folder, and look at what came of it."""
    if kind in READERS:
        return _judge_beside(kind, seed, is_damaged, folder)
    log = draw(kind, seed, is_damaged)
    words = write(log, folder / "data")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            made = prepared.prepare(cfg.load([f"data.root={folder}/artefacts", *words]).data)
    except ValueError as error:
        if log.truth is not None and ":" not in log.what.replace("::", ""):
            return Verdict(log.what, seed, "refused", f"a sound file was refused: {str(error)[:300]}")
        return Verdict(log.what, seed, "refused", _fault_of_refusal({log.name, *log.more}, str(error)))
    except Exception as error:
        return Verdict(log.what, seed, "traceback", f"{type(error).__name__}: {str(error)[:300]}")
    return Verdict(log.what, seed, "taken", _fault_of_reading(log, made, said.getvalue()))


def _judge_beside(kind: str, seed: int, is_damaged: bool, folder: Path) -> Verdict:
    rng = random.Random(f"{kind} {seed}")
    draw_files, read = READERS[kind]
    files = draw_files(rng)
    if is_damaged:
        name, what = rng.choice(list(files.contents)), rng.choice(list(DAMAGES))
        files.contents[name] = DAMAGES[what](files.contents[name], rng)
        files.what += f": {what} in {name}"
    for name, content in files.contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            got = read(folder / files.place)
    except ValueError as error:
        if not is_damaged:
            return Verdict(files.what, seed, "refused", f"a sound file was refused: {str(error)[:300]}")
        return Verdict(
            files.what, seed, "refused", _fault_of_refusal({Path(n).name for n in files.contents}, str(error))
        )
    except Exception as error:
        return Verdict(files.what, seed, "traceback", f"{type(error).__name__}: {str(error)[:300]}")
    is_wrong = not is_damaged and got != files.truth
    return Verdict(files.what, seed, "taken", f"{str(got)[:300]} instead of {str(files.truth)[:300]}" * is_wrong)


def _fault_of_refusal(names: set[str], message: str) -> str:
    if "\n" in message.strip():
        return f"more than one line: {message[:300]!r}"
    if len(message) > 1500:
        return f"{len(message)} characters: {message[:200]!r} …"
    if re.search(r"Traceback|NoneType|object at 0x|pyarrow\.|polars\.|RuntimeWarning", message):
        return f"speaks of its insides: {message[:300]}"
    if not any(name in message for name in names) and not re.search(
        r"[a-z]+\.[a-z]+|[a-z]+=|key '|is empty: indent|no user of", message
    ):
        return f"names no file and no key: {message[:300]}"
    return ""


def _fault_of_reading(log: Log, made: Path, said: str) -> str:
    report = json.loads((made / "statistics.json").read_text())
    got = sequences_of(made)
    kept, read, removed = sum(map(len, got.values())), report["removed"]["interactions read"], report["removed"]
    if log.truth is None:
        lines = [line for line in log.content.splitlines() if line.strip()]
        least = len(lines) - 1 - (log.content.count(b'"') > 0) * log.content.count(b"\n")
        if (
            log.name.lower().endswith((".csv", ".tsv", ".jsonl", ".data", ".dat", ".json"))
            and read < least
            and "sequences" not in log.name
        ):
            return f"{len(lines)} lines, {read} interactions read: {removed}"
        return ""
    if got != log.truth:
        differ = [user for user in {*got, *log.truth} if got.get(user) != log.truth.get(user)]
        user = sorted(differ)[0]
        return f"user {user!r}: {got.get(user)} instead of {log.truth.get(user)} ({kept} kept of {read}; {removed}; said {said[-200:]!r})"
    return ""
