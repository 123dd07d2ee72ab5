"""Profiles: what to build, as one YAML file in `profiles/`, or any path.

A profile names datasets; each has one section per step (`sidr_core.settings`). A dataset may `extends:`
another and override single fields, so an ablation is a few lines. Unknown keys are errors that name the
nearest known key. `${NAME:-default}` in a path is taken from the environment.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sidr_core.errors import ProfileError
from sidr_core.pipeline.graph import OPTIONAL, STAGES
from sidr_core.settings import BaseModelConfig, DatasetConfig, Source, StoreSection, Window

#: Safe loading, by libyaml where PyYAML was built with it: a profile of 200 full datasets loads in a fifth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PROFILES = (Path(__file__).resolve().parents[1] / "profiles").resolve()


class StageConfig:
    """The profile sections that a stage declared; reading any other one is an error.

    It takes the place of a :class:`DatasetConfig` in the body of a stage, with two context sections:
    `dataset` (the name) and `snapshot` (a :class:`Window`). A name such as `decoding.max_thought_tokens` gives
    only that field of the section, so a change of its other fields does not affect the stage.
    """

    def __init__(self, config: DatasetConfig, sections: tuple[str, ...], dataset: str, window: Window) -> None:
        context = {"dataset": dataset, "snapshot": window}
        self._values: dict[str, Any] = {}
        for name in sections:
            section, _, field = name.partition(".")
            value = context[section] if section in context else getattr(config, section)
            if field:
                setattr(self._values.setdefault(section, SimpleNamespace()), field, getattr(value, field))
            else:
                self._values[section] = value

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"section {name!r} is not declared by this stage; declared: {sorted(values)}")
        return values[name]

    def key(self) -> dict[str, Any]:
        """JSON-able form, for the fingerprint; a section that is None is as if it were not there."""
        sections: dict[str, Any] = {}
        for name, value in self._values.items():
            if value is None:
                continue
            if isinstance(value, BaseModel):
                sections[name] = value.model_dump(mode="json")
            else:
                sections[name] = vars(value) if isinstance(value, SimpleNamespace) else value
        return sections


@dataclass(frozen=True)
class Profile:
    """A set of datasets; iterating gives their names."""

    name: str
    default_dataset: str
    datasets: Mapping[str, DatasetConfig]
    raw: Mapping[str, Any]
    store: StoreSection

    def __iter__(self) -> Iterator[str]:
        return iter(self.datasets)

    def dataset(self, name: str) -> DatasetConfig:
        """The dataset called `name`."""
        if name not in self.datasets:
            near = difflib.get_close_matches(name, self.datasets, n=1)
            raise ProfileError(
                f"profile {self.name!r} has no dataset {name!r}",
                expected=f"one of {', '.join(self.datasets)}",
                found=repr(name),
                fix=f"did you mean {near[0]!r}?" if near else "use one of these, or set SIDR_PROFILE",
            )
        return self.datasets[name]

    def newest(self, dataset: str | None = None) -> str:
        """Key of the newest snapshot of a dataset (default: the profile's default dataset)."""
        return self.dataset(dataset or self.default_dataset).snapshots.keys()[-1]


#: DuckDB reads a path with these characters as a glob, so a view could read files of other folders.
_GLOB_CHARACTERS = frozenset("*?[\\")
_MAX_NAME_BYTES = 255


def home() -> Path:
    """The working folder: `SIDR_HOME`, default `.sidr`.

    Raises:
        ProfileError: the path has glob characters, or a part too long for a file name.
    """
    folder = Path(os.environ.get("SIDR_HOME") or ".sidr").absolute()
    if _GLOB_CHARACTERS & set(str(folder)) or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in folder.parts):
        raise ProfileError(
            "SIDR_HOME cannot be the working folder",
            expected=f"a path without {' '.join(sorted(_GLOB_CHARACTERS))}, no part longer than "
            f"{_MAX_NAME_BYTES} bytes",
            found=repr(str(folder))[:200],
            fix="set SIDR_HOME to another folder",
        )
    return folder


def load_profile(name: str | None = None) -> Profile:
    """Read a profile by name (in `profiles/`) or path; default: `SIDR_PROFILE`, else `quickstart`.

    Raises:
        ProfileError: no such profile, not YAML, an unknown or impossible field.
    """
    return parse_profile(*_read(name))


