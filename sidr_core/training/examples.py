"""Corpus rows to token ids, through the one prompt renderer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sidr_core.corpus import prompts
from sidr_core.errors import InputError
from sidr_core.settings import GENERAL_TASK
from sidr_core.tables import columns as c

if TYPE_CHECKING:
    from sidr_core.models.prompt import PromptRenderer

IGNORED = -100


def weighted(corpus: pl.DataFrame, weights: Mapping[str, float], seed: int) -> pl.DataFrame:
    """The examples of one epoch: `weights[task]` times those of each task (default 1), drawn with `seed`.

    A weight below 1 takes a share without repetition; above 1, whole copies and a share of one more.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for (task,), rows in sorted(corpus.group_by([c.TASK], maintain_order=True)):
        weight = weights.get(str(task), 1.0)
        whole, rest = int(weight), round((weight - int(weight)) * len(rows))
        picks = np.concatenate([np.tile(np.arange(len(rows)), whole), rng.permutation(len(rows))[:rest]])
        parts.append(rows[np.sort(picks)])
    return pl.concat(parts) if parts else corpus


def tokenise(rows: pl.DataFrame, renderer: PromptRenderer, max_length: int) -> list[dict[str, Any]]:
    """`input_ids`, `labels` and `user` of each row; the prompt carries no loss, the whole of a plain text does.

    Raises:
        InputError: a chat example is longer than `max_length` tokens. Cutting it would drop its
            instruction or its answer, so the profile has to allow for its length. Plain texts are cut at the
            end; general examples, which are not about the catalogue, are left out.
    """
    examples = []
    fields = rows.select(c.EXAMPLE_ID, c.USER_ID, c.TASK, c.KIND, c.PROMPT, c.THOUGHT, c.COMPLETION)
    for example_id, user, task, kind, prompt, thought, completion in fields.iter_rows():
        if kind == "text":
            ids = renderer.text(completion)[:max_length]
            examples.append({"input_ids": ids, "labels": ids, "length": len(ids), "user": user})
            continue
        head = renderer.prompt(prompt, c.THINKING if thought is not None else c.DIRECT)
        tail = renderer.thought(thought or "") if kind == "thought" else renderer.completion(completion, thought)
        if len(head) + len(tail) > max_length and task == GENERAL_TASK:
            continue
        if len(head) + len(tail) > max_length:
            raise InputError(
                f"example {example_id} is too long to train on",
                expected=f"at most max_length = {max_length} tokens",
                found=f"{len(head) + len(tail)}",
                fix="raise `max_length` of this stage in the profile, or shorten split.max_history",
            )
        ids, labels = head + tail, [IGNORED] * len(head) + tail
        examples.append({"input_ids": ids, "labels": labels, "length": len(ids), "user": user})
    return examples


def history_prompts(samples: pl.DataFrame, codebook: pl.DataFrame) -> list[str]:
    """The next-item user turn of each sample."""
    sid_of = dict(codebook.select(c.ITEM_ID, c.SID).iter_rows())
    return [prompts.next_item([sid_of[item] for item in history]) for history in samples[c.HISTORY]]
