"""Sound logs are read to the last row and in exact order; damaged ones are refused in one line, or read."""

import pytest

from fuzzing.judge import judge
from fuzzing.logs import KINDS

FAST, SLOW = 20, 250


def faults(kind, seeds, is_damaged, folder):
    verdicts = [judge(kind, seed, is_damaged, folder / str(seed)) for seed in seeds]
    return [f"{v.seed} [{v.log.what}] {v.outcome}: {v.fault}" for v in verdicts if v.fault]


@pytest.mark.parametrize("is_damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_is_misread_or_ends_in_a_traceback(tmp_path, kind, is_damaged):
    assert faults(kind, range(FAST), is_damaged, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_files(tmp_path, kind, is_damaged):
    assert faults(kind, range(FAST, FAST + SLOW), is_damaged, tmp_path) == []
