"""Several examples in one row, so that almost nothing is computed on padding.

An example attends to itself alone: its positions begin at 0 again, which is how transformers tells the examples of a
row apart, and no token is predicted from another example. A packed batch therefore has the loss and the gradients of
the padded one. TRL packs the data set once, cuts what does not fit and lays a batch out as one row. Here the examples
of one forward pass are packed into rows as long as the longest of them, which costs less with plain attention, and an
optimizer step holds the same examples as without packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sidr_core.training.examples import IGNORED


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the examples of each row, none longer than the longest example: best fit, longest first.

    >>> pack([3, 9, 5, 6])
    [[1], [3, 0], [2]]
    """
    capacity = max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        fits = [row for row, left in enumerate(room) if left >= lengths[index]]
        if fits:
            row = min(fits, key=room.__getitem__)
            rows[row].append(index)
            room[row] -= lengths[index]
        else:
            rows.append([index])
            room.append(capacity - lengths[index])
    return rows


class PackedCollator:
    """Examples with `input_ids` and `labels` -> tensors `input_ids`, `labels`, `position_ids`, each (rows, T).

    There is no attention mask: with one, the model would take a row for a single example. Padding is at the end of a
    row; each of its tokens has position 0, so it is an example of its own.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        rows = pack(lengths)
        shape = (len(rows), max(lengths))
        ids = torch.full(shape, self._pad_id)  # (rows, T), as the labels and positions
        labels = torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        for row, members in enumerate(rows):
            start = 0
            for index in members:
                span = (row, slice(start, start + lengths[index]))
                ids[span] = torch.tensor(examples[index]["input_ids"])
                labels[span] = torch.tensor(examples[index]["labels"])
                labels[row, start] = IGNORED  # a first token has no predecessor, or one of another example
                positions[span] = torch.arange(lengths[index])
                start += lengths[index]
        return {"input_ids": ids, "labels": labels, "position_ids": positions}
