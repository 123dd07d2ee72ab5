"""A dataset of 16 items and 6 users whose upstream outputs are published by hand, for tests of what lies below.

Checkpoints are tiny untrained models; the counters, `recommendations` and `evaluation` are the real stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from builders.stage import MONTHS, QUIET, SOURCE
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.run import Outcome, plan, run_stage
from sidr_core.pipeline.store import Store
from sidr_core.settings import TinyModel
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import contracts
from sidr_core.tables import files as tables
from sidr_core.tables.vectors import vector_series

SNAPSHOT = "2020-02"
ITEMS = [f"A{n:02d}" for n in range(16)]
#: A14 and A15 share a SID.
CODES = {item: [min(n, 14) // 4, min(n, 14) % 4] for n, item in enumerate(ITEMS)}
USERS = [f"user{n}" for n in range(6)]
MODELS = ("sft/direct", "activation/thinking", "grpo/direct", "grpo/thinking", "popularity/direct", "item_item/direct")


def profile(**decoding: Any) -> Profile:
    """The profile `test` with one dataset, `toys`; decoding fields can be overridden."""
    fields: dict[str, Any] = {
        "source": SOURCE | {"shift": "2020-01"},  # so that nobody asks its generator about these invented rows
        "snapshots": {**MONTHS},
        "quantizer": {"levels": 2, "size": 4, "collisions": "share"},
        "gru4rec": {"trials": [{"hidden_size": 16, "learning_rate": 0.01}], "epochs": 8},
        "sasrec": {"trials": [{"hidden_size": 16, "learning_rate": 0.01}], "epochs": 8},
        "tiger": {"trials": [{"hidden_size": 16, "learning_rate": 0.01}], "epochs": 2, "heads": 2, "layers": 1},
        "decoding": {"beam_width": 5, "batch_size": 4, "max_thought_tokens": 6, "models": MODELS, **decoding},
        "evaluation": {"ks": [1, 3, 5], "bootstrap": 200},
    }
    return parse_profile("test", {"datasets": {"toys": fields}})


def codebook() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": ITEMS,
            "sid": [format_sid(CODES[item]) for item in ITEMS],
            "codes": list(CODES.values()),
            "text_digest": ["d"] * len(ITEMS),
        },
        schema_overrides={"codes": pl.List(pl.Int32)},
    )


def samples(first: int, rows_per_user: int) -> pl.DataFrame:
    """Each user moves one item on per row: the target follows the last item of the history."""
    rows = []
    for number, user in enumerate(USERS):
        for position in range(first, first + rows_per_user):
            items = [ITEMS[(2 * number + step) % 16] for step in range(position + 1)]
            rows.append(
                {
                    "row_id": f"{user}:{position}",
                    "user_id": user,
                    "position": position,
                    "history_item_ids": items[:-1],
                    "target_item_id": items[-1],
                    "target_timestamp": 1_580_000_000 + 86_400 * position,
                }
            )
    return pl.DataFrame(rows, schema_overrides={"position": pl.Int32})


@dataclass(frozen=True)
class World:
    """Where the outputs lie, and short forms to make more."""

    store: Store
    profile: Profile

    def publish(self, stage: str, write: Callable[[Path], None]) -> None:
        """Publish what `write` writes under the key that the stage would have."""
        spec = stage_named(stage)
        key = plan(self.profile, "toys", SNAPSHOT, spec, self.store).key

        def build(folder: Path) -> Report:
            write(folder)
            return Report()

        artifact, _ = self.store.obtain(stage, spec.code_version, key, build, synthetic=True)
        self.store.set_ref("toys", SNAPSHOT, stage, artifact.fingerprint)

    def run(self, stage: str, profile: Profile | None = None) -> Outcome:
        """Run a real stage."""
        return run_stage(profile or self.profile, "toys", SNAPSHOT, stage_named(stage), self.store, QUIET)


def build(home: Path) -> World:
    """Everything down to the checkpoints and counters. `SIDR_HOME` should name `home`."""
    world = World(Store(home / "store"), profile())
    for name in ("raw_reviews", "raw_items"):
        world.publish(name, _nothing)
    world.publish("interactions", _interactions)
    world.publish("item_embeddings", _embeddings)
    world.publish("sid_codebook", lambda f: tables.write(codebook(), f / "sid_codebook.parquet", contracts.Codebook))
    world.publish("synthetic_corpus", _nothing)
    for seed, name in enumerate(("sft", "activation", "grpo"), start=1):
        world.publish(f"{name}_checkpoint", lambda folder, name=name, seed=seed: checkpoint_of(folder, name, seed))
    for name in ("baseline_popularity", "baseline_item_item"):
        world.run(name)
    return world


def _nothing(folder: Path) -> None:
    (folder / "empty.txt").write_text("")


def _embeddings(folder: Path) -> None:
    """Vectors on a circle: the nearest items are those before and after."""
    angles = np.arange(len(ITEMS)) * 2 * np.pi / len(ITEMS)
    vectors = vector_series(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    table = pl.DataFrame({"item_id": ITEMS, "text_digest": ["d"] * len(ITEMS), "vector": vectors})
    tables.write(table, folder / "item_embeddings.parquet", contracts.Embeddings)


def _interactions(folder: Path) -> None:
    catalogue = pl.DataFrame(
        {
            "item_id": ITEMS,
            "title": [f"Toy {item}" for item in ITEMS],
            "description": [""] * 16,
            "brand": [""] * 16,
            "category": ["Toys"] * 16,
            "published_sid": pl.Series([None] * 16, dtype=pl.String),
            "synthetic": [True] * 16,
        }
    )
    test = samples(4, 2)
    log = [
        {"user_id": row["user_id"], "item_id": item, "position": position}
        for row in test.filter(pl.col("position") == 5).iter_rows(named=True)
        for position, item in enumerate([*row["history_item_ids"], row["target_item_id"]])
    ]
    interactions = pl.DataFrame(log, schema_overrides={"position": pl.Int32}).with_columns(
        pl.lit(5.0).alias("rating"), pl.lit(1_580_000_000, pl.Int64).alias("timestamp"), pl.lit(True).alias("synthetic")
    )
    tables.write(interactions, folder / "interactions.parquet", contracts.Interactions)
    tables.write(catalogue, folder / "items.parquet", contracts.Items)
    tables.write(samples(1, 2), folder / "train.parquet", contracts.Samples)
    tables.write(samples(3, 1), folder / "valid.parquet", contracts.Samples)
    tables.write(test, folder / "test.parquet", contracts.Samples)


def checkpoint_of(folder: Path, name: str, seed: int) -> None:
    """Write the checkpoint of a tiny untrained model, as the stage `name` would have."""
    from sidr_core.models import checkpoint
    from sidr_core.models.base import build_base

    tiny = TinyModel(
        kind="tiny", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=16, vocab_size=300, seed=seed
    )
    model, tokenizer = build_base(tiny, ["History of toys"], codebook())
    meta = {"stage": name, "base": "tiny", "seed": seed, "seen_until": "2020-01-28", "synthetic": True}
    checkpoint.save(folder, model, tokenizer, codebook(), meta, "# card")


def spoil(world, stage: str, change) -> None:
    """Publish a stage's current files again, changed, as if another code had made them."""
    old = world.store.require("toys", SNAPSHOT, stage)

    def build(folder) -> None:
        for name in old.files:
            (folder / name).write_bytes(old.path(name).read_bytes())
        change(folder)

    artifact, _ = world.store.obtain(stage, "spoilt", {"config": {}, "inputs": {}}, build, synthetic=True)
    world.store.set_ref("toys", SNAPSHOT, stage, artifact.fingerprint)


def edit_meta(**fields):
    """A change for `spoil`: these fields of a checkpoint's `meta.json`."""

    def change(folder) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | fields))

    return change


def plain(value):
    """The raw fields of a profile in the types that YAML can write."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
