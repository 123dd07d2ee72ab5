"""The contract of every table: column, type, rule, meaning. Shared by stages, asset checks, the UI and docs/tables.md.

`sidr_core/tables/docs.py` reads the text of this file, so types and arguments are written out here.
"""

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

    user_id: str = pa.Field(description="the source's id of the user")
    item_id: str = pa.Field(description="the source's id of the item")
    rating: float = pa.Field(nullable=True, ge=0, le=5, description="stars; null where the source has none")
    timestamp: pl.Int64 = pa.Field(
        nullable=True, ge=0, description="when the review was written, unix seconds; null where the source has none"
    )
    split: str = pa.Field(
        nullable=True, isin=["train", "valid", "test"], description="split of a published row; null otherwise"
    )
    history_item_ids: pl.List(pl.String) = pa.Field(  # type: ignore[valid-type]
        nullable=True, description="history of a published split's row, oldest first; null otherwise"
    )
    file: str = pa.Field(description="name of the source file")
    line: pl.Int64 = pa.Field(ge=1, description="line in the source file, from 1")
    synthetic: bool = pa.Field(description="whether the row comes from generated sample data")


class Quarantine(Contract):
    """One refused record; `text` is the raw line cut at 500 characters."""

    file: str = pa.Field(description="name of the source file")
    line: pl.Int64 = pa.Field(description="line in the source file, from 1")
    reason: str = pa.Field(description="why it was refused")
    text: str = pa.Field(description="the raw record, cut at 500 characters")


class RawItems(Contract):
    """One item record, text cleaned. `description` is plain text, `category` the path joined by ' > '."""

    item_id: str = pa.Field(unique=True, description="the source's id of the item")
    title: str = pa.Field(description="plain text")
    description: str = pa.Field(description="plain text, may be empty")
    brand: str = pa.Field(description="plain text, may be empty")
    category: str = pa.Field(description="path of the category, joined by ' > ', may be empty")
    published_sid: str = pa.Field(nullable=True, description="SID that came with the source, if any")
    file: str = pa.Field(description="name of the source file")
    line: pl.Int64 = pa.Field(description="line in the source file, from 1")
    synthetic: bool = pa.Field(description="whether the row comes from generated sample data")


class Interactions(Contract):
    """One interaction of a k-core user with a k-core item; `position` counts from 0 per user."""

    user_id: str = pa.Field(description="the source's id of the user")
    item_id: str = pa.Field(description="the source's id of the item")
    rating: float = pa.Field(nullable=True, description="stars; null where the source has none")
    timestamp: pl.Int64 = pa.Field(
        nullable=True, description="when the review was written, unix seconds; null where the source has none"
    )
    position: pl.Int32 = pa.Field(ge=0, description="place of the item in its user's history, from 0")
    synthetic: bool = pa.Field(description="whether the row comes from generated sample data")


class Items(Contract):
    """The catalogue, sorted by item_id."""

    item_id: str = pa.Field(unique=True, description="the source's id of the item")
    title: str = pa.Field(description="plain text")
    description: str = pa.Field(description="plain text, may be empty")
    brand: str = pa.Field(description="plain text, may be empty")
    category: str = pa.Field(description="path of the category, joined by ' > ', may be empty")
    published_sid: str = pa.Field(nullable=True, description="SID that came with the source, if any")
    synthetic: bool = pa.Field(description="whether the row comes from generated sample data")


class Samples(Contract):
    """One sample: up to `max_history` items, oldest first, and the next item (position of it)."""

    row_id: str = pa.Field(unique=True, description="names the sample")
    user_id: str = pa.Field(description="the source's id of the user")
    position: pl.Int32 = pa.Field(ge=1, description="place of the target in its user's history, from 1")
    history_item_ids: pl.List(pl.String) = pa.Field(  # type: ignore[valid-type]
        description="items before the target, oldest first"
    )
    target_item_id: str = pa.Field(description="the item to be predicted")
    target_timestamp: pl.Int64 = pa.Field(nullable=True, description="when the target was reviewed, unix seconds")


