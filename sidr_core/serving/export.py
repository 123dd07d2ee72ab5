"""A checkpoint for another engine: a plain Hugging Face folder, the catalogue in that engine's form, reference lists.

    OUT/model/                   config.json  model.safetensors  tokenizer files  sid_index.parquet  meta.json
    OUT/sids.npy, items.json     the catalogue for STATIC; for other engines catalogue.json
    OUT/export.json              engine, dataset, snapshot, ranges of token ids, length of the lists
    OUT/reference.jsonl          per row: prompt as text and token ids, target, our list with its scores

The lists are those of our decoder in direct mode with the checkpoint as it was, on valid rows: test rows are opened for
no export. A beam's score is the sum of log-probabilities over the whole vocabulary, before the mask of the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from sidr_core.corpus.prompts import next_item
from sidr_core.decoding.lists import rankings_of
from sidr_core.errors import SidrError
from sidr_core.models import checkpoint
from sidr_core.models.prompt import PromptRenderer
from sidr_core.serving.catalogues import Catalogue, Engine
from sidr_core.serving.contiguous import Ranges, make_contiguous
from sidr_core.tables.columns import CODES, DIRECT, ITEM_ID, ROW_ID, SCORE, SID, TARGET, USER_ID

if TYPE_CHECKING:
    from sidr_core.models.checkpoint import Loaded
    from sidr_core.settings import Decoding

MODEL, ABOUT, REFERENCE = "model", "export.json", "reference.jsonl"


def export(
    source: Path,
    out: Path,
    engine: Engine,
    rows: pl.DataFrame,
    histories: Sequence[Sequence[str]],
    decoding: Decoding,
    about: dict[str, Any],
) -> Ranges:
    """Write a folder for `engine`.

    Args:
        source: folder of the checkpoint.
        out: a new or empty folder.
        rows: R samples (`row_id`, `user_id`, target) to decode as the reference.
        histories: R lists of SIDs, oldest first.
        decoding: its beam width is the length of the lists.
        about: what else `export.json` shall say.

    Raises:
        SidrError: `out` holds something, or the checkpoint is broken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SidrError(
            "the export would overwrite something",
            expected="a folder that is new or empty",
            found=str(out),
            fix="name another folder, or remove this one",
        )
    loaded = checkpoint.load(source, device="cpu")
    width = min(decoding.beam_width, len(loaded.index))
    lists = decoded(loaded, rows[ROW_ID].to_list(), histories, decoding)
    model, tokenizer, ranges = make_contiguous(loaded.model, loaded.tokenizer, loaded.index)
    codebook = pl.read_parquet(source / checkpoint.INDEX).select(ITEM_ID, CODES)
    meta = {name: value for name, value in loaded.meta.items() if name != "codebook_digest"}
    checkpoint.save(out / MODEL, model, tokenizer, codebook, meta, (source / checkpoint.CARD).read_text())
    moved = checkpoint.load(out / MODEL, device="cpu")
    Catalogue.of(moved.index).write(out, engine)
    (out / ABOUT).write_text(
        json.dumps({**about, "engine": engine, "mode": DIRECT, "k": width, "token_ids": asdict(ranges)}, indent=2)
        + "\n"
    )
    _write_reference(out / REFERENCE, rows, histories, lists, moved.renderer)
    return ranges


def decoded(
    loaded: Loaded, row_ids: Sequence[str], histories: Sequence[Sequence[str]], decoding: Decoding
) -> pl.DataFrame:
    """Direct lists of a checkpoint: row_id, rank, item_id, sid, score."""
    from sidr_core.decoding.decoder import Decoder

    turns = [next_item(history) for history in histories]
    return rankings_of(Decoder.of(loaded, decoding).rank_directly(turns), loaded.index, row_ids)


def decode_folder(out: Path, decoding: Decoding, dtype: str | None) -> pl.DataFrame:
    """The lists of an exported folder by our own decoder, from the folder's own catalogue.

    Args:
        dtype: precision of the weights: `float32`, `bfloat16` or `int8`; None as they are.
    """
    import torch

    loaded = checkpoint.load(out / MODEL)
    if dtype == "int8":
        round_to_int8(loaded.model)
    elif dtype is not None:
        loaded.model.to(getattr(torch, dtype))  # type: ignore[arg-type]
    loaded = replace(loaded, index=Catalogue.read(out).index(ranges_of(out)))
    reference = read_lists(out / REFERENCE)
    return decoded(loaded, [row["row_id"] for row in reference], [row["history"] for row in reference], decoding)


def round_to_int8(model: Any) -> None:
    """Round the weight of each linear layer and embedding to 8 bits, in place.

    Each row of a weight, one output of the layer or one token, is rounded to multiples of its largest absolute entry
    / 127, as engines do that quantise weights alone, per channel and without data. Activations stay as they are. A tied
    weight is visited twice, and the second visit changes nothing.
    """
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                step = module.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
                module.weight.copy_((module.weight / step).round() * step)


def read_about(out: Path) -> dict[str, Any]:
    """What `export.json` says. Raises SidrError where there is none."""
    try:
        return json.loads((out / ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise SidrError(
            f"{out} is not an exported folder",
            expected=f"{ABOUT}, as `sidr export` writes it",
            found=str(error)[:200],
            fix="name the folder that `sidr export` wrote",
        ) from None


def ranges_of(out: Path) -> Ranges:
    """Where the tokens of the levels lie."""
    return Ranges(**{name: tuple(ids) for name, ids in read_about(out)["token_ids"].items()})


def read_lists(path: Path) -> list[dict[str, Any]]:
    """Lists as JSON lines, each with `row_id` and `items`, best first.

    Raises:
        SidrError: a line is something else.
    """
    rows = []
    try:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("items"), list) or "row_id" not in row:
                raise ValueError(f"line {number} is {line[:80]!r}")
            rows.append(row)
    except (OSError, ValueError) as error:
        raise SidrError(
            f"{path} holds no lists",
            expected='one JSON object a line: {"row_id": "…", "items": ["best item", "next", …]}',
            found=str(error)[:200],
            fix="write the engine's lists in this form",
        ) from None
    return rows


def _write_reference(
    path: Path,
    rows: pl.DataFrame,
    histories: Sequence[Sequence[str]],
    lists: pl.DataFrame,
    renderer: PromptRenderer,
) -> None:
    """One line per row, in the order of `rows`."""
    by_row = lists.group_by(ROW_ID, maintain_order=True).agg(ITEM_ID, SID, SCORE)
    found = {row_id: (items, sids, scores) for row_id, items, sids, scores in by_row.iter_rows()}
    with path.open("w") as file:
        named = rows.select(ROW_ID, USER_ID, TARGET).iter_rows()
        for (row_id, user_id, target), history in zip(named, histories, strict=True):
            items, sids, scores = found[row_id]
            prompt = renderer.prompt(next_item(history), DIRECT)
            line = {
                "row_id": row_id,
                "user_id": user_id,
                "target": target,
                "history": list(history),
                "prompt": renderer.tokenizer.decode(prompt),
                "prompt_ids": prompt,
                "items": items,
                "sids": sids,
                "scores": [round(score, 6) for score in scores],
            }
            file.write(json.dumps(line) + "\n")
