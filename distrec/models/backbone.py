"""A Hugging Face decoder as a frozen encoder of vectors: loaded, frozen or adapted, sealed.

Shapes: B rows of a batch, T positions, D channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distrec.knobs import Backbone as Config
from distrec.knobs import Filter
from distrec.models.hooks import ARGUMENT, STREAMS, Attached, Tfm
from distrec.models.language.attend import PLACES, form_of, front
from distrec.models.language.pretrained import implementation, open_decoder, skeleton, window, without_masks
from distrec.models.language.seal import Whole, digest, fingerprint


class Backbone(nn.Module):
    """States of vectors, by a decoder that is frozen, adapted by LoRA or trained whole."""

    def __init__(self, config: Config, tfm: Filter, decoder: nn.Module):
        super().__init__()
        self.config = config
        decoder.requires_grad_(config.tune == "full")
        if next(decoder.parameters()).is_cuda:
            without_masks(decoder)
        self.seal, self.mark = digest(_frozen(decoder)), fingerprint(_frozen(decoder))
        if config.tune == "lora":
            decoder = _with_lora(config, decoder)
        self.decoder = decoder
        self.tfm = Tfm(tfm, len(self.layers)) if tfm.mode != "none" else None
        self.attached = Attached(self.layers, self.tfm) if self.tfm is not None else None
        if config.checkpointing:
            decoder.activation_checkpointing_enable()  # pyright: ignore[reportCallIssue]
        self.check_seal()

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.decoder.layers)  # pyright: ignore[reportArgumentType]

    @property
    def width(self) -> int:
        return self.decoder.config.hidden_size  # pyright: ignore[reportAttributeAccessIssue,reportReturnType]

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes; that of its norms, which are never packed into four bits."""
        return next(p.dtype for p in self.decoder.parameters() if p.is_floating_point() and p.dim() == 1)

    def forward(
        self, x: Float[Tensor, "B T D"], segment: Int[Tensor, "B T"], is_window: bool = False
    ) -> Float[Tensor, "B T D"]:
        """The last layer's states after the final norm; `segment`: which sequence a place belongs to, 0 for padding.

        A place sees those before it in its own sequence; its position is counted from that sequence's first place.
        `is_window`: each row is one sequence, padded on the left, and states of padded places mean nothing.
        """
        if form_of(x.device, self.dtype, is_window, implementation(self.decoder)) == "causal":
            there, back = front(segment > 0)
            moved = x.take_along_dim(there[..., None], 1), segment.take_along_dim(there, 1)
            return self._states(*moved, **{PLACES: back}).take_along_dim(back[..., None], 1)
        sees = (segment[:, :, None] == segment[:, None]).tril()
        place = (sees & (segment > 0)[:, :, None]).sum(2).sub(1).clamp(min=0)
        mask: Bool[Tensor, "B 1 T T"] = sees[:, None]
        return self._states(x, segment, attention_mask=mask, position_ids=place)

    def _states(self, x: Tensor, segment: Tensor, **more: Tensor) -> Tensor:
        filters = {ARGUMENT: self.tfm(segment)} if self.tfm is not None else {}
        return self.decoder(inputs_embeds=x.to(self.dtype), use_cache=False, **more, **filters).last_hidden_state

    def stream(self) -> "Stream":
        """Reads sequences that grow, place by place, with a cache of keys and values."""
        return Stream(self)

    def check_seal(self, whole: Whole = nullcontext) -> None:
        """Compare the fingerprint of the frozen weights with the one at load: at each save, on the weights' own device.

        `whole`: gathers a partitioned weight.   Raises: RuntimeError when a frozen weight is not what was loaded.
        """
        _same(fingerprint(_frozen(self.decoder), whole), self.mark)

    def verify_seal(self, whole: Whole = nullcontext) -> None:
        """Compare their sha256, through the host: once, when training has ended.   Raises: as check_seal."""
        _same(digest(_frozen(self.decoder), whole), self.seal)


