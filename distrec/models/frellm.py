"""FreLLM4Rec: a graph-filtered item table, read by a language model with a temporal filter after each layer.

    e_id = LN(W_id s̃ + b),   e_tx = LN(MLP(t̃)),   g = σ(W_f [e_id ; e_tx]),   e = g ⊙ e_id + (1 − g) ⊙ e_tx
    score(i | history) = ⟨LN(W_o backbone(e_{i_1} … e_{i_t})_t), e_i⟩,   W_o the identity, or learnt (`head=linear`)

s̃, t̃: collaborative and text vectors after the graph filter (G-LPF).   Source: FreLLM4Rec (arXiv 2508.10312), its code.
Deviation: the graph filter works once on the vectors, where the published code filters projections at every step;
the last place is the last item's, in windows padded on the left.

Shapes: B users in a batch, T positions, D channels of the backbone, I items, N targets, M negatives.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distrec.data.batches import Batch
from distrec.knobs import Frellm as Config
from distrec.models import ranking, softmax
from distrec.models.backbone import Backbone
from distrec.models.language.seal import Whole

_FULL = 65_536  # items up to which the softmax is taken over all of them


class ItemTable(nn.Module):
    """One vector an item, from what other models and the graph know of it."""

    collaborative: Tensor
    text: Tensor

    def __init__(self, collaborative: Float[Tensor, "I S"], text: Float[Tensor, "I X"], width: int, hidden: int):
        super().__init__()
        self.register_buffer("collaborative", collaborative, persistent=False)
        self.register_buffer("text", text, persistent=False)
        self.project = nn.Linear(collaborative.shape[1], width)
        self.read = nn.Sequential(nn.Linear(text.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norm_collaborative, self.norm_text = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate = nn.Linear(2 * width, width)

    def forward(self, items: slice | Int[Tensor, "*B"] = slice(None)) -> Float[Tensor, "*B D"]:
        own = self.norm_collaborative(self.project(self.collaborative[items]))
        told = self.norm_text(self.read(self.text[items]))
        share = self.gate(torch.cat([own, told], -1)).sigmoid()
        return share * own + (1 - share) * told


class Frellm(ranking.Reader):
    """Scores by the inner product of the last state and the table that it read (tied)."""

    def __init__(
        self, config: Config, backbone: Backbone, collaborative: Float[Tensor, "I S"], text: Float[Tensor, "I X"]
    ):
        super().__init__()
        self.config, self.max_len, self.n_items = config, config.max_len, len(text)
        self.backbone = backbone
        self.table = ItemTable(collaborative, text, backbone.width, config.hidden)
        self.norm = nn.LayerNorm(backbone.width)
        # Deviation: starts at D^-½, so that scores do not start √D wide and the loss far above chance
        nn.init.constant_(self.norm.weight, backbone.width**-0.5)
        self.head = nn.Linear(backbone.width, backbone.width) if config.head == "linear" else nn.Identity()
        if isinstance(self.head, nn.Linear):
            nn.init.eye_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.is_full = config.loss == "full" or (config.loss is None and self.n_items <= _FULL)

    @property
    def samples(self) -> str:
        """A filter that sees the whole history leaves one honest target a history: the one after it."""
        sees_all = self.config.tfm.mode == "global" and not self.config.compat_unsafe
        return "prefixes" if sees_all else "sequences"

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        targets = batch.targets.flatten()[batch.place]
        table = self.table() if self.is_full else None
        read = self.table(batch.items) if table is None else table[batch.items]
        states = self.states(read, batch.is_item).flatten(0, 1).index_select(0, batch.place)
        if table is not None:
            return softmax.full(states, table, targets, self.config.logits_mib)
        drawn = torch.randint(self.n_items, (self.config.negatives,), device=targets.device)
        return softmax.sampled(
            states,
            self.table(targets),
            targets,
            batch.owned(),
            self.table(drawn),
            drawn,
            self.n_items,
            self.config.corrected,
        )

    def states(self, x: Float[Tensor, "B T D"], is_item: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What the model makes of each position.   Causal: unless the filter is global."""
        x = self.dropout(x)
        return self.norm(self.head(self.backbone(x, is_item.long(), is_window=True).to(x.dtype)))

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.backbone.layers

    def read(self, batch: Batch) -> Float[Tensor, "B T D"]:
        items, is_item = batch.items[:, -self.max_len :], batch.is_item[:, -self.max_len :]
        return self.states(self._vectors(items), is_item)

    def _vectors(self, items: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Each item's vector is computed once.

        On a GPU once a place, or all of the table where it has fewer rows: which items are equal only the device knows,
        and the host would wait for it.  A row of the table is below a hundredth of the backbone's work at a place.
        """
        if items.is_cuda:
            return self.table(items) if items.numel() < self.n_items else self.table()[items]
        rows, place = items.unique(return_inverse=True)
        return self.table(rows)[place]

    @torch.no_grad()
    def item_vectors(self, items: slice | Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        device = self.table.text.device
        ids = torch.arange(items.start, items.stop, device=device) if isinstance(items, slice) else items
        found = torch.empty(len(ids), self.backbone.width, device=device)
        for low in range(0, len(ids), ranking.PIECE):
            piece = slice(low, low + ranking.PIECE)
            found[piece] = self.table(ids[piece])
        return found

    def check_seal(self, whole: Whole = nullcontext) -> None:
        """Raises: RuntimeError when the frozen backbone's fingerprint is not that of what was loaded."""
        self.backbone.check_seal(whole)

    def verify_seal(self, whole: Whole = nullcontext) -> None:
        """Raises: RuntimeError when the frozen backbone's sha256 is not that of what was loaded."""
        self.backbone.verify_seal(whole)

    @torch.no_grad()
    def facts(self) -> dict[str, float]:
        """The cutoffs that were learnt, layer by layer."""
        tfm = self.backbone.tfm
        if tfm is None or tfm.raw_cutoff is None:
            return {}
        return {f"cutoff.{i}": value for i, value in enumerate(tfm.raw_cutoff.sigmoid().tolist())}
