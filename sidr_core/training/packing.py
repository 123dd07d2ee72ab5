"""Several examples in one row, and what they begin with alike laid once.

All targets of a user follow one history, which as examples of their own they read again and again. Here a row is a
tree: examples with equal first tokens share them, and each goes on in a branch of its own. A token attends to itself
and its ancestors, whose number is its position, so every example has the hidden states, the loss and the gradients that
it has alone. Tokens from which an answer is predicted are laid once per example, so each answer counts. A history that
was cut at the left shares nothing but the fixed words before it: a token's states hold all that it saw.

TRL packs the data set once, cuts what does not fit and lays a batch out as one row. Here the examples of one forward
pass are packed, into rows of like length, and an optimizer step holds as many examples as without packing.

Shapes: R rows of T tokens, one more than the longest row holds.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from sidr_core.training.examples import IGNORED

#: Tokens that a row should hold. Longer rows share more; in shorter ones less attention is computed and masked.
ROW_TOKENS = 256


def shared_part(example: dict[str, Any]) -> list[int]:
    """The first tokens of an example, from which nothing is predicted that carries loss.

    >>> shared_part({"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, -100, 8, 9]})
    [5, 6]
    """
    ignored = takewhile(lambda label: label == IGNORED, example["labels"][1:])
    return example["input_ids"][: sum(1 for _ in ignored)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def groups(examples: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of the examples that should lie in one row: those of a user whose histories go on from one another.

    Args:
        examples: with a `user`; None is no user, such an example stands alone. Copies of an example (its task weighs
            more than 1) fall into different groups, or a step would see it twice.
    """
    of_user: dict[Any, list[int]] = {}
    for index, example in enumerate(examples):
        of_user.setdefault(index if example["user"] is None else example["user"], []).append(index)
    apart = (copies for indices in of_user.values() for copies in _copies_apart(indices, examples))
    return [[index for index, _ in chain] for indices in apart for chain in _chains(indices, examples)]


def _copies_apart(indices: Sequence[int], examples: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The first copies of all examples, the second ones, and so on."""
    seen: Counter[tuple[int, ...]] = Counter()
    rounds: list[list[int]] = []
    for index in indices:
        itself = tuple(examples[index]["input_ids"])
        if seen[itself] == len(rounds):
            rounds.append([])
        rounds[seen[itself]].append(index)
        seen[itself] += 1
    return rounds


def _chains(
    indices: Sequence[int], examples: Sequence[dict[str, Any]], most: int | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Neighbours in the order of their shared parts, as long as each goes on from half of the part before or more.

    Args:
        most: tokens that a chain adds, unless a single example adds more.

    Returns:
        chains of (index, tokens that the example adds to those that it shares with the one before it).
    """
    parts = {index: shared_part(examples[index]) for index in indices}
    chain: list[tuple[int, int]] = []
    before: list[int] = []
    for index in sorted(indices, key=parts.__getitem__):
        common = _common(before, parts[index])
        added = len(examples[index]["input_ids"]) - 1 - common
        full = most is not None and added + sum(tokens for _, tokens in chain) > most
        if chain and (full or 2 * common < max(1, len(before))):
            yield chain
            chain = []
        chain.append((index, added))
        before = parts[index]
    if chain:
        yield chain


def balanced(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices of the members of each row: as few rows as hold `most` on average, about equally full.

    >>> balanced([3, 9, 5, 6], most=12)
    [[1, 0], [3, 2]]
    """
    rows: list[list[int]] = [[] for _ in range(max(1, -(-sum(sizes) // most)))]
    loads = [(0, row) for row in range(len(rows))]
    for index in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        load, row = loads[0]
        rows[row].append(index)
        heapq.heapreplace(loads, (load + sizes[index], row))
    return [row for row in rows if row]


class PrefixGrouped(torch.utils.data.Sampler[int]):
    """Groups of examples in random order, which depends on (seed, epoch) alone; a step takes `batch_size` examples.

    A group that does not fit into a step is cut, so every step holds as many examples, and the last one is filled up
    with the index after them all, which is to be an example without loss.

    Args:
        members: of :func:`groups`.
        batch_size: examples of one optimizer step, over all processes.
    """

    def __init__(self, members: Sequence[Sequence[int]], batch_size: int, seed: int) -> None:
        self._members, self._batch_size, self._seed = members, batch_size, seed
        self._examples = sum(map(len, members))
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._examples // self._batch_size) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        for group in torch.randperm(len(self._members), generator=random).tolist():
            yield from self._members[group]
        yield from [self._examples] * (len(self) - self._examples)


class PackedCollator:
    """Examples with `input_ids` and `labels` -> tensors `input_ids`, `labels`, `position_ids` (R, T) and
    `attention_mask` (R, 1, T, T): which tokens each token attends to.

    The last token of an example predicts nothing and is not laid. What a token predicts is, as everywhere, the label of
    the place after it, where another example may begin. Padding attends to itself.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chains = list(_chains(range(len(examples)), examples, ROW_TOKENS))
        loads = [sum(added for _, added in chain) for chain in chains]
        # Chains that stand in their order share what they can.
        rows = [[examples[n] for chain in sorted(row) for n, _ in chains[chain]] for row in balanced(loads, ROW_TOKENS)]
        laid = [list(_laid(row)) for row in rows]
        width = 1 + max(branches[-1].end for branches in laid)
        ids = torch.full((len(rows), width), self._pad_id)  # (R, T), as the labels and positions
        labels = torch.full((len(rows), width), IGNORED)
        positions = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1, 1)  # (R, 1, T, T)
        for row, branches in enumerate(laid):
            for branch in branches:
                common, begin, end = len(branch.shared), branch.begin, branch.end
                tokens, predicted = branch.example["input_ids"][:-1], branch.example["labels"][1:]
                ids[row, begin:end] = torch.tensor(tokens[common:])
                labels[row, begin + 1 : end + 1] = torch.tensor(predicted[common:])
                positions[row, begin:end] = torch.arange(common, len(tokens))
                mask[row, 0, begin:end, branch.shared] = True
                mask[row, 0, begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}


@dataclass(frozen=True)
class _Branch:
    """Where an example lies in its row: its first tokens at the places `shared`, the others from `begin` to `end`."""

    example: dict[str, Any]
    shared: list[int]
    begin: int
    end: int


def _laid(examples: Sequence[dict[str, Any]]) -> Iterator[_Branch]:
    """The examples of a row, one behind the other; they are in the order of their shared parts."""
    before: list[int] = []
    places: list[int] = []  # of the tokens in `before`
    begin = 0
    for example in examples:
        part = shared_part(example)
        common = _common(before, part)
        end = begin + len(example["input_ids"]) - 1 - common
        yield _Branch(example, places[:common], begin, end)
        places = [*places[:common], *range(begin, begin + len(part) - common)]
        before, begin = part, end
