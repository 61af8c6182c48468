"""What runs were made of: every part found, every changed byte named, what is missing said."""

import json
import shutil
from pathlib import Path

import pytest
from commands import distrec
from decoders import saved

from distrec import config as cfg
from distrec.data import store
from distrec.jobs.embed import encoder_digest
from distrec.jobs.parts.chain import RUN_FILES, chain, opened

SMALL = ["data.synthetic.users=120", "data.synthetic.items=150", "data.negatives=20", "score.bootstrap=0"]
ONCE = [*SMALL, "train.epochs=1"]
TONE = [
    "model.name=tone", "embed.encoder=builtin", "codes.name=kmeans", "codes.size=16", "codes.gate=false", "model.max_len=8",
    "model.d_model=16", "model.d_ff=32", "model.d_kv=8", "model.n_heads=2", "model.n_layers=1",
]  # fmt: skip
FRELLM = [
    "model.name=frellm", "model.tfm.mode=causal", "model.max_len=8", "model.hidden=16", "model.sasrec.d_model=8",
    "model.sasrec.n_heads=1", "model.sasrec_train.epochs=1", "model.backbone.path=llm",
]  # fmt: skip
WHOLE = {
    "tone": ["run", "checkpoint", "codes", "vectors", "text encoder", "prepared data"],
    "frellm": [
        "run", "checkpoint", "item table", "item tables", "language model", "SASRec run", "vectors", "prepared data",
    ],
    "popularity": ["run", "prepared data"],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a language model, and a run of each kind on the same data."""
    folder = tmp_path_factory.mktemp("chain")
    saved(folder / "llm", width=32, layers=2)
    for name, words in (("tone", TONE), ("frellm", FRELLM), ("popularity", ["model.name=popularity"])):
        distrec("train", *ONCE, *words, f"out={name}", cwd=folder)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy to break."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def links(run, *words):
    return chain(Path(run), opened(Path(run), words))


def by_name(run):
    return {link.name: link for link in links(run)}


def flip(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return whole


def restamp(folder, *without, **made):
    """Its stamp says something else of what made it, and names fewer files."""
    stamp = store.read_stamp(folder)
    store.stamp_files(folder, {**stamp["made_by"], **made}, [name for name in stamp["files"] if name not in without])


@pytest.mark.parametrize("run", WHOLE)
def test_a_chain_goes_back_to_the_prepared_data(place, run):
    found = links(run)
    assert [link.name for link in found] == WHOLE[run]
    assert {link.state for link in found} == {"verified"}
    stamp = store.read_stamp(place / run)["made_by"]
    assert found[0].made_by["command"] == stamp["command"]
    assert found[0].made_by["versions"]["torch"]
    assert found[0].made_by["numerics"]["tf32"] is False
    assert found[-1].content == stamp["data"]
    assert found[-1].folder.name == stamp["prepared"]
    for name, key in (("codes", "codes"), ("item tables", "tables"), ("language model", "backbone")):
        assert [link.content for link in found if link.name == name] == ([stamp[key]] if key in stamp else [])


@pytest.mark.parametrize("run", WHOLE)
def test_a_changed_byte_anywhere_is_named(place, run):
    files = []
    for link in links(run):
        stamped = (link.folder / "stamp.json").is_file()
        names = [*store.read_stamp(link.folder)["files"], "stamp.json"] if stamped else ["model.safetensors"]
        files += [link.folder / name for name in names]
        if link.name == "SASRec run":
            best = sorted(link.folder.glob("checkpoints/step-*"))[-1]
            files += [link.folder / "item_table/item_table.safetensors", best / "model.safetensors"]
    assert len(files) > 9
    for file in files:
        whole = flip(file)
        owner = "llm is not the language model" if file.parts[0] == "llm" else f"{file.parent} is corrupt: {file.name}"
        with pytest.raises(ValueError, match=owner):
            links(run)
        file.write_bytes(whole)
    links(run)


@pytest.mark.parametrize(
    ("run", "gone"),
    [(run, name) for run, names in WHOLE.items() for name in names if name not in ("run", "item table")],
)
def test_what_is_missing_is_only_said(place, run, gone):
    folder = by_name(run)[gone].folder
    shutil.rmtree(folder.parent if gone == "checkpoint" else folder)
    found = by_name(run)
    assert (found[gone].state, found[gone].folder) == ("not at hand", None)
    rest = {name: link.state for name, link in found.items() if name != gone}
    assert set(rest.values()) == {"verified"}


def test_what_is_missing_hides_what_it_was_made_of(place):
    shutil.rmtree(by_name("tone")["codes"].folder)
    assert [link.name for link in links("tone")] == ["run", "checkpoint", "codes", "prepared data"]


def test_artefacts_are_searched_where_they_lie_now(place):
    shutil.move(place / "artefacts", place / "elsewhere")
    states = [link.state for link in links("tone")]
    assert states == ["verified", "verified", "not at hand", "not at hand"]
    assert {link.state for link in links("tone", "data.root=elsewhere")} == {"verified"}


def test_an_unfinished_sasrec_of_others_is_no_fault(place):
    shutil.rmtree(by_name("frellm")["SASRec run"].folder)
    (place / "artefacts/sasrec-ffff/checkpoints").mkdir(parents=True)
    assert by_name("frellm")["SASRec run"].state == "not at hand"


def test_another_s_artefact_that_is_broken_is_no_fault_while_the_own_is_there(place):
    shutil.copytree(by_name("tone")["codes"].folder, place / "artefacts/codes-000000000000")
    flip(place / "artefacts/codes-000000000000/stamp.json")
    assert by_name("tone")["codes"].state == "verified"
    shutil.rmtree(by_name("tone")["codes"].folder)
    with pytest.raises(ValueError, match=r"codes-000000000000 is corrupt: stamp\.json"):
        links("tone")


@pytest.mark.slow
def test_vectors_of_a_file_are_known_by_its_bytes(place):
    shutil.copy(by_name("tone")["vectors"].folder / "vectors.safetensors", "v.safetensors")
    distrec("train", *ONCE, *TONE, "codes.vectors=v.safetensors", "codes.vectors_order=prepared", "out=file", cwd=place)
    assert by_name("file")["vectors"].folder == Path("v.safetensors")
    flip(place / "v.safetensors")
    with pytest.raises(ValueError, match=r"v\.safetensors is not the vectors that the run was made of"):
        links("file")


def test_a_checkpoint_of_another_run_is_not_taken(place):
    best = by_name("tone")["checkpoint"].folder
    stamp = store.read_stamp(best)
    shutil.rmtree(best)
    store.write(best, {**stamp["made_by"], "train.lr": 7}, lambda at: (at / "state.json").write_text(json.dumps({"best_checkpoint": best.name})))  # fmt: skip
    with pytest.raises(ValueError, match=r"is stale: made with train\.lr=7"):
        links("tone")


@pytest.mark.parametrize("part", ["item_table", "checkpoints/step-*"])
@pytest.mark.parametrize("run", ["frellm", "artefacts/sasrec-*"])
def test_no_part_of_another_run_is_taken(place, run, part):
    restamp(max(place.glob(f"{run}/{part}")), **{"train.lr": 7})
    with pytest.raises(ValueError, match=r"is stale: made with train\.lr=7"):
        links("frellm")


def test_the_best_checkpoint_is_read_where_a_later_one_stands(place):
    best = by_name("tone")["checkpoint"].folder
    state, made = {"best_checkpoint": best.name}, store.read_stamp(best)["made_by"]
    store.write(
        best.with_name("step-99999999-0009"), made, lambda at: (at / "state.json").write_text(json.dumps(state))
    )
    whole = flip(best / "optimizer.safetensors")
    with pytest.raises(ValueError, match=rf"{best.name} is corrupt: optimizer\.safetensors"):
        links("tone")
    (best / "optimizer.safetensors").write_bytes(whole)
    assert by_name("tone")["checkpoint"].folder == best
    shutil.rmtree(best)
    assert by_name("tone")["checkpoint"].state == "not at hand"


def test_codes_that_extend_others_are_followed_to_both(place):
    own = by_name("tone")["codes"].folder
    first = own.with_name("codes-first")
    store.write(first, {"vectors": "of the first"}, lambda at: (at / "codes.safetensors").write_text("first"))
    restamp(own, extends=store.content(first))
    found = [(link.name, link.state) for link in links("tone")]
    assert found.count(("codes", "verified")) == 2
    assert found.count(("vectors", "not at hand")) == 1
    flip(first / "codes.safetensors")
    with pytest.raises(ValueError, match=r"codes-first is corrupt: codes\.safetensors"):
        links("tone")


@pytest.mark.parametrize("part", ["item tables", "SASRec run"])
def test_what_was_made_on_other_data_says_so(place, part):
    folder = by_name("frellm")[part].folder
    for stamp in sorted(folder.rglob("stamp.json")):
        restamp(stamp.parent, data="of others")
    data = [(link.content, link.state) for link in links("frellm") if link.name == "prepared data"]
    assert len(data) == 2
    assert ("of others", "not at hand") in data


def test_vectors_of_no_encoder_have_none(place):
    restamp(by_name("tone")["vectors"].folder, encoder=None)
    assert "text encoder" not in by_name("tone")


def test_an_encoder_is_known_by_what_is_read_of_it(place):
    folder = by_name("tone")["text encoder"].folder
    (folder / "notes.md").write_text("read by people only")
    stamp = store.read_stamp(folder)
    store.stamp_files(folder, stamp["made_by"], [*stamp["files"], "notes.md"])
    assert by_name("tone")["text encoder"].folder == folder


def test_a_language_model_is_found_among_the_artefacts(place):
    shutil.copytree("llm", "artefacts/llm-0")
    restamp(by_name("tone")["vectors"].folder, encoder=encoder_digest(Path("llm")))
    assert by_name("tone")["text encoder"].folder == Path("artefacts/llm-0")
    flip(place / "llm/model.safetensors")
    assert by_name("frellm")["language model"].folder == Path("artefacts/llm-0")


@pytest.mark.parametrize(
    ("run", "part", "key", "other"),
    [
        ("frellm", "SASRec run", "model.items", "frellm"),
        ("tone", "codes", "model.codes", "frellm/item_table"),
        ("tone", "vectors", "codes.vectors", "frellm/item_table"),
    ],
)
def test_what_a_config_names_is_taken_from_there(place, run, part, key, other):
    folder = by_name(run)[part].folder
    (place / "mine").mkdir()
    shutil.move(folder, place / "mine")
    assert by_name(run)[part].state == "not at hand"
    mine = Path("mine", folder.name)
    found = {link.name: link for link in links(run, f"{key}={mine}")}
    assert (found[part].folder, found[part].state) == (mine, "verified")
    with pytest.raises(ValueError, match=f"{other} is not the {part} that the run was made of"):
        links(run, f"{key}={other}")


@pytest.mark.parametrize("gone", ["vectors", "text encoder"])
def test_what_a_config_names_beside_codes_is_not_asked_for(place, gone):
    folders = {name: link.folder for name, link in by_name("tone").items()}
    shutil.rmtree(folders[gone])
    words = [f"model.codes={folders['codes']}", "codes.vectors=frellm/item_table", "embed.encoder=llm"]
    assert [link.name for link in links("tone", *words) if link.state == "not at hand"] == [gone]


def test_a_file_of_vectors_is_known_by_its_bytes(place):
    Path("v.safetensors").write_bytes(b"vectors")
    restamp(by_name("tone")["codes"].folder, vectors=store.file_digest(Path("v.safetensors")))
    found = {link.name: link for link in links("tone", "codes.vectors=v.safetensors")}
    assert (found["vectors"].folder, found["vectors"].state) == (Path("v.safetensors"), "verified")
    flip(place / "v.safetensors")
    with pytest.raises(ValueError, match=r"v\.safetensors is not the vectors that the run was made of"):
        links("tone", "codes.vectors=v.safetensors")


@pytest.mark.parametrize("file", RUN_FILES)
def test_a_run_vouches_for_each_of_its_files(place, file):
    restamp(place / "tone", file)
    with pytest.raises(ValueError, match=f"tone is no finished run of distrec: its stamp names no {file}"):
        opened(Path("tone"))


@pytest.mark.parametrize("run", ["nothing", "codes"])
def test_no_finished_run_is_refused(place, run):
    folder = by_name("tone")["codes"].folder if run == "codes" else Path(run)
    with pytest.raises(ValueError, match="is no finished run of distrec"):
        opened(folder)


def test_what_runs_share_is_read_once(place):
    known, config = {}, cfg.load(["tone/config.yaml"])
    first = chain(Path("tone"), config, known)
    flip(first[-1].folder / "items.arrow")
    assert chain(Path("tone"), config, known) == first
    with pytest.raises(ValueError, match=r"items\.arrow"):
        chain(Path("tone"), config)
    flip(place / "tone/ranks.parquet")
    with pytest.raises(ValueError, match=r"tone is corrupt: ranks\.parquet"):
        chain(Path("tone"), config, known)
