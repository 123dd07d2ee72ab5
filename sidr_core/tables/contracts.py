"""The contract of every table: column, type, rule. Shared by stages, asset checks and docs."""

from __future__ import annotations

import pandera.polars as pa
import polars as pl


class Contract(pa.DataFrameModel):
    """Base: no other columns, types exact."""

    class Config(pa.DataFrameModel.Config):
        strict = True
        coerce = False


class RawReviews(Contract):
    """One accepted review, or one row of a published split (then `split` and `history_item_ids`)."""

    user_id: str
    item_id: str
    rating: float = pa.Field(nullable=True, ge=0, le=5)
    timestamp: pl.Int64 = pa.Field(nullable=True, ge=0)  # unix seconds
    split: str = pa.Field(nullable=True, isin=["train", "valid", "test"])
    history_item_ids: pl.List(pl.String) = pa.Field(nullable=True)  # type: ignore[valid-type]
    file: str
    line: pl.Int64 = pa.Field(ge=1)
    synthetic: bool


class Quarantine(Contract):
    """One refused record; `text` is the raw line cut at 500 characters."""

    file: str
    line: pl.Int64
    reason: str
    text: str


class RawItems(Contract):
    """One item record, text cleaned. `description` is plain text, `category` the path joined by ' > '."""

    item_id: str = pa.Field(unique=True)
    title: str
    description: str
    brand: str
    category: str
    published_sid: str = pa.Field(nullable=True)
    file: str
    line: pl.Int64
    synthetic: bool


class Interactions(Contract):
    """One interaction of a k-core user with a k-core item; `position` counts from 0 per user."""

    user_id: str
    item_id: str
    rating: float = pa.Field(nullable=True)
    timestamp: pl.Int64 = pa.Field(nullable=True)
    position: pl.Int32 = pa.Field(ge=0)
    synthetic: bool


class Items(Contract):
    """The catalogue, sorted by item_id."""

    item_id: str = pa.Field(unique=True)
    title: str
    description: str
    brand: str
    category: str
    published_sid: str = pa.Field(nullable=True)
    synthetic: bool


class Samples(Contract):
    """One sample: up to `max_history` items, oldest first, and the next item (position of it)."""

    row_id: str = pa.Field(unique=True)
    user_id: str
    position: pl.Int32 = pa.Field(ge=1)
    history_item_ids: pl.List(pl.String)  # type: ignore[valid-type]
    target_item_id: str
    target_timestamp: pl.Int64 = pa.Field(nullable=True)


class Embeddings(Contract):
    """One vector per item; `text_digest` is the sha256 of the encoded text and of the encoder's settings."""

    item_id: str = pa.Field(unique=True)
    text_digest: str
    vector: pl.List(pl.Float32)  # type: ignore[valid-type]


class Codebook(Contract):
    """item -> SID; `codes` are 0-based, one per level; `text_digest` tells whether the item changed."""

    item_id: str = pa.Field(unique=True)
    sid: str
    codes: pl.List(pl.Int32)  # type: ignore[valid-type]
    text_digest: str


class RetiredSids(Contract):
    """A SID given since the codebook was fitted whose item left, or has another text, after `last_snapshot`."""

    item_id: str
    sid: str
    codes: pl.List(pl.Int32)  # type: ignore[valid-type]
    text_digest: str
    last_snapshot: str


class Corpus(Contract):
    """One training example.

    `kind` is `chat` (prompt -> [thought ->] completion) or `text` (plain text in `completion`).
    `task` is one of `settings.TASKS` or `settings.REASONING_TASK`.
    """

    example_id: str = pa.Field(unique=True)
    task: str
    kind: str = pa.Field(isin=["chat", "text"])
    prompt: str
    thought: str = pa.Field(nullable=True)
    completion: str
    user_id: str = pa.Field(nullable=True)
    position: pl.Int32 = pa.Field(nullable=True)
    item_id: str = pa.Field(nullable=True)


