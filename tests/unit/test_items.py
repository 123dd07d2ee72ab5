"""Item text, digests, the encoder, and the embedding stage's reuse."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from sidr_core import tables
from sidr_core.contracts import Embeddings, Items
from sidr_core.errors import InputError
from sidr_core.items import embeddings, encoders
from sidr_core.items.text import PLACEHOLDER, item_text, markdown_text, text_digest
from sidr_core.settings import Encoder
from sidr_core.stage import Progress

QUIET = Progress(lambda line: None)


@dataclasses.dataclass
class Folder:
    """Stands in for the declared files of an upstream output."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name


class Given(dict):
    previous = None


def catalogue(folder: Path, **titles: str) -> Folder:
    folder.mkdir(exist_ok=True)
    rows = [(item, title, "about it", "", "", None, False) for item, title in titles.items()]
    schema = dict.fromkeys(("item_id", "title", "description", "brand", "category", "published_sid"), pl.String)
    frame = pl.DataFrame(rows, schema=schema | {"synthetic": pl.Boolean}, orient="row")
    tables.write(frame, folder / "items.parquet", Items)
    return Folder(folder)


@pytest.fixture
def fake_encoder(monkeypatch):
    """Vectors that tell the text apart, and a record of what was encoded."""
    seen: list[list[str]] = []

    def encode(texts, config, progress):
        seen.append(list(texts))
        return np.array([[len(t), t.count("a"), len(seen)] for t in texts], dtype=np.float32)

    monkeypatch.setattr(encoders, "encode", encode)
    return seen


def embed(out: Path, items: Folder, previous: Folder | None = None, **settings):
    out.mkdir()
    given = Given(interactions=items)
    given.previous = previous
    config = SimpleNamespace(encoder=Encoder(**settings))
    return embeddings.build(given, config, out, QUIET), tables.read(out / embeddings.FILE)  # type: ignore[arg-type]


def test_item_text_skips_blank_fields():
    assert item_text(" Pen ", " blue", 99) == "Pen blue"
    assert item_text("Pen", " ", 99) == "Pen"
    assert item_text("", "blue", 99) == "blue"
    assert item_text(" ", "", 99) == PLACEHOLDER
    assert item_text("Pen", "blue", 4) == "Pen"


def test_digest_depends_on_text_and_encoder():
    assert len({text_digest("a"), text_digest("b"), text_digest("a", "x"), text_digest("a", "y")}) == 4
    assert text_digest("a", "x") == text_digest("a", "x")


def test_markdown_text_is_inert_and_short():
    assert markdown_text("<b>a|b\n[c](d)</b>") == r"&lt;b&gt;a\|b \[c\](d)&lt;/b&gt;"
    assert markdown_text("x" * 99, 10) == "x" * 9 + "…"


def test_only_new_and_changed_items_are_encoded(tmp_path, fake_encoder):
    _, first = embed(tmp_path / "1", catalogue(tmp_path / "c1", b="banana", a="ant", z="zoo"))
    later = catalogue(tmp_path / "c2", a="ant", b="bandana", c="cat")
    report, second = embed(tmp_path / "2", later, Folder(tmp_path / "1"))
    assert fake_encoder[1] == ["bandana about it", "cat about it"]
    assert (report.metrics["encoded"], report.metrics["reused"], report.metrics["dimension"]) == (2, 1, 3)
    assert second["item_id"].to_list() == ["a", "b", "c"]
    assert second.filter(pl.col("item_id") == "a").equals(first.filter(pl.col("item_id") == "a"))
    assert [v[2] for v in second["vector"]] == [1, 2, 2]  # the vector of the right round at the right item


def test_nothing_changed_loads_no_encoder_and_gives_equal_bytes(tmp_path, fake_encoder):
    items = catalogue(tmp_path / "c", a="ant", b="bee")
    embed(tmp_path / "1", items)
    report, _ = embed(tmp_path / "2", items, Folder(tmp_path / "1"))
    assert len(fake_encoder) == 1 and report.metrics["encoded"] == 0
    assert (tmp_path / "1" / embeddings.FILE).read_bytes() == (tmp_path / "2" / embeddings.FILE).read_bytes()


def test_another_encoder_setting_reuses_nothing_but_batch_size_is_none(tmp_path, fake_encoder):
    items = catalogue(tmp_path / "c", a="ant")
    embed(tmp_path / "1", items)
    same, _ = embed(tmp_path / "2", items, Folder(tmp_path / "1"), batch_size=3)
    other, _ = embed(tmp_path / "3", items, Folder(tmp_path / "1"), normalize=False)
    assert (same.metrics["reused"], other.metrics["reused"]) == (1, 0)


def test_zero_and_infinite_vectors_fail_the_check(tmp_path, monkeypatch):
    bad = np.array([[0, 0], [np.inf, 1], [0, 1]], dtype=np.float32)
    monkeypatch.setattr(encoders, "encode", lambda *_: bad)
    report, _ = embed(tmp_path / "1", catalogue(tmp_path / "c", a="a", b="b", c="c"))
    assert not report.checks[0].passed and report.checks[0].detail.startswith("2 of 3")


def test_empty_catalogue_is_refused(tmp_path):
    with pytest.raises(InputError, match="catalogue is empty"):
        embed(tmp_path / "1", catalogue(tmp_path / "c"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ["blue gel pen, fine point", "printer", "a pen with blue gel ink and a fine point " * 5, "laser printer"]


def test_packaged_encoder_knows_meaning_order_and_seed(texts):
    vectors = encoders.encode(texts, Encoder(batch_size=2), QUIET)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near = vectors @ vectors.T
    assert near[0, 2] > near[0, 1] and near[1, 3] > near[1, 0]  # back in the order of the texts
    assert np.array_equal(vectors, encoders.encode(texts, Encoder(batch_size=2), QUIET))
    assert np.allclose(vectors, encoders.encode(texts, Encoder(batch_size=4), QUIET), atol=1e-5)


def test_unnormalised_masked_mean_is_the_mean_over_tokens(texts):
    free = encoders.encode(texts, Encoder(normalize=False, pooling="masked_mean"), QUIET)
    unit = encoders.encode(texts, Encoder(), QUIET)
    lengths = np.linalg.norm(free, axis=1, keepdims=True)
    assert (lengths > 1.5).all()
    assert np.allclose(free / lengths, unit, atol=1e-5)  # the packaged model pools by the mean itself


def test_unknown_encoder_says_what_to_do():
    with pytest.raises(InputError, match="no/such/folder"):
        encoders.encode(["a"], Encoder(model="/no/such/folder"), QUIET)


def test_embedding_table_keeps_the_contract(tmp_path, fake_encoder):
    _, frame = embed(tmp_path / "1", catalogue(tmp_path / "c", a="ant"))
    Embeddings.validate(frame)
