"""Every knob of a run, on one page.

A run is `Config`; a YAML file holds only what differs from these defaults.  Files and
`section.key=value` overrides are merged left to right, then validated once, whether they come
from the command line, from a sweep or from a test.  `python -m distrec.config FILE… KEY=VALUE…`
prints the result.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

_STRICT = ConfigDict(extra="forbid")

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(ge=0, lt=1)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of the columns in a `table` source; `item_key` is the id column of `data.items`."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    user: str = "user"
    item: str = "item"
    time: str = "time"  # epoch numbers (see time_unit), dates or ISO texts
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    item_key: str = "item"


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """The built-in catalogue: planted categories, seasons, a popularity tail, accidental clicks."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    users: AtLeastOne = 3000
    items: Annotated[int, Field(ge=20)] = 1000
    categories: AtLeastOne = 12
    mean_length: Annotated[float, Field(ge=5, le=1000)] = 12.0
    noise: Share = 0.15  # share of clicks that follow no taste
    tail: NotNegative = 1.0  # exponent of the popularity law inside a category
    seasons: Share = 0.5  # how strongly tastes swing over the year


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where interactions come from, and how they are cleaned and split."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    root: Path = Path("artefacts")  # prepared data and every later artefact live here
    source: Literal["synthetic", "sequences", "movielens", "amazon", "lastfm", "table"] = "synthetic"
    catalogue: str | None = None  # an official one, e.g. ml-100k: downloaded when data.path lacks it
    path: Path | None = None  # folder of the raw files, or the file of interactions itself
    items: Path | None = None  # file of item attributes, where it does not lie beside data.path
    columns: Columns = field(default_factory=Columns)
    synthetic: Synthetic = field(default_factory=Synthetic)
    duplicates: Literal["keep", "same_time", "first"] | None = None  # None: what suits the source
    bad_times: Literal["refuse", "drop"] = "refuse"  # missing, negative or future timestamps
    k_core: Count | None = None  # None: 5 for raw logs; 0 for `sequences`, `synthetic` and `table`
    ties: Literal["file_order", "shuffle"] = "file_order"  # order of one user's equal timestamps
    split: Literal["leave_one_out", "global_time"] = "leave_one_out"
    valid_share: InnerShare = 0.1  # global_time: share of interactions in each later window
    test_share: InnerShare = 0.1
    negatives: Annotated[int, Field(ge=0, le=10_000)] = 99  # of the secondary 1+N protocol
    text: str = "{title}"  # template of an item's text; fields are the columns of its attributes
    seed: Count = 0  # of ids, ties, negatives and the synthetic catalogue; apart from the run's seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Popularity:
    """Items by their number of training interactions."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Literal["popularity"] = "popularity"


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemKnn:
    """Cosine of binary co-occurrence, summed over the history."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Literal["item_knn"] = "item_knn"
    max_len: AtLeastOne = 1000  # the latest items that are summed over


@dataclass(frozen=True, kw_only=True, slots=True)
class Markov:
    """First-order transitions, the history weighted decay^age."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Literal["markov"] = "markov"
    decay: Share = 0.7
    max_len: AtLeastOne = 1000  # the latest items that are summed over


@dataclass(frozen=True, kw_only=True, slots=True)
class SasRec:
    """Causal self-attention over item ids (Kang & McAuley 2018)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    name: Literal["sasrec"] = "sasrec"
    loss: Literal["ce", "bce"] = "ce"  # full softmax, or binary with sampled negatives
    negatives: AtLeastOne = 1  # per position, bce only
    d_model: AtLeastOne = 64
    n_layers: AtLeastOne = 2
    n_heads: AtLeastOne = 2
    max_len: AtLeastOne = 50
    dropout: OpenShare = 0.3