class Stream:
    """The states of sequences without padding, one place after the other; equal to those of the whole."""

    def __init__(self, backbone: Backbone):
        from transformers import DynamicCache

        self._backbone = backbone
        self._extra: dict[str, Any] = {STREAMS: backbone.tfm.streams()} if backbone.tfm is not None else {}
        self._cache, self._place = DynamicCache(), 0

    @torch.no_grad()
    def step(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        place = torch.full((len(x), 1), self._place, device=x.device)
        out = self._backbone.decoder(
            inputs_embeds=x[:, None].to(self._backbone.dtype),
            position_ids=place,
            past_key_values=self._cache,
            use_cache=True,
            **self._extra,
        )
        self._place += 1
        return out.last_hidden_state[:, 0]


class TextReader:
    """Texts → vectors: the decoder's state at the last token, or the mean over tokens, in float32.

    Padding stands on the right, after everything that a state may depend on; a longer text is cut at `max_tokens`,
    an empty one is the end-of-text mark alone.
    """

    def __init__(self, folder: Path, dtype: str, pooling: str, max_tokens: int | None, batch: int, device: str):
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{folder}: no tokenizer: {str(error).strip().splitlines()[0]}") from None
        shape = skeleton(folder)
        rows, most = shape.get_input_embeddings().num_embeddings, window(shape)  # pyright: ignore[reportCallIssue]
        if len(self._tokenizer) > rows:
            raise ValueError(f"{folder}: its tokenizer has {len(self._tokenizer)} tokens, its model {rows}")
        if max_tokens is not None and max_tokens > most:
            raise ValueError(f"embed.max_tokens={max_tokens}: this model takes 1 to {most}")
        self._decoder: Any = open_decoder(folder, dtype, device=device).train(False)
        self._pooling, self._most, self._batch, self._device = pooling, max_tokens or min(128, most), batch, device

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._most)["input_ids"]
        end = self._tokenizer.eos_token_id or 0
        rows = [torch.tensor(row or [end]) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = torch.empty(len(rows), self._decoder.config.hidden_size)
        for low in range(0, len(rows), self._batch):
            own = order[low : low + self._batch]
            found[own] = self._states([rows[i] for i in own]).cpu()
        return found.numpy()

    def _states(self, rows: list[Tensor]) -> Tensor:
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._device)
        is_token = torch.arange(tokens.shape[1], device=self._device) < lengths[:, None]
        states = self._decoder(input_ids=tokens, attention_mask=is_token.long(), use_cache=False).last_hidden_state
        if self._pooling == "mean":
            return (states.float() * is_token[..., None]).sum(1) / lengths[:, None]
        return states[torch.arange(len(rows), device=states.device), lengths - 1].float()


def _same(seal: str, loaded: str) -> None:
    if seal != loaded:
        raise RuntimeError("the frozen backbone has changed: a weight is not what was loaded; nothing was saved")


def _frozen(decoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """With the scales of what is packed into four bits."""
    for full, parameter in decoder.named_parameters():
        if parameter.requires_grad:
            continue
        name = full.replace(".base_layer.", ".")
        yield name, parameter
        if (packing := getattr(parameter, "quant_state", None)) is not None:
            yield from _scales(name, packing)


def _scales(name: str, packing: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a quantisation state and of the one that its own scales are packed by.

    Deviation: bitsandbytes' as_dict() reads its offset as a number, a wait for the device at each weight.
    """
    yield f"{name}.absmax", packing.absmax
    yield f"{name}.quant_map", packing.code
    if packing.nested:
        yield f"{name}.offset", packing.offset
        yield from _scales(f"{name}.nested", packing.state2)


def _with_lora(config: Config, decoder: nn.Module) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_modules),
    )
    adapted = inject_adapter_in_model(lora, decoder)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # whatever the backbone's type: steps of 1e-3 vanish beside weights in bfloat16
            parameter.data = parameter.data.float()
    return adapted
