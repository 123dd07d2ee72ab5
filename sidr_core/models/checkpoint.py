"""Checkpoints: plain Hugging Face folders that also hold their token map.

    config.json  generation_config.json  model.safetensors  tokenizer files
    sid_index.parquet   item -> SID -> token ids, as the model was trained
    sid_index.safetensors   the same as the arrays of `SidIndex`, mapped at load
    meta.json           stage, base, seed, seen_until, synthetic, codebook digest
    README.md           model card

Deviation from the paper's release, where checkpoints came without their tokenizer or with an index
that another tokenizer had made: here the map lies in the folder and is verified at every load. The arrays
carry the digest of the table that they were made from; without them, or with those of another table, the
table itself is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from sidr_core.errors import SidrError
from sidr_core.models.base import plain_generation
from sidr_core.models.prompt import PromptRenderer
from sidr_core.models.quiet import quiet
from sidr_core.models.untrusted import reading, untrusted_file
from sidr_core.pipeline.report import Check
from sidr_core.pipeline.store import sha256_file
from sidr_core.sids.index import SidIndex, levels_of
from sidr_core.sids.tokens import sid_texts, sid_token
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CODES, ITEM_ID, SID

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS, INDEX, META, CARD = "model.safetensors", "sid_index.parquet", "meta.json", "README.md"
ARRAYS = "sid_index.safetensors"
TOKEN_IDS = "token_ids"  # noqa: S105
#: What the caller of :func:`save` must tell; the codebook digest is added.
META_FIELDS = ("stage", "base", "seed", "seen_until", "synthetic")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A checkpoint ready to decode. `model` is in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: PromptRenderer
    index: SidIndex
    meta: dict[str, Any]


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    codebook: pl.DataFrame,
    meta: Mapping[str, Any],
    card: str,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint; equal arguments give equal bytes.

    Args:
        folder: made if absent.
        model: as `build_base` made or a training changed it; its generation settings are made anew.
        tokenizer: with all SID tokens of the codebook.
        codebook: table with `item_id` and `codes`.
        meta: at least `META_FIELDS`; plain values.
        card: text of the model card.
        weights: those to write where `model` holds a share of them only.

    Raises:
        SidrError: a SID token of the codebook is not one vocabulary entry.
    """
    from sidr_core.models.token_map import TokenMap

    assert not (missing := [name for name in META_FIELDS if name not in meta]), f"meta lacks {missing}"
    folder.mkdir(parents=True, exist_ok=True)
    token_map = _token_map(codebook, tokenizer)
    model.generation_config = plain_generation(tokenizer)
    # One file whatever the size: the layout is part of the contract.
    with quiet():
        model.save_pretrained(folder, state_dict=weights, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)
    tables.write(token_map, folder / INDEX, TokenMap)
    vocabulary = tokenizer.get_vocab()
    SidIndex.build(token_map, vocabulary.__getitem__).save(folder / ARRAYS, sha256_file(folder / INDEX))
    complete = {**meta, "codebook_digest": codebook_digest(codebook)}
    (folder / META).write_text(json.dumps(complete, sort_keys=True, indent=2, allow_nan=False) + "\n")
    (folder / CARD).write_text(card.rstrip() + "\n")


def load(folder: Path, device: str | None = None) -> Loaded:
    """Read a checkpoint and verify its token map.

    Args:
        folder: written by :func:`save`.
        device: default is `cuda` where there is one, else `cpu`.

    Raises:
        SidrError: it is not a checkpoint, holds weights that are no safetensors, or its map is broken.
    """
    folder = Path(folder)
    _refuse_untrusted(folder)
    tokenizer, model = _read(folder)
    index = _index(folder, tokenizer)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()  # type: ignore[arg-type]
    return Loaded(model, tokenizer, PromptRenderer(tokenizer), index, json.loads((folder / META).read_text()))


def codebook_digest(codebook: pl.DataFrame) -> str:
    """sha256 over the sorted (item_id, codes) pairs of a codebook."""
    pairs = sorted((item, list(codes)) for item, codes in codebook.select(ITEM_ID, CODES).iter_rows())
    return hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


def check_loads_plain(folder: Path) -> Check:
    """Whether the folder loads by the library alone and gives finite logits: the check `loads_plain`."""
    try:
        _refuse_untrusted(folder)
        tokenizer, model = _read(folder)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[tokenizer.eos_token_id]])).logits
    except (SidrError, OSError, ValueError, ImportError, RuntimeError) as error:
        return Check("loads_plain", False, f"{type(error).__name__}: {error}"[:500])
    finite = bool(torch.isfinite(logits).all())
    detail = (
        f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens, logits {'' if finite else 'not '}finite"
    )
    return Check("loads_plain", finite, detail)


