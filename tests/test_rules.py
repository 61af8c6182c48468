"""What must hold between two knobs: each rule at its edge, on both sides."""

import re

import pytest

from distrec import config as cfg

TONE, FRELLM = "model.name=tone", "model.name=frellm"
RULES = [
    (["model.d_model=12", "model.n_heads=5"], ["model.d_model=15", "model.n_heads=5"], "not a multiple of model.n_heads 5"),
    ([FRELLM, "model.sasrec.d_model=9", "model.sasrec.n_heads=2"], [FRELLM, "model.sasrec.d_model=9", "model.sasrec.n_heads=3"], "model.sasrec.d_model 9 is not a multiple"),
    (["model.name=tiger", "train.samples=sequences"], ["model.name=tiger", "train.samples=prefixes"], "predicts one item a sample"),
    (["data.valid_share=0.5", "data.test_share=0.5"], ["data.valid_share=0.5", "data.test_share=0.4999"], "leave nothing to train on"),
    (["data.source=table"], ["data.source=table", "data.path=x"], "data.source=table needs data.path"),
    (["data.source=movielens"], ["data.source=movielens", "data.catalogue=ml-100k"], "needs data.path"),
    (["data.path=x"], ["data.path=x", "data.source=sequences"], "need a data.source"),
    (["data.items=x"], ["data.source=table", "data.path=x", "data.items=x"], "need a data.source"),
    ([TONE, "model.taps=6"], [TONE, "model.taps=5"], "taps are odd"),
    ([TONE, "model.sigma=7"], [TONE, "model.sigma=6.9"], "between 0.3 and taps"),
    ([TONE, "model.sigma=0.3"], [TONE, "model.sigma=0.31"], "between 0.3 and taps"),
    ([TONE, "model.taps=1", "model.sigma=0.31"], [TONE, "model.taps=1", "model.sigma=0.5"], None),
    ([TONE, "model.zero_pads=false"], [TONE, "model.zero_pads=false", "model.agf=false"], "model.zero_pads=false does nothing"),
    ([TONE, "model.agf=false", "model.sigma=2"], [TONE, "model.sigma=2"], "model.sigma does nothing with model.agf=false"),
    ([TONE, "model.crfa=false", "model.bin_embedding=true"], [TONE, "model.bin_embedding=true"], "model.bin_embedding does nothing"),
    ([TONE, "model.rpml=false", "model.lm_alpha=1"], [TONE, "model.rpml=false", "model.rpml_decoder=true", "model.lm_alpha=1"], "model.lm_alpha does nothing"),
    ([FRELLM, "train.samples=sequences"], [FRELLM, "train.samples=sequences", "model.tfm.mode=causal"], "sees later items"),
    ([FRELLM, "model.compat_unsafe=true"], [FRELLM, "model.compat_unsafe=true", "train.samples=sequences"], "model.compat_unsafe=true means"),
    ([FRELLM, "model.tfm.mode=causal", "model.tfm.boundary=circular"], [FRELLM, "model.tfm.boundary=circular"], "model.tfm.boundary does nothing"),
    ([FRELLM, "model.tfm.boundary=paper", "model.tfm.cutoff=0.09"], [FRELLM, "model.tfm.boundary=paper", "model.tfm.cutoff=0.1"], "takes none below 0.1"),
    ([FRELLM, "model.tfm.mode=none", "model.tfm.learn_cutoff=true"], [FRELLM, "model.tfm.learn_cutoff=true"], "needs a filter"),
    ([FRELLM, "model.tfm.boundary=paper", "model.tfm.learn_cutoff=true"], [FRELLM, "model.tfm.learn_cutoff=true"], "needs a filter"),
    ([FRELLM, "model.backbone.quantise=nf4", "model.backbone.tune=full"], [FRELLM, "model.backbone.quantise=nf4", "model.backbone.tune=lora"], "nf4 cannot be trained whole"),
    ([FRELLM, "model.backbone.dtype=bfloat16", "model.backbone.tune=full"], [FRELLM, "model.backbone.dtype=bfloat16"], "stays in float32"),
    ([FRELLM, "model.graph.source=text", "model.graph.window=3"], [FRELLM, "model.graph.window=3"], "model.graph.window and weighting do nothing"),
    ([FRELLM, "model.graph.source=items", "model.graph.weighting=lag"], [FRELLM, "model.graph.source=session", "model.graph.weighting=lag"], "model.graph.window and weighting"),
    ([FRELLM, "model.graph.gap_hours=1"], [FRELLM, "model.graph.source=session", "model.graph.gap_hours=1"], "model.graph.gap_hours does nothing"),
    (["model.name=tiger", "score.shard_items=true"], [FRELLM, "score.shard_items=true"], "score.shard_items=true is for models"),
    (["embed.pooling=mean"], [FRELLM, "embed.pooling=mean"], "embed.pooling does nothing"),
    (["embed.encoder=builtin", "embed.revision=a"], ["embed.encoder=x", "embed.revision=a"], "embed.revision does nothing"),
    (["embed.encoder=x", "embed.vocabulary=400"], ["embed.encoder=builtin", "embed.vocabulary=400"], "embed.vocabulary does nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "right", "why"), RULES, ids=[" ".join(rule[0]) for rule in RULES])
def test_a_rule_holds_at_its_edge(wrong, right, why):
    cfg.load(right)
    if why is None:
        wrong, why = [*wrong, "model.sigma=0.3"], "between 0.3 and taps"
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        cfg.load(wrong)
    assert "\n" not in str(caught.value)
