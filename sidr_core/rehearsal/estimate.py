"""What the real run would take: counts, tokens, money, memory and time, from the rehearsal and the size of the data.

Counts of examples are those of the stand-in's corpus, each task scaled by what it grows with. Tokens are characters
over four, a SID token as one. Memory is what the training's own estimate says of the real model's shape, which is
built without weights. Time is counted operations over an assumed speed, so it is right within a factor of two or three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from sidr_core.corpus.teacher.requests import ITEM_ANALYSIS, ITEM_NARRATIVE, USER_NARRATIVE, USER_PATH
from sidr_core.models import parameters
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.rehearsal.models import real_config
from sidr_core.rehearsal.play import Rehearsed
from sidr_core.remote.endpoint import host_of
from sidr_core.remote.ledger import NANO, Ledger, ledger_path, price_of
from sidr_core.settings import GENERAL_TASK, REASONING_TASK, DatasetConfig, Grpo, TinyModel, Training
from sidr_core.sids.tokens import SID_TOKEN
from sidr_core.tables import columns as c
from sidr_core.tables import files as tables
from sidr_core.training import memory

#: Taken where nothing else is known: about what each of the paper's three categories has.
USUAL_ITEMS, USUAL_ROWS = 4_000, 40_000
ROWS_PER_USER = 5
#: Of one GPU, assumed for an 80 GB card in bfloat16: operations per second in training; seconds of a forward pass of
#: decoding at least, and bytes of weights per second that it reads.
TRAINING_SPEED, PASS_SECONDS, BYTES_PER_SECOND = 100e12, 0.03, 2e12
#: At which sharded weights come to a GPU from the others, anew for each token that is decoded: 400 Gbit/s per GPU.
WIRE_BYTES_PER_SECOND = 50e9
#: Rollouts that are written side by side (`sidr_core/training/rollouts.py`).
_BESIDE = 256
_CHARACTERS_PER_TOKEN, _SCAFFOLD_TOKENS = 4, 60
_PER_ITEM = ("sid_to_title", "title_to_sid", "sid_to_fact", "item_narrative")
_PER_USER = ("user_narrative",)


@dataclass(frozen=True)
class Size:
    """Items, users with train rows, and train rows of a dataset; `source` says where the figures come from."""

    items: int
    users: int
    rows: int
    source: str


@dataclass(frozen=True)
class Step:
    """One training of the real run; `tokens` pass through the model over all of it, `gib` is memory per process."""

    stage: str
    steps: int
    tokens: int
    gib: float
    hours: float


@dataclass(frozen=True)
class Money:
    """One kind of call to the teacher in the real run."""

    kind: str
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float


def size_of(store: Store, dataset: str, snapshot: str, items: int | None, rows: int | None) -> Size:
    """The size of the real data: as told, else as published, else as usual in the literature."""
    published = store.find(dataset, snapshot, "interactions")
    if items is None and rows is None and published is not None:
        return _measured(published, "published `interactions`")
    told = "as told" if items is not None and rows is not None else "partly assumed" if items or rows else "assumed"
    rows = rows if rows is not None else USUAL_ROWS
    return Size(items if items is not None else USUAL_ITEMS, max(1, rows // ROWS_PER_USER), rows, told)


def _measured(interactions: Artifact, source: str) -> Size:
    users = tables.read(interactions.path("train.parquet"), [c.USER_ID])[c.USER_ID]
    items = tables.read(interactions.path("items.parquet"), [c.ITEM_ID]).height
    return Size(items, users.n_unique(), len(users), source)


# -- money -----------------------------------------------------------------------------------


def money(played: Rehearsed, real: DatasetConfig, size: Size) -> list[Money]:
    """Calls of the real teacher by kind, with the tokens per call of the rehearsal's; empty where it writes by rules.

    Call it while the rehearsal's home is there: its ledger is read.
    """
    teacher = real.teacher
    endpoint = played.profile.dataset(played.dataset).teacher.endpoint
    if teacher.kind == "rules" or endpoint is None:
        return []
    items, users = (most if limit is None else min(limit, most) for limit, most in
                    ((teacher.items, size.items), (teacher.users, size.users)))  # fmt: skip
    rows = min(_traces(teacher.traces_per_user, size), round(size.rows * users / size.users))
    calls = {ITEM_ANALYSIS: items * teacher.item_narratives, ITEM_NARRATIVE: items * teacher.item_narratives,
             USER_PATH: rows, USER_NARRATIVE: users * teacher.user_narratives}  # fmt: skip
    ledger = Ledger(ledger_path())
    try:
        used = ledger.usage(endpoint.model, host_of(endpoint))
    finally:
        ledger.close()
    found = []
    discount = teacher.price.batch_discount if teacher.batch else 1.0
    for kind, count in calls.items():
        replies, _, read, written = used.get(kind, (0, 0, 0, 0))
        if count and replies:
            tokens = (count * read // replies, count * written // replies)
            found.append(Money(kind, count, *tokens, price_of(teacher.price, *tokens, discount).nano_usd / NANO))
    return found


def _traces(per_user: int, size: Size) -> int:
    return size.rows if per_user == 0 else min(size.rows, per_user * size.users)


# -- trainings -------------------------------------------------------------------------------


def trainings(played: Rehearsed, real: DatasetConfig, size: Size) -> list[Step]:
    """The trainings of the real run that its lists need, three at most. Needs the stand-in's corpus; of the model its
    shape alone.
    """
    trained = {scene.stage for scene in played.scenes}
    if "synthetic_corpus" not in trained:
        return []
    corpus = tables.read(played.store.require(played.dataset, played.snapshot, "synthetic_corpus").path(_CORPUS))
    here = _measured(played.store.require(played.dataset, played.snapshot, "interactions"), "stand-in")
    lengths = corpus.with_columns(_tokens().alias("tokens")).group_by(c.TASK).agg(pl.len(), pl.col("tokens").mean())
    examples = {task: (_scaled(task, count, here, size, real), mean) for task, count, mean in lengths.iter_rows()}
    found = []
    for stage in ("sft", "activation"):
        if f"{stage}_checkpoint" not in trained:
            return found
        settings = getattr(real, stage)
        weights = _weights(stage, settings, examples)
        per_epoch = sum(examples[task][0] * weight for task, weight in weights.items())
        tokens = sum(math.prod(examples[task]) * weight for task, weight in weights.items()) * settings.epochs
        steps = math.ceil(per_epoch * settings.epochs / settings.batch_size)
        found.append(_step(stage, settings, real, steps, round(tokens)))
    if "grpo_checkpoint" not in trained:
        return found
    rollouts = real.grpo.steps * real.grpo.prompts_per_step * real.grpo.generations
    prompt = examples.get(REASONING_TASK, (0, 200.0))[1]
    written = real.grpo.max_thought_tokens if real.grpo.mode == c.THINKING else 8
    found.append(_step("grpo", real.grpo, real, real.grpo.steps, round(rollouts * (prompt + written))))
    return found


_CORPUS = "synthetic_corpus.parquet"


def _tokens() -> pl.Expr:
    """Tokens of a corpus row, about: a SID token is one, other text has four characters in one."""
    parts = [pl.col(name).fill_null("") for name in (c.PROMPT, c.THOUGHT, c.COMPLETION)]
    text = pl.concat_str(parts)
    rest = text.str.replace_all(SID_TOKEN.pattern, "").str.len_chars() / _CHARACTERS_PER_TOKEN
    return text.str.count_matches(SID_TOKEN.pattern) + rest + _SCAFFOLD_TOKENS


def _scaled(task: str, count: int, here: Size, size: Size, real: DatasetConfig) -> float:
    """Examples of a task in the real corpus."""
    if task == REASONING_TASK:
        return float(_traces(real.teacher.traces_per_user, size))
    if task == "practice":
        return float(real.teacher.practice_rows)
    if task == GENERAL_TASK:
        return float(real.teacher.general.rows if real.teacher.general else 0)
    for names, grows in ((_PER_ITEM, "items"), (_PER_USER, "users")):
        if task in names:
            return count * getattr(size, grows) / getattr(here, grows)
    return count * size.rows / here.rows


def _weights(stage: str, settings: Any, examples: dict[str, tuple[float, float]]) -> dict[str, float]:
    """How often an epoch sees the examples of each task."""
    if stage == "sft":
        return {task: settings.tasks.get(task, 1.0) for task in examples if task != REASONING_TASK}
    traces = examples.get(REASONING_TASK, (0.0, 0.0))[0]
    direct = examples.get("sids_to_sid", (0.0, 0.0))[0]
    replayed = {"sids_to_sid": min(1.0, settings.replay * traces / max(direct, 1.0))}
    mixed = {task: weight for task, weight in settings.tasks.items() if task in examples}
    return {REASONING_TASK: 1.0 if traces else 0.0} | replayed | mixed if traces else mixed


def _step(stage: str, settings: Training | Grpo, real: DatasetConfig, steps: int, tokens: int) -> Step:
    spread = real.launch.processes if real.launch.of(f"{stage}_checkpoint") in ("accelerate", "ray") else 1
    model = _shape(real, settings)
    size = sum(weight.numel() for weight in model.parameters())
    longest = settings.max_length if isinstance(settings, Training) else settings.max_thought_tokens + 512
    needed = memory.estimate(model, settings, longest, spread if settings.sharding == "full" else 1, on_gpu=True)
    passes = (6 if settings.parameters == "all" else 4) + 2 * settings.gradient_checkpointing
    if isinstance(settings, Grpo) and settings.beta:
        passes += 2
    seconds = passes * size * tokens / (TRAINING_SPEED * spread)
    if isinstance(settings, Grpo):
        batches = math.ceil(settings.prompts_per_step * settings.generations / spread / _BESIDE)
        written = settings.max_thought_tokens if settings.mode == c.THINKING else 8
        speed = WIRE_BYTES_PER_SECOND if settings.sharding == "full" else BYTES_PER_SECOND
        seconds += steps * batches * written * max(PASS_SECONDS, 2 * size / speed)
    return Step(f"{stage}_checkpoint", steps, tokens, needed.total / memory.GIB, seconds / 3600)


def _shape(real: DatasetConfig, settings: Training | Grpo) -> Any:
    """The real model as the stage trains it, without weights."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    base = real.base_model
    if isinstance(base, TinyModel):
        config: Any = Qwen3Config(
            vocab_size=base.vocab_size, hidden_size=base.hidden_size, intermediate_size=base.intermediate_size,
            num_hidden_layers=base.layers, num_attention_heads=base.heads, num_key_value_heads=base.kv_heads,
            head_dim=base.hidden_size // base.heads, tie_word_embeddings=True,
        )  # fmt: skip
        dtype = torch.float32
    else:
        config, dtype = real_config(base.name), getattr(torch, base.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return parameters.prepare(model, settings, list(range(8)))