class Embeddings(Contract):
    """One vector per item; `text_digest` is the sha256 of the encoded text and of the encoder's settings."""

    item_id: str = pa.Field(unique=True, description="the source's id of the item")
    text_digest: str = pa.Field(description="sha256 of the encoded text and of the encoder's settings")
    vector: pl.List(pl.Float32) = pa.Field(  # type: ignore[valid-type]
        description="text vector, of one length for all items"
    )


class Codebook(Contract):
    """item -> SID; `codes` are 0-based, one per level; `text_digest` tells whether the item changed."""

    item_id: str = pa.Field(unique=True, description="the source's id of the item")
    sid: str = pa.Field(description="Semantic ID, `<a_3><b_17><c_200>`")
    codes: pl.List(pl.Int32) = pa.Field(description="the 0-based code of each level")  # type: ignore[valid-type]
    text_digest: str = pa.Field(description="sha256 of the encoded text and of the encoder's settings")


class RetiredSids(Contract):
    """A SID given since the codebook was fitted whose item left, or has another text, after `last_snapshot`."""

    item_id: str = pa.Field(description="the source's id of the item")
    sid: str = pa.Field(description="Semantic ID, `<a_3><b_17><c_200>`")
    codes: pl.List(pl.Int32) = pa.Field(description="the 0-based code of each level")  # type: ignore[valid-type]
    text_digest: str = pa.Field(description="sha256 of the encoded text and of the encoder's settings")
    last_snapshot: str = pa.Field(description="the newest snapshot in which the item had this SID")


class Corpus(Contract):
    """One training example.

    `kind` is `chat` (prompt -> [thought ->] completion), `text` (plain text in `completion`) or `thought` (prompt ->
    thought, and no answer).
    `task` is one of `settings.TASKS` or `settings.REASONING_TASK`.
    """

    example_id: str = pa.Field(unique=True, description="names the example")
    task: str = pa.Field(description="alignment task or `reasoning`")
    kind: str = pa.Field(
        isin=["chat", "text", "thought"],
        description="`chat`: prompt, thought, completion; `text`: plain text in `completion`; `thought`: no completion",
    )
    prompt: str = pa.Field(description="the user's turn")
    thought: str = pa.Field(nullable=True, description="the thought before the answer; null where there is none")
    completion: str = pa.Field(description="what the model is trained to write, or the whole text of a `text` example")
    user_id: str = pa.Field(nullable=True, description="user the example is about; null where it is about an item")
    position: pl.Int32 = pa.Field(nullable=True, description="position of the target; null where there is none")
    item_id: str = pa.Field(nullable=True, description="item the example is about; null where it is about a user")


class TeacherQuarantine(Contract):
    """One reply of a teacher, or line of the general examples, that stays out of the corpus.

    `kind` is a kind of request (`corpus.teacher.requests.KINDS`) or `general`; `reason` begins with a word that
    metrics count by; `text` is neutralised and cut at 500 characters, empty where no reply could be read.
    """

    key: str = pa.Field(description="key of the request in the ledger")
    kind: str = pa.Field(description="kind of the request, or `general`")
    item_id: str = pa.Field(nullable=True, description="item that was asked about; null where it was a user")
    user_id: str = pa.Field(nullable=True, description="user that was asked about; null where it was an item")
    reason: str = pa.Field(description="why it was refused; its first word is counted by")
    text: str = pa.Field(str_length={"max_value": 500}, description="the reply, neutralised and cut at 500 characters")


class Popularity(Contract):
    """Items by how often they are a train target, most popular first."""

    item_id: str = pa.Field(unique=True, description="the source's id of the item")
    score: float = pa.Field(description="number of train rows that have it as target")


class ItemItem(Contract):
    """Weight of `neighbour_id` after `item_id`."""

    item_id: str = pa.Field(description="item that was reviewed")
    neighbour_id: str = pa.Field(description="item that follows")
    score: float = pa.Field(description="decayed co-occurrence in train")


