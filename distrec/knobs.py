"""Every knob of a run, on one page: the sections of a config, with their defaults and limits.

What must hold between two knobs stands in config.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid")

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(ge=0, lt=1)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NameOrPlace = Annotated[str, Path]  # a name, or the path of a folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of the columns in a `table` source; `item_key` is the id column of `data.items`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    user: str = "user"
    item: str = "item"
    # Epoch numbers (see time_unit), dates or ISO texts; null: there are no times, and the rows are in order.
    time: str | None = "time"
    # What one of the numbers counts since 1970; `order`: nothing but who came first, so that the log has no times.
    time_unit: Literal["s", "ms", "us", "ns", "order"] = "s"
    # How times are written: a strptime format such as %d/%m/%Y, `epoch` (numbers, whatever year they are in) or `iso`; None: numbers or ISO 8601.
    time_format: str | None = None
    item_key: str = "item"
    split: str = "split"  # names the part of each interaction (train, valid or test) where data.split=given


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """The built-in catalogue: planted categories, seasons, a popularity tail, accidental clicks."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
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

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    root: Path = Path("artefacts")  # prepared data and every later artefact live here
    source: Literal["synthetic", "sequences", "movielens", "amazon", "lastfm", "table"] = "synthetic"
    catalogue: str | None = None  # an official one, e.g. ml-100k: downloaded when data.path lacks it
    path: Path | None = None  # folder of the raw files, or the file of interactions itself
    items: Path | None = None  # file of item attributes, where it does not lie beside data.path
    columns: Columns = field(default_factory=Columns)
    separator: str | None = None  # One character between the cells of a .csv; null: a comma (a .tsv has tabs).
    encoding: str = "utf-8"  # Of the texts of a `table` source: latin-1, cp1252, utf-16, …
    items_separator: str | None = None  # The separator of data.items where it differs; null: that of data.separator.
    items_encoding: str | None = None  # The encoding of data.items where it differs; null: that of data.encoding.
    # Cells of .csv and .tsv may stand in quotes, quotes inside them doubled; false: a quote is a character like others.
    quoted: bool = True
    # Which rows count: 'rating >= 4 and event in purchase, cart' or {rating: ">= 4", event: [purchase, cart]}.
    where: str | dict[str, Any] | None = None
    synthetic: Synthetic = field(default_factory=Synthetic)
    duplicates: Literal["keep", "same_time", "first"] | None = None  # None: what suits the source
    bad_times: Literal["refuse", "drop"] = (
        "refuse"  # missing, negative or future ones, and 1970 in a log of later years
    )
    missing_ids: Literal["refuse", "drop"] = "refuse"  # rows without user or item; "drop" counts them
    null_words: bool = False  # nan, None, NULL and the like are ids like others, and not missing ones
    min_joined: Share = 0.1  # the share of the log's items that must be in the item table; 0 asks for none
    k_core: Count | None = None  # None: 5 for raw logs; 0 for `sequences`, `synthetic` and `table`
    ties: Literal["file_order", "shuffle"] = "file_order"  # order of one user's equal timestamps
    split: Literal["leave_one_out", "global_time", "given"] = (
        "leave_one_out"  # given: by the column data.columns.split of a table, or a folder of train, valid and test files
    )
    cold_items: Literal["drop", "keep"] = "drop"  # rows of the item table without an interaction; keep: for tiger, tone
    valid_share: InnerShare = 0.1  # global_time: share of interactions in each later window
    test_share: InnerShare = 0.1
    negatives: Annotated[int, Field(ge=0, le=10_000)] = 99  # of the secondary 1+N protocol
    text: str = "{title}"  # template of an item's text; fields are the columns of its attributes
    seed: Count = 0  # of ids, ties, negatives and the synthetic catalogue; apart from the run's seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed:
    """Item texts → vectors."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    encoder: NameOrPlace | None = (
        None  # a hub name, a folder, `minilm`, `builtin`, `small_llm`; None: frellm's backbone, else sentence-t5-base
    )
    revision: str | None = None  # of a hub name
    max_tokens: AtLeastOne | None = None  # None: what the encoder was made for
    batch: AtLeastOne = 64  # texts at once: memory and speed only
    pooling: Literal["last", "mean"] = "last"  # of the tokens' states; of language models
    normalize: bool = True  # to unit length
    dtype: Literal["float32", "float16"] = "float32"  # on disk
    dimensions: AtLeastOne = 256  # of `builtin`
    vocabulary: Annotated[int, Field(ge=300)] = 16_384  # groups of letters that `builtin` knows, the most frequent


@dataclass(frozen=True, kw_only=True, slots=True)
class _Levels:
    """What every quantiser has."""

    levels: Annotated[int, Field(ge=1, le=16)] = 3
    size: Annotated[int, Field(ge=2, le=65_536)] | None = None  # codes a level; None: from the number of items
    vectors: Path | None = None  # a folder of distrec embed, or vectors with their ids; None: embed the items' texts
    vectors_order: Literal["prepared"] | None = None  # of the rows of a file without ids; None refuses such a file
    vectors_missing: Literal["refuse", "zero"] = "refuse"  # what an item without a vector in the file gets
    category: str | None = None  # column of the items for the category figures; None: `category` if there is one
    gate: bool = True  # a collapsed codebook stops the pipeline
    min_used: Share = 0.5  # of a level's codes; below it the codebook counts as collapsed
    max_collisions: Share = 0.5  # items that share all their codes with another; above it, the same
    max_uninformative: Share = (
        0.2  # share of items that have a zero vector: nothing is known of them; above it, the same
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Residual(_Levels):
    """What the quantisers that work level by level have."""

    assignment: Literal["cosine", "posterior", "euclid", "fitted"] | None = None  # None: what suits the quantiser
    pca: AtLeastOne | None = None  # dimensions kept; None: all


@dataclass(frozen=True, kw_only=True, slots=True)
class Gmm(_Residual):
    """ResGMM: a Gaussian mixture a level (TONE, Eq. 3-6).   assignment: cosine to the means"""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["gmm"] = "gmm"
    covariance: Literal["diag", "spherical", "tied", "full"] = "diag"
    n_init: AtLeastOne = 3
    max_iter: AtLeastOne = 100
    tol: NotNegative = 1e-3  # nats an item
    reg_covar: Positive = 1e-6  # of the mean variance
    precision: Literal["float32", "tf32", "bf16x3"] = (
        "float32"  # of the products of both steps; the others are for tensor cores
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class KMeansCodes(_Residual):
    """Lloyd's k-means a level.   assignment: euclid"""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["kmeans"] = "kmeans"
    init: Literal["k-means||", "random"] = "k-means||"
    max_iter: AtLeastOne = 100
    tol: NotNegative = 1e-4  # relative fall of the inertia


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancedCodes(_Residual):
    """k-means with clusters of equal size (ResBi-Kmeans).   assignment: fitted"""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["balanced"] = "balanced"
    max_iter: AtLeastOne = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectralCodes(_Residual):
    """Spectral clustering a level; Nyström beyond `landmarks` items.   assignment: fitted"""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["spectral"] = "spectral"
    neighbours: AtLeastOne = 10  # that set each item's scale in the affinity
    landmarks: Annotated[int, Field(ge=2)] = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RqVae(_Levels):
    """Residual-quantised autoencoder, trained end to end (TIGER)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["rqvae"] = "rqvae"
    hidden: tuple[AtLeastOne, ...] = (512, 256, 128)
    latent: AtLeastOne = 32
    epochs: AtLeastOne = 200
    batch: AtLeastOne = 1024  # items, all processes together
    lr: Positive = 1e-3
    commitment: NotNegative = 0.25
    usage: NotNegative = 0.0  # weight of the loss that evens out the use of codes


Codes = Gmm | KMeansCodes | BalancedCodes | SpectralCodes | RqVae


@dataclass(frozen=True, kw_only=True, slots=True)
class Popularity:
    """Items by their number of training interactions."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["popularity"] = "popularity"


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemKnn:
    """Cosine of binary co-occurrence, summed over the history."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["item_knn"] = "item_knn"
    max_len: AtLeastOne = 1000  # the latest items that are summed over


@dataclass(frozen=True, kw_only=True, slots=True)
class Markov:
    """First-order transitions, the history weighted decay^age."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["markov"] = "markov"
    decay: Share = 0.7
    max_len: AtLeastOne = 1000  # the latest items that are summed over


