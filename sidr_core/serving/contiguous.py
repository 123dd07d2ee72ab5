"""A checkpoint whose SID tokens fill one range of ids, level by level, as other engines want them.

Ours holds the codes in use, in the order in which they came. Here the token of code c at level l is `first[l] + c`,
for every c up to the largest in use, codes without an item too, and the levels follow one another. All other ids stay.
The row of a code that no item uses is 0: the catalogue leaves it out of every list, and under a softmax over the whole
vocabulary it weighs as any token of logit 0 does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sidr_core.errors import SidrError
from sidr_core.models.vocabulary import add_tokens
from sidr_core.sids.index import SidIndex
from sidr_core.sids.tokens import SID_TOKEN, sid_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ranges:
    """Where the tokens of each of the L levels lie.

    Attributes:
        first: (L,) vocabulary id of the level's code 0.
        sizes: (L,) codes of the level, used or not.
    """

    first: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, index: SidIndex, first: int) -> Ranges:
        """The ranges of a catalogue from `first` on: each level from code 0 to the largest in use."""
        sizes = [int(codes.max()) + 1 for codes in index.codes]
        return cls(tuple(first + sum(sizes[:level]) for level in range(len(sizes))), tuple(sizes))

    @property
    def tokens(self) -> list[str]:
        """All tokens in the order of their ids."""
        return [sid_token(level, code) for level, size in enumerate(self.sizes) for code in range(size)]

    def codes_of(self, tokens: Sequence[int]) -> list[int] | None:
        """The codes of a SID's token ids; None where one is no token of its level."""
        if len(tokens) != len(self.sizes):
            return None
        codes = [token - first for token, first in zip(tokens, self.first, strict=True)]
        return codes if all(0 <= code < size for code, size in zip(codes, self.sizes, strict=True)) else None


def make_contiguous(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, index: SidIndex
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Ranges]:
    """Move the SID tokens of a model (changed in place) and of its tokenizer (made anew) into one range.

    Raises:
        SidrError: a token that is none of a SID has an id among those of the SIDs.
    """
    old = tokenizer.get_vocab()
    sids = {token: number for token, number in old.items() if SID_TOKEN.fullmatch(token)}
    first = min(sids.values())
    if between := sorted(token for token, number in old.items() if number >= first and token not in sids):
        raise SidrError(
            "the SID tokens of this checkpoint cannot be moved into one range",
            expected=f"no other token from id {first} on, where the SIDs begin",
            found=f"{len(between)}, the first {between[0]!r}",
            fix="train from a base model whose own tokens all come before the SIDs",
        )
    ranges = Ranges.of(index, first)
    renewed = _tokenizer_with(tokenizer, ranges.tokens)
    new = renewed.get_vocab()
    moved = [(number, new[token]) for token, number in sids.items()]
    if len(renewed) > model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        model.resize_token_embeddings(len(renewed), mean_resizing=False)
    tables: dict[int, torch.Tensor] = {}
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for name in ("weight", "bias"):
            table: Any = getattr(layer, name, None)
            if isinstance(table, torch.Tensor):
                tables[table.data_ptr()] = table  # a tied head is the same table
    for table in tables.values():
        _move(table, first, moved)
    return model, renewed, ranges


@torch.no_grad()
def _move(table: torch.Tensor, first: int, moved: Sequence[tuple[int, int]]) -> None:
    """Put row `old` at `new` for each pair; every other row from `first` on becomes 0."""
    source, target = (torch.tensor(ids, device=table.device) for ids in zip(*moved, strict=True))
    rows = table[source].clone()
    table[first:] = 0
    table[target] = rows


def _tokenizer_with(tokenizer: PreTrainedTokenizerBase, sid_tokens: Sequence[str]) -> PreTrainedTokenizerBase:
    """The same tokenizer with these SID tokens, in this order, in place of its own."""
    from transformers import AutoTokenizer

    folder = Path(tempfile.mkdtemp(prefix="sidr-tokenizer-"))
    try:
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer.json"
        core = json.loads(path.read_text())
        core["added_tokens"] = [entry for entry in core["added_tokens"] if not SID_TOKEN.fullmatch(entry["content"])]
        path.write_text(json.dumps(core))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("added_tokens_decoder", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        renewed = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    finally:
        shutil.rmtree(folder)
    add_tokens(renewed, sid_tokens)
    return renewed
