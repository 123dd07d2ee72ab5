"""Model folders, weights, arrays and resume points that would run code."""

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hostile
import polars as pl
from hostile import Case

from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Encoder, PretrainedModel, TinyModel

QUIET = Progress(lambda line: None)
BOOK = pl.DataFrame({"item_id": ["a", "b"], "codes": [[0], [1]]}, schema_overrides={"codes": pl.List(pl.Int32)})


@functools.cache
def sound() -> Path:
    """A checkpoint, which serves as base model and as encoder too."""
    from sidr_core.models import checkpoint
    from sidr_core.models.base import build_base

    folder = Path(tempfile.mkdtemp(prefix="sidr-sound-"))
    tiny = TinyModel(
        kind="tiny", hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=16, vocab_size=300, seed=1
    )
    model, tokenizer = build_base(tiny, ["a toy"], BOOK)
    meta = {"stage": "sft", "base": "tiny", "seed": 1, "seen_until": "2018-01-01", "synthetic": True}
    checkpoint.save(folder, model, tokenizer, BOOK, meta, "card")
    return folder


# -- loaders of model folders ------------------------------------------------------------------


def base_model(folder: Path) -> str:
    from sidr_core.models.base import build_base

    model, _ = build_base(PretrainedModel(kind="pretrained", name=str(folder)), [], BOOK)
    return f"read ({type(model).__module__.partition('.')[0]})"


def checkpoint_folder(folder: Path) -> str:
    from sidr_core.models import checkpoint

    return f"read ({type(checkpoint.load(folder, 'cpu').model).__module__.partition('.')[0]})"


def encoder(folder: Path) -> str:
    from sidr_core.items.encoders import load_encoder

    return f"read ({len(load_encoder(Encoder(model=str(folder))))} modules)"


FOLDERS: dict[str, Callable[[Path], str]] = {
    "base model": base_model,
    "checkpoint": checkpoint_folder,
    "item encoder": encoder,
}


# -- what is planted in one --------------------------------------------------------------------


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def instead(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(hostile.torch_file(canary))


def disguised(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(hostile.torch_file(canary))


def remote_code(folder: Path, canary: Path) -> None:
    (folder / "modeling_evil.py").write_text(hostile.python(canary))
    classes = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_evil.Evil")
    edit(folder / "config.json", model_type="evil", auto_map=classes)


def remote_code_of_another(folder: Path, canary: Path) -> None:
    classes = dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "evil/repo--modeling_evil.Evil")
    edit(folder / "config.json", auto_map=classes)


def tokenizer_code(folder: Path, canary: Path) -> None:
    (folder / "tokenization_evil.py").write_text(hostile.python(canary))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})


def tokenizer_code_of_another(folder: Path, canary: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/repo--tokenization.Evil", None]})


def generation_code(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(hostile.python(canary))


def adapter(folder: Path, canary: Path) -> None:
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="evil/repo")


def shard_outside(folder: Path, canary: Path) -> None:
    (folder.parent / "outside.bin").write_bytes(hostile.torch_file(canary))
    (folder / "model.safetensors").unlink()
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "../outside.bin"})


def shards(name: str) -> Callable[[Path, Path], None]:
    """An index of shards beside sound weights; `…` in a name is the folder of the case."""

    def plant(folder: Path, canary: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
        named = name.replace("…", str(folder.parent))
        edit(folder / "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": named})

    return plant


def text_of(name: str, text: str) -> Callable[[Path, Path], None]:
    return lambda folder, canary: (folder / name).write_text(text) and None


def config(**fields: object) -> Callable[[Path, Path], None]:
    return lambda folder, canary: edit(folder / "config.json", **fields)


def weights_outside(folder: Path, canary: Path) -> None:
    (folder.parent / "outside.bin").write_bytes(hostile.torch_file(canary))
    edit(folder / "config.json", transformers_weights="../outside.bin")


def linked_folder(folder: Path, canary: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "pytorch_model.bin").write_bytes(hostile.torch_file(canary))
    (folder / "0_Linked").symlink_to(folder.parent / "outside")


def module_of_the_path(folder: Path, canary: Path) -> None:
    """An encoder's list of modules may name any class that Python can import."""
    place = folder.parent / "importable"
    place.mkdir()
    (place / "sidr_canary_module.py").write_text(hostile.python(canary))
    sys.path.append(str(place))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sidr_canary_module.Evil"}]
    (folder / "modules.json").write_text(json.dumps(modules))


def module_outside(folder: Path, canary: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text(json.dumps({"in_features": 2, "out_features": 2}))
    (outside / "pytorch_model.bin").write_bytes(hostile.torch_file(canary))
    dense = "sentence_transformers.sentence_transformer.modules.Dense"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "../outside", "type": dense}]))


