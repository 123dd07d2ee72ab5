"""The profile of a rehearsal: every section of the real one, made small, with nothing changed in kind.

What stays is what can fail in the fifth hour of a night: the layout of the source, the kind of quantizer, vectors and
collisions, the architecture and precision of the model, the template, the parameters trained, packing, schedule,
optimizer, launcher, rollouts, reward and the list of models. What shrinks is what costs: rows, widths,
steps, lengths of thoughts. What is paid or far away is on this machine: data, models, the teacher's server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.settings import DatasetConfig, MixSource, PackagedModel, PretrainedModel
from sidr_core.settings.models import TRAINING_STAGES
from sidr_core.settings.sources import SingleSource

#: The month in which every stand-in of data ends, and the first one.
LAST_MONTH, FIRST_MONTH = "2018-10", "2018-03"
#: Items and users of a stand-in.
ITEMS, USERS = 80, 150
#: No key is read or sent: the environment is not expected to hold this variable.
NO_KEY = "SIDR_REHEARSAL_NO_KEY"
#: Tokens of the longest thought, and of the longest text that an encoder reads.
THOUGHT_TOKENS, ENCODED_TOKENS = 24, 32

_TINY = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64, "vocab_size": 600}


def stand_in(profile: Profile, dataset: str, folder: Path, server: str) -> Profile:
    """The profile with `dataset` alone, and that small. It reads and writes nothing.

    Args:
        folder: where the stand-ins of data and models will lie (`sidr_core.rehearsal.data`, `.models`).
        server: base URL of the stand-in of every paid server (`sidr_core.rehearsal.server`).
    """
    config = profile.dataset(dataset)
    fields: dict[str, Any] = {
        "source": _source(config.source, folder),
        "snapshots": {"cadence": config.snapshots.cadence, "start": LAST_MONTH, "end": LAST_MONTH},
        "filters": _filters(config),
        "split": _plain(config.split),
        "encoder": _encoder(config, folder, server),
        "quantizer": _at_most(config.quantizer, size=8, epochs=200, iterations=20, fused_size=16),
        "teacher": _teacher(config, folder, server),
        "base_model": _base_model(config, folder),
        **_trainings(config),
        "grpo": _grpo(config),
        "decoding": _at_most(
            config.decoding,
            batch_size=16,
            max_thought_tokens=THOUGHT_TOKENS,
            max_test_rows=16,
            traces=2,
            choice_rows=16,
        ),
        "evaluation": _at_most(config.evaluation, bootstrap=200, grounding_items=8, intervention_rows=8),
        "item_item": _plain(config.item_item),
        "text_knn": _plain(config.text_knn),
        "launch": _launch(config),
        **_baselines(config),
    }
    return parse_profile(f"rehearsal of {profile.name}", {"datasets": {dataset: fields}})


def data_folder(folder: Path, member: str = "") -> Path:
    """Where the files of a source, or of a member of a mix, lie."""
    return folder / "data" / member if member else folder / "data"


def model_folder(folder: Path) -> Path:
    """Where the stand-in of the base model lies."""
    return folder / "base_model"


def encoder_folder(folder: Path) -> Path:
    """Where the stand-in of the encoder lies."""
    return folder / "encoder"


def _plain(section: Any) -> dict[str, Any]:
    """All fields, also those that a dump leaves out because no fingerprint holds them."""
    excluded = [name for name, field in type(section).model_fields.items() if field.exclude]
    return section.model_dump(mode="json") | {name: getattr(section, name) for name in excluded}


def _at_most(section: Any, **limits: float) -> dict[str, Any]:
    """The section with some of its numbers bounded; a field without a number takes its limit."""
    values = {name: getattr(section, name) for name in limits}
    return _plain(section) | {
        name: limit if values[name] is None else min(values[name], limit) for name, limit in limits.items()
    }


def _processes(config: DatasetConfig) -> int:
    return min(2, config.launch.processes)


# -- data ------------------------------------------------------------------------------------


def _source(source: SingleSource | MixSource, folder: Path, member: str = "") -> dict[str, Any]:
    """A source of the same layout whose files lie in `folder`; a generated one is generated smaller."""
    if isinstance(source, MixSource):
        return {"kind": "mix", "sources": {name: _source(one, folder, name) for name, one in source.sources.items()}}
    if source.kind == "sample":
        return _at_most(source, items=ITEMS, users=USERS)
    files: dict[str, Any] = {}
    for role in source.PATHS:
        named = getattr(source, role)
        if not named:
            continue
        path = str(data_folder(folder, member) / file_name(source, role))
        files[role] = path if isinstance(named, str) else [path]
    return _plain(source) | files


def file_name(source: SingleSource, role: str) -> str:
    """Name of the one file that stands in for those of a role (`reviews`, `items`, `train`, …)."""
    if source.kind == "tables":
        return f"{role}.parquet"
    if source.kind == "minionerec":
        return {"info": "info.txt", "items": "items.item.json"}.get(role, f"{role}.csv")
    return f"{role}.csv" if role in ("ratings", "sequences") else f"{role}.json.gz"


def _filters(config: DatasetConfig) -> dict[str, Any]:
    """The rules, with a k-core that a small catalogue survives, and the months that it has."""
    filters = config.filters
    return _at_most(filters, k_core=5) | {
        "since": filters.since if (filters.since or FIRST_MONTH) <= FIRST_MONTH else None,
        "max_quarantine_share": max(filters.max_quarantine_share, 0.02),  # the generator soils a few lines on purpose
    }


# -- vectors, codes and words ----------------------------------------------------------------


def _encoder(config: DatasetConfig, folder: Path, server: str) -> dict[str, Any]:
    encoder = config.encoder
    fields = _at_most(encoder, max_tokens=ENCODED_TOKENS)
    if encoder.endpoint is not None:
        fields["endpoint"] = _endpoint(encoder.endpoint, server)
    elif encoder.model != "minilm":
        fields["model"] = str(encoder_folder(folder))
    return fields


def _endpoint(endpoint: Any, server: str) -> dict[str, Any]:
    return _at_most(endpoint, concurrency=8) | {"base_url": server, "api_key_env": NO_KEY}


def _teacher(config: DatasetConfig, folder: Path, server: str) -> dict[str, Any]:
    teacher = config.teacher
    fields = _at_most(teacher, practice_rows=100, items=40, users=40) | {"traces_per_user": 1, "general": None}
    if teacher.endpoint is not None:
        fields["endpoint"] = _endpoint(teacher.endpoint, server)
    if teacher.general is not None:
        fields["general"] = _plain(teacher.general) | {"path": str(data_folder(folder, "general.jsonl")), "rows": 20}
    return fields


# -- models ----------------------------------------------------------------------------------


def _base_model(config: DatasetConfig, folder: Path) -> dict[str, Any]:
    base = config.base_model
    if isinstance(base, (PretrainedModel, PackagedModel)):
        return {
            "kind": "pretrained",
            "name": str(model_folder(folder)),
            "dtype": base.dtype,
            "new_rows": base.new_rows,
            "seed": base.seed,
        }
    return _plain(base) | _TINY


def _trainings(config: DatasetConfig) -> dict[str, Any]:
    """Both stages of SFT: 8 examples a step per process, one of them at most per forward pass where it was so."""
    batch = 8 * _processes(config)
    sections = {}
    for name in ("sft", "activation"):
        real = getattr(config, name)
        tasks = {task: min(weight, 0.1) for task, weight in real.tasks.items()}
        if name == "sft":
            tasks = dict.fromkeys(_TASKS_PER_ROW, 0.1) | tasks
        sections[name] = _at_most(real, epochs=1.0, warmup_steps=2, select_rows=16, save_every=20) | {
            "batch_size": batch,
            "micro_batch": 8 if real.micro_batch >= real.batch_size else 4,
            "lora": _at_most(real.lora, rank=4),
            "tasks": tasks,
            "tracking": "none",
        }
    return sections


#: Tasks with an example per train row, of which a few are enough.
_TASKS_PER_ROW = ("sids_to_sid", "sids_to_title", "titles_to_title", "titles_to_sid", "user_narrative", "practice")


def _grpo(config: DatasetConfig) -> dict[str, Any]:
    real = config.grpo
    smaller = _at_most(real, steps=2, generations=4, micro_batch=4, preflight=4, select_rows=8, select_every=1)
    return smaller | {
        "vllm": None,
        "prompts_per_step": 2 * _processes(config),
        # An untrained model earns nothing and closes no thought: the trial runs and refuses nothing.
        "preflight_same": 1.0,
        "preflight_cut": 1.0,
        "max_thought_tokens": min(real.max_thought_tokens, THOUGHT_TOKENS),
        "save_every": 1,
        "lora": _at_most(real.lora, rank=4),
        "tracking": "none",
    }


def _launch(config: DatasetConfig) -> dict[str, Any]:
    """Where the real stages run, at most two processes at a time; what stands in for a cluster are processes here."""
    launch = _plain(config.launch) | {"processes": _processes(config)}
    if config.launch.kind == "ray":
        stages = [stage for stage in config.launch.stages if stage in TRAINING_STAGES]
        launch |= {"kind": "accelerate", "stages": stages}
    return launch


def _baselines(config: DatasetConfig) -> dict[str, Any]:
    """Each with the first of its trials."""
    small = {"epochs": 1, "select_rows": 16}
    sections = {}
    for name in ("gru4rec", "sasrec", "tiger"):
        real = getattr(config, name)
        trial = _plain(real.trials[0]) | {"hidden_size": 16}
        sections[name] = _plain(real) | small | {"trials": [trial]}
    sections["tiger"] |= {"layers": 1, "heads": 2}
    return sections
