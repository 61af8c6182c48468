"""Beam search over codes of a fixed length, batched over users, by a step function.

Shapes: B users, W beams, V tokens, C continuations of a beam, L levels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distrec.codes.prefix import PrefixIndex

Step = Callable[[int, Tensor | None, Tensor | None], Tensor]
"""(level, token of each beam B × W, which beam of the level before it goes on B × W) → log-probabilities, B × W × V.

Both are None at level 0, where each user has one beam; the second alone where every beam goes on in its place."""

_Continue = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(level, state of each beam) → (tokens B × W × C, states B × W × C); a state below 0 ends there."""


class Beams(NamedTuple):
    """Best first; a place with nothing in it holds state -1 and score -inf."""

    state: Int[Tensor, "B W"]
    score: Float[Tensor, "B W"]  # log-probability in nats
    tokens: Int[Tensor, "B W L"]


def among_items(
    step: Step, index: PrefixIndex, offsets: Sequence[int], n_users: int, width: int
) -> tuple[Int[Tensor, "B W"], Float[Tensor, "B W"]]:
    """(items, log-probabilities) of the best `width` beams, none of which ever leaves the index.

    `offsets`: the token of code 0 of each level.  Scores are log-probabilities over all tokens, as free search has
    them: what is not in the index gets -inf, and nothing is normalised again.
    """

    def go_on(level: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        child, code, is_child = index.children(level, nodes)
        return code + offsets[level], child.masked_fill(~is_child, -1)

    beams = _search(step, go_on, len(offsets), n_users, width, index.item.device)
    return index.items(beams.state), beams.score


def free(
    step: Step, n_tokens: int, n_levels: int, n_users: int, width: int, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B W L"], Float[Tensor, "B W"]]:
    """(tokens, log-probabilities) of the best `width` beams over all tokens at every level."""
    tokens = torch.arange(n_tokens, device=device)

    def go_on(_: int, state: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*state.shape, n_tokens)
        return tokens.expand(shape), state[..., None].expand(shape)

    beams = _search(step, go_on, n_levels, n_users, width, device)
    return beams.tokens, beams.score


def _search(step: Step, go_on: _Continue, n_levels: int, n_users: int, width: int, device: torch.device | str) -> Beams:
    state = torch.zeros(n_users, 1, dtype=torch.int64, device=device)
    score = torch.zeros(n_users, 1, device=device)
    sent = torch.zeros(n_users, 1, 0, dtype=torch.int64, device=device)
    token = parent = None
    for level in range(n_levels):
        log_p = step(level, token, parent)
        tokens, states = go_on(level, state)
        scores = (score[..., None] + log_p.gather(2, tokens)).masked_fill(states < 0, -torch.inf).flatten(1)
        score, place = scores.topk(min(width, scores.shape[1]), dim=1)
        parent = place // tokens.shape[2]
        token, state = tokens.flatten(1).gather(1, place), states.flatten(1).gather(1, place)
        sent = torch.cat([sent.gather(1, parent[..., None].expand(-1, -1, level)), token[..., None]], 2)
    return Beams(state, score, sent)