class TeacherQuarantine(Contract):
    """One reply of a teacher, or line of the general examples, that stays out of the corpus.

    `kind` is a kind of request (`corpus.teacher.requests.KINDS`) or `general`; `reason` begins with a word that
    metrics count by; `text` is neutralised and cut at 500 characters, empty where no reply could be read.
    """

    key: str
    kind: str
    item_id: str = pa.Field(nullable=True)
    user_id: str = pa.Field(nullable=True)
    reason: str
    text: str = pa.Field(str_length={"max_value": 500})


class Popularity(Contract):
    """Items by how often they are a train target, most popular first."""

    item_id: str = pa.Field(unique=True)
    score: float


class ItemItem(Contract):
    """Weight of `neighbour_id` after `item_id`."""

    item_id: str
    neighbour_id: str
    score: float


class BaselineLog(Contract):
    """One epoch of one setting that a trained baseline was tried with, measured on valid rows."""

    trial: pl.Int32 = pa.Field(ge=1)
    hidden_size: pl.Int32
    dropout: float
    learning_rate: float
    epoch: pl.Int32 = pa.Field(ge=1)
    loss: float
    ndcg_10: float = pa.Field(ge=0, le=1)
    hr_10: float = pa.Field(ge=0, le=1)
    chosen: bool


class TextKnnLog(Contract):
    """One setting that the text neighbours were tried with, measured on valid rows."""

    trial: pl.Int32 = pa.Field(ge=1)
    decay: float
    repeats: bool
    ndcg_10: float = pa.Field(ge=0, le=1)
    hr_10: float = pa.Field(ge=0, le=1)
    chosen: bool


class BaselineItems(Contract):
    """The item of each row of a baseline's table of items, most popular first."""

    item_id: str = pa.Field(unique=True)


class Recommendations(Contract):
    """One place of one list."""

    dataset: str
    snapshot: str
    split: str
    row_id: str
    user_id: str
    model: str
    mode: str = pa.Field(isin=["direct", "thinking"])
    rank: pl.Int32 = pa.Field(ge=1)
    item_id: str
    sid: str
    score: float
    reasoning: str = pa.Field(nullable=True)
    target_item_id: str


class RecommendedModels(Contract):
    """What is behind each (model, mode) of the recommendations."""

    model: str
    mode: str
    checkpoint: str  # content digest
    seen_until: str  # ISO date of the newest train target, or "unknown"
    beam_width: pl.Int32
    seed: pl.Int64
    close_rate: float = pa.Field(nullable=True)
    mean_thought_tokens: float = pa.Field(nullable=True)


class Thoughts(Contract):
    """How one thought ended: `closed` by the model itself, or cut at the limit of tokens.

    A row with several thoughts has one line per thought; a row that an adaptive model did not think about, none.
    """

    row_id: str
    model: str
    trace: pl.Int32 = pa.Field(ge=0)  # 0: the thought that gives the list's first item the most probability
    closed: bool
    n_tokens: pl.Int32 = pa.Field(ge=0)


class Cases(Contract):
    """One thought before a list, where it led, and what it names."""

    model: str
    base: str  # the model whose direct list it is compared with
    row_id: str
    user_id: str
    history_item_ids: pl.List(pl.String)  # type: ignore[valid-type]
    target_item_id: str
    top_item_id: str
    reasoning: str = pa.Field(nullable=True)
    closed: bool
    n_tokens: pl.Int32 = pa.Field(ge=0)
    place: float = pa.Field(nullable=True, ge=1)
    direct_place: float = pa.Field(nullable=True, ge=1)
    gain: float = pa.Field(nullable=True)
    change: str = pa.Field(nullable=True, isin=["helped", "harmed", "same"])
    hit: bool
    names_top: str = pa.Field(isin=["sid", "title", "aspect", "no"])
    names_target: str = pa.Field(isin=["sid", "title", "aspect", "no"])
    names_history: str = pa.Field(isin=["sid", "title", "aspect", "no"])
    names_random: str = pa.Field(isin=["sid", "title", "aspect", "no"])
    shown: str = pa.Field(nullable=True)


