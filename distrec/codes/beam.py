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

Both are None at level 0, where each user has one beam."""

_Continue = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""(level, state of each beam) → (tokens B × W × C, states B × W × C); a state below 0 ends there."""


class Beams(NamedTuple):
    """Best first; a place with nothing in it holds state -1 and score -inf."""

    state: Int[Tensor, "B W"]
    score: Float[Tensor, "B W"]  # log-probability in nats


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
    """(tokens, log-probabilities) of the best `width` beams over all tokens at every level.

    Raises: ValueError when so many tokens exceed 63 bits.
    """
    if n_tokens**n_levels >= 2**63:
        raise ValueError(f"{n_tokens:,} tokens at {n_levels} levels exceed 63 bits: free search needs fewer")
    tokens = torch.arange(n_tokens, device=device)

    def go_on(_: int, packed: Tensor) -> tuple[Tensor, Tensor]:
        return tokens.expand(*packed.shape, -1), packed[..., None] * n_tokens + tokens

    beams = _search(step, go_on, n_levels, n_users, width, device)
    places = n_tokens ** torch.arange(n_levels - 1, -1, -1, device=device)
    return beams.state[..., None] // places % n_tokens, beams.score


def _search(step: Step, go_on: _Continue, n_levels: int, n_users: int, width: int, device: torch.device | str) -> Beams:
    state = torch.zeros(n_users, 1, dtype=torch.int64, device=device)
    score = torch.zeros(n_users, 1, device=device)
    token = parent = None
    for level in range(n_levels):
        log_p = step(level, token, parent)
        tokens, states = go_on(level, state)
        scores = (score[..., None] + log_p.gather(2, tokens)).masked_fill(states < 0, -torch.inf).flatten(1)
        score, place = scores.topk(min(width, scores.shape[1]), dim=1)
        parent = place // tokens.shape[2]
        token, state = tokens.flatten(1).gather(1, place), states.flatten(1).gather(1, place)
    return Beams(state, score)
