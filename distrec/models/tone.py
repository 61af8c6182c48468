"""TIGER and TONE: an encoder-decoder over item codes that generates the next item.

    tokens(item) = 1 + offset_l + code_l,  l = 1 … L;  0 is padding, and where the decoder starts
    TIGER: T5 over the tokens of the latest items.   TONE: AGF → rfft → stacks over frequencies → irfft → decoder

Source: Rajput et al. 2023 (TIGER); TONE Eq. 7-11.  Deviation: attributes enter through the codes alone.

Shapes: B users in a batch, T items of a history, L levels, S = T · L encoder tokens, D channels, W beams, V tokens, I items.
"""

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distrec.codes import beam
from distrec.codes.prefix import PrefixIndex
from distrec.data.batches import Batch
from distrec.data.item_codes import ItemCodes
from distrec.freq.spectrum import ranks
from distrec.knobs import Tiger
from distrec.knobs import Tone as Config
from distrec.models.blocks import Agf, Attention, Crfa, EncoderLayer, FeedForward, RelativeBias, Rpml, Stack

_ALL = slice(None)
_USERS = {"cpu": 64, "cuda": 512}  # searched at once: caches of some 100 MiB; on a GPU some 800
_CANDIDATES = {"cpu": 2**24, "cuda": 2**26}  # beams × tokens of all users at once, in float32


