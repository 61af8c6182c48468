"""SASRec: causal self-attention over item ids.

Source: Kang & McAuley 2018 (arXiv 1808.09781); full softmax after Klenitskiy & Vasilev 2023 (arXiv 2309.07602).

Shapes: B users in a batch, T positions (left-padded), D channels, I items, H heads, N targets.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distrec.data.batches import Batch
from distrec.knobs import SasRec as Config
from distrec.models import softmax
from distrec.models.ranking import Reader

_LOGITS_MIB = 1024  # that the softmax's logits take at once


class SasRec(Reader):
    """Scores ⟨h_t, e_i⟩, h_t the last block's state at t and e_i the input embedding of item i (tied).

    Deviation: normalises before each block and once at the end, where the paper's code normalises queries only.
    """

    samples = "sequences"
    item_rows = ("item.weight",)  # one row an item

    def __init__(self, config: Config, n_items: int):
        super().__init__()
        self.config = config
        self.max_len = config.max_len
        self.n_items = n_items
        self.item = nn.Embedding(n_items, config.d_model)
        self.position = nn.Embedding(config.max_len, config.d_model)  # counted from the right: padding moves nothing
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.n_heads, config.dropout) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)  # small: rare items stay near the mean, not in a random corner

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        states = self.states(batch.items, batch.is_item).flatten(0, 1).index_select(0, batch.place)
        targets = batch.targets.flatten()[batch.place]
        if self.config.loss == "ce":
            return softmax.full(states, self.item.weight, targets, _LOGITS_MIB)
        return self._binary_loss(states, targets, batch)

    def states(self, items: Int[Tensor, "B T"], is_item: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """h_t for every position.   Causal: yes; t sees items at or before t, and no padding."""
        n_positions = items.shape[1]
        x = self.item(items) * self.config.d_model**0.5 + self.position.weight[self.max_len - n_positions :]
        x = self.dropout(x * is_item[..., None])
        sees = is_item[:, None, :] & torch.ones(n_positions, n_positions, dtype=torch.bool, device=items.device).tril()
        sees = sees | torch.eye(n_positions, dtype=torch.bool, device=items.device)  # a pad sees itself: no NaN
        for block in self.blocks:
            x = block(x, sees[:, None])
        return self.norm(x)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def read(self, batch: Batch) -> Float[Tensor, "B T D"]:
        return self.states(batch.items, batch.is_item)

    def item_vectors(self, items: slice | Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        return self.item.weight.detach()[items].float()

    def _binary_loss(self, states: Float[Tensor, "N D"], targets: Int[Tensor, " N"], batch: Batch) -> Float[Tensor, ""]:
        """-log σ(positive) - log(1 - σ(negative)), the negatives uniform over items.

        Deviation: a draw that the user has (in the window or as a target) is redrawn once, then left out.
        """
        owned = batch.owned()
        shape = (len(targets), self.config.negatives)
        first, second = torch.randint(self.n_items, (2, *shape), device=targets.device)
        drawn = torch.where(_among(first, owned), second, first)
        counts = ~_among(drawn, owned)
        positive = (states * self.item(targets)).sum(-1)
        negative = (states[:, None] * self.item(drawn)).sum(-1)
        pushed_down = (F.softplus(negative) * counts).sum(-1) / counts.sum(-1).clamp(min=1)
        return F.softplus(-positive).sum() + pushed_down.sum()


def _among(drawn: Int[Tensor, "N M"], owned: Int[Tensor, "N S"]) -> Bool[Tensor, "N M"]:
    return (drawn[:, :, None] == owned[:, None, :]).any(-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.wide = nn.Linear(d_model, 4 * d_model)
        self.narrow = nn.Linear(4 * d_model, d_model)
        self.norm_attention = nn.LayerNorm(d_model)
        self.norm_feed = nn.LayerNorm(d_model)

    def forward(self, x: Float[Tensor, "B T D"], sees: Bool[Tensor, "#B 1 T T"]) -> Float[Tensor, "B T D"]:
        rate = self.dropout if self.training else 0.0
        q, k, v = (
            self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # B H T d
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, dropout_p=rate)
        x = x + F.dropout(self.out(attended.transpose(1, 2).flatten(2)), rate, self.training)
        fed = self.narrow(F.dropout(F.gelu(self.wide(self.norm_feed(x))), rate, self.training))
        return x + F.dropout(fed, rate, self.training)
