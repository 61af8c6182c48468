"""The one training loop, on Accelerate: one core, many processes, later DeepSpeed, by the same lines."""

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distrec.data import batches
from distrec.data.prepared import Prepared
from distrec.engine.checkpoint import Checkpoints, Progress
from distrec.engine.costs.meter import Meter
from distrec.engine.evaluation import metrics, scoring
from distrec.engine.late import Late
from distrec.engine.parallel import spread, stage
from distrec.knobs import Score, Train
from distrec.runtime import Journal, Ranks, Stopped, log

SCHEDULE = "every step trains"  # what identifies a run says it: another name for another learning_rate


def learning_rate(config: Train, start: float, end: float) -> float:
    """The rate of the step between these shares of the whole run: linear warm-up, then a cosine down to min_lr_share × lr.

    The warm-up is where the step ends, so that the first one has its share of lr; the cosine where it starts, so that the
    last one has what is left of it.  No step's rate is 0.
    """
    rise = min(1.0, end / config.warmup) if config.warmup else 1.0
    share = max(0.0, (start - config.warmup) / max(1e-12, 1 - config.warmup))
    floor = config.min_lr_share
    return config.lr * rise * (floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2)


class Outcome(NamedTuple):
    """What a step came to; `values`: the loss summed over targets, whether any rank was asked to stop, the gradient's norm."""

    step: int
    rows: np.ndarray
    values: Late


