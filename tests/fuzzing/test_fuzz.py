"""Sound files are read to the last row and in exact order; damaged ones are refused in one line, or read."""

import random

import pytest

from distrec import config as cfg
from fuzzing.beside import READERS
from fuzzing.judge import judge
from fuzzing.logs import KINDS
from fuzzing.words import TEXTS, draw, keys

FAST, SLOW = 60, 400


def faults(kind, seeds, is_damaged, folder):
    verdicts = [judge(kind, seed, is_damaged, folder / str(seed)) for seed in seeds]
    return [f"{v.seed} [{v.what}] {v.outcome}: {v.fault}" for v in verdicts if v.fault]


@pytest.mark.parametrize("is_damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("kind", [*KINDS, *READERS])
def test_no_file_is_misread_or_ends_in_a_traceback(tmp_path, kind, is_damaged):
    assert faults(kind, range(FAST), is_damaged, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("kind", [*KINDS, *READERS])
def test_many_files(tmp_path, kind, is_damaged):
    assert faults(kind, range(FAST, FAST + SLOW), is_damaged, tmp_path) == []


def refusal(word):
    """What is said of a word; "" where it is taken."""
    try:
        cfg.load([word])
    except ValueError as error:
        return str(error) or "nothing"
    return ""


def test_no_word_ends_in_a_traceback():
    rng, known = random.Random(0), sorted(set(keys()))
    for _ in range(1500):
        word = draw(rng, known)
        message = refusal(word)
        assert message != "nothing", word
        assert "\n" not in message, word
        assert len(message) < 1500 + 2 * len(word), word


@pytest.mark.parametrize("key", ["data.columns.user", "data.columns.time", "data.text", "out", "data.items"])
def test_a_text_is_read_to_its_last_character(key):
    for text in TEXTS:
        if message := refusal(f"{key}={text}"):
            assert key in message, text  # refused by name
            continue
        value = cfg.load([f"{key}={text}"])
        for part in key.split("."):
            value = getattr(value, part)
        assert str(value) == text or text.startswith("~"), (key, text, value)