class BaselineLog(Contract):
    """One epoch of one setting that a trained baseline was tried with, measured on valid rows."""

    trial: pl.Int32 = pa.Field(ge=1, description="number of the setting, from 1")
    hidden_size: pl.Int32 = pa.Field(description="width of the model")
    dropout: float = pa.Field(description="share of units left out in training")
    learning_rate: float = pa.Field(description="of the optimizer, after its warm-up")
    epoch: pl.Int32 = pa.Field(ge=1, description="passes over the training sequences")
    loss: float = pa.Field(description="mean cross entropy of the epoch")
    ndcg_10: float = pa.Field(ge=0, le=1, description="NDCG@10 on valid rows, item level")
    hr_10: float = pa.Field(ge=0, le=1, description="HR@10 on valid rows, item level")
    chosen: bool = pa.Field(description="whether these weights, or this setting, were kept")


class ChoiceLog(Contract):
    """One setting that a baseline without training was tried with, measured on valid rows."""

    trial: pl.Int32 = pa.Field(ge=1, description="number of the setting, from 1")
    setting: str = pa.Field(description="what was tried, in words")
    ndcg_10: float = pa.Field(ge=0, le=1, description="NDCG@10 on valid rows, item level")
    hr_10: float = pa.Field(ge=0, le=1, description="HR@10 on valid rows, item level")
    chosen: bool = pa.Field(description="whether this setting was kept")


class BaselineItems(Contract):
    """The item of each row of a baseline's table of items, most popular first."""

    item_id: str = pa.Field(unique=True, description="the source's id of the item")


class Recommendations(Contract):
    """One place of one list."""

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    split: str = pa.Field(description="`train`, `valid` or `test`")
    row_id: str = pa.Field(description="names the sample")
    user_id: str = pa.Field(description="the source's id of the user")
    model: str = pa.Field(description="stage or baseline that made the list")
    mode: str = pa.Field(
        isin=["direct", "thinking", "merged"], description="`direct`, `thinking` before answering, or both `merged`"
    )
    rank: pl.Int32 = pa.Field(ge=1, description="place in the list, from 1")
    item_id: str = pa.Field(description="the source's id of the item")
    sid: str = pa.Field(description="Semantic ID, `<a_3><b_17><c_200>`")
    score: float = pa.Field(description="what the list is sorted by; comparable within a list only")
    reasoning: str = pa.Field(nullable=True, description="the thought before the answer; null in direct mode")
    target_item_id: str = pa.Field(description="the item to be predicted")


class RecommendedModels(Contract):
    """What is behind each (model, mode) of the recommendations."""

    model: str = pa.Field(description="stage or baseline that made the list")
    mode: str = pa.Field(description="`direct`, `thinking` before answering, or both `merged`")
    checkpoint: str = pa.Field(description="content digest of the checkpoint, or of the table behind a baseline")
    seen_until: str = pa.Field(description="date of the newest train target, or `unknown`")
    beam_width: pl.Int32 = pa.Field(description="width of the beam that made the lists")
    seed: pl.Int64 = pa.Field(description="of the decoding")
    close_rate: float = pa.Field(
        nullable=True, description="share of thoughts that the model ended itself; null in direct mode"
    )
    mean_thought_tokens: float = pa.Field(nullable=True, description="null in direct mode")
    note: str = pa.Field(
        nullable=True, description="what is to be known of it before the test, such as `kept its start`"
    )


