"""Which part of a model each of its modules belongs to, for who measures what a part takes."""

from dataclasses import dataclass, field

from torch import nn

from distrec.models.blocks import EncoderLayer
from distrec.models.frellm import Frellm
from distrec.models.sasrec import SasRec
from distrec.models.tone import Tone

EMBEDDING, ATTENTION, FEED, LOSS = "embedding", "attention", "feed-forward", "logits and loss"


@dataclass(frozen=True)
class Parts:
    """`inside`: modules that a part begins with; what stands between two of them counts for the one before, in the module
    around them.   `after`: modules whose hooks are a part of their own."""

    inside: dict[nn.Module, str] = field(default_factory=dict)
    after: dict[nn.Module, str] = field(default_factory=dict)


def parts_of(model: nn.Module) -> Parts:
    """None of a model that counts."""
    match model:
        case Tone():
            return _of_tone(model)
        case SasRec():
            inside: dict[nn.Module, str] = {model.item: EMBEDDING, model.norm: LOSS}
            for block in model.blocks:
                inside |= {block.norm_attention: ATTENTION, block.norm_feed: FEED}  # pyright: ignore[reportAssignmentType]
            return Parts(inside)
        case Frellm():
            return _of_frellm(model)
        case _:
            return Parts()


def _of_tone(model: Tone) -> Parts:
    inside: dict[nn.Module, str] = {model.shared: EMBEDDING}
    inside |= dict.fromkeys(model.decoder.modules(), "decoder")
    inside |= {model.encoder_norm: "decoder", model.decoder.norm: LOSS}
    if model.users is not None:
        inside[model.users] = EMBEDDING
    if model.agf is not None:
        inside[model.agf] = "Gaussian filter (AGF)"
    if model.crfa is not None:
        inside |= {model.crfa: "Fourier transforms (CRFA)"}
    for layer in model.modules():
        if isinstance(layer, EncoderLayer):
            inside |= {layer.norm_attention: ATTENTION, layer.norm_feed: FEED}
    return Parts(inside)


def _of_frellm(model: Frellm) -> Parts:
    backbone, filters = model.backbone, "temporal filter (TFM)"
    inside: dict[nn.Module, str] = {model.table: "item table", model.norm: LOSS}
    if backbone.tfm is not None:
        inside[backbone.tfm] = filters
    for layer in backbone.layers:
        inside |= {layer.input_layernorm: ATTENTION, layer.post_attention_layernorm: FEED}  # pyright: ignore[reportAssignmentType]
    after = dict.fromkeys(backbone.layers, filters) if backbone.tfm is not None else {}
    return Parts(inside, after)
