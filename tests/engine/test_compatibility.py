"""What goes together is said once, in the code; README shows it."""

import pytest
from conftest import ROOT

from distrec import knobs
from distrec.engine import compatibility


def test_readme_shows_the_table():
    assert compatibility.table() in (ROOT / "README.md").read_text()


def test_what_does_not_go_together_is_refused_with_its_reason():
    with pytest.raises(ValueError, match="4-bit weights have no gradient"):
        compatibility.check(3, False, knobs.Backbone(quantise="nf4", tune="full"))
    for stage in (1, 2, 3):
        with pytest.raises(ValueError, match="DeepSpeed with a dynamo_backend"):
            compatibility.check(stage, True, None)
    compatibility.check(3, False, knobs.Backbone(quantise="nf4", tune="lora"))
    compatibility.check(0, True, knobs.Backbone())