class Thoughts(Contract):
    """How one thought ended, `closed` by the model itself or cut at the limit of tokens, and how true it is.

    A row with several thoughts has one line per thought; a row that an adaptive model did not think about, none.
    """

    row_id: str = pa.Field(description="names the sample")
    model: str = pa.Field(description="stage or baseline that made the list")
    trace: pl.Int32 = pa.Field(
        ge=0, description="number of the thought, from 0: the one that gives the list's first item the most probability"
    )
    closed: bool = pa.Field(description="whether the model ended the thought itself")
    n_tokens: pl.Int32 = pa.Field(ge=0, description="length of the thought")
    facts: pl.Int32 = pa.Field(
        nullable=True, ge=0, description="facts that it states; null where the model never writes this form of thought"
    )
    facts_right: pl.Int32 = pa.Field(nullable=True, ge=0, description="those of them that the history supports")
    candidates: pl.Int32 = pa.Field(nullable=True, ge=0, description="items that it names with a SID")
    candidates_real: pl.Int32 = pa.Field(
        nullable=True, ge=0, description="those of them whose title and SID are of one item of the catalogue"
    )
    true: bool = pa.Field(
        nullable=True, description="whether all that it says is right, and no fact that it rests on is left out"
    )


class Grounding(Contract):
    """How well a trained checkpoint knows what SIDs mean, on one group of items."""

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    checkpoint_stage: str = pa.Field(
        isin=["sft", "activation", "grpo"], description="the stage of training that was asked"
    )
    direction: str = pa.Field(
        isin=["sid_to_title", "title_to_sid", "sid_to_fact"], description="what was given, and what was asked for"
    )
    items: str = pa.Field(
        isin=["target", "history", "unseen"],
        description="items that were a target in train, that only histories of train hold, or that no train row holds",
    )
    metric: str = pa.Field(
        description="`exact` and `f1` (words) of titles; `hr@1` and `hr@10` of SIDs; `exact`, `exact:<name>` of facts"
    )
    value: float = pa.Field(ge=0, le=1, description="mean over the questions")
    n: pl.Int64 = pa.Field(ge=1, description="questions asked")


class Cases(Contract):
    """One thought before a list, where it led, and what it names."""

    model: str = pa.Field(description="stage or baseline that made the list")
    base: str = pa.Field(description="checkpoint whose direct list the thinking one is compared with")
    row_id: str = pa.Field(description="names the sample")
    user_id: str = pa.Field(description="the source's id of the user")
    history_item_ids: pl.List(pl.String) = pa.Field(  # type: ignore[valid-type]
        description="items before the target, oldest first"
    )
    target_item_id: str = pa.Field(description="the item to be predicted")
    top_item_id: str = pa.Field(description="first item of the list")
    reasoning: str = pa.Field(nullable=True, description="the thought before the answer; null in direct mode")
    closed: bool = pa.Field(description="whether the model ended the thought itself")
    n_tokens: pl.Int32 = pa.Field(ge=0, description="length of the thought")
    place: float = pa.Field(
        nullable=True,
        ge=1,
        description="place of the target in the list, the mean where a SID is shared; null where it is not in it",
    )
    direct_place: float = pa.Field(
        nullable=True, ge=1, description="place of the target in the direct list; null where it is not in it"
    )
    gain: float = pa.Field(
        nullable=True,
        description="places that the target moved up by thinking; where a list lacks it, one behind the end of "
        "the longer list",
    )
    change: str = pa.Field(
        nullable=True,
        isin=["helped", "harmed", "same"],
        description="what thinking did to the target's place: `helped`, `harmed` or `same`; null without a direct list",
    )
    hit: bool = pa.Field(description="whether the target is among the first 10")
    names_top: str = pa.Field(
        isin=["sid", "title", "aspect", "no"], description="how it names the first item of its list"
    )
    names_target: str = pa.Field(isin=["sid", "title", "aspect", "no"], description="how it names the target")
    names_history: str = pa.Field(
        isin=["sid", "title", "aspect", "no"],
        description="how the thought names an item of the history: the strongest of `sid`, `title`, `aspect`, or `no`",
    )
    names_random: str = pa.Field(
        isin=["sid", "title", "aspect", "no"], description="how it names an item drawn from the catalogue: the control"
    )
    shown: str = pa.Field(
        nullable=True, description="why the row stands in the report: `random`, `helped`, `harmed`; null for most"
    )