def beside(name: str, make: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda folder, canary: (folder / name).write_bytes(make(canary)) and None


#: Name -> what plants it, and loaders that may read such a folder, since they read neither code nor pickle of it.
PLANTED: dict[str, tuple[Callable[[Path, Path], None], tuple[str, ...]]] = {
    "pytorch_model.bin instead of safetensors": (instead, ()),
    "pytorch_model.bin beside safetensors": (beside("pytorch_model.bin", hostile.torch_file), ()),
    "weights.pt": (beside("weights.pt", hostile.torch_file), ()),
    "a pickle": (beside("state.pkl", hostile.pickled), ()),
    ".npy with objects": (beside("a.npy", hostile.npy), ()),
    ".npz with objects": (beside("a.npz", hostile.npz), ()),
    "a pickle named model.safetensors": (disguised, ()),
    "auto_map and modeling_evil.py": (remote_code, ()),
    "auto_map to another repository": (remote_code_of_another, tuple(FOLDERS)),
    "tokenizer with code": (tokenizer_code, ()),
    "tokenizer with code of another repository": (tokenizer_code_of_another, tuple(FOLDERS)),
    "custom_generate/generate.py": (generation_code, ()),
    "adapter of another model": (adapter, ()),
    "index of shards outside the folder": (shard_outside, ()),
    "index with a path out of the folder": (shards("../outside.safetensors"), ()),
    "index with a whole path": (shards("…/outside.safetensors"), ()),
    "index that names a pickle": (shards("outside.bin"), ()),
    "index of 100,000 levels": (text_of("model.safetensors.index.json", "[" * 100_000), ()),
    "config.json of 100,000 levels": (text_of("config.json", '{"a":' * 100_000), ()),
    "config.json that is a list": (text_of("config.json", "[]"), ()),
    "config.json with a billion layers": (config(num_hidden_layers=10**9), ()),
    "config.json with 10^15 tokens": (config(vocab_size=10**15), ()),
    "config.json of wrong types": (config(num_attention_heads="x", hidden_size=[]), ()),
    "tokenizer.json of 100,000 levels": (text_of("tokenizer.json", '{"a":' * 100_000), ()),
    "tokenizer.json without a model": (text_of("tokenizer.json", "{}"), ()),
    "weights outside the folder": (weights_outside, ()),
    "link to a folder of pickles": (linked_folder, ()),
}
ENCODERS_ALONE = {
    "modules.json naming a foreign class": module_of_the_path,
    "modules.json pointing outside": module_outside,
}


def in_folder(plant: Callable[[Path, Path], None], load: Callable[[Path], str]) -> Callable[[Path, Path], str]:
    def run(folder: Path, canary: Path) -> str:
        place = folder / "model"
        shutil.copytree(sound(), place)
        plant(place, canary)
        return load(place)

    return run


def folder_cases() -> list[Case]:
    cases = [
        Case(thing, name, in_folder(plant, load), r"(refused|read).*" if name in readers else r"refused.*")
        for thing, (plant, readers) in PLANTED.items()
        for name, load in FOLDERS.items()
    ]
    return cases + [Case(thing, "item encoder", in_folder(plant, encoder)) for thing, plant in ENCODERS_ALONE.items()]


# -- resume points -----------------------------------------------------------------------------


def trainer(folder: Path, steps: int):
    """A trainer of the library with our resume points; a step takes a hundredth of a second."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(sound())
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, save_strategy="no", report_to="none",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    return Trainer(model, args, train_dataset=rows)  # type: ignore[arg-type]


@functools.cache
def stopped() -> Path:
    """The folder of a training that was stopped after step 1."""
    from sidr_core.training import resume

    folder = Path(tempfile.mkdtemp(prefix="sidr-resume-"))
    resume.train(trainer(folder, 2), folder, None, 1, None, QUIET)
    return folder


def resumed(name: str) -> Callable[[Path, Path], str]:
    def run(folder: Path, canary: Path) -> str:
        from sidr_core.training import resume

        place = folder / "resume"
        shutil.copytree(stopped(), place)
        point = resume.newest_point(place, "owner", QUIET)
        assert point is not None
        (Path(point) / name).write_bytes(hostile.torch_file(canary))
        if name == "pytorch_model.bin":
            (Path(point) / "model.safetensors").unlink()
        resume.train(trainer(place, 3), place, point, 1, None, QUIET)
        return "not read: training went on"

    return run


def planted(name: str, mark: str) -> Callable[[Path, Path], str]:
    """A folder among the resume points that the trainer did not write."""

    def run(folder: Path, canary: Path) -> str:
        from sidr_core.training import resume

        place = folder / "resume"
        shutil.copytree(stopped(), place)
        sound = resume.newest_point(place, "owner", QUIET)
        point = place / name
        point.mkdir()
        (point / "pytorch_model.bin").write_bytes(hostile.torch_file(canary))
        (point / resume.MARK).write_text(mark)
        said: list[str] = []
        assert resume.newest_point(place, "owner", Progress(said.append)) == sound
        return "not used, and told" if any(name in line and "damaged" in line for line in said) else "not used"

    return run


FOREIGN_POINTS = {
    "checkpoint-x": ("checkpoint-x", "{}"),
    "checkpoint-99 without contents": ("checkpoint-99", "{}"),
    "checkpoint-99 with a mark that is none": ("checkpoint-99", "[" * 100_000),
    "checkpoint-99 with a mark of another place": ("checkpoint-99", '{"../owner.json": "x"}'),
    "checkpoint-99 with a mark of numbers": ("checkpoint-99", '{"pytorch_model.bin": 1}'),
    "checkpoint-٣": ("checkpoint-٣", "{}"),
}


def resume_cases() -> list[Case]:
    read = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin")
    refused = [Case(f"pickle as {name}", "resume point", resumed(name), r"refused \(Weights only.*") for name in read]
    ignored = Case("pickle as training_args.bin", "resume point", resumed("training_args.bin"), "not read.*")
    foreign = [
        Case(thing, "resume point", planted(name, mark), "not used, and told")
        for thing, (name, mark) in FOREIGN_POINTS.items()
    ]
    return [*refused, *foreign, ignored]


def all_cases() -> list[Case]:
    return [*folder_cases(), *resume_cases()]
