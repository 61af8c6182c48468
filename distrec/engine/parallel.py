"""A model on many processes, behind one face: copies of it (one process, DDP), or DeepSpeed's ZeRO.

ZeRO-1 cuts the optimiser's state, ZeRO-2 its gradients too, ZeRO-3 the weights as well.  What trains is a small part of
a frozen language model, so that ZeRO-3 keeps it whole on every process and cuts the rest.
"""

import contextlib
import logging
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distrec.data.batches import Batch
from distrec.runtime import FAILED

State = dict[str, Tensor]
BUCKET = 500_000_000  # gradients that ZeRO sums at once, at most


def stage(accelerator: Accelerator) -> int:
    """Of ZeRO; 0 without."""
    plugin: Any = accelerator.state.deepspeed_plugin
    return int(plugin.zero_stage) if plugin else 0


class Copies:
    """The whole model on every process; without an accelerator it can be read and restored only.

    Every method, here and of Zero, is to be called by all processes together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        accelerator: Accelerator | None = None,
    ):
        self.model, self.optimizer, self._accelerator = model, optimizer, accelerator
        if accelerator is not None:
            self._wrapped, self._stepper = accelerator.prepare(model, optimizer)

    def add(self, batch: Batch, scale: float, is_last: bool) -> Tensor:
        """Add scale × the gradient of a batch's loss, which is given back; summed over processes with the last of a step."""
        assert self._accelerator is not None
        # around the forward pass too: there DDP decides whether it will sum
        with contextlib.nullcontext() if is_last else self._accelerator.no_sync(self._wrapped):
            loss = self._wrapped(batch)
            self._accelerator.backward(loss * scale)
        return loss.detach()

    def step(self, clip: float, is_finite: Tensor) -> Tensor:
        """Clip, step, forget the gradient; its norm.  Nothing moves where loss or norm are not finite.

        On a GPU the device decides that by itself, and the host goes on.
        """
        assert self._accelerator is not None
        assert self.optimizer is not None
        norm = torch.as_tensor(self._accelerator.clip_grad_norm_(self.model.parameters(), clip))
        is_finite = is_finite & norm.isfinite()
        if _is_fused(self.optimizer):
            # the name by which fused kernels are told to leave weights, moments and step counters as they are
            self.optimizer.found_inf = (~is_finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            self._stepper.step()
        elif is_finite:
            self._stepper.step()
        self._stepper.zero_grad()
        return norm

    def weights(self) -> State:
        """What trains, and the buffers, whole."""
        return {name: parameter.detach() for name, parameter in trained(self.model)} | buffers(self.model)

    def moments(self) -> State:
        """The optimiser's state by `parameter/name`, whole; empty before the first step."""
        names: dict[Any, str] = {parameter: name for name, parameter in trained(self.model)}
        states = self.optimizer.state if self.optimizer else {}
        return {f"{names[p]}/{key}": value for p, state in states.items() for key, value in state.items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor] | None = None) -> None:
        for name, tensor in self.weights().items():
            tensor.copy_(weights[name])
        if moments is None or self.optimizer is None:
            return
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            parameter = parameters[name]
            # AdamW's step counter stays on the CPU, unless its kernel is a fused one
            on_cpu = moment == "step" and not _is_fused(self.optimizer)
            self.optimizer.state[parameter][moment] = value if on_cpu else value.to(parameter.device)

    def whole(self, parameter: Tensor) -> contextlib.AbstractContextManager[Any]:
        """Inside, the parameter lies here whole."""
        return contextlib.nullcontext()