class Interventions(Contract):
    """HR or NDCG after one kind of thought, and after the model's own less that; null differences for the own one.

    All differences of the table are one family for `p_holm`.
    """

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    model: str = pa.Field(description="the thinking model")
    thought: str = pa.Field(
        isin=["own", "placebo", "shuffled", "blank", "corrupted", "true"],
        description="what the list was made after: its own thought, another user's, its words shuffled, nothing, its "
        "facts given other values, or the true thought of the history",
    )
    metric: str = pa.Field(isin=["hr", "ndcg"], description="`hr` or `ndcg`, item level")
    k: pl.Int32 = pa.Field(ge=1, description="length of the list that counts")
    value: float = pa.Field(ge=0, le=1, description="the metric after this thought")
    value_low: float = pa.Field(description="lower end of its 95 % interval, users resampled")
    value_high: float = pa.Field(description="upper end of its 95 % interval, users resampled")
    difference: float = pa.Field(nullable=True, description="value after the own thought less `value`, paired")
    ci_low: float = pa.Field(nullable=True, description="lower end of the difference's 95 % interval, users resampled")
    ci_high: float = pa.Field(nullable=True, description="upper end of the difference's 95 % interval, users resampled")
    helped: pl.Int64 = pa.Field(nullable=True, description="rows where the own thought is better")
    harmed: pl.Int64 = pa.Field(nullable=True, description="rows where the own thought is worse")
    same: pl.Int64 = pa.Field(nullable=True, description="rows where both are equal")
    p: float = pa.Field(nullable=True, gt=0, le=1, description="two-sided p-value of no difference")
    p_holm: float = pa.Field(nullable=True, gt=0, le=1, description="p corrected for all differences of the table")
    verdict: str = pa.Field(nullable=True, description="what the corrected p allows to say of own less this")
    changed: pl.Int64 = pa.Field(ge=0, description="rows whose text is not the own thought")
    n_rows: pl.Int64 = pa.Field(ge=1, description="test rows behind the number")
    n_users: pl.Int64 = pa.Field(ge=1, description="users behind the number")
    seed: pl.Int64 = pa.Field(description="of the draws, the exchange and the resampling")


class EvaluationTable(Contract):
    """One metric of one model with its interval.

    `hr`, `ndcg` and `mrr` are means over rows; what `coverage` and the ones after it say: docs/evaluation.md.
    """

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    split: str = pa.Field(description="`train`, `valid` or `test`")
    model: str = pa.Field(description="stage or baseline that made the list")
    mode: str = pa.Field(description="`direct`, `thinking` before answering, or both `merged`")
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
        ],
        description="what is measured, see docs/evaluation.md",
    )
    k: pl.Int32 = pa.Field(ge=0, description="length of the list that counts; 0 where no list does")
    level: str = pa.Field(isin=["item", "sid"], description="`item`: the target itself is hit; `sid`: its SID is")
    value: float = pa.Field(ge=0, description="the metric")
    ci_low: float = pa.Field(description="lower end of the 95 % interval, users resampled")
    ci_high: float = pa.Field(description="upper end of the 95 % interval, users resampled")
    n_rows: pl.Int64 = pa.Field(description="test rows behind the number")
    n_users: pl.Int64 = pa.Field(description="users behind the number")
    beam_width: pl.Int32 = pa.Field(description="width of the beam that made the lists")
    seed: pl.Int64 = pa.Field(description="of the decoding, or of the training where there was one")
    checkpoint: str = pa.Field(description="content digest of the checkpoint, or of the table behind a baseline")
    seen_until: str = pa.Field(description="date of the newest train target, or `unknown`")
    evaluated_at: str = pa.Field(description="UTC time at which the number was made")


