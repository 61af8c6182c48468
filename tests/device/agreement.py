"""The device against the CPU: models, quantizers, filters."""

import copy
import time

import decoders
import numpy as np
import torch
from device.inputs import catalogue, histories
from device.visit import apart, failed, say, section, visit


def zoo():
    """(name, a model on the CPU without dropout)."""
    from distrec import knobs
    from distrec.models.sasrec import SasRec
    from distrec.models.tone import Tone

    folder = decoders.saved(visit.work / "qwen") if not (visit.work / "qwen").exists() else visit.work / "qwen"
    torch.manual_seed(0)
    yield "sasrec ce", SasRec(knobs.SasRec(dropout=0.0, max_len=20), 400)
    yield "sasrec bce 50-d", SasRec(knobs.SasRec(dropout=0.0, max_len=20, loss="bce", d_model=50, n_heads=1), 400)
    codes = catalogue()
    yield "tiger", Tone(knobs.Tiger(dropout=0.0, beams=20, user_tokens=50), codes)
    yield "tone", Tone(knobs.Tone(dropout=0.0, beams=20), codes)
    yield (
        "tone flat, items, decoder",
        Tone(knobs.Tone(dropout=0.0, beams=20, agf_axis="items", rpml_decoder=True, bin_embedding=True), codes),
    )
    for name, more in {
        "frellm causal": {},
        "frellm causal learnt": {"tfm": {"learn_cutoff": True}, "head": "linear"},
        "frellm global": {"mode": "global"},
        "frellm lora": {"tune": "lora"},
        "frellm full, sampled": {"tune": "full", "loss": "sampled", "negatives": 64},
    }.items():
        yield name, decoders.frellm(folder, **{"n_items": 400, "max_len": 20, **more})


def _gradients(one, two, batch):
    """How far the worst gradient lies from float64's, on the CPU and on the device; and from each other.

    TONE's are ill-conditioned: float32 on the CPU is itself 1e-3 to 1e-2 away.
    """
    exact = copy.deepcopy(one).double()
    exact.zero_grad()
    exact.train()
    exact(batch).backward()
    right, here = ({k: p.grad for k, p in m.named_parameters() if p.grad is not None} for m in (exact, one))
    there = {k: p.grad for k, p in two.named_parameters() if p.grad is not None}
    return {
        "gradient": max(apart(there[k], here[k]) for k in right),
        "against float64": max(apart(there[k], right[k]) for k in right),
        "the CPU's": max(apart(here[k], right[k]) for k in right),
    }


@section(45)
def models():
    """Loss, gradients, states, ranks and beams: the device against the CPU."""
    from distrec.engine.evaluation.exact import exact_standing
    from distrec.models.ranking import TableModel
    from distrec.runtime import Ranks

    batch = histories(48, 20, 400)
    for name, one in zoo():
        if visit.only not in name:
            continue
        try:
            two, there = copy.deepcopy(one).to(visit.device), batch.to(visit.device)
            found = {}
            if "bce" not in name and "sampled" not in name:  # these draw
                losses = []
                for model, each in ((one, batch), (two, there)):
                    model.train()
                    loss = model(each)
                    loss.backward()
                    losses.append(loss)
                found |= {"loss": apart(losses[1], losses[0]), **_gradients(one, two, batch)}
            else:
                two.train()
                two(there).backward()
            one.eval(), two.eval()
            with torch.no_grad():
                if isinstance(one, TableModel):
                    found["states"] = apart(two.user_states(there), one.user_states(batch))
                    wanted = np.random.default_rng(0).integers(400, size=(48, 21))
                    ranks = [
                        exact_standing([m.scorer(b)], [wanted], [None], 400, slice(0, 400), Ranks(), b.items.device)
                        for m, b in ((one, batch), (two, there))
                    ]
                    ranks = [blocks[0][0].cpu() for blocks in ranks]
                    found["ranks that differ"] = float((ranks[0] != ranks[1]).double().mean())
                else:
                    for way in ("constrained", "free"):
                        a, b = one.search(batch, 20, way), two.search(there, 20, way)
                        found[f"{way} items that differ"] = float((a[0] != b[0].cpu()).double().mean())
                    some = batch.targets[:, :5]  # a batch on a GPU has no other target than those that count
                    found["likelihood"] = apart(
                        two.likelihood(there, some.to(visit.device)), one.likelihood(batch, some)
                    )
                found["same alone"] = (
                    apart(
                        two.user_states(
                            type(there)(
                                *(getattr(there, f)[:1] for f in ("user", "items", "is_item", "targets", "is_target"))
                            )
                        ),
                        two.user_states(there)[:1],
                    )
                    if isinstance(one, TableModel)
                    else 0.0
                )
                two.facts() if hasattr(two, "facts") else None
            say(name, **found)
        except Exception as error:
            failed(name, error)