class Zero:
    """DeepSpeed's engine, told everything it would otherwise guess."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        clip: float,
        patience: float,
    ):
        """`patience`: seconds that a pass may take, waiting for others included."""
        plugin: Any = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config["gradient_clipping"] = clip
        # DeepSpeed takes the whole bucket at once; its own size is 2 GB
        n_trained = sum(parameter.numel() for _, parameter in trained(model))
        plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] = min(BUCKET, n_trained)
        self.model, self.stage, self._patience = model, stage(accelerator), patience
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self._engine, _ = accelerator.prepare(model, optimizer)
        self._zero, self._inner = self._engine.optimizer, optimizer
        self._parameters = dict(trained(model))
        if self.stage == 3:
            self._keep_whole()

    def add(self, batch: Batch, scale: float, is_last: bool) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(is_last)
        with _bounded(self._patience):
            loss = self._engine(batch)
            self._engine.backward(loss * scale)
        return loss.detach()

    def step(self, clip: float, is_finite: Tensor) -> Tensor:
        """DeepSpeed clips as it was told, and leaves a gradient that is not finite out by itself."""
        with _bounded(self._patience):
            self._engine.step()
        norm = math.inf if self._zero.overflow else float(self._engine.get_global_grad_norm() or 0.0)
        return torch.full_like(is_finite, norm, dtype=torch.float64)

    def weights(self) -> State:
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[str, Any] = {name: safe_get_full_fp32_param(p) for name, p in self._parameters.items()}
        return {name: tensor.detach().clone() for name, tensor in found.items()} | buffers(self.model)

    def moments(self) -> State:
        from deepspeed.utils import safe_get_full_optimizer_state

        whole: Any = safe_get_full_optimizer_state
        state = next((state for state in self._inner.state.values() if state), {})
        if not state:
            return {}
        self._link()
        found = {}
        for name, parameter in self._parameters.items():
            for key, value in sorted(state.items()):  # one order on all processes, which gather each together
                counts = value.ndim == 0
                found[f"{name}/{key}"] = (value if counts else whole(parameter, key)).clone()
        return found

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor] | None = None) -> None:
        for name, parameter in self._parameters.items():
            self._set(parameter, weights[name].float(), None)
            parameter.copy_(weights[name])
        for name, buffer in buffers(self.model).items():
            buffer.copy_(weights[name])
        if not moments:
            return
        steps = {key.rpartition("/")[2]: value for key, value in moments.items() if value.ndim == 0}
        names = {key.rpartition("/")[2] for key, value in moments.items() if value.ndim > 0}
        for flat in self._flat():
            self._inner.state[flat] = {k: v.clone() for k, v in steps.items()} | {
                k: torch.zeros_like(flat) for k in names
            }
        self._link()
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            if moment in names:
                self._set(self._parameters[name], value, moment)

    def whole(self, parameter: Tensor) -> contextlib.AbstractContextManager[Any]:
        from deepspeed import zero

        return zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id"))

    def _link(self) -> None:
        """Let DeepSpeed find each parameter's moments: it looks once, after its first group's first step, when those of
        the other groups are not there yet."""
        if self.stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[Tensor]:
        """This process's share of what trains, as the optimiser holds it."""
        if self.stage == 3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _set(self, parameter: Any, value: Tensor, moment: str | None) -> None:
        """Write this process's share of a whole tensor: of the float32 weights, or of a moment."""
        if self.stage < 3:
            parameter.set_full_hp_param(value.to(parameter.device), moment)
            return
        share = parameter.ds_tensor.numel()
        padded = value.new_zeros(share * self._engine.world_size)
        padded[: value.numel()] = value.flatten()
        own = padded[share * self._engine.global_rank :][:share].to(parameter.device)
        self._zero.set_local_hp_param(own, parameter, moment)
        if moment is None:
            parameter.ds_tensor.copy_(own)

    def _keep_whole(self) -> None:
        """Keep what trains whole between steps.

        Deviation: DeepSpeed chooses what stays whole by size; ranking reads item tables outside of a forward pass, and
        beside a frozen backbone they are small.
        """
        parameters: list[Any] = list(self._parameters.values())
        kept = self._zero.persistent_parameters
        known = {id(parameter) for parameter in kept}
        for parameter in parameters:
            parameter.ds_persist = parameter.is_external_param = True
            if id(parameter) not in known:
                kept.append(parameter)
        if kept:
            kept[0].all_gather(kept)


Parallel = Copies | Zero


def spread(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float, patience: float = 7200.0
) -> Parallel:
    """The model as the launch wants it."""
    if stage(accelerator) == 0:
        return Copies(model, optimizer, accelerator)
    return Zero(model, optimizer, accelerator, clip, patience)


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """End this process when what is inside takes longer: DeepSpeed's own groups wait half an hour, whatever one says."""

    def give_up() -> None:
        print(f"error: waited {seconds:.0f} s for the other processes (train.timeout_min)", file=sys.stderr, flush=True)
        os._exit(FAILED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def buffers(model: nn.Module) -> State:
    kept = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}
