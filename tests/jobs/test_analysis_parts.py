"""Parts of an analysis: curves of what was learnt."""

import json

import pytest
import torch

from distrec import config as cfg
from distrec.jobs.analysis.learnt import learnt, short
from distrec.jobs.analysis.subject import Subject
from distrec.jobs.pages.page import Picture, Table, Text


def subject(folder, data, model=None, words=()):
    return Subject(folder, cfg.load(list(words)), model, data, torch.device("cpu"), folder, users=40)


def journal(folder, *lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_curves_of_what_was_learnt_start_before_the_first_step(small, tmp_path):
    name = "crfa.real.layers.0.attention.rpml"
    facts = [{"sigma": 3.0 - n, f"{name}.lm_alpha": 0.4, f"{name}.rank@0.01": 7 + n, "cutoff.1": 0.3} for n in (0, 1)]
    journal(tmp_path, {"event": "train", "loss": 1}, *({"epoch": 2 * n, "learnt": facts[n]} for n in (0, 1)))
    part = learnt(subject(tmp_path, small))
    assert part.figures["sigma"] == {"": [(0, 3.0), (2, 2.0)]}
    assert part.figures["rank@0.01"] == {"crfa.real 0": [(0, 7.0), (2, 8.0)]}
    assert part.figures["cutoff"] == {"layer 1": [(0, 0.3), (2, 0.3)]}
    table, *pictures = part.section.blocks
    assert isinstance(table, Table)
    assert table.rows[0] == ("σ of the Gaussian filter (tokens)", "", 3.0, 2.0, -1.0)
    assert [block.name for block in pictures if isinstance(block, Picture)] == [
        "learnt-sigma", "learnt-lm-alpha", "learnt-rank-0-01", "learnt-cutoff"
    ]  # fmt: skip
    assert all((tmp_path / f"{block.name}.svg").is_file() for block in pictures)
    json.dumps(part.figures)


def test_a_model_that_learns_no_such_thing_says_so(small, tmp_path):
    journal(tmp_path, {"event": "valid", "epoch": 1})
    part = learnt(subject(tmp_path, small))
    assert part.figures == {}
    assert isinstance(part.section.blocks[0], Text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("crfa.real.layers.0.attention.rpml", "crfa.real 0"),
        ("encoder.layers.11.attention", "encoder 11"),
        ("backbone.decoder.layers.3.self_attn", "backbone.decoder 3"),
        ("blocks.1", "1"),
    ],
)
def test_names_of_layers_are_short(name, wanted):
    assert short(name) == wanted