@section(40)
def codes():
    """Each quantiser: objective and codes against the CPU's, and the same bits twice."""
    from distrec import config as cfg
    from distrec.codes.rows import Rows
    from distrec.models import quantisers

    rng = np.random.default_rng(0)
    n, d = (600, 16) if visit.small else (20_000, 96)
    centres = rng.standard_normal((40, d))
    table = torch.from_numpy((centres[rng.integers(40, size=n)] + 0.5 * rng.standard_normal((n, d))).astype(np.float32))
    common = ["codes.size=32", "codes.levels=2"]
    for name, words in {
        "gmm diag": ["codes.name=gmm", "codes.n_init=1"], "gmm tf32": ["codes.name=gmm", "codes.n_init=1", "codes.precision=tf32"],
        "gmm bf16x3": ["codes.name=gmm", "codes.n_init=1", "codes.precision=bf16x3"],
        "gmm spherical": ["codes.name=gmm", "codes.n_init=1", "codes.covariance=spherical"],
        "gmm tied": ["codes.name=gmm", "codes.n_init=1", "codes.covariance=tied"],
        "gmm full, posterior": ["codes.name=gmm", "codes.n_init=1", "codes.covariance=full", "codes.assignment=posterior", "codes.max_iter=20"],
        "kmeans": ["codes.name=kmeans"], "balanced": ["codes.name=balanced", "codes.max_iter=3"], "spectral": ["codes.name=spectral", "codes.landmarks=2000"],
        "rqvae": ["codes.name=rqvae", "codes.hidden=[64]", "codes.latent=16", "codes.epochs=3"],
    }.items():  # fmt: skip
        try:
            config = cfg.load([*common, *words]).codes
            own = table[:, :12].contiguous() if "full" in name else table

            def fit(device, own=own, config=config):
                rows = Rows.whole(own.to(device), block=2048, device=device)
                one = quantisers.build(config, 32, 0)
                for _ in one.run(rows):
                    pass
                return one

            began = time.perf_counter()
            here, there, again = fit(torch.device("cpu")), fit(visit.device), fit(visit.device)
            tensors = quantisers.tensors_of(there)
            given = quantisers.codes_of(
                Rows.whole(own.to(visit.device), block=2048, device=visit.device), tensors, config
            ).cpu()
            say(
                name,
                **{
                    "residual": abs(
                        there.reports_[-1]["residual_share"] / max(here.reports_[-1]["residual_share"], 1e-30) - 1
                    ),
                    "codes that differ": float((there.codes_.cpu()[:, 0] != here.codes_[:, 0]).double().mean()),
                    "bits twice": bool(
                        torch.equal(there.codes_, again.codes_)
                        and all(torch.equal(tensors[k], v) for k, v in quantisers.tensors_of(again).items())
                    ),
                    "given again": float((given != there.codes_.cpu()).double().mean()),
                    "s": time.perf_counter() - began,
                },
            )
        except Exception as error:
            failed(name, error)


@section(10)
def filters():
    from scipy import sparse

    from distrec.freq import butterworth, graph, polynomial

    segment = torch.zeros(7, 33, dtype=torch.long)
    for i in range(7):
        segment[i, 4 * i :] = 1
    for boundary in ("reflect", "circular", "paper", "causal"):
        a = butterworth.matrices(segment, 0.3, 2, boundary)
        b = butterworth.matrices(segment.to(visit.device), 0.3, 2, boundary)
        with torch.autocast(visit.device.type, torch.bfloat16):
            c = butterworth.matrices(segment.to(visit.device), 0.3, 2, boundary)
        say(f"butterworth {boundary}", device=apart(b, a), under_autocast=apart(c, a))
    W = sparse.random_array((3000, 3000), density=0.01, rng=np.random.default_rng(0), dtype=np.float32).tocsr()
    A = graph.normalise(graph._union(sparse.csr_array(W)))
    x = torch.randn(3000, 64)
    say("low pass", device=apart(polynomial.low_pass(A, x.to(visit.device), 0.7, 2), polynomial.low_pass(A, x, 0.7, 2)))
    edges = [graph.neighbours(y, 5).astype(bool) for y in (x, x.to(visit.device))]
    say("neighbours", edges_that_differ=(edges[0] != edges[1]).nnz)