class Reevaluation(EvaluationTable):
    """One metric of the lists of an earlier snapshot's checkpoint, on newer rows than it was judged on.

    A history: `snapshot` is the one that the rows are of, `split` is `newer`, and rows of earlier snapshots stay.
    """

    split: str = pa.Field(description="`newer`: rows behind all that the checkpoints were trained or judged on")
    base_snapshot: str = pa.Field(description="the earlier snapshot that the checkpoints are of")
    base_value: float = pa.Field(
        nullable=True,
        description="the same metric in the evaluation of `base_snapshot`; null where that has none of this beam width",
    )
    base_ci_low: float = pa.Field(nullable=True, description="lower end of that interval")
    base_ci_high: float = pa.Field(nullable=True, description="upper end of that interval")
    unreachable: pl.Int64 = pa.Field(
        ge=0, description="rows whose target had no SID at `base_snapshot`; they count as misses"
    )


class Paired(Contract):
    """Difference a - b of two models on the same rows; all rows of the table are one family for `p_holm`.

    In brackets behind the verdict: different horizons, few users, a part of the rows, a list that did not learn.
    """

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    split: str = pa.Field(description="`train`, `valid` or `test`")
    model_a: str = pa.Field(description="model a")
    mode_a: str = pa.Field(description="mode of a")
    model_b: str = pa.Field(description="model b")
    mode_b: str = pa.Field(description="mode of b")
    metric: str = pa.Field(description="`hr` or `ndcg`")
    k: pl.Int32 = pa.Field(description="length of the list that counts")
    level: str = pa.Field(description="`item`: the target itself is hit; `sid`: its SID is")
    difference: float = pa.Field(description="value of a less that of b")
    ci_low: float = pa.Field(description="lower end of the 95 % interval, users resampled")
    ci_high: float = pa.Field(description="upper end of the 95 % interval, users resampled")
    helped: pl.Int64 = pa.Field(description="rows where a is better than b")
    harmed: pl.Int64 = pa.Field(description="rows where a is worse than b")
    same: pl.Int64 = pa.Field(description="rows where both are equal")
    se: float = pa.Field(ge=0, description="standard error of the difference, users resampled")
    detectable: float = pa.Field(
        ge=0,
        description="smallest difference that so many users show in 80 of 100 cases, as one of the table's family",
    )
    p: float = pa.Field(gt=0, le=1, description="two-sided p-value of no difference, from the draws of users")
    p_holm: float = pa.Field(gt=0, le=1, description="p corrected for all differences of the table (Holm)")
    p_within: float = pa.Field(
        gt=0, le=1, description="p-value of a difference of `evaluation.margin` or more, either way (TOST)"
    )
    p_within_holm: float = pa.Field(gt=0, le=1, description="the same, corrected for all differences (Holm)")
    margin: float = pa.Field(gt=0, description="differences below it, either way, count as none")
    verdict: str = pa.Field(
        description="what may be said: `higher`, `lower`, `within ±margin`, `too few rows to tell` or "
        "`not distinguishable`, and in brackets what limits it"
    )
    seen_until_a: str = pa.Field(description="newest train target that a has seen")
    seen_until_b: str = pa.Field(description="newest train target that b has seen")
    n_rows: pl.Int64 = pa.Field(description="test rows behind the number")
    n_users: pl.Int64 = pa.Field(description="users behind the number")
    seed: pl.Int64 = pa.Field(description="of the resampling")


