"""What a process knows about itself: its siblings, how it logs, and how it ends."""

import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE, FAILED, REFUSED, REQUEUE = 0, 1, 2, 75  # exit codes; 75: stopped by a signal after saving
_LISTED = 300  # characters of names
_SHOWN = 80  # characters of a value in a message
_UNREAD = 128 + signal.SIGPIPE  # whoever read what this process prints has left before it was done
_DEATH = 1  # PR_SET_PDEATHSIG
_PATIENCE = 5.0  # seconds that a process leaves the main one to say what is wrong


@dataclass(frozen=True)
class Ranks:
    """This process among its siblings; with one process every method is the trivial case."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        dist = _dist()
        return cls(dist.get_rank(), dist.get_world_size()) if dist else cls()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, *tensors: Any) -> None:
        """Sum each tensor over ranks, in place."""
        for tensor in tensors if self.size > 1 else ():
            _dist().all_reduce(tensor)

    def gather(self, value: Any) -> list[Any]:
        """Each rank's value (plain numbers, strings and arrays), in rank order."""
        values = [value] * self.size
        if self.size > 1:
            _dist().all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather(None)

    def shard(self, n: int) -> slice:
        """The rows of an n-row table that this rank works on; sizes differ by at most one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def deal(self, group: Sequence[Any]) -> list[Any]:
        """This rank's part of a group; where others have one more, the group's last again: all work equally often."""
        rounds = -(-len(group) // self.size)
        return [group[min(i * self.size + self.rank, len(group) - 1)] for i in range(rounds)]

    def collect(self, own: list[Any], n: int) -> list[Any]:
        """What the ranks made of the n parts of a group that was dealt, in the group's order."""
        parts = self.gather(own)
        return [parts[i % self.size][i // self.size] for i in range(n)]

    def main_first(self, build: Callable[[], Any]) -> Any:
        """build() on the main rank, then on the others (which find its files).

        Raises: what build raised, on every rank, so that none waits for a failed one.
        """
        failure, result = None, None
        if self.is_main:
            try:
                result = build()
            except Exception as error:
                if self.size == 1:
                    raise
                failure = error
        failure = self.gather(failure)[0]
        if failure is not None:
            failure.told = self.rank > 0  # the main rank says it
            raise failure
        return result if self.is_main else build()


def _dist() -> Any:
    """torch.distributed when a group is joined; torch is not imported for its sake."""
    torch = sys.modules.get("torch")
    return torch.distributed if torch and torch.distributed.is_initialized() else None


def brief(value: object) -> str:
    """Write a value as a message shows it: what Python writes for it, the first 80 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def several(names: Iterable[object]) -> str:
    """Write names as a message lists them: the first 300 characters."""
    text = ", ".join(map(str, names))
    return text if len(text) <= _LISTED else f"{text[:_LISTED]}… ({len(text):,} characters)"


def log(message: str) -> None:
    """A line for people, on stderr, from the main process only."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)


class Journal:
    """metrics.jsonl: one JSON object a line, appended by the main process, flushed at once."""

    def __init__(self, path: Path, ranks: Ranks):
        self.path = path
        self._file = path.open("a", encoding="utf-8") if ranks.is_main else None

    def write(self, **record: Any) -> None:
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def last_step(self) -> int:
        return max((_step_of(line) for line in self.path.read_text(encoding="utf-8").splitlines()), default=0)

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps (and a half-written last one): a resumed run writes them again."""
        if self._file is None:
            return
        kept = [
            line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if _step_of(line) <= step
        ]
        write_atomically(self.path, "".join(kept))
        self._file.close()
        self._file = self.path.open("a", encoding="utf-8")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step") or 0)
    except (ValueError, AttributeError, TypeError):
        return sys.maxsize  # cut off by a kill


def write_atomically(path: Path, text: str) -> None:
    """The whole text under this name, or what stood there before."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)


class Stopped(Exception):
    """A signal asked to leave in the middle of something that is done again from its start."""


class Stop:
    """True once SIGTERM, SIGINT or SIGUSR1 has come: finish the step, save, leave with 75."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.asked

    def _ask(self, number: int, _frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked = True
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: finishing this step, then saving (Ctrl-C again: leave at once)\n".encode())


def die_along() -> None:
    """Ask the kernel for SIGTERM when the parent is killed, so that nothing is left without a watcher.   For `preexec_fn`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGTERM)


def run(main: Callable[[Sequence[str]], int | None], help_text: str | None = None) -> None:
    """Run a command's main(argv) and end the process with the house's exit codes.

    A ValueError or OSError is the user's business: one line, code 2.  Anything else is ours: a traceback, code 1.
    """
    argv = sys.argv[1:]
    if help_text and {"-h", "--help"} & set(argv):
        print(help_text.strip())
        sys.exit(DONE)
    try:
        code = main(argv) or DONE
    except KeyboardInterrupt:
        log("interrupted; nothing was saved since the last checkpoint")
        code = FAILED
    except BrokenPipeError:
        code = FAILED if all(map(_is_read, (1, 2))) else _UNREAD
        if code == FAILED:  # some other pipe
            traceback.print_exc()
    except (ValueError, OSError) as error:
        if os.environ.get("DISTREC_TRACEBACK"):
            traceback.print_exc()
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        _tell(text, getattr(error, "told", False))
        code = REFUSED
    except Exception:
        traceback.print_exc()
        code = FAILED
    _leave(code)


def _tell(error: str, is_told: bool) -> None:
    """One line of an error, from the main process where all met it: the first to end takes the others with it."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_PATIENCE)
        if not is_told:
            print(f"error on rank {rank}: {error}", file=sys.stderr)
    log(f"error: {error}")


def _is_read(number: int) -> bool:
    """Whether what is written to this file descriptor can reach anybody."""
    poll = select.poll()
    poll.register(number, 0)
    return not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def _leave(code: int) -> None:
    """End now.  Ranks skip interpreter teardown, where gloo's threads abort about one run in ten."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            _ = stream and stream.flush()  # none where it was closed before
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # else the interpreter would try again, and complain
            if not isinstance(error, BrokenPipeError):  # `| head` has seen enough
                log(f"error: what was printed is lost: {error.strerror}")
                code = code or FAILED
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    sys.exit(code)