class Tone(nn.Module):
    """Reads `max_len` items, trains on the last position of each prefix, ranks by beam search."""

    samples = "prefixes"
    token_of: Tensor
    first_token: Tensor

    def __init__(self, config: Config | Tiger, codes: ItemCodes):
        super().__init__()
        if isinstance(config, Tiger):
            shared = {key: value for key, value in dataclasses.asdict(config).items() if key != "name"}
            config = Config(**shared, agf=False, crfa=False, rpml=False)
        self.config, self.max_len, self.beams, self.sizes = config, config.max_len, config.beams, codes.sizes
        n_levels = len(codes.sizes)
        self.offsets = [1 + n for n in itertools.accumulate(codes.sizes[:-1], initial=0)]
        self.n_tokens = 1 + sum(codes.sizes)
        self.length = config.max_len * n_levels + bool(config.user_tokens)
        self.register_buffer("first_token", torch.tensor(self.offsets), persistent=False)
        self.register_buffer("token_of", codes.codes.long() + self.first_token, persistent=False)
        self._codes = codes
        self._index: PrefixIndex | None = None
        self.shared = nn.Embedding(self.n_tokens, config.d_model)
        self.users = nn.Embedding(config.user_tokens, config.d_model) if config.user_tokens else None
        self.agf = (
            Agf(config.sigma, config.taps, n_levels if config.agf_axis == "items" else 1, config.agf_literal)
            if config.agf
            else None
        )
        self.crfa = self._crfa() if config.crfa else None
        has_own = not config.crfa or config.crfa_place == "before"
        self.encoder = self._stack(self.length, rpml=config.rpml and not config.crfa) if has_own else None
        self.encoder_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.decoder = Decoder(config, n_levels)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.shared.weight)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean over the codes of −log p(code | codes before it, history), summed over targets."""
        counts = batch.is_target[:, -1]
        target = self.token_of[batch.targets[:, -1]]
        logits = self.logits(*self.encode(batch), target)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none").view_as(target)
        return (loss.mean(1) * counts).sum()

    def encode(self, batch: Batch, rows: slice = _ALL) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B 1 1 S"]]:
        """(states of the history's tokens, 0 or -inf for the decoder's attention to each) of some rows of a batch."""
        items, is_item = batch.items[rows, -self.max_len :], batch.is_item[rows, -self.max_len :]
        if self.is_fixed:
            missing = self.max_len - items.shape[1]
            items, is_item = F.pad(items, (missing, 0)), F.pad(is_item, (missing, 0))
        is_token = is_item.repeat_interleave(len(self.sizes), 1)
        x = self.shared(self.token_of[items].flatten(1).masked_fill(~is_token, 0))
        if self.config.zero_pads:
            x = x * is_token[..., None]
        x = self.dropout(x)
        if self.agf is not None:
            x = self.agf(x, is_token)
        if self.users is not None:
            x, is_token = self._with_user(x, is_token, batch.user[rows])
        seen = is_token | ~is_token.any(1, keepdim=True)  # without history nothing is masked: no NaN
        mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, -torch.inf)[:, None, None]
        if self.crfa is not None:
            x = self.crfa(x)
        if self.encoder is not None:
            x = self.encoder(x, mask)
        return self.dropout(self.encoder_norm(x)), mask

    def logits(
        self, states: Float[Tensor, "B S D"], mask: Float[Tensor, "B 1 1 S"], target: Int[Tensor, "B L"]
    ) -> Float[Tensor, "B L V"]:
        """Of each of the target's tokens, given those before it.   Causal: over levels."""
        before = F.pad(target[:, :-1], (1, 0))
        return self._logits(self.decoder(self.dropout(self.shared(before)), self.decoder.remember(states), mask))

    def rank(self, batch: Batch, k: int) -> Int[Tensor, "B K"]:
        """The items of the best beams; -1 where free decoding ended in codes that no item has."""
        return self.search(batch, k, self.config.decoding)[0]

    def listings(self, batch: Batch, every: bool) -> dict[str, tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]]:
        """(items, log-probabilities) of all beams by the config's way of decoding, and then, if asked for, the others; item -1
        where free decoding ended in codes that no item has."""
        ways = sorted(("constrained", "free"), key=lambda way: way != self.config.decoding)
        return {way: self.search(batch, self.beams, way) for way in (ways if every else ways[:1])}

    def search(
        self, batch: Batch, k: int, decoding: str, index: PrefixIndex | None = None
    ) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
        """(items, log-probabilities) of the k best beams; `index`: the items that may come out, all if None.

        Searches with as many beams as the config says, or k if that is more.
        """
        width, found = max(k, self.beams), []
        if decoding == "constrained":
            width = min(width, len(self.token_of))  # more would stay empty
        index = index or self.index(batch.items.device)
        for rows in self._groups(batch.items, width):
            states, mask = self.encode(batch, rows)
            step = self._step(states, mask)
            if decoding == "free":
                tokens, scores = beam.free(step, self.n_tokens, len(self.sizes), len(states), width, states.device)
                items = index.items(index.leaves(tokens - self.first_token))
            else:
                items, scores = beam.among_items(step, index, self.offsets, len(states), width)
            short = k - min(k, items.shape[1])
            found.append(
                (F.pad(items[:, :k], (0, short), value=-1), F.pad(scores[:, :k], (0, short), value=-torch.inf))
            )
        items, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return items, scores

    def likelihood(self, batch: Batch, items: Int[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        """log p(item | history) of some items for each user, over all tokens as a search has it."""
        found = []
        for rows in self._groups(batch.items, items.shape[1]):
            step = self._step(*self.encode(batch, rows))
            tokens = self.token_of[items[rows]]
            log_p = step(0, None, None).expand(-1, tokens.shape[1], -1)
            total = log_p.gather(2, tokens[..., :1])[..., 0]
            for level in range(1, len(self.sizes)):
                start = torch.zeros_like(tokens[..., 0]) if level == 1 else None
                log_p = step(level, tokens[..., level - 1], start)
                total = total + log_p.gather(2, tokens[..., level, None])[..., 0]
            found.append(total)
        return torch.cat(found)

    def index(self, device: torch.device, items: Int[Tensor, " S"] | None = None) -> PrefixIndex:
        """The index of all items, kept; of some items, made anew."""
        if items is not None:
            return PrefixIndex.of(self._codes.codes, self.sizes, items).to(device)
        if self._index is None or self._index.item.device != device:
            self._index = PrefixIndex.of(self._codes.codes, self.sizes).to(device)
        return self._index

    @torch.no_grad()
    def facts(self) -> dict[str, float]:
        """What its parts learnt: σ of the filter; α and the ranks of softplus(M) in each layer, with their tolerance."""
        found = {"sigma": float(self.agf.sigma)} if self.agf is not None else {}
        for name, module in self.named_modules():
            if isinstance(module, Rpml):
                told = {"lm_alpha": float(module.lm_alpha), **ranks(F.softplus(module.matrix))}
                found |= {f"{name}.{key}": value for key, value in told.items()}
        return found

    @property
    def is_fixed(self) -> bool:
        """Whether histories are padded to the whole window, which frequencies and M are about."""
        return self.config.crfa or self.config.rpml

    def _with_user(
        self, x: Float[Tensor, "B T D"], is_token: Bool[Tensor, "B T"], user: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
        """The user's own token, last; a place without a token for a user who was not in the training data.

        Deviation: TIGER has it first, where its distance to the items would depend on the padding.
        """
        assert self.users is not None
        own = self.users(user.clamp(min=0) % self.users.num_embeddings) * (user >= 0)[:, None]
        return torch.cat([x, self.dropout(own)[:, None]], 1), torch.cat([is_token, (user >= 0)[:, None]], 1)

    def _groups(self, items: Int[Tensor, "B T"], width: int) -> list[slice]:
        """The users that are searched at once, with so many beams each."""
        kind = items.device.type
        n = max(1, min(_USERS[kind], _CANDIDATES[kind] // (width * self.n_tokens)))
        return [slice(low, low + n) for low in range(0, len(items), n)]

    def _step(self, states: Tensor, mask: Tensor) -> beam.Step:
        """One level of the decoder for all beams; keys of the history are worked out once a user."""
        n_users, memory = len(states), self.decoder.remember(states)
        past: list[tuple[Tensor, Tensor]] = []

        def step(level: int, token: Tensor | None, parent: Tensor | None) -> Tensor:
            if token is None:
                token = torch.zeros(n_users, 1, dtype=torch.int64, device=states.device)
            if parent is not None:
                users = torch.arange(n_users, device=states.device)[:, None]
                past[:] = [(keys[users, parent], values[users, parent]) for keys, values in past]
            return self._logits(self.decoder.step(self.shared(token), memory, mask, past)).float().log_softmax(2)

        return step

    def _logits(self, states: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q V"]:
        return self.dropout(states) * self.config.d_model**-0.5 @ self.shared.weight.T

    def _stack(self, n: int, *, rpml: bool, bias: bool = True, places: bool = False) -> Stack:
        c = self.config
        layers = [
            EncoderLayer(c.d_model, c.d_ff, c.d_kv, c.n_heads, c.dropout, _rpml(c, n) if rpml else None)
            for _ in range(c.n_layers)
        ]
        embedding = nn.Embedding(n, c.d_model) if places else None
        if embedding is not None:
            nn.init.normal_(embedding.weight, std=0.02)
        return Stack(layers, RelativeBias(c.d_model, c.n_heads, True, n) if bias else None, embedding)

    def _crfa(self) -> Crfa:
        c = self.config
        n = Crfa.n_tokens(self.length, c.d_model, c.crfa_tokens)
        real, imaginary = (self._stack(n, rpml=c.rpml, bias=c.relative_bias, places=c.bin_embedding) for _ in range(2))
        return Crfa(self.length, c.d_model, c.crfa_tokens, (real, imaginary))


Memory = list[tuple[Tensor, Tensor]]  # keys and values of the history, a pair a layer


class DecoderLayer(nn.Module):
    def __init__(self, config: Config, n_levels: int):
        super().__init__()
        c = config
        rpml = _rpml(c, n_levels) if c.rpml_decoder else None
        self.attention = Attention(c.d_model, c.n_heads, c.d_kv, c.dropout, rpml)
        self.cross = Attention(c.d_model, c.n_heads, c.d_kv, c.dropout)
        self.feed = FeedForward(c.d_model, c.d_ff, c.dropout)
        self.norm_attention, self.norm_cross, self.norm_feed = (nn.RMSNorm(c.d_model, eps=1e-6) for _ in range(3))
        self.dropout = nn.Dropout(c.dropout)

    def outward(self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """What follows attention among the codes: attention to the history, feed-forward."""
        x = x + self.dropout(self.cross(self.norm_cross(x), *memory, mask))
        return x + self.dropout(self.feed(self.norm_feed(x)))


class Decoder(nn.Module):
    layers: "list[DecoderLayer]"
    later: Tensor

    def __init__(self, config: Config, n_levels: int):
        super().__init__()
        layers = nn.ModuleList(DecoderLayer(config, n_levels) for _ in range(config.n_layers))
        self.layers = layers  # pyright: ignore[reportAttributeAccessIssue]  (a ModuleList does not tell of what)
        self.bias = RelativeBias(config.d_model, config.n_heads, False, n_levels)
        self.register_buffer("later", torch.full((n_levels, n_levels), -torch.inf).triu(1), persistent=False)
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)

    def remember(self, states: Float[Tensor, "B S D"]) -> Memory:
        return [layer.cross.keys_values(states) for layer in self.layers]

    def forward(self, x: Float[Tensor, "B L D"], memory: Memory, mask: Tensor) -> Float[Tensor, "B L D"]:
        """All levels at once, each seeing those before it and itself."""
        n = x.shape[1]
        bias = self.bias(n, n) + self.later[:n, :n].to(x)
        for layer, remembered in zip(self.layers, memory, strict=True):
            normed = layer.norm_attention(x)
            x = x + layer.dropout(layer.attention(normed, *layer.attention.keys_values(normed), bias))
            x = layer.outward(x, remembered, mask)
        return self.norm(x)

    def step(
        self, x: Float[Tensor, "B W D"], memory: Memory, mask: Tensor, past: list[tuple[Tensor, Tensor]]
    ) -> Float[Tensor, "B W D"]:
        """The next level of every beam; `past` holds keys and values (B × W × H × levels × E) and grows by this one."""
        n_users, width = x.shape[:2]
        level = past[0][0].shape[3] if past else 0
        bias = self.bias(1, level + 1)
        for number, (layer, remembered) in enumerate(zip(self.layers, memory, strict=True)):
            normed = layer.norm_attention(x).flatten(0, 1)[:, None]
            keys, values = (part.unflatten(0, (n_users, width)) for part in layer.attention.keys_values(normed))
            if level:
                keys, values = torch.cat([past[number][0], keys], 3), torch.cat([past[number][1], values], 3)
            past[number : number + 1] = [(keys, values)]
            x = x + layer.attention(normed, keys.flatten(0, 1), values.flatten(0, 1), bias).view_as(x)
            x = layer.outward(x, remembered, mask)
        return self.norm(x)


def _rpml(config: Config, n: int) -> Rpml:
    c = config
    return Rpml(n, c.rpml_mode, c.rpml_mean, c.rpml_std, c.lm_alpha, c.learn_alpha, c.rpml_centred)