class Slices(Contract):
    """One metric on a part of the test rows: of a list, or of it `minus` another (then paired, one family)."""

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    split: str = pa.Field(description="`train`, `valid` or `test`")
    slice: str = pa.Field(description="by what the rows are parted")
    group: str = pa.Field(description="which part of the slice the rows are in")
    model: str = pa.Field(description="stage or baseline that made the list")
    mode: str = pa.Field(description="`direct`, `thinking` before answering, or both `merged`")
    minus: str = pa.Field(
        nullable=True,
        description="the list whose value is subtracted, `<model>/<mode>`; null where `value` is that of the "
        "list itself",
    )
    metric: str = pa.Field(isin=["hr", "ndcg"], description="`hr` or `ndcg`")
    k: pl.Int32 = pa.Field(description="length of the list that counts")
    level: str = pa.Field(description="`item`: the target itself is hit; `sid`: its SID is")
    value: float = pa.Field(description="the metric, or its difference where `minus` is set")
    ci_low: float = pa.Field(nullable=True, description="lower end of the 95 % interval, users resampled")
    ci_high: float = pa.Field(nullable=True, description="upper end of the 95 % interval, users resampled")
    helped: pl.Int64 = pa.Field(nullable=True, description="rows where a is better than b")
    harmed: pl.Int64 = pa.Field(nullable=True, description="rows where a is worse than b")
    same: pl.Int64 = pa.Field(nullable=True, description="rows where both are equal")
    se: float = pa.Field(nullable=True, ge=0, description="standard error of the difference, users resampled")
    detectable: float = pa.Field(
        nullable=True,
        ge=0,
        description="smallest difference that so many users show in 80 of 100 cases, as one of the table's family",
    )
    p: float = pa.Field(
        nullable=True, gt=0, le=1, description="two-sided p-value of no difference, from the draws of users"
    )
    p_holm: float = pa.Field(
        nullable=True, gt=0, le=1, description="p corrected for all differences of the table (Holm)"
    )
    p_within: float = pa.Field(
        nullable=True,
        gt=0,
        le=1,
        description="p-value of a difference of `evaluation.margin` or more, either way (TOST)",
    )
    p_within_holm: float = pa.Field(
        nullable=True, gt=0, le=1, description="the same, corrected for all differences (Holm)"
    )
    verdict: str = pa.Field(
        nullable=True,
        description="what the corrected p allows to say; null where `minus` is, or where all rows are of one user",
    )
    n_rows: pl.Int64 = pa.Field(ge=1, description="test rows behind the number")
    n_users: pl.Int64 = pa.Field(ge=1, description="users behind the number")
    seed: pl.Int64 = pa.Field(description="of the resampling")


class Remarks(Contract):
    """What is to be known of a list beside its numbers; lists without a remark have no row."""

    model: str = pa.Field(description="stage or baseline that made the list")
    mode: str = pa.Field(description="`direct`, or `thinking` before answering")
    remark: str = pa.Field(description="such as `not above popularity on test rows`, `kept its start`")


class Leaderboard(Contract):
    """One metric of one model: `measured` here, with its place, or `optimal` or `published` elsewhere, without one.

    Published figures have no interval, seed, checkpoint or place: they are not of this experiment.
    """

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    split: str = pa.Field(description="`train`, `valid` or `test`")
    origin: str = pa.Field(
        isin=["measured", "optimal", "published"],
        description="`measured` by this pipeline, `optimal`: known to the sample's generator, or `published` elsewhere",
    )
    place: pl.Int32 = pa.Field(
        nullable=True,
        ge=1,
        description="rank by NDCG at the largest headline cut-off, among measured lists; null for the others",
    )
    model: str = pa.Field(description="stage or baseline that made the list, or the name it was published under")
    mode: str = pa.Field(
        nullable=True, description="`direct`, `thinking` before answering, or both `merged`; null for published figures"
    )
    metric: str = pa.Field(isin=["hr", "ndcg"], description="`hr` or `ndcg`")
    k: pl.Int32 = pa.Field(description="length of the list that counts")
    level: str = pa.Field(isin=["item", "sid"], description="`item`: the target itself is hit; `sid`: its SID is")
    value: float = pa.Field(ge=0, le=1, description="the metric")
    ci_low: float = pa.Field(nullable=True, description="lower end of the 95 % interval, users resampled")
    ci_high: float = pa.Field(nullable=True, description="upper end of the 95 % interval, users resampled")
    n_rows: pl.Int64 = pa.Field(description="test rows behind the number")
    n_users: pl.Int64 = pa.Field(nullable=True, description="users behind the number")
    beam_width: pl.Int32 = pa.Field(nullable=True, description="width of the beam that made the lists")
    seed: pl.Int64 = pa.Field(nullable=True, description="of the decoding, or of the training where there was one")
    checkpoint: str = pa.Field(
        nullable=True, description="content digest of the checkpoint, or of the table behind a baseline"
    )
    seen_until: str = pa.Field(nullable=True, description="date of the newest train target, or `unknown`")
    remarks: str = pa.Field(
        nullable=True, description="what is to be known beside the number, such as `not above popularity`"
    )
    reference: str = pa.Field(nullable=True, description="where a published figure stands; null for measured ones")


