"""Folders of Hugging Face decoders: what is refused before a weight is read, and how they are opened.

Read with safetensors only; code that a folder brings is never run.
"""

import json
import shutil
import warnings
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from distrec.knobs import Backbone as Config
from distrec.models.language.attend import IMPLEMENTATION, SDPA

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt")
_SHARED_HEADS = torch.__version__ >= "2.13"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def check(folder: Path) -> None:
    """Refuse a folder that `open_decoder` cannot take; no weight is read.

    Raises: ValueError, one line, when the folder has no config or tokenizer, pickled weights only, code of its own, or
    weights that are not those of its config.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"model.backbone.path={folder}: no language model in this folder (no config.json)")
    config = _read(path)
    for part in (path, folder / "tokenizer_config.json"):
        if part.is_file() and "auto_map" in _read(part):
            raise ValueError(f"{folder} brings code of its own (auto_map in {part.name}), which is never run")
    architectures = [str(name) for name in config.get("architectures") or []]
    if not any(name.endswith("ForCausalLM") for name in architectures):
        raise ValueError(f"{folder} is no decoder: its architectures are {architectures}, wanted one …ForCausalLM")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ValueError(f"{folder} has no model.safetensors: pickled weights are never read")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(f"{folder} has no tokenizer (tokenizer.json)")
    held: dict[str, tuple[int, ...]] = {}
    for part in sorted(folder.glob("*.safetensors")):
        try:
            with safetensors.safe_open(part, framework="np") as file:
                held |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{part} is broken: {error}") from None
    packing = config.get("quantization_config")
    if packing is None:
        _check_shapes(folder, held)  # packed ones have others
    elif not packing.get("load_in_4bit") or packing.get("bnb_4bit_quant_type") != "nf4":
        raise ValueError(f"{folder} is quantised by {packing.get('quant_method')}: only nf4 of bitsandbytes is read")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a model's config: {error}") from None


def check_use(folder: Path, config: Config, max_len: int) -> None:
    """Refuse what this model cannot be used for; no weight is read.

    Raises: ValueError, one line, when it has no such modules to adapt, too few places for `max_len` items, or is packed already.
    """
    model = skeleton(folder)
    if hasattr(model.config, "quantization_config") and config.quantise == "none":
        raise ValueError(f"{folder} is stored in four bits: model.backbone.quantise=nf4")
    if max_len > (most := window(model)):
        raise ValueError(f"model.max_len={max_len}: this language model has {most} places")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for wanted in config.lora_modules if config.tune == "lora" else ():
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(f"model.backbone.lora_modules={wanted}: this model has {known}")


def skeleton(folder: Path, dtype: str = "float32") -> nn.Module:
    """The decoder that a folder's config describes, without weights.   Raises: ValueError, one line, where it is none."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False, dtype=DTYPES[dtype])
    except Exception as error:  # each class checks its config in its own way
        raise ValueError(f"{folder}: config.json describes no model: {str(error).strip().splitlines()[0]}") from None
    if not isinstance(getattr(model, "layers", None), nn.ModuleList):
        raise ValueError(f"{folder}: a {type(model).__name__} has no list of layers to put filters after")
    return model