def check_token_map(folder: Path, codebook: pl.DataFrame) -> Check:
    """Whether the folder's map equals the codebook and each SID token is one entry: the check `token_map`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    token_map = tables.read(folder / INDEX)
    problem = _map_problem(token_map, tokenizer)
    if not problem and codebook_digest(token_map) != codebook_digest(codebook):
        problem = "the items and SIDs differ from the codebook's"
    if problem:
        return Check("token_map", False, problem)
    used = {token for ids in token_map[TOKEN_IDS] for token in ids}
    return Check("token_map", True, f"{len(token_map):,} items, {len(used):,} SID tokens, each one entry")


def _token_map(codebook: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> pl.DataFrame:
    vocabulary = tokenizer.get_vocab()
    ordered = codebook.select(ITEM_ID, CODES).sort(ITEM_ID)
    levels = levels_of(ordered[CODES])
    if missing := sorted(token for token in _used(levels) if token not in vocabulary):
        raise SidrError(
            "the checkpoint cannot be saved",
            expected="each SID token of the codebook in the vocabulary",
            found=f"{len(missing)} missing, the first {missing[0]}",
            fix="extend the vocabulary with the tokens of this snapshot's codebook before training",
        )
    ids = pl.DataFrame(_token_ids(levels, vocabulary)).select(pl.concat_list(pl.all()).alias(TOKEN_IDS))[TOKEN_IDS]
    return ordered.with_columns(sid_texts(levels), ids)


def _used(levels: Sequence[np.ndarray]) -> list[str]:
    """The distinct tokens of L arrays of codes, by level."""
    return [sid_token(level, code) for level, codes in enumerate(levels) for code in np.unique(codes)]


def _token_ids(levels: Sequence[np.ndarray], vocabulary: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Vocabulary ids of L arrays of codes, level by level; -1 where a token is no entry."""
    by_level = {}
    for level, codes in enumerate(levels):
        used, slot = np.unique(codes, return_inverse=True)
        ids = [vocabulary.get(sid_token(level, code), -1) for code in used]
        by_level[f"ids_{level}"] = np.array(ids, dtype=np.int32)[slot]
    return by_level


def _index(folder: Path, tokenizer: PreTrainedTokenizerBase) -> SidIndex:
    """The index of a checkpoint: mapped where its arrays were made from the token map that lies there."""
    vocabulary = tokenizer.get_vocab()
    index = SidIndex.load(folder / ARRAYS, sha256_file(folder / INDEX))
    if index is not None:
        # Each token of each level stands for every item that uses it.
        recorded = {
            (sid_token(level, code), int(token))
            for level in range(index.levels)
            for code, token in np.unique(np.stack([index.codes[level], index.token_ids[level]], axis=1), axis=0)
        }
        if all(vocabulary.get(token) == number for token, number in recorded):
            return index
    token_map = tables.read(folder / INDEX)
    if problem := _map_problem(token_map, tokenizer):
        raise _broken(folder, "a token map that agrees with the tokenizer", problem)
    return SidIndex.build(token_map, vocabulary.__getitem__)


def _map_problem(token_map: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What is wrong with a token map, None if nothing."""
    if token_map.is_empty():
        return "no items"
    try:
        levels = levels_of(token_map[CODES])
    except SidrError as error:
        return error.found
    renderer = PromptRenderer(tokenizer)
    vocabulary = tokenizer.get_vocab()
    right = pl.DataFrame(_token_ids(levels, vocabulary)).select(pl.concat_list(pl.all()).alias("right"))["right"]
    table = token_map.select(ITEM_ID, SID, CODES, TOKEN_IDS).with_columns(right, sid_texts(levels).alias("text"))
    wrong_text, wrong_ids = pl.col(SID) != pl.col("text"), pl.col(TOKEN_IDS) != pl.col("right")
    for item, sid, codes, ids in (
        table.filter(wrong_text | wrong_ids).head(1).select(ITEM_ID, SID, CODES, TOKEN_IDS).iter_rows()
    ):
        if sid_texts([np.array([code]) for code in codes])[0] != sid:
            return f"item {item}: SID {sid} is not that of the codes {codes}"
        return f"item {item}: {sid} has the ids {renderer.encode(sid)}, recorded are {ids}"
    # Added tokens are cut out of a text before anything else is: each alone stands for every SID.
    broken = [token for token in _used(levels) if renderer.encode(token) != [vocabulary.get(token)]]
    return f"{broken[0]} is not one token but {renderer.encode(broken[0])}" if broken else None


def _read(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with reading(partial(_broken, folder, "a model and a tokenizer that transformers can read")):
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype="auto", output_loading_info=True, **local
        )
    model, info = loaded
    # The library fills what the file lacks with random numbers and only warns.
    if lacking := sorted(info["missing_keys"]):
        raise _broken(folder, f"every tensor of the model in {WEIGHTS}", f"no {lacking[0]}")
    return tokenizer, model


def _refuse_untrusted(folder: Path) -> None:
    if missing := [name for name in (WEIGHTS, INDEX, META, "config.json") if not (folder / name).is_file()]:
        raise _broken(folder, f"{WEIGHTS}, {INDEX}, {META} and config.json", f"no {missing[0]}")
    if untrusted := untrusted_file(folder):
        raise _broken(folder, "safetensors only, and no file or entry that can run code", *untrusted)


def _broken(
    folder: Path,
    expected: str,
    found: str,
    fix: str = "materialize the checkpoint's asset again, or name another folder",
) -> SidrError:
    return SidrError(
        f"{folder} is not a sound checkpoint",
        expected=expected,
        found=found,
        fix=fix,
    )
