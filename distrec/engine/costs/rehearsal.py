"""What a model's passes take, without taking it: its own code, on tensors that have shapes and no bytes.

Bytes are exact in what torch allocates: every storage counts from its birth to its end.  FLOPs are those of matrix
products and attention, as torch counts them, by the type that they are computed in.  What kernels take inside, and what an
allocator keeps in reserve, is not in it.
"""

import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distrec.data.batches import Batch
from distrec.engine.costs.meter import flop_counter
from distrec.models.ranking import TableModel, by_table

Flops = dict[torch.dtype, int]


@dataclass(frozen=True)
class Taken:
    """`peak`: bytes, the model's own included; `scores`: those of them that have a column an item; `scratch`: what the
    optimiser's step takes beyond the peak of the passes."""

    peak: int
    scores: int
    scratch: int = 0


@dataclass(frozen=True)
class Ranked:
    """`per_item`: bytes of the item table; FLOPs: `table` of a chunk of it, `users` of a block, `chunk` of their scores."""

    taken: Taken
    per_item: int
    table: Flops
    users: Flops
    chunk: Flops


class Rehearsal:
    """A model without bytes (models.build.sketch), put through its passes.

    Every place of a batch holds an item, which is the most that a batch can take.
    """

    def __init__(self, model: nn.Module, n_items: int):
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._n_items = n_items
        with self._mode:
            self.model: Any = model.to_empty(device="cpu")

    def train(
        self, rows: int, width: int, last_only: bool, pieces: int, autocast: bool, frees: bool = False
    ) -> tuple[Taken, Flops]:
        """Two optimiser steps (the first one makes the optimiser's state) of `pieces` batches; FLOPs of one batch.

        `last_only`: the loss reads the last place alone.  `frees`: each gradient is gone as soon as it is there, as
        where another process takes it; no step is made of them.
        """
        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(_forget) for p in (trained if frees else ())]
        with self._mode, _AllCount(rows, width, last_only) as counting:
            batch = counting.batch()
            optimizer = torch.optim.AdamW(trained)
            taken, found = Taken(0, 0), Flops()
            with Ledger(self.model, self._n_items) as ledger:
                for _ in range(2):
                    for _ in range(min(pieces, 2)):
                        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                            loss = self.model(batch)
                        loss.backward()
                        found = ledger.read()
                    passes = ledger.taken()
                    optimizer.step()
                    optimizer.zero_grad()
                    taken = replace(passes, scratch=max(0, ledger.taken().peak - passes.peak))
        for hook in hooks:
            hook.remove()
        return taken, found

    @torch.no_grad()
    def rank(self, rows: int, width: int, chunk: int) -> Ranked:
        """A block of users against a chunk of items; all beams of them, where the model generates."""
        self.model.eval()
        with (
            self._mode,
            _AllCount(rows, width, last_only=True) as counting,
            Ledger(self.model, chunk) as ledger,
        ):
            batch = counting.batch()
            if not isinstance(self.model, TableModel):
                self.model.likelihood(batch, batch.targets[:, -1:].expand(-1, self.model.beams))
                return Ranked(ledger.taken(), 0, {}, ledger.read(), {})
            before = ledger.now
            vectors = self.model.item_vectors(slice(0, chunk))
            per_item, table = (ledger.now - before) // chunk, ledger.read()
            scorer = by_table(self.model.user_states(batch), vectors)
            users = ledger.read()
            scores = scorer(slice(0, chunk))
            (scores >= scores[:, :1]).sum(1)
            return Ranked(ledger.taken(), per_item, table, users, ledger.read())


class Ledger(TorchDispatchMode):
    """Counts what operators make, and what of it is still there."""

    def __init__(self, model: nn.Module, columns: int):
        super().__init__()
        self._flops: Flops = {}
        self._columns, self._counters = columns, flop_counter().flop_registry
        self.now, self._scores = 0, 0
        self._most = (0, 0)
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._add(tensor)

    def taken(self) -> Taken:
        """At most, since the last asking."""
        found, self._most = Taken(*self._most), (self.now, self._scores)
        return found

    def read(self) -> Flops:
        """FLOPs since the last reading."""
        found, self._flops = self._flops, {}
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._add(tensor)
        if count := self._counters.get(func._overloadpacket):
            kind = made[0].dtype
            self._flops[kind] = self._flops.get(kind, 0) + count(*args, **(kwargs or {}), out_val=out)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        scores = size if tensor.ndim == 2 and tensor.shape[1] == self._columns else 0
        self._known[key] = weakref.ref(storage, lambda _: self._remove(key, size, scores))
        self.now, self._scores = self.now + size, self._scores + scores
        self._most = max(self._most, (self.now, self._scores))

    def _remove(self, key: int, size: int, scores: int) -> None:
        self._known.pop(key)
        self.now, self._scores = self.now - size, self._scores - scores


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


class _AllCount(TorchFunctionMode):
    """Makes a batch of which every place counts, or the last of each row; whoever asks for distinct items gets all."""

    def __init__(self, rows: int, width: int, last_only: bool):
        super().__init__()
        self._shape, self._n = (rows, width), rows if last_only else rows * width

    def batch(self) -> Batch:
        ids, mask = torch.zeros(self._shape, dtype=torch.int64), torch.ones(self._shape, dtype=torch.bool)
        place = torch.zeros(self._n, dtype=torch.int64)
        return Batch(ids[:, 0], ids, mask, ids.clone(), mask.clone()).at(place)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.unique:  # all are, at most
            return args[0].flatten(), torch.zeros_like(args[0])
        return func(*args, **(kwargs or {}))