Model = Popularity | ItemKnn | Markov | SasRec


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """The one loop: budget, optimiser, stopping, checkpoints."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    epochs: AtLeastOne = 100
    samples: Literal["sequences", "prefixes"] = "sequences"  # loss at all positions, or last of each prefix
    batch_tokens: AtLeastOne = 4096  # positions (padding included) per optimiser step, all processes together
    micro_tokens: AtLeastOne = 16384  # positions per process and forward pass: memory; more means accumulation
    lr: Positive = 1e-3
    min_lr_share: Share = 0.1  # the cosine ends at this share of lr
    warmup: Share = 0.02  # share of all steps
    weight_decay: NotNegative = 0.0
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.98)
    clip: Positive = 1.0  # largest gradient norm
    precision: Literal["no", "bf16"] = "no"  # autocast; weights and optimiser stay float32
    eval_epochs: AtLeastOne = 1  # epochs between evaluations of the validation split
    patience: AtLeastOne = 10  # evaluations without a better NDCG@10 before stopping
    save_steps: AtLeastOne = 1000  # steps between checkpoints; every evaluation saves as well
    log_steps: AtLeastOne = 50
    max_skips: AtLeastOne = 10  # non-finite steps in a row that end the run
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How a split is ranked."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    mask_history: bool = True  # never the target itself
    batch_users: AtLeastOne = 1024  # users ranked at once on a process: memory only, never the result
    bootstrap: Count = 1000  # resamples of the 95 % intervals; 0: none


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    data: Data = field(default_factory=Data)
    model: Annotated[Model, Field(discriminator="name")] = field(default_factory=SasRec)
    train: Train = field(default_factory=Train)
    score: Score = field(default_factory=Score)
    out: Path | None = None  # the run folder; None: runs/<source>-<model>-<hash of this config>
    seed: Count = 0

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        model, data = self.model, self.data
        if isinstance(model, SasRec) and model.d_model % model.n_heads:
            raise ValueError(f"model.d_model {model.d_model} is not a multiple of model.n_heads {model.n_heads}")
        if data.source != "synthetic" and data.path is None and data.catalogue is None:
            raise ValueError(f"data.source={data.source} needs data.path=FOLDER_OR_FILE (or data.catalogue=NAME)")
        if data.source == "synthetic" and (data.path or data.items or data.catalogue):
            raise ValueError(
                "data.path, data.items and data.catalogue need a data.source (sequences, table, movielens, …)"
            )
        if data.valid_share + data.test_share >= 1:
            raise ValueError("data.valid_share + data.test_share leave nothing to train on; make them smaller")
        return self


_SCHEMA = TypeAdapter(Config)


def load(args: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Config:
    """`load(["configs/model/sasrec.yaml", "train.lr=3e-4"], {"seed": 1})`; later wins.

    Raises: ValueError, one line, naming the file or key, what is allowed and the nearest right key.
    """
    tree: dict[str, Any] = {}
    for arg in args:
        key, equals, text = arg.partition("=")
        if equals and re.fullmatch(r"[\w.]+", key):
            # a template is a text, braces and all
            value = text if key == "data.text" else _parse(text, f"the value of {key}")
            _merge(tree, _nest(key, value))
        elif arg.endswith((".yaml", ".yml")):
            _merge(tree, _read(Path(arg)))
        else:
            raise ValueError(f"{arg!r} is neither FILE.yaml nor section.key=value (see --help)")
    for key, value in (overrides or {}).items():
        _merge(tree, _nest(key, value))
    if isinstance(tree.get("model"), dict):
        tree["model"].setdefault("name", "sasrec")
    try:
        return _SCHEMA.validate_python(tree)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


def dump(config: Config) -> str:
    """The whole config as YAML that `load` turns back into an equal one."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def plain(section: Any) -> Any:
    """A config or a section of it as JSON-ready dictionaries (what stamps record)."""
    return TypeAdapter(type(section)).dump_python(section, mode="json")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key is a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{where}, line {line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, RecursionError) as error:  # a date that is none; thousands of brackets
        raise ValueError(f"{where}: not YAML: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"config file {path}: not UTF-8 at byte {error.start}") from None
    tree = _parse(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config file is a mapping of sections, got {type(tree).__name__}")
    return tree


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Merge in place.  Another `name` is another class of section: its earlier keys are dropped."""
    if "name" in other and other["name"] != tree.get("name", other["name"]):
        tree.clear()
    for key, value in other.items():
        if isinstance(value, Mapping):
            below = tree.setdefault(key, {})
            if not isinstance(below, dict):
                below = tree[key] = {}
            _merge(below, value)
        else:
            tree[key] = value


def _explain(error: ValidationError) -> str:
    """Pydantic's findings as one line in the terms of the command line."""
    return "; ".join(_explain_one(finding) for finding in error.errors())


def _explain_one(finding: Any) -> str:
    path = [str(part) for part in finding["loc"]]
    known = _keys(path[:-1])
    key = ".".join(part for part in path if part not in _MODELS or part == path[-1])
    if finding["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(path[-1], known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown config key {key!r}; {hint}"
    if finding["type"] == "union_tag_invalid":
        tag = finding["ctx"]["tag"]
        near = difflib.get_close_matches(tag, _MODELS, 1, 0.5)
        return f"unknown model.name {tag!r}; " + (
            f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_MODELS)}"
        )
    if finding["type"] == "union_tag_not_found":
        return f"model needs a name, one of: {', '.join(_MODELS)}"
    message = finding["msg"].removeprefix("Value error, ")
    return f"{key}={finding['input']!r}: {message}" if key else message


_MODELS = {get_args(get_type_hints(model)["name"])[0]: model for model in get_args(Model)}


def _keys(path: Sequence[str]) -> list[str]:
    """The keys of the section at `path` (a model's tag stands in pydantic's path as a section)."""
    section: Any = Config
    for part in path:
        section = _MODELS.get(part) or get_type_hints(section).get(part, section)
    return [f.name for f in fields(section)] if is_dataclass(section) else []


if __name__ == "__main__":
    from distrec.runtime import run

    run(lambda argv: print(dump(load(argv)), end=""))
