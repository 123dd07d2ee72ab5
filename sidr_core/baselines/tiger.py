"""The stage `baseline_tiger`: an encoder-decoder from the history's SIDs to the SID of the next item.

TIGER (arXiv 2305.05065): a T5 built from configuration over SID tokens alone, on the codebook that SIDR uses,
searched with the same index and the same step as SIDR's own beam.

Deviations: no user token (hashed user ids tell nothing about new users), and no token of length or of
separation between items; beams are cut to SIDs of the catalogue at every level, as everywhere here, so no
list holds an invalid SID.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidr_core.baselines import training
from sidr_core.baselines.sequences import steps
from sidr_core.decoding.batching import batches, left_pad
from sidr_core.decoding.beam import Beams, Search, Trie, extend
from sidr_core.decoding.lists import rankings_of
from sidr_core.errors import SidrError
from sidr_core.models.checkpoint import codebook_digest
from sidr_core.models.quiet import quiet
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.sids.index import SidIndex
from sidr_core.sids.tokens import sid_tokens, used_tokens
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CODES, HISTORY, ITEM_ID, RANK, ROW_ID, SCORE

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

    from sidr_core.settings import DatasetConfig, Tiger, Trial

#: T5's ids: the first also begins every answer.
_PAD, _END = 0, 1
#: Histories searched at once; each carries a beam.
_ROWS = 64


class SidRanker:
    """A T5 over SID tokens that can be trained and asked for lists.

    Args:
        codebook: item_id -> codes; it names the vocabulary.
        beam_width: SIDs that the search keeps.
        sequences: items of a history and its target; none where it only ranks.
    """

    def __init__(
        self,
        module: T5ForConditionalGeneration,
        codebook: pl.DataFrame,
        beam_width: int = training.K,
        sequences: Sequence[list[str]] = (),
        spare: bool = False,
    ) -> None:
        self._spare = spare
        self.module: Any = module.to(training.device())  # type: ignore[arg-type]
        ids = _vocabulary(codebook)
        self.index = SidIndex.build(codebook, ids.__getitem__)
        self._ids = {
            item: [ids[token] for token in sid_tokens(codes)] for item, codes in codebook.select(ITEM_ID, CODES).rows()
        }
        self._trie = Trie(self.index, training.device())
        self._beam_width, self._sequences = min(beam_width, len(self.index)), sequences

    def lengths(self) -> list[int]:
        return [len(sequence) for sequence in self._sequences]

    def backward(self, rows: list[int]) -> float:
        chosen = [self._sequences[row] for row in rows]
        ids, mask, _ = left_pad([self._prompt(items[:-1]) for items in chosen], _PAD, training.device())
        labels = torch.tensor([self._ids[items[-1]] for items in chosen], device=ids.device)
        loss = self.module(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return float(loss.detach())

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        """See :class:`~sidr_core.baselines.ranking.Ranker`: the items of the beam's SIDs, scores in nats."""
        self.module.eval()
        prompts = [self._prompt(history) for history in rows[HISTORY]]
        width = self._beam_width
        if self._spare and rows.height:
            width = min(width + max(map(len, rows[HISTORY])), len(self.index))
        leaf = np.zeros((len(prompts), width), dtype=np.int64)
        scores = np.zeros((len(prompts), width), dtype=np.float32)
        with torch.inference_mode():
            for batch in batches(prompts, _ROWS):
                nodes, values = self._search([prompts[row] for row in batch], width)
                leaf[batch], scores[batch] = nodes.cpu().numpy(), values.cpu().numpy()
        ranked = rankings_of(Beams(leaf, scores), self.index, rows[ROW_ID].to_list())
        return ranked.filter(pl.col(RANK) <= k).select(ROW_ID, RANK, ITEM_ID, SCORE)

    def _prompt(self, items: Sequence[str]) -> list[int]:
        return [*(token for item in items for token in self._ids[item]), _END]

    def _search(self, prompts: list[list[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Leaves and scores (R, B), best first. The decoder's cache follows the beams."""
        ids, mask, _ = left_pad(prompts, _PAD, training.device())  # (R, T)
        encoded = self.module.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state  # (R, T, H)
        rows = torch.arange(len(prompts), device=ids.device)
        nodes = torch.zeros(len(prompts), 1, dtype=torch.long, device=ids.device)
        scores = torch.zeros(len(prompts), 1, device=ids.device)
        written, cache, of = torch.full_like(nodes, _PAD), None, rows
        for level in range(self.index.levels):
            output = self.module(
                encoder_outputs=(encoded[of],),
                attention_mask=mask[of],
                decoder_input_ids=written.view(-1, 1),
                past_key_values=cache,
                use_cache=True,
            )
            log_probs = output.logits[:, -1].log_softmax(dim=1)[:, self._trie.levels[level]]  # (R * B, codes of level)
            before = nodes.shape[1]
            search = Search(self._trie, width)
            nodes, scores, parents = extend(log_probs.view(len(prompts), before, -1), nodes, scores, search, level)
            written, of = self._trie.tokens[level][nodes], rows.repeat_interleave(nodes.shape[1])
            cache = output.past_key_values
            cache.reorder_cache((rows[:, None] * before + parents).flatten())
        order = torch.argsort(scores, dim=1, descending=True, stable=True)
        return nodes.gather(1, order), scores.gather(1, order)


def build(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    """Tune and train TIGER on the SIDs of `sid_codebook`."""
    settings = config.tiger
    rows = training.Rows.of(inputs, settings.select_rows, settings.seed)
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    fitted = train(settings, rows, codebook, progress)
    shape = {
        **_shape(settings.trials[fitted.best["trial"] - 1], settings),
        "codebook_digest": codebook_digest(codebook),
    }
    return training.publish(out_dir, "baseline_tiger", shape, fitted, rows, settings.seed, inputs.synthetic)


def train(
    settings: Tiger, rows: training.Rows, codebook: pl.DataFrame, progress: Progress
) -> training.Fitted[SidRanker]:
    """The best of the trials."""
    names = rows.catalogue.ids.to_list()
    sequences = [[names[item] for item in sequence] for sequence in steps(rows.train, rows.catalogue)]
    progress.say(f"{len(sequences):,} histories with their next item, {codebook.height:,} items")

    def make(trial: Trial) -> SidRanker:
        return SidRanker(_module(_shape(trial, settings), codebook), codebook, sequences=sequences)

    return training.fit(make, settings, rows.valid, codebook, progress)


def load(inputs: Mapping[str, StageInput], config: DatasetConfig) -> SidRanker:
    """The published TIGER, ready to rank with a beam of `decoding.beam_width`.

    Raises:
        SidrError: it was trained on another codebook.
    """
    folder = inputs["baseline_tiger"].folder()
    codebook = tables.read(inputs["sid_codebook"].path("sid_codebook.parquet"))
    meta, _ = training.read(folder)
    if (digest := codebook_digest(codebook)) != meta["model"]["codebook_digest"]:
        raise SidrError(
            f"{folder} was trained on another codebook",
            expected=f"the SIDs of codebook {meta['model']['codebook_digest'][:12]}",
            found=f"codebook {digest[:12]}",
            fix="materialize baseline_tiger again",
        )
    module = _module(meta["model"], codebook)
    training.load_weights(module, folder)
    return SidRanker(module, codebook, config.decoding.beam_width, spare=config.decoding.seen != "keep")


def _vocabulary(codebook: pl.DataFrame) -> dict[str, int]:
    """SID token -> id, after padding and end."""
    return {token: n for n, token in enumerate(used_tokens(codebook), start=_END + 1)}


def _shape(trial: Trial, settings: Tiger) -> dict[str, Any]:
    plain = {"hidden": trial.hidden_size, "dropout": trial.dropout, "layers": settings.layers}
    return {**plain, "heads": settings.heads, "feed_forward": settings.feed_forward}


def _module(shape: dict[str, Any], codebook: pl.DataFrame) -> T5ForConditionalGeneration:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(_vocabulary(codebook)) + _END + 1,
        d_model=shape["hidden"],
        d_kv=shape["hidden"] // shape["heads"],
        d_ff=shape["hidden"] * shape["feed_forward"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        dropout_rate=shape["dropout"],
        pad_token_id=_PAD,
        eos_token_id=_END,
    )
    config.decoder_start_token_id = _PAD
    with quiet():
        return T5ForConditionalGeneration(config)
