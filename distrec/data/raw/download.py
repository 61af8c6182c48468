"""Official files: fetched once, resumed when cut off, checked against a pinned sha256."""

import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from distrec.data.store import file_digest
from distrec.knobs import Data
from distrec.runtime import log

_GROUPLENS = "https://files.grouplens.org/datasets"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_UCSD = "https://jmcauley.ucsd.edu/data/amazon_v2"
_MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"


@dataclass(frozen=True)
class Official:
    """One official archive: where it lies, its sha256 (None: the publisher gives none), what we take from it."""

    url: str
    sha256: str | None
    members: tuple[str, ...] = ()  # of a zip; () for a file that is used as it is

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


CATALOGUES = {
    "ml-100k": (
        Official(
            f"{_GROUPLENS}/movielens/ml-100k.zip",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            ("ml-100k/u.data", "ml-100k/u.item"),
        ),
    ),
    "ml-1m": (
        Official(
            f"{_GROUPLENS}/movielens/ml-1m.zip",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ("ml-1m/ratings.dat", "ml-1m/movies.dat"),
        ),
    ),
    "lastfm-2k": (
        Official(
            f"{_GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip",
            "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
            ("user_taggedartists-timestamps.dat", "artists.dat"),
        ),
    ),
}


def official(catalogue: str) -> tuple[Official, ...]:
    """The files of a catalogue: ml-100k, ml-1m, lastfm-2k, amazon-2014/NAME, amazon-2018/NAME or amazon-2023/NAME.

    Raises: ValueError listing the known names.
    """
    kind, _, category = catalogue.partition("/")
    if catalogue in CATALOGUES:
        return CATALOGUES[catalogue]
    if kind == "amazon-2014" and category:
        return Official(f"{_SNAP}/reviews_{category}_5.json.gz", None), Official(
            f"{_SNAP}/meta_{category}.json.gz", None
        )
    if kind == "amazon-2018" and category:
        return (
            Official(f"{_UCSD}/categoryFilesSmall/{category}_5.json.gz", None),
            Official(f"{_UCSD}/metaFiles2/meta_{category}.json.gz", None),
        )
    if kind == "amazon-2023" and category:
        return (
            Official(f"{_MCAULEY}/review_categories/{category}.jsonl.gz", None),
            Official(f"{_MCAULEY}/meta_categories/meta_{category}.jsonl.gz", None),
        )
    raise ValueError(
        f"unknown data.catalogue={catalogue!r}; known: {', '.join(CATALOGUES)}, amazon-2014/NAME, amazon-2018/NAME, amazon-2023/NAME"
    )


def folder(config: Data) -> Path:
    """Where a named catalogue is downloaded to when no data.path is given."""
    return config.root / "raw" / (config.catalogue or "")


def fetch(config: Data, target: Path, names: Sequence[str]) -> Path:
    """The first of `names` in `target` after the catalogue was downloaded there.

    Raises: ValueError naming each missing file, where to get it and where to put it.
    """
    if config.catalogue:
        fetch_all(config, target)
        for name in names:
            if (target / name).is_file():
                return target / name
    raise _absent(config, target, names)


def fetch_all(config: Data, target: Path) -> list[Path]:
    """Every official file of the catalogue, in `target`."""
    if not config.catalogue:
        raise _absent(
            config,
            target,
            ["the reviews (NAME_5.json.gz, NAME.jsonl.gz)", "the metadata (meta_NAME.json.gz, meta_NAME.jsonl.gz)"],
        )
    files = []
    for source in official(config.catalogue):
        archive = _download(source, target)
        files += [_extract(archive, member, target) for member in source.members] or [archive]
    return files


def _download(source: Official, target: Path) -> Path:
    done, part = target / source.name, target / f"{source.name}.part"
    if not done.is_file():
        target.mkdir(parents=True, exist_ok=True)
        try:
            _stream(source.url, part)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not part.exists():  # 416: nothing is missing of it
                raise ValueError(f"{source.url}: {error}; download it elsewhere and put it at {done}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(
                f"{done} is missing and {source.url} cannot be reached ({reason}): download it elsewhere and put it there"
            ) from None
        part.rename(done)
    found = file_digest(done)
    if source.sha256 and found != source.sha256:
        raise ValueError(
            f"{done} has sha256 {found}, pinned is {source.sha256}: remove it and fetch {source.url} again"
        )
    if not source.sha256:
        # Deviation: Amazon's publishers give no checksum; what was read is recorded in the stamp of the prepared data.
        log(f"{done}: sha256 {found} (its publisher pins none)")
    return done


def _stream(url: str, part: Path) -> None:
    """Append to `part` what is still missing of it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + have * resumed
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total or None, initial=have * resumed, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while block := answer.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    if total and part.stat().st_size < total:
        raise ConnectionError(f"only {part.stat().st_size} of {total} bytes came; run again to go on")


def _extract(archive: Path, member: str, target: Path) -> Path:
    """One named member, under its own last name: nothing in the archive chooses a path."""
    path = target / member.rsplit("/", 1)[-1]
    if not path.is_file():
        try:
            with zipfile.ZipFile(archive) as bundle:
                part = path.with_name(f"{path.name}.part")
                part.write_bytes(bundle.read(member))
                part.rename(path)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{archive}: {error}; remove it and fetch it again") from None
    return path


def _absent(config: Data, target: Path, names: Sequence[str]) -> ValueError:
    hints = {
        "movielens": "https://grouplens.org/datasets/movielens/ (or set data.catalogue=ml-100k or ml-1m)",
        "lastfm": "https://grouplens.org/datasets/hetrec-2011/ (or set data.catalogue=lastfm-2k)",
        "amazon": "https://cseweb.ucsd.edu/~jmcauley/datasets.html (or set data.catalogue=amazon-2014/Beauty)",
        "sequences": "a program of yours (README, 'Your own data')",
    }
    where = hints.get(config.source, "its publisher")
    return ValueError(
        f"{target} lacks {' or '.join(names)} (plain or .gz): get it from {where} and put it into {target}"
    )
