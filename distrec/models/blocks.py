"""Parts of an encoder-decoder over codes: T5's attention and feed-forward, and TONE's RPML, AGF and CRFA.

With RPML, AGF and CRFA left out these are T5's (Raffel et al. 2020): no biases, scores not scaled, relative position
bias shared by the layers of a stack, normalisation before each part.

Shapes: B users in a batch, Q queries, S keys, T positions, D channels, H heads, E channels of a head, F frequency bins,
n tokens that CRFA attends over.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distrec.freq.filters import gaussian, smooth

RpmlMode = Literal["post_l1", "post", "pre"]
CrfaTokens = Literal["bins", "flat", "channels"]


class Rpml(nn.Module):
    """Adds a learnt matrix to an attention matrix:  A + α · softplus(M), rows divided by their sum.

    Source: TONE Eq. 9-10, after FreEformer (Yue 2025).  Deviation: the paper gives no place for the addition; `post_l1`
    (after the softmax, rows normalised again) is FreEformer's, `post` does not normalise, `pre` adds before the
    softmax, where a constant softplus does nothing.
    """

    def __init__(
        self, n: int, mode: RpmlMode, mean: float, std: float, lm_alpha: float, learn_alpha: bool, centred: bool
    ):
        super().__init__()
        self.mode = mode
        self.matrix = nn.Parameter(mean + std * torch.randn(n, n))
        inverse = math.log(math.expm1(lm_alpha)) if lm_alpha > 0 else -torch.inf
        self.raw_alpha = nn.Parameter(torch.tensor(inverse), requires_grad=learn_alpha and lm_alpha > 0)
        self._offset = math.log(2) if centred else 0.0  # softplus(0): an M of zeros then adds nothing

    @property
    def lm_alpha(self) -> Float[Tensor, ""]:
        return F.softplus(self.raw_alpha)

    def added(self, q: int, s: int) -> Float[Tensor, "Q S"]:
        """What q queries on s keys get beside their attention."""
        return self.lm_alpha * (F.softplus(self.matrix[s - q : s, :s].float()) - self._offset)

    def forward(self, scores: Float[Tensor, "B H Q S"]) -> Float[Tensor, "B H Q S"]:
        """Attention weights from scores; a score of -inf keeps its weight of zero.  The last query stands at the last key."""
        added = self.added(*scores.shape[-2:])
        if self.mode == "pre":
            return (scores.float() + added).softmax(-1)
        weights = scores.float().softmax(-1)
        weights = weights + added.masked_fill(scores == -torch.inf, 0)
        if self.mode == "post":
            return weights
        weights = weights.clamp(min=0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)


class Attention(nn.Module):
    """T5's attention.  Which kernel computes it on a GPU is settled here, for every model over codes:

    - with RPML none does: it changes the weights after the softmax, so that they must be there;
    - else the memory-efficient one, the only fused kernel that takes a bias with a gradient (flash takes none, cuDNN's
      none that learns); it pads rows that are not a multiple of 8 by itself.  On a CPU a bias that learns is computed
      unfused, one that does not in a fused kernel.

    Source: torch 2.10 – 2.13, sdp_utils.cpp, `can_use_mem_efficient_attention`, and attention.cpp, `preprocess_mask`.
    """

    def __init__(self, d_model: int, n_heads: int, d_kv: int, dropout: float, rpml: Rpml | None = None):
        super().__init__()
        self.n_heads, self.rate = n_heads, dropout
        inner = n_heads * d_kv
        self.q, self.k, self.v = (nn.Linear(d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, d_model, bias=False)
        self.rpml = rpml
        nn.init.normal_(self.q.weight, std=(d_model * d_kv) ** -0.5)
        for layer in (self.k, self.v):
            nn.init.normal_(layer.weight, std=d_model**-0.5)
        nn.init.normal_(self.o.weight, std=inner**-0.5)

    def keys_values(self, x: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B H S E"], Float[Tensor, "B H S E"]]:
        return self._heads(self.k(x)), self._heads(self.v(x))

    def forward(
        self, x: Float[Tensor, "B Q D"], keys: Tensor, values: Tensor, bias: Float[Tensor, "#B #H #Q S"] | None
    ) -> Float[Tensor, "B Q D"]:
        """`bias` is added to the scores; -inf where a query must not look."""
        query = self._heads(self.q(x))
        rate = self.rate if self.training else 0.0
        if self.rpml is None:
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, dropout_p=rate, scale=1.0)
        else:
            scores = query @ keys.mT if bias is None else query @ keys.mT + bias
            mixed = F.dropout(self.rpml(scores).to(values), rate) @ values
        return self.o(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "B S I"]) -> Float[Tensor, "B H S E"]:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int, dropout: float):
        super().__init__()
        self.wi, self.wo = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.wi.weight, std=d_model**-0.5)
        nn.init.normal_(self.wo.weight, std=d_ff**-0.5)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.wo(self.dropout(F.relu(self.wi(x))))


class RelativeBias(nn.Module):
    """One number a head for each bucket of key position − query position: near ones apart, far ones together.

    `length`: the most positions.  The buckets of all pairs are computed once, on the host, whose logarithm decides the
    same way at the border of two buckets wherever the model runs.
    """

    bucket: Tensor

    def __init__(
        self, d_model: int, n_heads: int, both_ways: bool, length: int, buckets: int = 32, farthest: int = 128
    ):
        super().__init__()
        self.table = nn.Embedding(buckets, n_heads)
        nn.init.normal_(self.table.weight, std=d_model**-0.5)
        place = torch.arange(length)
        self.register_buffer("bucket", _buckets(place - place[:, None], both_ways, buckets, farthest), persistent=False)

    def forward(self, n_queries: int, n_keys: int) -> Float[Tensor, "1 H Q S"]:
        """The last query stands at the last key."""
        return self.table(self.bucket[n_keys - n_queries : n_keys, :n_keys]).permute(2, 0, 1)[None]


def _buckets(distance: Int[Tensor, "Q S"], both_ways: bool, n: int, farthest: int) -> Int[Tensor, "Q S"]:
    """The bucket, of n, of each distance.   Source: Raffel et al. 2020."""
    first = torch.zeros_like(distance)
    if both_ways:
        n //= 2
        first = (distance > 0).long() * n
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    near = n // 2
    far = near + (torch.log(distance.clamp(min=1).float() / near) / math.log(farthest / near) * (n - near)).long()
    return first + torch.where(distance < near, distance, far.clamp(max=n - 1))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, d_model: int, d_ff: int, d_kv: int, n_heads: int, dropout: float, rpml: Rpml | None = None):
        super().__init__()
        self.attention = Attention(d_model, n_heads, d_kv, dropout, rpml)
        self.feed = FeedForward(d_model, d_ff, dropout)
        self.norm_attention, self.norm_feed = nn.RMSNorm(d_model, eps=1e-6), nn.RMSNorm(d_model, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"], bias: Tensor | None) -> Float[Tensor, "B T D"]:
        normed = self.norm_attention(x)
        x = x + self.dropout(self.attention(normed, *self.attention.keys_values(normed), bias))
        return x + self.dropout(self.feed(self.norm_feed(x)))


class Agf(nn.Module):
    """Adaptive Gaussian filter along the tokens, its width learnt.   Source: TONE Eq. 7.

    Deviation: normalised by the weights of the valid neighbours; σ = softplus(·), kept in [0.3, taps].
    `step`: 1 filters over tokens (the paper); the codes of an item, over items, code by code.
    """

    def __init__(self, sigma: float, taps: int, step: int, literal: bool):
        super().__init__()
        self.taps, self.step, self.literal = taps, step, literal
        self.raw_sigma = nn.Parameter(torch.tensor(math.log(math.expm1(sigma))))

    @property
    def sigma(self) -> Float[Tensor, ""]:
        return F.softplus(self.raw_sigma).clamp(0.3, self.taps)

    def forward(self, x: Float[Tensor, "B T D"], is_valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        shape = x.shape
        folded = x.reshape(len(x), shape[1] // self.step, -1)
        kernel = gaussian(self.sigma.float(), self.taps, self.literal)
        filtered = smooth(folded.float(), is_valid[:, :: self.step], kernel, normalised=not self.literal)
        return filtered.to(x).reshape(shape)


class Crfa(nn.Module):
    """Attention between frequencies, real and imaginary parts apart:

        X = rfft(x),   y = x + irfft(stack_re(W_re Re X) + i · stack_im(W_im Im X))

    Source: TONE Eq. 8-10.  Deviation: "Flatten + Linear" taken literally (`flat`) would be 27 million weights for 80
    positions; `bins` maps the channels of each bin, and attends over bins; `channels` attends over channels.
    """

    def __init__(self, length: int, d_model: int, tokens: CrfaTokens, stacks: tuple["Stack", "Stack"]):
        super().__init__()
        self.length, self.tokens = length, tokens
        self.real, self.imaginary = stacks
        bins = self.bins(length)
        width = {"bins": d_model, "flat": bins * d_model, "channels": bins}[tokens]
        out = d_model if tokens == "channels" else width
        self.into = nn.ModuleList(nn.Linear(width, out, bias=False) for _ in range(2))
        self.back = nn.ModuleList(
            nn.Linear(d_model, bins, bias=False) if tokens == "channels" else nn.Identity() for _ in range(2)
        )

    @staticmethod
    def bins(length: int) -> int:
        return length // 2 + 1

    @staticmethod
    def n_tokens(length: int, d_model: int, tokens: CrfaTokens) -> int:
        """How many tokens its stacks attend over."""
        return d_model if tokens == "channels" else Crfa.bins(length)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Raises: ValueError when x is not as long as it was made for."""
        if x.shape[1] != self.length:
            raise ValueError(f"{x.shape[1]} positions, the frequencies are those of {self.length}")
        spectrum = torch.fft.rfft(x.float(), dim=1, norm="ortho")
        real, imaginary = (
            self._through(part.to(x), stack, into, back).float()
            for part, stack, into, back in zip(
                (spectrum.real, spectrum.imag), (self.real, self.imaginary), self.into, self.back, strict=True
            )
        )
        changed = torch.fft.irfft(torch.complex(real, imaginary), n=self.length, dim=1, norm="ortho")
        return x + changed.to(x)

    def _through(self, part: Float[Tensor, "B F D"], stack: "Stack", into: nn.Module, back: nn.Module) -> Tensor:
        if self.tokens == "channels":
            return back(stack(into(part.mT))).mT
        if self.tokens == "flat":
            return stack(into(part.flatten(1)).view_as(part))
        return stack(into(part))


class Stack(nn.Module):
    """Encoder layers with a relative position bias of their own; `places`: an embedding of each place as well."""

    def __init__(self, layers: list[EncoderLayer], bias: RelativeBias | None, places: nn.Embedding | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.bias = bias
        self.places = places

    def forward(self, x: Float[Tensor, "B T D"], mask: Tensor | None = None) -> Float[Tensor, "B T D"]:
        """`mask`: 0 or -inf, added to the scores."""
        if self.places is not None:
            x = x + self.places.weight[: x.shape[1]]
        bias = mask
        if self.bias is not None:
            near = self.bias(x.shape[1], x.shape[1])
            bias = near if mask is None else near + mask
        for layer in self.layers:
            x = layer(x, bias)
        return x