def _read(name: str | None) -> tuple[str, Any]:
    """Name and parsed YAML of a profile, see :func:`load_profile`."""
    name = name or os.environ.get("SIDR_PROFILE") or "quickstart"
    path = Path(name) if name.endswith((".yaml", ".yml")) or "/" in name else PROFILES / f"{name}.yaml"
    if not os.path.isfile(path):  # Path.is_file raises if the name is too long
        known = sorted(p.stem for p in PROFILES.glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1)
        raise ProfileError(
            f"there is no profile {name!r}",
            expected=f"one of {', '.join(known)}, or a path to a YAML file",
            found=f"no file {path}",
            fix=f"did you mean {near[0]!r}?" if near else "set SIDR_PROFILE to one of these",
        )
    try:
        text = path.read_text()
        _refuse_yaml_bomb(path, text)
        raw = _LOADER(text).get_single_data()
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, impossible dates
        raise ProfileError(
            f"{path} is not valid YAML",
            expected="a mapping",
            found=str(error).replace("\n", " ")[:500],
            fix="correct the file",
        ) from None
    return path.stem, raw


#: Limits on a profile's YAML: aliases of aliases grow exponentially, and nested values are walked by recursion.
_MAX_ALIASES, _MAX_DEPTH = 20, 30


def _refuse_yaml_bomb(path: Path, text: str) -> None:
    """Refuse YAML that is small as a file but huge, or endless, once parsed."""
    aliases = depth = 0
    open_anchors: list[str | None] = []
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        depth = len(open_anchors)
        inside_itself = isinstance(event, yaml.AliasEvent) and event.anchor in open_anchors
        if depth > _MAX_DEPTH or aliases > _MAX_ALIASES or inside_itself:
            raise ProfileError(
                f"{path} is not a profile",
                expected=f"at most {_MAX_ALIASES} aliases (`*name`) and {_MAX_DEPTH} levels, no alias inside itself",
                found=f"more, in line {event.start_mark.line + 1}",
                fix="write the values out, or let a dataset extend another with `extends:`",
            )


#: A dataset's name is also that of a folder, and of a schema in the catalog, where case is ignored.
_DATASET_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
_DUCKDB_SCHEMAS = ("catalog", "information_schema", "main", "pg_catalog", "system", "temp")

_TOP_KEYS = ("default_dataset", "datasets", "description", "store")


def parse_profile(name: str, raw: Any) -> Profile:
    """Build a profile from parsed YAML. Raises ProfileError on anything unknown or impossible."""
    if not isinstance(raw, dict) or not isinstance(raw.get("datasets"), dict) or not raw["datasets"]:
        raise ProfileError(
            f"profile {name!r} names no dataset",
            expected="a mapping with a non-empty `datasets:`",
            found=type(raw).__name__ if not isinstance(raw, dict) else f"keys {sorted(map(str, raw))}",
            fix="see profiles/quickstart.yaml for the form",
        )
    for key in raw:
        if key not in _TOP_KEYS:
            raise _unknown(f"profile {name!r}", str(key), _TOP_KEYS)
    datasets: dict[str, DatasetConfig] = {}
    for dataset in raw["datasets"]:
        same = [known for known in datasets if known.lower() == str(dataset).lower()]
        if not re.fullmatch(_DATASET_NAME, str(dataset)) or str(dataset).lower() in _DUCKDB_SCHEMAS or same:
            raise ProfileError(
                f"profile {name!r}: {str(dataset)[:100]!r} cannot name a dataset",
                expected="at most 64 letters, digits and underscores, starting with a letter; not a schema of DuckDB "
                f"({', '.join(_DUCKDB_SCHEMAS)}), nor another dataset's name in other case",
                found=repr(dataset)[:100],
                fix="rename it",
            )
        datasets[dataset] = _dataset_config(name, dataset, _merged(name, raw["datasets"], dataset, ()))
    for dataset, config in list(datasets.items()):
        for number, repeat in enumerate(repeats(dataset, config.seeds), start=1):
            if repeat in datasets:
                raise ProfileError(
                    f"profile {name!r}: two datasets are called {repeat!r}",
                    expected=f"that name for the repeat of {dataset!r} with another seed (`seeds: {config.seeds}`)",
                    found="a dataset of its own",
                    fix="rename it",
                )
            datasets[repeat] = _other_seeds(config, number)
    default = raw.get("default_dataset") or next(iter(datasets))
    store = store_section(f"profile {name!r}, store", raw.get("store"))
    profile = Profile(name=name, default_dataset=default, datasets=datasets, raw=raw, store=store)
    profile.dataset(default)
    return profile