@dataclass
class Trainer:
    """Fits a model to prepared data; `checkpoints` hold whatever a killed run needs to go on bit for bit.

    A step's samples, its dropout and its negatives are pure functions of (seed, step, rank); the
    gradient of a step is the mean over all its targets, on however many processes and micro-batches.
    """

    config: Train
    score: Score
    model: Any  # a Recommender
    data: Prepared
    checkpoints: Checkpoints
    journal: Journal
    accelerator: Accelerator
    ranks: Ranks
    seed: int
    progress: Progress = field(default_factory=Progress)
    outcomes: deque[Outcome] = field(default_factory=deque)  # of the latest steps, not read yet

    def fit(self, stop: Callable[[], bool]) -> bool:
        """Train to the end, or until stop() on any rank; True when training is complete.

        Raises: ValueError when max_skips steps in a row are not finite.
        """
        config = self.config
        self.samples = batches.training(self.data, config.samples or self.model.samples, self.model.max_len)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [  # norms, widths and the like have no size to be kept small
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        # one kernel a step, which needs no answer from the host; DeepSpeed has kernels of its own
        fused = self._is_async and stage(self.accelerator) == 0
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        self.meter = self._meter()
        self.parallel = spread(self.accelerator, self.model, optimizer, config.clip, 60 * config.timeout_min)
        self.optimizer = optimizer
        self._resume()
        with self.checkpoints:
            is_complete = self._epochs(stop)
        if is_complete and hasattr(self.model, "verify_seal"):
            self.model.verify_seal(self.parallel.whole)
        self.ranks.wait()  # none leaves, or reads the last checkpoint, before the main rank has written it
        return is_complete

    def _resume(self) -> None:
        """Go on from the checkpoint that the main rank found good.

        Raises: ValueError when the journal knows of steps but no checkpoint is left: nothing starts over silently.
        """
        name = self.ranks.gather(self.ranks.main_first(self._find_checkpoint))[0]
        if name:
            self.progress = self.checkpoints.load(name, self.parallel)
            log(f"resuming {name} (epoch {self.progress.epoch + 1}, step {self.progress.step})")
        self.ranks.wait()  # all have read before one writes
        self.journal.rewind(self.progress.step)
        if not name:
            self._save()
            self.checkpoints.wait()  # a journal that tells of steps has a checkpoint beside it
            if learnt := self._learnt():
                self.journal.write(event="start", step=0, epoch=0, **learnt)

    def _find_checkpoint(self) -> str | None:
        if not self.ranks.is_main:
            return None
        name = self.checkpoints.latest_good()
        if name is None and self.journal.last_step() > 0:
            raise ValueError(
                f"{self.journal.path} tells of {self.journal.last_step()} steps, but no checkpoint is left; "
                "train anew into another out=DIR"
            )
        return name

    def _epochs(self, stop: Callable[[], bool]) -> bool:
        """Those that are left; False when asked to stop, and saved."""
        while self.progress.epoch < self.config.epochs and not self.progress.stopped_early:
            if not self._epoch(stop):
                self._save()
                return False
        return True

    def _epoch(self, stop: Callable[[], bool]) -> bool:
        """The rest of the current epoch and its evaluation; False when asked to stop."""
        progress, config = self.progress, self.config
        plan = batches.steps(self.samples, config.batch_tokens, self.seed, progress.epoch)
        title = f"epoch {progress.epoch + 1}/{config.epochs}"
        with tqdm(
            total=len(plan),
            initial=progress.position,
            desc=title,
            unit="step",
            disable=not self.ranks.is_main,
            leave=False,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file is read later
        ) as bar:
            while progress.position < len(plan):
                ends = (progress.position, progress.position + 1)
                lr = learning_rate(config, *((progress.epoch + place / len(plan)) / config.epochs for place in ends))
                self._step(plan[progress.position], lr, stop())
                progress.step += 1
                progress.position += 1
                bar.update()
                is_logged = progress.step % config.log_steps == 0
                is_saved = progress.step % config.save_steps == 0 and progress.position < len(plan)
                reads_all = is_logged or is_saved or progress.position == len(plan)
                asked = self._settle(0 if reads_all else int(self._is_async))
                if is_logged:
                    self._log(bar, lr)
                if asked:
                    self._settle(0)  # what is saved now holds every step
                    return False
                if is_saved:
                    self._save()
        is_due = (progress.epoch + 1) % config.eval_epochs == 0 or progress.epoch + 1 == config.epochs
        try:
            found = self._rank_validation(stop) if is_due else None
        except Stopped:
            return False  # what is saved now begins with this evaluation
        progress.epoch += 1
        progress.position = 0
        if found is not None:
            self._evaluated(found)
        elif progress.step % config.save_steps == 0:
            self._save()
        return True

    @property
    def _is_async(self) -> bool:
        """Whether the device works on while the host reads: a step's outcome is then read when the next one is queued."""
        return self.accelerator.device.type == "cuda"

    def _step(self, rows: np.ndarray, lr: float, stop: bool) -> None:
        """One optimiser step on these rows; its outcome waits in `outcomes`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        n_targets = self.samples.n_targets(rows)
        # the loss summed over targets, and whether to stop: one small reduction a step
        total = torch.full((2,), float(stop), dtype=torch.float64, device=self.accelerator.device)
        total[0] = self._gradient(rows, n_targets)
        self.ranks.sum_(total)
        norm = self.parallel.step(self.config.clip, total[0].isfinite())
        values = torch.cat([total, norm.to(total).reshape(1)])
        self.outcomes.append(Outcome(self.progress.step + 1, rows, Late(values)))
        self.meter.add(int(self.samples.lengths(rows).sum()), n_targets, self.places)

    def _settle(self, left: int) -> bool:
        """Read the outcomes of all steps but the latest `left`; True when any rank was asked to stop.

        Raises: ValueError when max_skips steps in a row were not finite.
        """
        asked = False
        while len(self.outcomes) > left:
            step, rows, values = self.outcomes.popleft()
            loss, stops, norm = values.read()
            loss /= self.samples.n_targets(rows)
            if math.isfinite(loss) and math.isfinite(norm):
                self.progress.skips = 0
                self.progress.losses.append(loss)
            else:
                self._skipped(step, rows, loss, norm)
            asked |= stops > 0
        return asked

    def _gradient(self, rows: np.ndarray, n_targets: int) -> Tensor:
        """Add this rank's share of a step's gradient; the loss of its targets, summed."""
        pieces = batches.micro_batches(
            self.data, self.samples, rows, self.config.micro_tokens, self.ranks.rank, self.ranks.size
        )
        self.model.train()
        self.places = sum(piece.items.numel() for piece in pieces)
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for i, piece in enumerate(pieces):
            draws = np.random.SeedSequence([self.seed, self.progress.step, i, self.ranks.rank])
            torch.manual_seed(int(draws.generate_state(1)[0]))
            # gradients are averaged over ranks; the mean over all targets is the sum over ranks ÷ n_targets
            scale = self.ranks.size / n_targets
            total += self.parallel.add(piece.to(self.accelerator.device), scale, is_last=i == len(pieces) - 1)
        return total

    def _meter(self) -> Meter:
        """FLOPs are counted in a pass of the bare model, which teaches nothing: while they are counted, fused operations
        run as their parts, which round otherwise, so that a resumed run would differ from one that was not stopped."""
        meter = Meter(self.ranks, self.accelerator.device, self.config.precision)
        if stage(self.accelerator) == 3:  # no process can run the bare model
            return meter
        rows = batches.steps(self.samples, self.config.batch_tokens, self.seed, 0)[0]
        pieces = batches.micro_batches(self.data, self.samples, rows, self.config.micro_tokens, 0, self.ranks.size)
        piece = pieces[0].to(self.accelerator.device)
        self.model.train()
        with meter.count_flops(), self.accelerator.autocast():
            self.model(piece).backward()
        self.model.zero_grad()
        meter.counted(piece.items.numel())
        return meter

    def _skipped(self, step: int, rows: np.ndarray, loss: float, norm: float) -> None:
        """Every rank sees the same reduced loss and gradient, so all skip together."""
        progress = self.progress
        progress.skips += 1
        users = self.samples.user[rows]
        self.journal.write(
            event="skipped",
            step=step,
            loss=repr(loss),
            norm=repr(norm),
            users=batches.raw_users(self.data, users),
        )
        shown = ", ".join(batches.raw_users(self.data, users[:10]))
        log(
            f"WARNING: step {step} skipped: loss {loss}, gradient norm {norm}; users {shown}{' …' if len(users) > 10 else ''} (all in metrics.jsonl)"
        )
        if progress.skips >= self.config.max_skips:
            raise ValueError(
                f"{progress.skips} steps in a row were not finite (train.max_skips): lower train.lr or train.clip; the last good checkpoint is kept"
            )

    def _log(self, bar: tqdm, lr: float) -> None:
        progress = self.progress
        loss = float(np.mean(progress.losses)) if progress.losses else None
        progress.losses.clear()
        values = {"loss": loss, "lr": lr, **self.meter.read()}
        bar.set_postfix(
            loss="skipped" if loss is None else f"{loss:.4f}",
            tokens_s=f"{values['tokens_per_s']:.0f}",
            mfu="?" if values["mfu"] is None else f"{values['mfu']:.0%}",
        )
        self.journal.write(event="train", step=progress.step, epoch=progress.epoch + 1, **values)
        self.accelerator.log({name: value for name, value in values.items() if value is not None}, step=progress.step)

    def _rank_validation(self, stop: Callable[[], bool]) -> Mapping[str, Any]:
        """Raises: Stopped, on all ranks, when asked on any (but under ZeRO-3, where none can leave the others alone)."""
        leave = stop if stage(self.accelerator) < 3 else lambda: False
        device = self.accelerator.device
        ranking = scoring.rank_split(self.model, self.data, "valid", self.score, self.ranks, device, stop=leave)
        repeats = {"repeats": float(ranking.repeats.mean())} if ranking.repeats.any() else {}
        return metrics.summarise(ranking.standing) | repeats

    def _evaluated(self, found: Mapping[str, Any]) -> None:
        """The checkpoint that follows is the best one if NDCG@10 rose."""
        progress = self.progress
        progress.evaluations += 1
        progress.stale += 1
        value = float(found["ndcg@10"])
        if value > progress.best:
            progress.best, progress.best_checkpoint, progress.stale = value, progress.name, 0
        progress.stopped_early = progress.stale >= self.config.patience
        self.journal.write(
            event="valid", step=progress.step, epoch=progress.epoch, best=progress.best, **found, **self._learnt()
        )
        self.accelerator.log({f"valid/{name}": number for name, number in found.items()}, step=progress.step)
        mark = "best so far" if progress.stale == 0 else f"best {progress.best:.4f}"
        log(f"epoch {progress.epoch}: valid HR@10 {found['hr@10']:.4f}  NDCG@10 {found['ndcg@10']:.4f}  ({mark})")
        self._save()
        self.meter.read()

    def _learnt(self) -> dict[str, Mapping[str, float]]:
        """The model's facts, if it has any; under ZeRO-3 too, which keeps what trains whole (parallel.py)."""
        facts = self.model.facts() if hasattr(self.model, "facts") else {}
        return {"learnt": facts} if facts else {}

    def _save(self) -> None:
        if hasattr(self.model, "check_seal"):
            self.model.check_seal(self.parallel.whole)
        self.checkpoints.save(self.parallel, self.progress, writes=self.ranks.is_main)
