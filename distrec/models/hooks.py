"""A function after each decoder layer, for life: the temporal filter (TFM), and a recorder of states.

    h_l ← (1 − β) h_l + β M h_l,   M a low-pass along time (freq/butterworth.py)

The matrices travel with each forward pass as an argument of the layers, not as a state of the hook: whatever runs a
layer again (activation checkpointing) gets the same ones.

Shapes: B rows of a batch, T positions, D channels, L layers.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from distrec.freq.butterworth import Streamed, matrices
from distrec.knobs import Filter
from distrec.models.language.attend import PLACES

_MARK = "_distrec_filter"
ARGUMENT = "distrec_filters"  # the layers' keyword that carries the matrices,
STREAMS = "distrec_streams"  # and the one of filters that go place by place


class Tfm(nn.Module):
    """The matrices of every layer for a batch; holds the cutoffs where they are learnt."""

    def __init__(self, config: Filter, n_layers: int):
        super().__init__()
        self.config, self.n_layers = config, n_layers
        start = torch.logit(torch.full((n_layers,), config.cutoff), eps=1e-4)
        self.raw_cutoff = nn.Parameter(start) if config.learn_cutoff else None

    def forward(self, segment: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T T"]]:
        """One (1 − β) I + β M a layer, in float32 whatever autocast says; without learning all are the same tensor."""
        c = self.config
        boundary = "causal" if c.mode == "causal" else c.boundary
        cutoffs = [c.cutoff] if self.raw_cutoff is None else self._learnt(self.raw_cutoff).unbind()
        identity = torch.eye(segment.shape[1], device=segment.device)
        found = [(1 - c.beta) * identity + c.beta * matrices(segment, f, c.order, boundary) for f in cutoffs]
        return found * self.n_layers if len(found) == 1 else found

    def sketch(self, segment: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T T"]]:
        """Matrices of the right number and shape, for tensors without bytes, whose lengths nobody can read."""
        n_matrices = 1 if self.raw_cutoff is None else self.n_layers
        found = [segment.new_empty((*segment.shape, segment.shape[1]), dtype=torch.float32) for _ in range(n_matrices)]
        return found * (self.n_layers // n_matrices)

    def streams(self) -> list[Streamed]:
        """The causal filter of every layer for sequences that grow.   Raises: ValueError for one that sees what follows."""
        c = self.config
        if c.mode != "causal":
            raise ValueError(f"model.tfm.mode={c.mode} needs the whole history: only causal goes place by place")
        cutoffs = [c.cutoff] * self.n_layers
        if self.raw_cutoff is not None:
            cutoffs = self._learnt(self.raw_cutoff.detach()).tolist()
        return [Streamed(cutoff, c.order, c.beta) for cutoff in cutoffs]

    @staticmethod
    def _learnt(raw: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
        """Cutoffs within (0, 1], whatever was learnt: nobody need read them to be sure."""
        return raw.sigmoid().clamp(min=1e-3)


def filtered(x: Float[Tensor, "B T D"], matrix: Float[Tensor, "B T T"], dropout: float = 0.0) -> Float[Tensor, "B T D"]:
    """M x in float32, back in x's type.   Deviation: dropout 0 by default; the published code has .2 after every layer."""
    with torch.autocast(x.device.type, enabled=False):
        return F.dropout((matrix @ x.float()).to(x.dtype), dropout, training=dropout > 0)


class Attached:
    """The hooks of a list of layers; `remove()` leaves the layers as they were."""

    def __init__(self, layers: Sequence[nn.Module], tfm: Tfm):
        """Put a filter after each layer, before anything wraps or compiles it.

        Raises: ValueError when a layer has one already, or there are more or fewer layers than filters.
        """
        if tfm.n_layers != len(layers):
            raise ValueError(f"{tfm.n_layers} filters for {len(layers)} layers")
        if any(hasattr(layer, _MARK) for layer in layers):
            raise ValueError("these layers have filters already: remove() them first")
        self._layers = layers
        self._tfm = tfm
        self.handles = [layer.register_forward_hook(self._hook(i), with_kwargs=True) for i, layer in enumerate(layers)]
        for layer in layers:
            setattr(layer, _MARK, True)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        for layer in self._layers:
            delattr(layer, _MARK)
        self.handles.clear()

    def _hook(self, number: int) -> Any:
        def after(layer: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            matrix, stream = kwargs.get(ARGUMENT), kwargs.get(STREAMS)
            state = output if isinstance(output, Tensor) else output[0]
            if stream is not None:
                state = stream[number].step(state[:, 0].float())[:, None].to(state.dtype)
            elif matrix is not None:
                dropout = self._tfm.config.dropout if layer.training else 0.0
                state = filtered(state, matrix[number], dropout)
            return state if isinstance(output, Tensor) else (state, *output[1:])

        return after


class Recorder:
    """`with Recorder(layers) as states:` then, after each forward pass, what the first layer reads and one tensor a layer,
    filters included.

    For analysis: a model's own `output_hidden_states` does not show what hooks changed.  To be entered after the
    filters are attached.  Places stand as the caller's rows have them, also where the layers read them moved (attend.py).
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self._layers = layers
        self.states: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        before = self._layers[0].register_forward_pre_hook(self._begin, with_kwargs=True)
        after = [layer.register_forward_hook(self._keep(i), with_kwargs=True) for i, layer in enumerate(self._layers)]
        self._handles = [before, *after]
        return self.states

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, _layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.states[:] = [_put_back(args[0] if args else kwargs["hidden_states"], kwargs)]

    def _keep(self, number: int) -> Any:
        def after(_layer: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
            del self.states[number + 1 :]  # where a layer runs again
            self.states.append(_put_back(output if isinstance(output, Tensor) else output[0], kwargs))

        return after


def _put_back(state: Float[Tensor, "B T D"], kwargs: dict[str, Any]) -> Float[Tensor, "B T D"]:
    places = kwargs.get(PLACES)
    return state.detach() if places is None else state.detach().take_along_dim(places[..., None], 1)