@dataclass(frozen=True, kw_only=True, slots=True)
class SasRec:
    """Causal self-attention over item ids (Kang & McAuley 2018)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["sasrec"] = "sasrec"
    loss: Literal["ce", "bce"] = "ce"  # full softmax, or binary with sampled negatives
    negatives: AtLeastOne = 1  # per position, bce only
    d_model: AtLeastOne = 64
    n_layers: AtLeastOne = 2
    n_heads: AtLeastOne = 2
    max_len: AtLeastOne = 50
    dropout: OpenShare = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeModel:
    """An encoder-decoder over item codes: reads the codes of the latest items, generates those of the next."""

    d_model: AtLeastOne = 128
    d_ff: AtLeastOne = 1024
    d_kv: AtLeastOne = 64  # channels of a head
    n_heads: AtLeastOne = 6
    n_layers: AtLeastOne = 4  # of the encoder, and of the decoder
    max_len: AtLeastOne = 20  # latest items it reads
    dropout: OpenShare = 0.1
    beams: AtLeastOne = 30  # of a search; what it lists at most, more where more are asked for
    decoding: Literal["constrained", "free"] = "constrained"  # to codes of items, or to any codes
    codes: Path | None = None  # a folder of distrec quantize; None: made as config.codes says
    user_tokens: Count = 0  # that users are spread over, one of them read after the history (TIGER: 2000); 0: none


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiger(CodeModel):
    """T5 over item codes (Rajput et al. 2023)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["tiger"] = "tiger"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tone(CodeModel):
    """TIGER with a filtered encoder; every part is a switch."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["tone"] = "tone"
    agf: bool = True  # adaptive Gaussian filter of the token embeddings
    crfa: bool = True  # attention between frequencies in place of the encoder's
    rpml: bool = True  # a learnt matrix added to the encoder's attention
    sigma: Positive = 3.0  # where the learnt width of the filter starts
    taps: AtLeastOne = 7  # of the filter, odd
    agf_axis: Literal["tokens", "items"] = "tokens"
    agf_literal: bool = False  # the paper's kernel, which is not normalised
    crfa_tokens: Literal["bins", "flat", "channels"] = "bins"
    crfa_place: Literal["replace", "before"] = "replace"  # of the encoder's own layers
    bin_embedding: bool = False
    relative_bias: bool = True  # between bins
    rpml_mode: Literal["post_l1", "post", "pre"] = "post_l1"
    rpml_mean: Annotated[float, Field(ge=-20, le=20)] = 0.0  # where M starts; -4 lets the attention through
    rpml_std: NotNegative = 0.1
    rpml_centred: bool = False  # softplus(M) − ln 2, so that M = 0 adds nothing
    rpml_decoder: bool = False
    lm_alpha: Annotated[float, Field(ge=0, le=10)] = 0.4  # where it starts; 0: stays there
    learn_alpha: bool = True
    zero_pads: bool = True  # before the filters


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """The one loop: budget, optimiser, stopping, checkpoints."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    epochs: AtLeastOne = 100
    samples: Literal["sequences", "prefixes"] | None = (
        None  # loss at all positions, or last of each prefix; None: the model's
    )
    batch_tokens: AtLeastOne = 4096  # positions (padding included) per optimiser step, all processes together
    micro_tokens: AtLeastOne = 16384  # positions per process and forward pass: memory; more means accumulation
    lr: Positive = 1e-3
    min_lr_share: Share = 0.1  # the cosine ends at this share of lr
    warmup: Share = 0.02  # share of all steps
    weight_decay: NotNegative = 0.0
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.98)
    clip: Positive = 1.0  # largest gradient norm
    precision: Literal["no", "tf32", "bf16"] = (
        "no"  # bf16: autocast; tf32: a GPU's float32 products are rounded; weights, optimiser, evaluation stay float32
    )
    deterministic: bool = False  # on a GPU, add in one order: the same bits every time, at some cost in speed
    eval_epochs: AtLeastOne = 1  # epochs between evaluations of the validation split
    patience: AtLeastOne = 10  # evaluations without a better NDCG@10 before stopping
    save_steps: AtLeastOne = 1000  # steps between checkpoints; every evaluation saves as well
    async_save: bool = False  # write checkpoints while training goes on; needs host memory for a copy of what they hold
    log_steps: AtLeastOne = 50
    max_skips: AtLeastOne = 10  # non-finite steps in a row that end the run
    timeout_min: Positive = (
        120.0  # minutes that a process waits for the others; more than the main one needs to prepare
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """The language model that reads the items' vectors."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    path: NameOrPlace = "small_llm"  # a hub name or a folder; small_llm: trained on the items' own texts, at first use
    revision: str | None = None  # of a hub name
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantise: Literal["none", "nf4"] = "none"
    init: Literal["loaded", "random"] = "loaded"  # random: its architecture with weights drawn anew from the seed
    tune: Literal["frozen", "lora", "full"] = "frozen"
    lora_rank: AtLeastOne = 8
    lora_alpha: AtLeastOne = 16
    lora_dropout: OpenShare = 0.0
    lora_modules: tuple[str, ...] = ("q_proj", "v_proj")
    checkpointing: bool = False  # of activations: less memory, a third more work


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """TFM: a Butterworth low-pass along time after every layer of the backbone."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    mode: Literal["global", "causal", "none"] = "global"  # global sees the whole history, so it wants prefix samples
    boundary: Literal["reflect", "circular", "paper"] = "reflect"  # of `global`
    cutoff: Annotated[float, Field(gt=0, le=1)] = 0.3  # omega_c, a share of the Nyquist frequency
    order: Annotated[int, Field(ge=1, le=4)] = 2
    beta: Share = 1.0  # share of the filtered state
    learn_cutoff: bool = False  # one a layer
    dropout: OpenShare = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """G-LPF: items' vectors are smoothed once over a graph of training interactions, (I − glpf_alpha · L)^order."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    source: Literal["interactions", "session", "text", "items"] = "interactions"  # text, items: nearest neighbours
    glpf_alpha: Share = 0.7  # 0: no filter
    order: Annotated[int, Field(ge=1, le=10)] = 1
    window: AtLeastOne | None = None  # places between two items of a user that count as together; None: any
    weighting: Literal["binary", "count", "lag"] = "binary"
    top_k: AtLeastOne | None = None  # neighbours kept of each item; None: all (text, items: 10)
    self_loops: bool = True
    gap_hours: Positive = 24.0  # between two sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class Frellm:
    """FreLLM4Rec: item vectors of a graph-filtered table through a frozen language model with a temporal filter."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: Literal["frellm"] = "frellm"
    backbone: Backbone = field(default_factory=Backbone)
    tfm: Filter = field(default_factory=Filter)
    graph: Graph = field(default_factory=Graph)
    max_len: AtLeastOne = 50
    hidden: AtLeastOne = 1000  # of the projection of texts
    dropout: OpenShare = 0.0  # of what the backbone reads
    head: Literal["identity", "linear"] = "identity"  # before the last norm; linear: a score need not be symmetric
    loss: Literal["full", "sampled"] | None = None  # None: full softmax up to 65,536 items
    negatives: AtLeastOne = 4096  # of `sampled`, uniform, shared by a batch
    corrected: bool = True  # `sampled` estimates the full softmax; false as published, with negatives=99
    logits_mib: AtLeastOne = 256  # the most that logits take at once
    items: Path | None = None  # run folder of a SASRec; None: trained as sasrec and sasrec_train say
    sasrec: SasRec = field(default_factory=lambda: SasRec(loss="bce", d_model=50, n_heads=1, dropout=0.2))
    sasrec_train: Train = field(default_factory=lambda: Train(batch_tokens=512, eval_epochs=4, patience=5))
    compat_unsafe: bool = False  # as published: a global filter with a loss at all positions, which sees its targets


Model = Popularity | ItemKnn | Markov | SasRec | Tiger | Tone | Frellm


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How a split is ranked."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    mask_history: bool | None = None
    # In figures the history is no candidate where the target is new to the user, and stays one where the user has had the
    # target before (which then stands among all items), whatever the model; false: it always stays.  In the lists of
    # `recommend` true drops what a user has, false keeps it; None drops it, but keeps it in what a model generates.
    batch_users: AtLeastOne = 1024  # users ranked at once on a process: memory only, never the ranks
    bootstrap: Count = 1000  # resamples of the 95 % intervals; 0: none
    shard_items: bool = False  # each process holds a share of the item table: memory and speed only, never the ranks
