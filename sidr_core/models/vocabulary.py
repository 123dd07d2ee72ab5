"""The one function that adds tokens to a model, for SIDs and for the conversation's own tokens.

Deviation from the paper's code, which resizes the embedding table to the tokenizer's length and takes
what the library gives: checkpoints such as Qwen3 have more rows than their tokenizer has tokens, so
there the first new tokens land on unused old rows and only the rest is initialised. Here every new row
is initialised on purpose, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken

from sidr_core.models.prompt import FORMAT_TOKENS, SPECIAL_TOKENS
from sidr_core.sids.tokens import SID_TOKEN, sid_tokens
from sidr_core.tables.columns import CODES, ITEM_ID

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Default noise of a new row: near the mean of a trained vocabulary, yet no two rows alike.
NOISE = 0.1
#: Noise of a row that starts from words: codes whose items read alike must differ, and no more is wanted.
WORDS_NOISE = 0.01


def extend_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[str],
    seed: int,
    noise: float = NOISE,
    words: Mapping[str, Sequence[str]] | None = None,
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
        noise: standard deviation of a new row around its centre, in units of the vocabulary's own.
        words: token -> texts; its row's centre is the mean row of the tokens of these texts, each as often as it
            occurs. Without texts the centre is the vocabulary's mean.

    Returns:
        The ids of the tokens that are new.
    """
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if not new:
        return []
    old_ids = torch.tensor(sorted(known.values()))
    counts = {token: _counted(tokenizer, words[token]) for token in new if words and words.get(token)}
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
        _initialise(table, old_ids, torch.tensor(new_ids), [counts.get(token) for token in new], noise, generator)
    return new_ids


def words_of_codes(codebook: pl.DataFrame, titles: Mapping[str, str]) -> dict[str, list[str]]:
    """SID token -> titles of the items whose SID holds it, in the order of their ids.

    Args:
        codebook: table with `item_id` and `codes`.
        titles: by item id; items without one say nothing.
    """
    words: dict[str, list[str]] = {}
    for item, codes in codebook.select(ITEM_ID, CODES).sort(ITEM_ID).iter_rows():
        if title := titles.get(item):
            for token in sid_tokens(codes):
                words.setdefault(token, []).append(title)
    return words


def own_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Sorted ids of the SID tokens and of the conversation's tokens: the rows that must learn in every training."""
    return sorted(
        number
        for token, number in tokenizer.get_vocab().items()
        if token in FORMAT_TOKENS or SID_TOKEN.fullmatch(token)
    )


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add each of `tokens` as one entry; those of `SPECIAL_TOKENS` as control tokens, others as ordinary ones."""
    added: list[Any] = [AddedToken(text, normalized=False, special=text in SPECIAL_TOKENS) for text in tokens]
    tokenizer.add_tokens(added)


def _weight(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _counted(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct tokens of some texts and how often each occurs."""
    ids = [number for text in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for number in text]
    return torch.unique(torch.tensor(ids, dtype=torch.long), return_counts=True)


@torch.no_grad()
def _initialise(
    table: torch.Tensor,
    old: torch.Tensor,
    new: torch.Tensor,
    words: Sequence[tuple[torch.Tensor, torch.Tensor] | None],
    noise: float,
    generator: torch.Generator,
) -> None:
    """Set the rows `new` of a table (V, H) or bias (V,) to their centres plus noise per dimension.

    A centre is the mean of the rows `old`, or of the token's own words: (ids, counts) in `words`.
    """
    known = table[old.to(table.device)].float()
    mean, spread = known.mean(dim=0).cpu(), known.std(dim=0).cpu()
    centres = mean.expand(len(new), *mean.shape).clone()
    for row, counted in enumerate(words):
        if counted is not None and len(counted[0]):
            ids, counts = counted
            shares = (counts / counts.sum()).to(table.device)
            centres[row] = (shares @ table[ids.to(table.device)].float()).cpu()
    draws = torch.randn(len(new), *mean.shape, generator=generator)
    table[new.to(table.device)] = (centres + noise * spread * draws).to(table)
