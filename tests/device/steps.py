"""Training steps of the house's own loop, through its public functions alone: fit() asks whether to stop once a step."""

import time
from collections.abc import Callable
from itertools import count

import loops
from device.visit import sync, visit
from torch.profiler import ProfilerActivity, profile

from distrec import knobs
from distrec.data import batches
from distrec.engine.trainer import Trainer
from distrec.models.build import build


def trainer_of(data, model, folder: str, **train) -> Trainer:
    """A trainer that neither logs nor saves nor evaluates within the first steps, on the visit's device."""
    quiet = {"log_steps": 10**6, "save_steps": 10**6, "epochs": 1000, "eval_epochs": 1000}
    model = build(model, data, 0) if isinstance(model, knobs.SasRec) else model
    return loops.trainer(data, visit.work / folder, model=model.to(visit.device), **{**quiet, **train})


def steps_an_epoch(trainer: Trainer) -> int:
    samples = batches.training(trainer.data, trainer.config.samples or trainer.model.samples, trainer.model.max_len)
    return len(batches.steps(samples, trainer.config.batch_tokens, 0, 0))


def run_steps(trainer: Trainer, n: int, before: Callable[[int], None] = lambda step: None) -> None:
    """Makes n steps; before(step) is called before each, and once more after the last."""
    asked = count()

    def stop() -> bool:
        step = next(asked)
        if step <= n:  # a loop that reads late asks once more
            before(step)
        return step >= n

    trainer.fit(stop)


def seconds_a_step(trainer: Trainer, n: int, warm: int) -> float:
    """Seconds a step, without the first `warm`; the device has done its work at both ends."""
    marks: dict[int, float] = {}

    def before(step: int) -> None:
        if step in (warm, n - 1):  # the last step may be the one that is asked to stop
            sync()
            marks[step] = time.perf_counter()

    run_steps(trainer, n, before)
    return (marks[n - 1] - marks[warm]) / (n - 1 - warm)


def kernels_of_steps(trainer: Trainer, n: int, warm: int) -> tuple[int, float]:
    """(kernels a step, seconds a step that the device works): steps warm … n-2 under the profiler."""
    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def before(step: int) -> None:
        if step == warm:
            sync()
            profiler.__enter__()
        if step == n - 1:
            sync()
            profiler.__exit__(None, None, None)

    run_steps(trainer, n, before)
    kernels = [event for event in profiler.events() or () if event.device_type.name == "CUDA"]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return len(kernels) // (n - 1 - warm), busy / (n - 1 - warm)
