"""What a step of the pipeline is.

A :class:`Stage` is data: its name, the files it reads of other stages, the profile sections it
reads, a code version, and a pure function ``run(inputs, config, out_dir, progress) -> Report``.
The function writes files into ``out_dir`` and nothing else; `sidr_core.pipeline.run` resolves its inputs and
the store publishes its output. It can open only the files that it declares, which keeps the test
split sealed from training (docs/architecture.md).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sidr_core.errors import SealedInput
from sidr_core.pipeline.report import Report

if TYPE_CHECKING:
    from sidr_core.pipeline.live import Live
    from sidr_core.pipeline.store import Artifact, Store
    from sidr_core.settings import DatasetConfig


@dataclass(frozen=True)
class CheckSpec:
    """A check that a stage makes of its output; if a blocking one fails, downstream stages do not run.

    Args:
        description: what is expected.
        fix: what to do where it fails; the default is for what no input should lead to.
    """

    name: str
    description: str
    blocking: bool = True
    fix: str = "no data or settings should lead to this: please report it, with these lines"


#: Made for every stage that names its tables, by `sidr_core.pipeline.schema_check`.
SCHEMA = CheckSpec("schema", "Every published table keeps its contract: columns, types and rules.")


class StageFunction(Protocol):
    """The body of a stage."""

    def __call__(self, inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report: ...


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Args:
        name: the asset's name; its main table is `<name>.parquet`.
        run: `"module:function"`, imported when the stage runs.
        inputs: stage name -> the files (or `"*"`) it may open of that stage's output.
        sections: the profile sections (and context sections) it reads, or `section.field`; it can read no others.
        code_version: raise it when the same inputs should give another output.
        warm: whether it also reads its own output of the previous snapshot.
        from_earlier: like `inputs`, of the newest earlier snapshot that has all of them; if there are any, a warm
            start also uses the newest earlier output of its own instead of only the previous snapshot's.
        from_live: like `inputs`, of what is live of the dataset (`sidr_core/pipeline/live.py`), as far as it has them.
        sources: `"module:function"` giving the external files that the first of its sections names; they are
            fingerprinted by content instead of by path.
        kinds, description: shown in the UI.
        plots: metrics, by name or pattern (`*_ndcg@10`), in the order of what matters: the UI plots these.
        checks: the checks it reports; :data:`SCHEMA` is added if it names tables.
        tables: Parquet file, without suffix -> its contract, a class in `sidr_core/tables/contracts.py`.
        unused: `"module:function"` giving, for a dataset's config, the `inputs` and `from_earlier` that it does
            not need, and as `live/<stage>` those of `from_live`.
    """

    name: str
    run: str
    inputs: Mapping[str, tuple[str, ...]]
    sections: tuple[str, ...]
    code_version: str
    description: str
    kinds: tuple[str, ...] = ()
    warm: bool = False
    from_earlier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    from_live: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: str | None = None
    checks: tuple[CheckSpec, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    unused: str | None = None
    plots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tables and SCHEMA not in self.checks:
            object.__setattr__(self, "checks", (SCHEMA, *self.checks))

    def load(self) -> StageFunction:
        """Import and return the body."""
        return load_object(self.run)

    def reads(self, config: DatasetConfig) -> dict[str, tuple[str, ...]]:
        """The inputs that a dataset with this config needs, with their files."""
        return self._needed(self.inputs, config)

    def reads_earlier(self, config: DatasetConfig) -> dict[str, tuple[str, ...]]:
        """The same of `from_earlier`."""
        return self._needed(self.from_earlier, config)

    def reads_live(self, config: DatasetConfig) -> dict[str, tuple[str, ...]]:
        """The same of `from_live`."""
        needed = self._needed({f"live/{name}": files for name, files in self.from_live.items()}, config)
        return {name.removeprefix("live/"): files for name, files in needed.items()}

    def _needed(self, declared: Mapping[str, tuple[str, ...]], config: DatasetConfig) -> dict[str, tuple[str, ...]]:
        skipped = load_object(self.unused)(config) if self.unused and declared else ()
        return {name: files for name, files in declared.items() if name not in skipped}


def load_object(reference: str) -> Any:
    """Return the object that `"module:name"` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


class Progress:
    """Reports the progress of a long step: at most one line every `every` seconds, and one at the end.

    Args:
        emit: called with each line; the default prints to standard error.
        every: minimum seconds between two lines of one step.
    """

    def __init__(self, emit: Callable[[str], None] | None = None, every: float = 5.0) -> None:
        self._emit = emit or partial(print, file=sys.stderr, flush=True)
        self._every = every
        self._last = 0.0
        self._prefix = ""

    def named(self, prefix: str) -> Progress:
        """A copy whose lines begin with `prefix`."""
        child = Progress(self._emit, self._every)
        child._prefix = f"{prefix}: "
        return child

    def say(self, text: str) -> None:
        """Emit a line now."""
        self._emit(self._prefix + text)
        self._last = time.monotonic()

    def tick(self, done: int, total: int, unit: str, extra: str = "") -> None:
        """Report `done` of `total`; emits a line when one is due or the step is complete."""
        if done >= total or time.monotonic() - self._last >= self._every:
            tail = f", {extra}" if extra else ""
            self.say(f"{done:,} of {total:,} {unit}{tail}")


class StageInput:
    """The files of one upstream output that a stage declared."""

    def __init__(self, artifact: Artifact, allowed: tuple[str, ...], reader: str) -> None:
        self._artifact, self._allowed, self._reader = artifact, allowed, reader

    @property
    def digest(self) -> str:
        """Content digest of the declared files."""
        return self._artifact.digest_of(self.files)

    def digest_of(self, declared: tuple[str, ...]) -> str:
        """Content digest of the files that another stage declares of this output."""
        return self._artifact.digest_of(StageInput(self._artifact, declared, self._reader).files)

    @property
    def fingerprint(self) -> str:
        return self._artifact.fingerprint

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the declared files that exist."""
        names = self._artifact.files
        return tuple(names) if "*" in self._allowed else tuple(n for n in names if n in self._allowed)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The metrics that the upstream stage reported."""
        return self._artifact.manifest["metrics"]

    @property
    def config(self) -> Mapping[str, Any]:
        """The profile sections that the output was made with, as JSON."""
        return self._artifact.manifest["key"]["config"]

    @property
    def made_from(self) -> Mapping[str, str]:
        """Stage -> content digest of the files that the output was made from."""
        return self._artifact.manifest["key"]["inputs"]

    def path(self, name: str) -> Path:
        """Path of file `name`, verified against the manifest.

        Raises:
            SealedInput: the stage did not declare this file.
            StoreError: the file is missing or its bytes changed.
        """
        if "*" not in self._allowed and name not in self._allowed:
            raise SealedInput(
                f"{self._reader} may not open {self._artifact.stage}/{name}",
                expected=f"one of {', '.join(self._allowed)}",
                found=name,
                fix="declare the file in sidr_core/pipeline/graph.py if this stage may read it; "
                "test rows are for recommendations and evaluation only",
            )
        return self._artifact.path(name)

    def folder(self) -> Path:
        """The output folder, verified; only if every file is declared."""
        if "*" not in self._allowed:
            self.path("*")
        return self._artifact.verified_folder()


class Inputs(Mapping[str, StageInput]):
    """Everything a stage may read.

    Attributes:
        previous: the stage's own output of the previous snapshot, if the stage is warm and there is one.
        earlier: what the stage declared of an earlier snapshot, whose key is `earlier_snapshot`; None if no
            earlier snapshot has all of it.
        live: what the stage declared of what is live, described by `alive`; None if nothing is.
        synthetic: whether anything upstream is generated data; the output gets the same label.
        resume: a folder for unfinished work on this output; it survives a crash and is deleted when the output
            is published. None if the stage is called without a store.
    """

    resume: Path | None = None
    earlier: Inputs | None = None
    earlier_snapshot: str | None = None
    live: Inputs | None = None
    alive: Live | None = None

    def __init__(
        self,
        stages: Mapping[str, StageInput],
        store: Store,
        previous: StageInput | None = None,
        synthetic: bool = False,
    ) -> None:
        self._stages, self._store = stages, store
        self.previous, self.synthetic = previous, synthetic
        self.parts: list[tuple[str, str]] = []
        self._held: list[Artifact] = []

    def see_earlier(self, snapshot: str, stages: Mapping[str, StageInput]) -> None:
        """Add files of an earlier snapshot; parts built from them are recorded as this stage's own."""
        self.earlier = Inputs(stages, self._store, synthetic=self.synthetic)
        self.earlier.parts, self.earlier_snapshot = self.parts, snapshot

    def see_live(self, alive: Live, stages: Mapping[str, StageInput]) -> None:
        """Add files of what is live; parts built from them are recorded as this stage's own."""
        self.live = Inputs(stages, self._store, synthetic=self.synthetic)
        self.live.parts, self.alive = self.parts, alive

    def over_live(self, names: Iterable[str]) -> Inputs:
        """These inputs, with some outputs of what is live in place of the snapshot's own."""
        assert self.live is not None, "nothing is live"
        mixed = Inputs({**self._stages, **{name: self.live[name] for name in names}}, self._store, None, self.synthetic)
        mixed.parts, mixed._held = self.parts, self._held
        return mixed

    def __getitem__(self, name: str) -> StageInput:
        return self._stages[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def manifests(self, name: str) -> dict[str, Mapping[str, Any]]:
        """The manifests of an input and of all outputs that it was made from, by stage: what they say of their files,
        settings and checks, without a way to open them.
        """
        artifact = self._store.open(name, self._stages[name].fingerprint)
        assert artifact is not None, "an input is held while its reader runs"
        return {stage: output.manifest for stage, output in self._store.lineage(artifact).items()}

    def cache(self, name: str) -> Path:
        """A folder, shared by all datasets, for files that can be lost without harm; not created here."""
        return self._store.home / "cache" / name

    def part(self, name: str, version: str, key: Mapping[str, Any], build: Callable[[Path], Report | None]) -> Artifact:
        """Build or reuse a piece of this stage's work that other stages or snapshots share.

        It is published by the same store under the same rules, with `key` in place of a config.
        """
        artifact, _ = self._store.obtain(name, version, dict(key), build, synthetic=self.synthetic)
        self.parts.append((name, artifact.fingerprint))
        self._held.append(artifact)  # no manifest names it until this stage is published
        return artifact
