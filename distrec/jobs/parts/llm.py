"""Where a language model lies: found, downloaded, or trained on the catalogue's own texts."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from distrec import config as cfg
from distrec import knobs
from distrec.data import store, vectors
from distrec.data.prepared import Prepared
from distrec.models.language import pretrained, small_llm
from distrec.runtime import log

SMALL = "small_llm"


def locate(name: str, revision: str | None, root: Path, data: Prepared) -> Path:
    """The folder of a decoder that can be taken as it is.   Raises: ValueError, one line, saying what is wrong with it."""
    if name == SMALL:
        made = {
            "texts": vectors.texts_digest(data),
            "fitted_on": "text",
            "code": store.file_digest(Path(small_llm.__file__)),
        }
        folder = store.make(store.folder(root, "llm", made), made, partial(_train, data=data))
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        try:
            folder = download(name, revision)
        except ValueError as error:
            raise ValueError(
                f"model.backbone.path={error}; without a network: model.backbone.path=FOLDER or {SMALL}"
            ) from None
    pretrained.check(folder)
    return folder


def twin(source: Path, dtype: str, seed: int, root: Path) -> Path:
    """The folder of a language model's random twin, drawn now unless it is there.

    Weights on disk, as any model's: whatever packs, cuts up, seals or reads it again gets the same bytes, also from a later
    torch that draws otherwise.   Units: as much disk as the model in its dtype.
    """
    read = ("config.json", *pretrained.TOKENIZER)
    made = {
        "random": {name: store.file_digest(source / name) for name in read if (source / name).is_file()},
        "dtype": dtype,
        "seed": seed,
        "fitted_on": "nothing",
    }
    return store.make(
        store.folder(root, "llm", made), made, partial(pretrained.draw, source=source, dtype=dtype, seed=seed)
    )


def encoder(config: cfg.Config) -> knobs.Embed:
    """How items' texts become vectors: as the config says, or by the language model that will read them."""
    if config.embed.encoder is None and isinstance(config.model, knobs.Frellm):
        place = config.model.backbone
        return replace(config.embed, encoder=place.path, revision=place.revision)
    return config.embed


def is_decoder(folder: Path) -> bool:
    """Whether a folder's config names a causal language model."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return any(str(name).endswith("ForCausalLM") for name in found.get("architectures") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def download(name: str, revision: str | None, only: str | None = None) -> Path:
    """A model's folder from the hub, without pickled weights; `only`: one file of it.

    Raises: ValueError, one line, beginning with its name.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"{name}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    unneeded = ["*.bin", "*.h5", "*.msgpack", "*.ot", "*.ckpt", "*.pth", "onnx/*", "openvino/*", "original/*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=only, ignore_patterns=unneeded))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} is neither a folder nor to be had from the hub ({reason})") from None


def _train(folder: Path, data: Prepared) -> None:
    log(f"training a small language model on {data.n_items:,} texts")
    texts = [text for batch in vectors.text_batches(data, 65_536) for text in batch]
    if not any(text.strip() for text in texts):
        log("WARNING: no item has a text (data.text): the language model learns nothing about them")
    told = small_llm.train(texts, folder)
    log(f"  {told['loss']:.2f} nats a token after {told['steps']:.0f} steps (unigram {told['unigram']:.2f})")
