"""score.shard_items from the command line: the same files, byte for byte, as without it."""

import os
import subprocess
import sys

import pytest
from decoders import saved
from test_frellm_words import FRELLM, SMALL

SASREC = ["model.name=sasrec", "model.d_model=16", "model.max_len=20", "train.epochs=2"]

IN_SMALL_CHUNKS = """
import sys
from distrec.engine import exact
from distrec.models import ranking
assert exact.__file__.startswith(sys.argv.pop(1))
exact.CHUNK["cpu"] = ranking.CHUNK = ranking.PIECE = 32
from distrec.jobs.__main__ import main
main()
"""
