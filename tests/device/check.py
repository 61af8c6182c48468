"""One visit to a GPU: is distrec right there, is it the same twice, and how fast is it.

    python tests/device/check.py [--device cuda] [--budget 520] [--only NAME,NAME] [--small] [--data FOLDER] [--out FOLDER]

Run in the root of a checkout with PYTHONPATH=.:tests.  Each section is independent; it is left out when less than about its
time is left of the budget.  Prints a line a finding; result.json in --out grows after each section.
--small --device cpu is a rehearsal.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from device import agreement, hardware, large, pace, repeats, started  # noqa: F401  (each registers its sections)
from device.visit import SECTIONS, left, run, visit

ORDER = (
    "models",
    "culprit",
    "twice",
    "speed",
    "host",
    "ceilings",
    "commands",
    "waits",
    "codes",
    "filters",
    "em",
    "seven",
    "shapes",
    "four",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, default=520.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DISTREC_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "check-out")))
    options = parser.parse_args()
    visit.device, visit.small, visit.budget = torch.device(options.device), options.small, options.budget
    visit.data, visit.out = options.data, options.out
    visit.out.mkdir(parents=True, exist_ok=True)
    visit.result |= {"torch": torch.__version__, "device": torch.cuda.get_device_name() if visit.is_gpu else "cpu"}
    chosen = [name for name in options.only.split(",") if name] or ORDER
    for name in ORDER:
        if name not in chosen:
            continue
        if left() < SECTIONS[name][0] * (0.5 if visit.small else 0.8):
            print(f"{name}: left out, {left():.0f} s are left", flush=True)
            continue
        run(name)
    shutil.rmtree(visit.work, ignore_errors=True)


if __name__ == "__main__":
    main()