def _check_shapes(folder: Path, held: dict[str, tuple[int, ...]]) -> None:
    """Compare a folder's weights with its config.   Raises: ValueError naming the first that does not fit.

    Where names differ on both sides a class renames its weights: loading tells whether they fit.
    """
    model = skeleton(folder)
    prefix = f"{model.base_model_prefix}."
    held = {name.removeprefix(prefix): shape for name, shape in held.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, strange = (
        sorted(wanted.keys() - held),
        sorted(name for name in held if name.startswith("layers.") and name not in wanted),
    )
    for name in sorted(wanted.keys() & held):
        if held[name] != wanted[name]:
            raise ValueError(f"{folder}: its weights do not fit its config: {name} is {held[name]}, not {wanted[name]}")
    if bool(missing) != bool(strange):
        what = f"{missing[0]} is missing" if missing else f"{strange[0]} is not in it"
        raise ValueError(f"{folder}: its weights do not fit its config: {what}")


def without_masks(decoder: nn.Module) -> None:
    """Let a decoder that attends by scaled dot products take the caller's mask as it is, and none as causal.

    Where there is none transformers looks for packed rows, for which the host waits, unless it does not know the name of
    the implementation.   Deviation: then it drops a mask of two dimensions too; ours have four.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    if implementation(decoder) == SDPA:
        decoder.set_attn_implementation(IMPLEMENTATION)  # pyright: ignore[reportCallIssue]


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Any:
    """transformers' scaled dot products, with a copy of the keys for each query head where torch needs it.

    Without a mask query heads share keys; torch before 2.13 cannot count the FLOPs of that, and training would not begin.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if mask is None and not _SHARED_HEADS:
        key, value = (heads.repeat_interleave(query.shape[1] // heads.shape[1], 1) for heads in (key, value))
    return sdpa_attention_forward(module, query, key, value, mask, **more)


def implementation(decoder: nn.Module) -> str:
    """The name of the function by which a decoder attends."""
    return decoder.config._attn_implementation  # pyright: ignore[reportAttributeAccessIssue,reportReturnType]


def window(model: nn.Module) -> int:
    """Places that a model was made for."""
    return int(model.config.max_position_embeddings)  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]


def draw(folder: Path, source: Path, dtype: str, seed: int) -> None:
    """Fill a folder with the random twin of a language model: its config and tokenizer, weights as its class draws them.

    Raises: ValueError, one line, where the source's config describes no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False, local_files_only=True)
        vars(config).pop("quantization_config", None)  # what is drawn is not packed
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=DTYPES[dtype])
    except Exception as error:  # each class checks its config in its own way
        raise ValueError(f"{source}: no weights can be drawn: {str(error).strip().splitlines()[0]}") from None
    for part in TOKENIZER:
        if (source / part).is_file():
            shutil.copyfile(source / part, folder / part)
    model.save_pretrained(folder)


def open_decoder(
    folder: Path,
    dtype: str = "float32",
    quantise: str = "none",
    attention: str = "sdpa",
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The decoder's base model (no head), every byte as it was saved, loaded straight to a device.

    `device`: this process's GPU, where four bits are packed too; the CPU under ZeRO-3, which moves the model part by part.
    Units: host memory of some tensors at a time on the way to a GPU.

    Raises: ValueError, one line, when the folder is none or its weights do not fit its config.
    """
    from transformers import AutoModel, BitsAndBytesConfig
    from transformers.utils import logging

    check(folder)
    kind = DTYPES[dtype]
    settings: dict[str, Any] = {"dtype": kind, "attn_implementation": attention}
    settings["device_map"] = {
        "": torch.device(device)
    }  # without it bitsandbytes takes the current GPU, whatever the rank
    if quantise == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=kind,
            bnb_4bit_quant_storage=kind,
        )
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="You passed `quantization_config`")  # ours says the same as its own
    getLogger("bitsandbytes").setLevel(ERROR)  # of kernels that one may add
    logging.set_verbosity_error()  # heads that are not wanted are no news
    safe = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    try:
        model, told = AutoModel.from_pretrained(str(folder), output_loading_info=True, **safe, **settings)
    except torch.OutOfMemoryError:  # nothing is wrong with the folder
        raise
    except Exception as error:  # safetensors, transformers and torch each raise their own
        told = str(error).strip().splitlines()[0]
        told = "its weights do not fit its config" if "mismatched" in str(error) else told
        raise ValueError(f"{folder}: {told}") from None
    if lost := sorted(told["missing_keys"]) or sorted(str(key) for key in told["mismatched_keys"]):
        raise ValueError(f"{folder}: its weights do not fit its config: {lost[0]} (and {len(lost) - 1} more)")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it packs the weights anew in place, and training then crashes
    return model