class EvaluationTable(Contract):
    """One metric of one model with its interval.

    `hr`, `ndcg` and `mrr` are means over rows; what `coverage` and the ones after it say: docs/evaluation.md.
    """

    dataset: str
    snapshot: str
    split: str
    model: str
    mode: str
    metric: str = pa.Field(
        isin=[
            "hr",
            "ndcg",
            "mrr",
            "coverage",
            "gini",
            "novelty",
            "invalid_rate",
            "distinct_rate",
            "close_rate",
            "thought_tokens",
        ]
    )
    k: pl.Int32 = pa.Field(ge=0)
    level: str = pa.Field(isin=["item", "sid"])
    value: float = pa.Field(ge=0)
    ci_low: float
    ci_high: float
    n_rows: pl.Int64
    n_users: pl.Int64
    beam_width: pl.Int32
    seed: pl.Int64
    checkpoint: str
    seen_until: str
    evaluated_at: str


class Reevaluation(EvaluationTable):
    """One metric of the lists of an earlier snapshot's checkpoint, on newer rows than it was judged on.

    A history: `snapshot` is the one that the rows are of, `split` is `newer`, and rows of earlier snapshots stay.
    """

    base_snapshot: str
    base_value: float = pa.Field(nullable=True)
    base_ci_low: float = pa.Field(nullable=True)
    base_ci_high: float = pa.Field(nullable=True)
    unreachable: pl.Int64 = pa.Field(ge=0)


class Paired(Contract):
    """Difference a - b of two models on the same rows; all rows of the table are one family for `p_holm`.

    Where the models know data of different periods, the verdict ends with "(different horizons)".
    """

    dataset: str
    snapshot: str
    split: str
    model_a: str
    mode_a: str
    model_b: str
    mode_b: str
    metric: str
    k: pl.Int32
    level: str
    difference: float
    ci_low: float
    ci_high: float
    helped: pl.Int64
    harmed: pl.Int64
    same: pl.Int64
    p: float = pa.Field(gt=0, le=1)
    p_holm: float = pa.Field(gt=0, le=1)
    verdict: str
    seen_until_a: str
    seen_until_b: str
    n_rows: pl.Int64
    n_users: pl.Int64
    seed: pl.Int64


class Slices(Contract):
    """One metric on a part of the test rows: of a list, or of it `minus` another (then paired, one family)."""

    dataset: str
    snapshot: str
    split: str
    slice: str
    group: str
    model: str
    mode: str
    minus: str = pa.Field(nullable=True)  # <model>/<mode>
    metric: str = pa.Field(isin=["hr", "ndcg"])
    k: pl.Int32
    level: str
    value: float
    ci_low: float = pa.Field(nullable=True)
    ci_high: float = pa.Field(nullable=True)
    helped: pl.Int64 = pa.Field(nullable=True)
    harmed: pl.Int64 = pa.Field(nullable=True)
    same: pl.Int64 = pa.Field(nullable=True)
    p: float = pa.Field(nullable=True, gt=0, le=1)
    p_holm: float = pa.Field(nullable=True, gt=0, le=1)
    verdict: str = pa.Field(nullable=True)
    n_rows: pl.Int64 = pa.Field(ge=1)
    n_users: pl.Int64 = pa.Field(ge=1)
    seed: pl.Int64


class Leaderboard(Contract):
    """One metric of one model: `measured` here, with its place, or `published` elsewhere, without one.

    Published figures have no interval, seed, checkpoint or place: they are not of this experiment.
    """

    dataset: str
    snapshot: str
    split: str
    origin: str = pa.Field(isin=["measured", "published"])
    place: pl.Int32 = pa.Field(nullable=True, ge=1)  # by NDCG at the largest headline cut-off
    model: str
    mode: str = pa.Field(nullable=True)
    metric: str = pa.Field(isin=["hr", "ndcg"])
    k: pl.Int32
    level: str = pa.Field(isin=["item", "sid"])  # published figures match SIDs
    value: float = pa.Field(ge=0, le=1)
    ci_low: float = pa.Field(nullable=True)
    ci_high: float = pa.Field(nullable=True)
    n_rows: pl.Int64
    n_users: pl.Int64 = pa.Field(nullable=True)
    beam_width: pl.Int32 = pa.Field(nullable=True)
    seed: pl.Int64 = pa.Field(nullable=True)
    checkpoint: str = pa.Field(nullable=True)
    seen_until: str = pa.Field(nullable=True)
    reference: str = pa.Field(nullable=True)