def store_section(where: str = "", fields: Any = None) -> StoreSection:
    """The section `store`, from its parsed YAML; without `where`, that of the profile which `SIDR_PROFILE` names.

    Raises:
        ProfileError: an unknown key, or not a URL of a store; the URL is not repeated, as it may hold a key.
    """
    if not where:
        name, raw = _read(None)
        where, fields = f"profile {name!r}, store", raw.get("store") if isinstance(raw, dict) else None
    try:
        return StoreSection.model_validate(_expand(fields or {}))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise _unknown(where, str(first["loc"][-1]), tuple(StoreSection.model_fields)) from None
        raise ProfileError(
            where,
            expected=first["msg"],
            found="something else",
            fix="correct it; keys are read from the environment (docs/scale.md)",
        ) from None


#: Sections whose seed a repeat changes: training. Data, codebook, corpus and resampling stay the same.
_TRAINED = ("base_model", "sft", "activation", "grpo", "gru4rec", "sasrec", "tiger")


def repeats(dataset: str, seeds: int) -> list[str]:
    """Names of the datasets that repeat one with other seeds.

    >>> repeats("office", 3), repeats("office", 1)
    (['office_seed2', 'office_seed3'], [])
    """
    return [f"{dataset}_seed{number}" for number in range(2, seeds + 1)]


def _other_seeds(config: DatasetConfig, number: int) -> DatasetConfig:
    """The same with every training seed raised by `number`."""
    sections = {name: getattr(config, name) for name in _TRAINED}
    return config.model_copy(
        update={name: part.model_copy(update={"seed": part.seed + number}) for name, part in sections.items()}
    )


def _merged(profile: str, datasets: Mapping[str, Any], name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The dataset's fields over those of the one it extends."""
    if name not in datasets:
        raise _unknown(f"profile {profile!r}, dataset {seen[-1]!r}, `extends`", name, tuple(datasets))
    if name in seen:
        raise ProfileError(
            f"profile {profile!r}: datasets extend each other in a circle",
            expected="a chain that ends",
            found=" -> ".join((*seen, name)),
            fix="remove one `extends`",
        )
    fields = dict(datasets[name] or {})
    parent = fields.pop("extends", None)
    return _overlay(_merged(profile, datasets, parent, (*seen, name)), fields) if parent else fields


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping; a section with another `kind` is replaced entirely."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            merged[key] = _overlay(old, value)
        else:
            merged[key] = value
    return merged


def _dataset_config(profile: str, name: str, fields: Mapping[str, Any]) -> DatasetConfig:
    try:
        config = DatasetConfig.model_validate(_expand(fields))
    except ValidationError as error:
        # A misspelt required key is also reported as missing: naming the misspelling helps more.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where = f"profile {profile!r}, dataset {name!r}, {'.'.join(str(p) for p in first['loc']) or 'fields'}"
        if first["type"] == "extra_forbidden":
            raise _unknown(where, str(first["loc"][-1]), _known_keys(first["loc"][:-1])) from None
        raise ProfileError(
            where,
            expected=first["msg"].removeprefix("Value error, "),
            found=_URL_CREDENTIALS.sub("//[user]@", repr(first.get("input")))[:200],
            fix="correct this field of the profile",
        ) from None
    stages = tuple(stage.name for stage in (*STAGES, *OPTIONAL))
    for stage in config.launch.stages:
        if stage not in stages:
            raise _unknown(f"profile {profile!r}, dataset {name!r}, launch.stages", stage, stages)
    return config


#: User and password in a URL.
_URL_CREDENTIALS = re.compile(r"//[^/\s@]*@")


def _known_keys(location: tuple[Any, ...]) -> tuple[str, ...]:
    """Known keys at a location in the dataset's fields."""
    model: Any = DatasetConfig
    unions = {"source": Source, "base_model": BaseModelConfig}
    for depth, part in enumerate(location):
        if depth == 0 and part in unions:
            kinds = {m.model_fields["kind"].annotation.__args__[0]: m for m in get_args(get_args(unions[part])[0])}
            # The last kind in the location counts: the domains of a mix lie inside the mix.
            model = next((kinds[name] for name in reversed(location) if name in kinds), next(iter(kinds.values())))
        elif depth == 0:
            model = DatasetConfig.model_fields[part].annotation
    return tuple(model.model_fields) + (("extends",) if model is DatasetConfig else ())


def _unknown(where: str, key: str, known: tuple[str, ...]) -> ProfileError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return ProfileError(
        f"{where}: unknown key",
        expected=f"one of {', '.join(known)}",
        found=repr(key),
        fix=f"did you mean {near[0]!r}?" if near else "remove it or use one of the known keys",
    )


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any) -> Any:
    """Replace `${NAME:-default}` in every string."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: os.environ.get(m[1]) or m[2] or "", value)
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expand(item) for item in value]
    return value
