"""Quality figures of a corpus: how long, how varied, how much beyond its sources, and which codes it shows.

Lengths count words between blanks and characters; the tokenizer of the model is made later, from this very
corpus, so tokens cannot be counted here. Many thoughts of the paper's teacher mostly restate the history
(docs/method.md, "Corpus"); `_restating` measures that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from sidr_core.corpus import tasks
from sidr_core.corpus.catalogue import Catalogue, Item, content_words
from sidr_core.corpus.tasks import Row
from sidr_core.corpus.thoughts import candidates_in
from sidr_core.metrics.lists import gini
from sidr_core.settings import REASONING_TASK
from sidr_core.sids.tokens import used_tokens
from sidr_core.tables.columns import CODES, COMPLETION, EXAMPLE_ID, ITEM_ID, PROMPT, TASK, THOUGHT

#: A word in this share of the texts of a kind, and in so many of them, is the kind's wording and says nothing.
WORDING_SHARE, WORDING_TEXTS = 0.05, 3
#: A text whose share of new words is lower only restates its source.
RESTATES_BELOW = 0.1
#: The kinds of text that a teacher writes -> task and column.
KINDS = {
    "item_narrative": ("item_narrative", COMPLETION),
    "user_narrative": ("user_narrative", COMPLETION),
    "thought": (REASONING_TASK, THOUGHT),
}


#: Level letter -> how often each code in use occurs, ascending.
Counts = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Text:
    """One text of a teacher and the items that it may draw on: its own, or the history, oldest first."""

    text: str
    sources: tuple[Item, ...]
    target: Item | None = None


def texts_of(corpus: pl.DataFrame, rows: Sequence[Row], catalogue: Catalogue) -> dict[str, list[Text]]:
    """The teacher's texts by kind, in the order of the corpus."""
    by_id = {row.row_id: row for row in rows}
    texts: dict[str, list[Text]] = {kind: [] for kind in KINDS}
    for kind, (task, column) in KINDS.items():
        examples = corpus.filter(pl.col(TASK) == task).select(EXAMPLE_ID, ITEM_ID, column)
        for example_id, item_id, text in examples.iter_rows():
            if row := by_id.get(example_id.removeprefix(f"{task}:")) if task not in tasks.ITEM_TASKS else None:
                texts[kind].append(Text(text, row.history, row.target))
            else:
                texts[kind].append(Text(text, (catalogue[item_id],)))
    return texts


def of_kind(kind: str, texts: Sequence[Text]) -> dict[str, float | int]:
    """Figures of one kind of text; empty where there is none.

    `_new_words`: mean share of a text's content words that neither its source items (title, brand, category,
    description) nor the kind's common wording has. `_restating`: share of texts below `RESTATES_BELOW` of them.
    `_distinct_n`: distinct n-grams of words over all n-grams of the kind; it falls as a corpus grows.
    """
    if not texts:
        return {}
    written = [one.text for one in texts]
    lengths = np.array([len(text.split()) for text in written])
    new = new_word_shares(texts)
    return {
        f"{kind}_words_mean": round(float(lengths.mean()), 2),
        f"{kind}_words_p50": int(np.percentile(lengths, 50, method="lower")),
        f"{kind}_words_p95": int(np.percentile(lengths, 95, method="lower")),
        f"{kind}_characters_mean": round(sum(map(len, written)) / len(written), 1),
        **{f"{kind}_distinct_{n}": round(distinct(written, n), 4) for n in (1, 2, 3)},
        f"{kind}_new_words": round(float(new.mean()), 4),
        f"{kind}_restating": round(float((new < RESTATES_BELOW).mean()), 4),
    }


def of_thoughts(texts: Sequence[Text]) -> dict[str, float]:
    """What thoughts lead to; empty where there is none.

    `thoughts_open`: share of those from which nothing follows. `thought_candidates`: candidates of a thought, in the
    mean. `thoughts_with_target`: share whose candidates hold the next item, which the teacher did not see.
    """
    thoughts = [one for one in texts if one.target]
    if not thoughts:
        return {}
    named = [[sid for _, sid in candidates_in(one.text)] for one in thoughts]
    hits = sum(one.target.sid in sids for one, sids in zip(thoughts, named, strict=True) if one.target)
    return {
        "thoughts_open": round(sum(not sids for sids in named) / len(named), 4),
        "thought_candidates": round(sum(map(len, named)) / len(named), 4),
        "thoughts_with_target": round(hits / len(named), 4),
    }


def new_word_shares(texts: Sequence[Text]) -> np.ndarray:
    """Share of new content words of each text, shape (number of texts,); 0 for a text without content words."""
    words = [set(content_words(one.text)) for one in texts]
    texts_with = Counter(word for of_text in words for word in of_text)
    least = max(WORDING_TEXTS, WORDING_SHARE * len(texts))
    known: dict[str, frozenset[str]] = {}
    shares = np.zeros(len(texts))
    for index, (one, of_text) in enumerate(zip(texts, words, strict=True)):
        for item in one.sources:
            if item.item_id not in known:
                known[item.item_id] = frozenset((*item.words, *content_words(item.description)))
        rare = {word for word in of_text if texts_with[word] < least}
        new = rare.difference(*(known[item.item_id] for item in one.sources))
        shares[index] = len(new) / len(of_text) if of_text else 0.0
    return shares


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all n-grams; none spans two texts. 0 where there is no n-gram."""
    words = (
        pl.DataFrame({"text": texts}, schema={"text": pl.String})
        .with_row_index("owner")
        .select("owner", pl.col("text").str.split(" "))
        .explode("text")
    )
    owner = words["owner"].to_numpy()
    ids = words["text"].cast(pl.Categorical).to_physical().to_numpy().astype(np.int64)
    if len(ids) < n:
        return 0.0
    grams, size = ids, int(ids.max()) + 1
    for step in range(1, n):
        _, grams = np.unique(grams[:-1] * size + ids[step:], return_inverse=True)
    within = owner[: len(grams)] == owner[n - 1 :]
    return len(np.unique(grams[within])) / int(within.sum()) if within.any() else 0.0


def code_counts(corpus: pl.DataFrame, codebook: pl.DataFrame) -> Counts:
    """How often each code in use occurs in prompts, thoughts and completions."""
    texts = pl.concat([corpus[name].drop_nulls() for name in (PROMPT, THOUGHT, COMPLETION)])
    tokens = texts.str.extract_all(r"<[a-z]_\d+>").explode().drop_nulls()
    occurrences = dict(tokens.value_counts().iter_rows())
    levels: dict[str, list[int]] = {}
    for token in used_tokens(codebook.select(CODES)):
        levels.setdefault(token[1], []).append(occurrences.get(token, 0))
    return {level: np.sort(np.array(counts)) for level, counts in levels.items()}


def of_codes(counts: Counts) -> dict[str, float | int]:
    """Least and median occurrences of a code per level, and their Gini coefficient (0: all alike, 1: one has all)."""
    figures: dict[str, float | int] = {}
    for level, values in counts.items():
        figures[f"codes_{level}_min"] = int(values[0])
        figures[f"codes_{level}_median"] = float(np.median(values))
        figures[f"codes_{level}_gini"] = round(float(gini(values)), 4)
    return figures
