"""The architecture itself: imports point downwards, one door per heavy library, no name hides a library."""

import ast
import importlib.metadata
import inspect
import re
import sys
import warnings

import polars
import pytest
from conftest import ROOT

from distrec import config as cfg
from distrec.jobs.claims.job import load as claim
from tune.space import load as space_of

HOUSE = ROOT / "distrec"
ORDER = [
    {"hints", "settings", "knobs", "config", "runtime"},
    {"freq", "codes"},
    {"data"},
    {"models"},
    {"engine"},
    {"jobs", "train"},
]
LEVEL = {name: i for i, names in enumerate(ORDER) for name in names}
BESIDE = {
    ("train", "jobs"),
    ("config", "runtime"),
    ("config", "settings"),
    ("config", "knobs"),
    ("settings", "hints"),
}  # neighbours on one storey
DOORS = {
    "transformers": (
        "models/backbone.py",
        "models/language/pretrained.py",
        "models/language/small_llm.py",
        "jobs/embed.py",
    ),
    "peft": ("models/backbone.py",),
    "bitsandbytes": ("models/language/pretrained.py",),
    "sentence_transformers": ("jobs/embed.py",),
    "datasets": ("data/",),
    "accelerate": ("runtime.py", "engine/", "train.py", "jobs/"),
    "deepspeed": ("runtime.py", "engine/", "train.py", "jobs/"),
    "matplotlib": ("jobs/",),
    "ray": (),  # tune/ alone
}
MATHEMATICS = {"torch", "numpy", "scipy", "jaxtyping"}


def modules():
    return sorted(HOUSE.rglob("*.py"))


def imports(path):
    """(top-level package, first part below distrec or None, line) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, below = name.partition(".")
            yield top, below.split(".")[0] if top == "distrec" else None, node.lineno


def room(path):
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def test_imports_point_downwards():
    up = [
        f"{path.relative_to(ROOT)}:{line} imports {below}"
        for path in modules()
        for _, below, line in imports(path)
        if below and below != room(path) and LEVEL[below] >= LEVEL[room(path)] and (room(path), below) not in BESIDE
    ]
    assert not up


def test_each_heavy_library_has_one_door():
    beside = [
        f"{path.relative_to(ROOT)}:{line} imports {top}"
        for path in modules()
        for top, _, line in imports(path)
        if top in DOORS and not path.relative_to(HOUSE).as_posix().startswith(DOORS[top] or ("-",))
    ]
    assert not beside


def test_a_path_is_never_a_pattern():
    """Readers of polars take patterns unless they are told not to: `log[1].csv` would read log1.csv."""
    doors = ("distrec/data/files/", "distrec/data/raw/lines.py")
    readers, found = re.compile(r"(read|scan)_"), []
    for path in [*modules(), *sorted((ROOT / "tune").rglob("*.py"))]:
        place = path.relative_to(ROOT).as_posix()
        for call in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if ast.unparse(call.func) not in (f"pl.{name}", f"polars.{name}") or not readers.match(name):
                continue
            takes = "glob" in inspect.signature(getattr(polars, name)).parameters
            literal = [key.arg for key in call.keywords if ast.unparse(key.value) == "False"]
            if not place.startswith(doors) or (takes and "glob" not in literal):
                found.append(f"{place}:{call.lineno} {name}")
    assert not found


def test_the_root_config_is_seen_by_commands_only():
    own = re.compile(r"\bcfg\.Config\b|from distrec\.config import .*\bConfig\b(?! as)")
    seen = [path.relative_to(ROOT).as_posix() for path in modules() if room(path) not in ("config", "jobs", "train")]
    for name in seen:
        text = (ROOT / name).read_text()
        text = re.sub(r"import (\w+) as Config", "", text)
        assert not own.search(text), name


def test_mathematics_knows_tensors_only():
    strange = [
        f"{path.relative_to(ROOT)}:{line} imports {top}"
        for path in modules()
        if room(path) in ("freq", "codes")
        for top, below, line in imports(path)
        if top not in MATHEMATICS | set(sys.stdlib_module_names) and below != room(path)
    ]
    assert not strange


def test_no_file_hides_a_library():
    """`accelerate launch distrec/train.py` puts distrec/ itself first on sys.path."""
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    ours = {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__pycache__",
    }
    assert not ours & taken


def test_no_logic_in_init_files():
    assert [path for path in HOUSE.rglob("__init__.py") if path.read_text().strip()] == []


def test_nothing_is_unpickled_or_executed():
    unsafe = re.compile(
        r"\bpickle\b|torch\.load\(|(?<!literal_)\beval\(|\bexec\(|extractall|yaml\.unsafe|trust_remote_code\s*=\s*True|np\.load\([^)]*allow_pickle=True"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in modules()
        for line in path.read_text().splitlines()
        if unsafe.search(line)
    ]
    found = [line for line in found if not re.search(r"(model|list)\.eval\(", line) and "without pickle" not in line]
    assert not found


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_survives_a_round_trip_and_opens_with_its_command(path, tmp_path):
    if "tune" in path.parts:
        model = "tone" if "tone" in path.stem else "frellm"
        job, space = space_of([f"model.name={model}", str(path)])
        assert space
        assert str(job.sweep.out) == f"sweeps/{path.stem}"
        assert "python tune/sweep.py" in path.read_text().splitlines()[0]
        return
    if "claims" in path.parts:
        job = claim([str(ROOT / "configs/data/ml100k.yaml"), str(path)])
        assert len(job.experiment.runs) > 1
        assert f"distrec experiment configs/data/ml100k.yaml configs/experiment/claims/{path.name}" in path.read_text().splitlines()[0]  # fmt: skip
        return
    extra = [] if "data" in path.parts else ["data.source=synthetic"]
    config = cfg.load([str(path), *extra])
    (tmp_path / "c.yaml").write_text(cfg.dump(config))
    assert cfg.load([str(tmp_path / "c.yaml")]) == config
    head = path.read_text().splitlines()[:6]
    assert head[0].startswith("# ")
    assert any("accelerate launch" in line or "distrec " in line for line in head), "no command in the header"


def test_files_stay_short():
    """Reported, not refused: past 300 lines the design deserves another thought."""
    long = [f"{path.relative_to(ROOT)} {n}" for path in modules() if (n := len(path.read_text().splitlines())) > 300]
    crowded = [
        str(folder.relative_to(ROOT))
        for folder in HOUSE.rglob("*")
        if folder.is_dir() and len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) > 9
    ]
    if long or crowded:
        warnings.warn(f"long files: {long}; crowded folders: {crowded}", stacklevel=1)
    assert max(len(path.read_text().splitlines()) for path in modules()) < 500
