"""What a recommender is, and which one a config names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distrec import knobs
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.data.prepared import Prepared
from distrec.models.backbone import Backbone
from distrec.models.baselines.counting import ItemKnn, Markov, Popularity
from distrec.models.frellm import Frellm
from distrec.models.language.pretrained import open_decoder, skeleton
from distrec.models.sasrec import SasRec
from distrec.models.tone import Tone


class Recommender(Protocol):
    """Anything that can be trained by the one loop and ranked by the one scoring.

    `max_len`: the longest history it reads; `samples`: what it is trained on.  A model that scores every item also
    has `scorer(batch) -> Scorer` (a TableModel by its states and vectors); one that generates has `beams`, the most that it lists, and
    `listings(batch, every)`: its lists and their scores, by its own way of decoding and, if asked for, the others after it,
    -1 where no item came out, and
    `likelihood(batch, items)`: its scores of given items.  `facts()`, where there is one, tells what its parts learnt.
    """

    max_len: int
    samples: Literal["sequences", "prefixes"]

    def __call__(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss in nats, summed over the batch's targets (the loop divides by their number on all ranks)."""
        ...

    def rank(self, batch: Batch, k: int) -> Int[Tensor, "B K"]:
        """The ids of the k best items for each history, best first."""
        ...


def build(
    config: knobs.Model,
    data: Prepared,
    seed: int,
    codes: ItemCodes | None = None,
    tables: Mapping[str, Tensor] | None = None,
    backbone: Path | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The model that `config` names on the device, with weights drawn from `seed` on the CPU: the same on every device.

    Counting models are complete when built.

    Reads nothing of `data` but its sizes and its training interactions; `codes`: of a model that generates them;
    `tables`, `backbone`: the items' vectors and the folder of the language model that reads them.
    """
    torch.manual_seed(seed)
    match config:
        case knobs.SasRec():
            model = SasRec(config, data.n_items)
        case knobs.Popularity():
            model = Popularity(data)
        case knobs.ItemKnn():
            model = ItemKnn(data, config.max_len)
        case knobs.Markov():
            model = Markov(data, config.decay, config.max_len)
        case knobs.Tone() | knobs.Tiger():
            assert codes is not None
            model = Tone(config, codes)
        case knobs.Frellm():
            assert tables is not None
            assert backbone is not None
            decoder = open_decoder(backbone, config.backbone.dtype, config.backbone.quantise, device=device)
            torch.manual_seed(seed)  # whatever loading drew
            model = Frellm(config, Backbone(config.backbone, config.tfm, decoder), **tables)
    return model.to(device)


def sketch(
    config: knobs.Model,
    n_items: int,
    sizes: tuple[int, ...] = (),
    widths: tuple[int, int] = (0, 0),
    folder: Path = Path(),
) -> nn.Module:
    """The model that `config` names with shapes and no bytes, to reckon with; counting models have none.

    `sizes`: codes of each place; `widths`: of the items' collaborative and text vectors; `folder`: of a language model, of
    which the config alone is read.  Raises: ValueError for a counting model.
    """
    with torch.device("meta"):
        match config:
            case knobs.SasRec():
                return SasRec(config, n_items)
            case knobs.Tone() | knobs.Tiger():
                ids = torch.empty(n_items, dtype=torch.int64)
                return Tone(config, ItemCodes(torch.empty(n_items, len(sizes), dtype=torch.int32), sizes, ids, ids))
            case knobs.Frellm():
                backbone = Backbone(config.backbone, config.tfm, skeleton(folder, config.backbone.dtype))
                if backbone.tfm is not None:
                    backbone.tfm.forward = backbone.tfm.sketch
                return Frellm(config, backbone, *(torch.empty(n_items, width) for width in widths))
            case _:
                raise ValueError(f"model.name={config.name} counts: it has nothing to train, and needs no GPU")


def is_trained(model: nn.Module) -> bool:
    """Whether there is anything to learn (counting models have no parameters)."""
    return any(parameter.requires_grad for parameter in model.parameters())