class Promotion(Contract):
    """One rule of the gate: what would go live against what is, on the same test rows.

    Without anything live the champion is the counter, and HR and NDCG are all that is asked.
    """

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    candidate: str = pa.Field(description="the list that would go live, `<model>/<mode>`")
    champion: str = pa.Field(description="the list that is live, or the counter's where nothing is")
    champion_snapshot: str = pa.Field(nullable=True, description="snapshot of what is live; null for the counter")
    rule: str = pa.Field(
        isin=["hr", "ndcg", "coverage", "cold_hr", "seconds"],
        description="`hr` and `ndcg` at item level; `coverage`: share of the own catalogue that is in any list; "
        "`cold_hr`: `hr` on rows whose target has no train row; `seconds`: of decoding, per list",
    )
    k: pl.Int32 = pa.Field(ge=0, description="length of the list that counts; 0 where no list does")
    candidate_value: float = pa.Field(nullable=True, ge=0, description="of the candidate; null without such a row")
    champion_value: float = pa.Field(nullable=True, ge=0, description="of the champion; null without such a row")
    difference: float = pa.Field(nullable=True, description="candidate less champion")
    ci_low: float = pa.Field(nullable=True, description="lower end of its interval, users resampled; null without one")
    ci_high: float = pa.Field(nullable=True, description="upper end of its interval")
    margin: float = pa.Field(ge=0, description="how much worse it may be; of `seconds` as a share of the champion's")
    passed: bool = pa.Field(description="whether the rule holds")
    verdict: str = pa.Field(
        isin=["not worse", "worse", "too few rows to tell", "no such row"],
        description="`too few rows to tell`: the interval reaches below -margin, and above it; this does not pass",
    )
    n_rows: pl.Int64 = pa.Field(ge=0, description="test rows behind the number")
    n_users: pl.Int64 = pa.Field(ge=0, description="users behind the number")
    seed: pl.Int64 = pa.Field(description="of the resampling")
    candidate_checkpoint: str = pa.Field(description="content digest of what makes the candidate's lists")
    champion_checkpoint: str = pa.Field(description="content digest of what makes the champion's lists")


class ScoredParts(Contract):
    """One part of the lists for everyone: a range of users, in the order of their ids."""

    part: pl.Int32 = pa.Field(ge=0, description="number of the part, from 0")
    file: str = pa.Field(description="where its lists lie, below the output's folder")
    first_user: str = pa.Field(description="first user of the part")
    last_user: str = pa.Field(description="last user of the part")
    users: pl.Int64 = pa.Field(ge=1, description="users of the part")
    rows: pl.Int64 = pa.Field(ge=1, description="places of all its lists")


class EveryonesLists(Contract):
    """One place of a user's list, after all that the user did until the end of the snapshot."""

    dataset: str = pa.Field(description="name in the profile")
    snapshot: str = pa.Field(description="window up to which data were known, `YYYY-MM`")
    user_id: str = pa.Field(description="the source's id of the user")
    model: str = pa.Field(description="stage or baseline that made the list")
    mode: str = pa.Field(
        isin=["direct", "thinking", "merged"], description="`direct`, `thinking` before answering, or both `merged`"
    )
    rank: pl.Int32 = pa.Field(ge=1, description="place in the list, from 1")
    item_id: str = pa.Field(description="the source's id of the item")
    sid: str = pa.Field(description="Semantic ID, `<a_3><b_17><c_200>`")
    score: float = pa.Field(description="what the list is sorted by; comparable within a list only")
