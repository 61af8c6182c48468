"""P19: time to the first line of --help ÷ time of `import torch`.

python tests/bench/start.py [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import time


def seconds(*command: str) -> float:
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        return time.perf_counter() - started


def main(rounds: int) -> None:
    sides = {
        "distrec train --help": (sys.executable, "-m", "distrec.jobs", "train", "--help"),
        "python distrec/train.py --help": (sys.executable, "-m", "distrec.train", "--help"),
        "import torch": (sys.executable, "-c", "import torch; print(torch.__version__)"),
    }
    times = {name: [seconds(*command) for _ in range(rounds)] for name, command in sides.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:<32} {value:6.3f} s")
    peer = median["import torch"]
    figures = {
        "P19": median["distrec train --help"] / peer,
        "P19_launched": median["python distrec/train.py --help"] / peer,
    }
    print(json.dumps({**{key: round(value, 3) for key, value in figures.items()}, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
