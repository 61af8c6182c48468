"""distrec from the command line, as a user starts it."""

import subprocess
import sys


def distrec(*words, cwd, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "distrec.jobs", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done
