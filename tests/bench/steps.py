"""P25: seconds an epoch on Beauty of SASRec, TIGER and TONE at the papers' shapes, and the share of them that a GPU works.

    python tests/bench/steps.py [--cuda] [--steps N] [--data FOLDER]          (about two minutes)

N steps of the house's own loop are measured and multiplied by the steps of an epoch.  On the CPU: 8 steps of SASRec, two of
TIGER, one of TONE.  With --cuda: 60 steps, then 12 under the profiler; P25 is the share of a step that the device works.  Host waits of a
step are those of tests/bench/waits.py.  Each model prints its line as soon as it is measured.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from device.inputs import beauty
from device.pace import beauty_codes
from device.steps import kernels_of_steps, seconds_a_step, steps_an_epoch, trainer_of
from device.visit import visit

from distrec import knobs
from distrec.models.tone import Tone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DISTREC_DATA", "../shared/data")))
    options = parser.parse_args()
    visit.device, visit.data = torch.device("cuda" if options.cuda else "cpu"), options.data
    data = beauty()
    codes = beauty_codes(data)
    models = {
        "sasrec": (lambda: knobs.SasRec(dropout=0.2), 512, 8),
        "tiger": (lambda: Tone(knobs.Tiger(), codes), 5120, 2),
        "tone": (lambda: Tone(knobs.Tone(), codes), 5120, 1),
    }
    figures: dict[str, object] = {}
    for name, (make, batch_tokens, on_cpu) in models.items():
        n = options.steps or (60 if options.cuda else on_cpu)
        warm = 5 if options.cuda else 1
        trainer = trainer_of(data, make(), name, batch_tokens=batch_tokens)
        step, n_steps = seconds_a_step(trainer, n + warm + 1, warm), steps_an_epoch(trainer)
        figures |= {f"P25_s_{name}": round(step * n_steps, 2), f"P25_ms_{name}": round(1e3 * step, 2)}
        line = (
            f"{name:<8} {1e3 * step:8.1f} ms a step ({n} measured), {step * n_steps:8.1f} s an epoch of {n_steps} steps"
        )
        if options.cuda:
            again = trainer_of(data, make(), f"{name} profiled", batch_tokens=batch_tokens)
            n_kernels, busy = kernels_of_steps(again, 12 + warm + 1, warm)
            figures |= {f"P25_{name}": round(busy / step, 3), f"P25_kernels_{name}": n_kernels}
            line += f", {n_kernels} kernels a step, the device works {busy / step:.0%} of the time"
        print(line, flush=True)
    name = torch.cuda.get_device_name() if options.cuda else "cpu"
    print(json.dumps(figures | {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
