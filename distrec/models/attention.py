"""Who attends to whom: the attention weights of every layer that reads a history, for a batch.

Worked out again from what each layer was given, beside the pass itself; a decoder of Hugging Face gives its own, in the
implementation that has them.   Shapes: B users, H heads, T positions (or frequencies), Q queries, S keys.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distrec.data.batches import Batch
from distrec.models.blocks import Attention
from distrec.models.frellm import Frellm
from distrec.models.sasrec import Block, SasRec
from distrec.models.tone import Tone


class Seen(NamedTuple):
    """One layer's; the last three of a layer that adds a learnt matrix: the attention before it, softplus(M), and the share
    of all weights that the attention itself still has in each row (none where M is added before the softmax)."""

    name: str
    weights: Float[Tensor, "B H T T"]
    is_place: Bool[Tensor, "B T"]
    before: Float[Tensor, "B H T T"] | None = None
    matrix: Float[Tensor, "T T"] | None = None
    kept: Float[Tensor, "B H T"] | None = None


@torch.no_grad()
def observe(model: nn.Module, batch: Batch) -> list[Seen]:
    """Of the layers in the order in which they run; none of a model without attention.   To be called in eval mode."""
    found: list[Seen] = []
    with ExitStack() as stack:
        match model:
            case Tone():
                stack.enter_context(_after(model, Attention, lambda name, *rest: found.append(_of_t5(name, *rest))))
                model.encode(batch)
            case SasRec():
                stack.enter_context(
                    _after(model, Block, lambda name, *rest: found.append(_of_block(name, batch.is_item, *rest)))
                )
                model.states(batch.items, batch.is_item)
            case Frellm():
                is_place = batch.is_item[:, -model.max_len :]
                own = stack.enter_context(_eager(model.backbone.decoder, model.backbone.layers))
                model.user_states(batch)
                found += [Seen(f"layers.{i}", weights.float(), is_place) for i, weights in enumerate(own)]
            case _:
                pass
    return found


def _of_t5(name: str, layer: Attention, args: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> Seen:
    x, keys, _, bias = args
    scores = (layer.q(x).unflatten(-1, (layer.n_heads, -1)).transpose(1, 2) @ keys.mT).float()
    scores = scores if bias is None else scores + bias
    is_hidden = scores == -torch.inf
    is_place = ~is_hidden.all(2).all(1)
    before = scores.softmax(-1)
    rpml = layer.rpml
    if rpml is None:
        return Seen(name, before, is_place)
    n = scores.shape[-1]
    kept = None
    if rpml.mode != "pre":
        kept = 1 / (before + rpml.added(n, n).masked_fill(is_hidden, 0)).clamp(min=0).sum(-1)
    return Seen(name, rpml(scores), is_place, before, nn.functional.softplus(rpml.matrix), kept)


def _of_block(name: str, is_item: Tensor, block: Block, args: tuple[Tensor, Tensor]) -> Seen:
    x, sees = args
    q, k, _ = block.qkv(block.norm_attention(x)).unflatten(-1, (3, block.n_heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    return Seen(name, scores.masked_fill(~sees, -torch.inf).softmax(-1), is_item)


@contextmanager
def _after(model: nn.Module, kind: type[nn.Module], look: Any) -> Iterator[None]:
    """look(name, module, its arguments) after each forward pass of modules of a kind."""
    handles = [
        module.register_forward_hook(lambda module, args, _, name=name: look(name, module, args))
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eager(decoder: Any, layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that fills with each layer's weights, while the decoder attends by transformers' own sum of products."""
    found: list[Tensor] = []
    usual = decoder.config._attn_implementation
    attentions: list[Any] = [layer.self_attn for layer in layers]
    handles = [each.register_forward_pre_hook(_added, with_kwargs=True) for each in attentions]
    handles += [each.register_forward_hook(lambda _, __, out: found.append(out[1])) for each in attentions]
    decoder.set_attn_implementation("eager")
    try:
        yield found
    finally:
        decoder.set_attn_implementation(usual)
        for handle in handles:
            handle.remove()


def _added(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """The mask as that implementation takes it: a number to be added, where ours says whether a place is seen."""
    mask = kwargs["attention_mask"]
    least = torch.finfo(kwargs["hidden_states"].dtype).min
    return args, {
        **kwargs,
        "attention_mask": torch.zeros_like(mask, dtype=kwargs["hidden_states"].dtype).masked_fill(~mask, least),
    }
