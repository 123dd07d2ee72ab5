"""The one function that adds tokens to a model, for SIDs and for the conversation's own tokens.

Deviation from the paper's code, which resizes the embedding table to the tokenizer's length and takes
what the library gives: checkpoints such as Qwen3 have more rows than their tokenizer has tokens, so
there the first new tokens land on unused old rows and only the rest is initialised. Here every new row
is initialised on purpose, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken

from sidr_core.models.prompt import SPECIAL_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Default noise of a new row: near the mean of a trained vocabulary, yet no two rows alike.
NOISE = 0.1


def extend_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[str],
    seed: int,
    noise: float = NOISE,
) -> list[int]:
    """Make each of `tokens` one vocabulary entry and initialise the rows of those that are new.

    A token that exists keeps its id and its row, so a checkpoint of an earlier snapshot can be extended.
    New tokens get the next ids in the order given. The table grows only where it is too short; it never shrinks.

    Args:
        model: its input embedding and its head (tied or not) are changed in place.
        tokenizer: changed in place. SID tokens become ordinary entries (not special, not normalised, not
            stripping blanks around them), so that they are found in any context.
        tokens: texts of the tokens, distinct.
        seed: of the noise.
        noise: standard deviation of a new row around the vocabulary's mean, in units of the vocabulary's own.

    Returns:
        The ids of the tokens that are new.
    """
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if not new:
        return []
    old_ids = torch.tensor(sorted(known.values()))
    add_tokens(tokenizer, new)
    if len(tokenizer) > len(_weight(model.get_input_embeddings())):
        # The library draws values that are replaced below; the caller's random state is not spent on them.
        with torch.random.fork_rng():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = [_weight(model.get_input_embeddings())]
    head = model.get_output_embeddings()
    if head is not None and _weight(head) is not tables[0]:
        tables.append(_weight(head))
    if head is not None and isinstance(bias := getattr(head, "bias", None), torch.Tensor):
        tables.append(bias)
    new_ids = [tokenizer.get_vocab()[token] for token in new]
    generator = torch.Generator().manual_seed(seed)
    for table in tables:
        _initialise(table, old_ids, torch.tensor(new_ids), noise, generator)
    return new_ids


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add each of `tokens` as one entry; those of `SPECIAL_TOKENS` as control tokens, others as ordinary ones."""
    added: list[Any] = [AddedToken(text, normalized=False, special=text in SPECIAL_TOKENS) for text in tokens]
    tokenizer.add_tokens(added)


def _weight(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


@torch.no_grad()
def _initialise(
    table: torch.Tensor, old: torch.Tensor, new: torch.Tensor, noise: float, generator: torch.Generator
) -> None:
    """Set the rows `new` of a table (V, H) or bias (V,) to the mean of the rows `old` plus noise per dimension."""
    known = table[old.to(table.device)].float()
    mean, spread = known.mean(dim=0).cpu(), known.std(dim=0).cpu()
    draws = torch.randn(len(new), *mean.shape, generator=generator)
    table[new.to(table.device)] = (mean + noise * spread * draws).to(table)
