"""Item text, digests, local encoders, and what the embedding stage encodes and reuses."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from builders.items import catalogue, counts
from builders.stage import QUIET, Folder, StageInputs, stage_config
from sidr_core.errors import InputError
from sidr_core.items import embeddings, encoders
from sidr_core.items.text import PLACEHOLDER, item_text, text_digest
from sidr_core.settings import Encoder, Endpoint
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Embeddings, Items


class FakeEncoder:
    """Vectors that tell the text apart, and a record of what was encoded."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.opened = 0
        self.fail_after: int | None = None

    def open(self, config: Encoder) -> "FakeEncoder":
        self.opened += 1
        return self

    def encode(self, texts, keep) -> None:
        self.seen.append(list(texts))
        for row in reversed(range(len(texts))):
            if self.fail_after == 0:
                raise InputError("stop", expected="", found="", fix="")
            self.fail_after = self.fail_after and self.fail_after - 1
            keep([row], np.array([[len(texts[row]), texts[row].count("a"), len(self.seen)]], dtype=np.float32))


@pytest.fixture
def fake_encoder(monkeypatch) -> FakeEncoder:
    fake = FakeEncoder()
    monkeypatch.setattr(encoders, "open_encoder", fake.open)
    return fake


def embed(out: Path, items: Folder, **settings):
    out.mkdir()
    inputs = StageInputs(interactions=items)
    inputs.home = out.parent / "home"
    report = embeddings.build(inputs, stage_config(encoder=settings), out, QUIET)  # type: ignore[arg-type]
    return report, tables.read(out / embeddings.FILE)


def test_item_text_skips_blank_fields():
    assert item_text(" Pen ", " blue", 99) == "Pen blue"
    assert item_text("Pen", " ", 99) == "Pen"
    assert item_text("", "blue", 99) == "blue"
    assert item_text(" ", "", 99) == PLACEHOLDER
    assert item_text("Pen", "blue", 4) == "Pen"


def test_digest_depends_on_text_and_encoder():
    assert len({text_digest("a"), text_digest("b"), text_digest("a", "x"), text_digest("a", "y")}) == 4
    assert text_digest("a", "x") == text_digest("a", "x")


def test_only_new_and_changed_texts_are_encoded(tmp_path, fake_encoder):
    _, first = embed(tmp_path / "1", catalogue(tmp_path / "c1", b="banana", a="ant", z="zoo"))
    report, second = embed(tmp_path / "2", catalogue(tmp_path / "c2", a="ant", b="bandana", c="cat"))
    assert fake_encoder.seen[1] == ["bandana about it", "cat about it"]
    assert (*counts(report), report.metrics["dimension"]) == (2, 1, 3)
    assert second["item_id"].to_list() == ["a", "b", "c"]
    assert second.filter(pl.col("item_id") == "a").equals(first.filter(pl.col("item_id") == "a"))
    assert [v[2] for v in second["vector"]] == [1, 2, 2]  # the vector of the right round at the right item


def test_another_dataset_with_the_same_texts_encodes_nothing(tmp_path, fake_encoder):
    _, first = embed(tmp_path / "1", catalogue(tmp_path / "c1", a="ant", b="bee"))
    report, second = embed(tmp_path / "2", catalogue(tmp_path / "c2", x="bee", y="ant", z="ant"))
    assert (counts(report), fake_encoder.opened) == ((0, 3), 1)
    assert second["vector"].to_list() == [first["vector"][1].to_list(), *[first["vector"][0].to_list()] * 2]


def test_nothing_changed_loads_no_encoder_and_gives_equal_bytes(tmp_path, fake_encoder):
    items = catalogue(tmp_path / "c", a="ant", b="bee")
    embed(tmp_path / "1", items)
    report, _ = embed(tmp_path / "2", items)
    assert fake_encoder.opened == 1 and report.metrics["encoded"] == 0
    assert (tmp_path / "1" / embeddings.FILE).read_bytes() == (tmp_path / "2" / embeddings.FILE).read_bytes()


def test_equal_texts_are_encoded_once(tmp_path, fake_encoder):
    report, frame = embed(tmp_path / "1", catalogue(tmp_path / "c", a="ant", b="bee", c="ant"))
    assert fake_encoder.seen == [["ant about it", "bee about it"]]
    assert counts(report) == (2, 1)
    assert frame["vector"][0].to_list() == frame["vector"][2].to_list() == [12, 2, 1]


def test_blocks_change_nothing_but_the_row_groups(tmp_path, fake_encoder, monkeypatch):
    titles = {f"i{n:02}": f"title {n % 7}" for n in range(20)}
    _, whole = embed(tmp_path / "1", catalogue(tmp_path / "c", **titles))
    monkeypatch.setattr(embeddings, "BLOCK", 3)
    report, blocks = embed(tmp_path / "2", catalogue(tmp_path / "c", **titles))
    assert blocks.equals(whole) and counts(report) == (0, 20)
    report, _ = embed(tmp_path / "3", catalogue(tmp_path / "c", **titles), normalize=False)
    assert (counts(report), fake_encoder.opened) == ((7, 13), 2)  # one encoder for all blocks


def test_a_failure_keeps_what_was_encoded(tmp_path, fake_encoder):
    items = catalogue(tmp_path / "c", a="ant", b="bee", c="cat")
    fake_encoder.fail_after = 2
    with pytest.raises(InputError, match="stop"):
        embed(tmp_path / "1", items)
    fake_encoder.fail_after = None
    report, _ = embed(tmp_path / "2", items)
    assert fake_encoder.seen[1] == ["ant about it"]
    assert counts(report) == (1, 2)


def test_another_encoder_setting_reuses_nothing_but_batch_size_is_none(tmp_path, fake_encoder):
    items = catalogue(tmp_path / "c", a="ant")
    embed(tmp_path / "1", items)
    same, first = embed(tmp_path / "2", items, batch_size=3)
    other, second = embed(tmp_path / "3", items, normalize=False)
    assert (counts(same), counts(other)) == ((0, 1), (1, 0))
    assert first["text_digest"][0] != second["text_digest"][0]


def test_of_an_endpoint_its_address_and_model_count_and_how_it_is_called_does_not():
    def settings(**fields) -> str:
        return embeddings.encoder_settings(Encoder(endpoint=Endpoint(**{"model": "m"} | fields)))

    calls = {"retries": 1, "timeout_seconds": 5, "concurrency": 2, "give_up_after": 9, "api_key_env": "OTHER"}
    assert settings(**calls) == settings()
    assert len({settings(), settings(model="n"), settings(base_url="http://127.0.0.1:1/v1")}) == 3


def test_an_endpoint_leaves_pooling_and_dtype_to_the_server():
    with pytest.raises(ValueError, match="leave both out"):
        Encoder(endpoint=Endpoint(model="m"), dtype="bfloat16")


def test_zero_and_infinite_vectors_fail_the_check(tmp_path, fake_encoder, monkeypatch):
    bad = np.array([[0, 0], [np.inf, 1], [0, 1]], dtype=np.float32)
    monkeypatch.setattr(FakeEncoder, "encode", lambda self, texts, keep: keep([0, 1, 2], bad))
    report, _ = embed(tmp_path / "1", catalogue(tmp_path / "c", a="a", b="b", c="c"))
    assert not report.checks[0].passed and report.checks[0].detail.startswith("2 of 3")


def test_empty_catalogue_is_refused(tmp_path):
    with pytest.raises(InputError, match="catalogue is empty"):
        embed(tmp_path / "1", catalogue(tmp_path / "c"))


@pytest.mark.parametrize("block", [2, 8192])
def test_unsorted_catalogue_is_refused(tmp_path, fake_encoder, monkeypatch, block):
    monkeypatch.setattr(embeddings, "BLOCK", block)
    items = catalogue(tmp_path / "c", a="ant", b="bee", c="cat")
    frame = tables.read(items.path("items.parquet"))
    tables.write(pl.concat([frame[1:], frame[:1]]), items.path("items.parquet"), Items)
    with pytest.raises(InputError, match="not sorted"):
        embed(tmp_path / "1", items)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ["blue gel pen, fine point", "printer", "a pen with blue gel ink and a fine point " * 5, "laser printer"]


def encoded(texts: list[str], **settings) -> np.ndarray:
    """(N, D) in the order of `texts`."""
    parts: list[tuple[list[int], np.ndarray]] = []
    encoders.open_encoder(Encoder(**settings)).encode(texts, lambda rows, vectors: parts.append((list(rows), vectors)))
    rows = [row for part, _ in parts for row in part]
    assert sorted(rows) == list(range(len(texts)))
    return np.concatenate([vectors for _, vectors in parts])[np.argsort(rows)]


def test_packaged_encoder_knows_meaning_and_order(texts):
    vectors = encoded(texts, batch_size=2)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near = vectors @ vectors.T
    assert near[0, 2] > near[0, 1] and near[1, 3] > near[1, 0]  # back in the order of the texts


def test_a_vector_depends_on_its_text_alone_to_the_last_bit(texts):
    many = [*texts, *(f"{text} number {n}" for n, text in enumerate(texts * 4))]
    vectors = encoded(many)
    assert np.array_equal(encoded(many[::-1])[::-1], vectors)
    for rows in ([0], [3, 1], [2, 7, 11, 5]):
        assert np.array_equal(encoded([many[row] for row in rows]), vectors[rows])


def test_longer_texts_are_cut_at_the_limit_of_tokens(texts):
    cut, whole = encoded(texts, max_tokens=8), encoded(texts)
    assert np.array_equal(cut[1], whole[1])
    assert not np.allclose(cut[2], whole[2], atol=1e-3)
    # Eleven is no multiple of the padding: texts are then grouped by their exact length.
    assert np.allclose(np.linalg.norm(encoded(texts, max_tokens=11), axis=1), 1, atol=1e-5)


def test_unnormalised_masked_mean_is_the_mean_over_tokens(texts):
    free = encoded(texts, normalize=False, pooling="masked_mean")
    unit = encoded(texts)
    lengths = np.linalg.norm(free, axis=1, keepdims=True)
    assert (lengths > 1.5).all()
    assert np.allclose(free / lengths, unit, atol=1e-5)  # the packaged model pools by the mean itself


@pytest.fixture(scope="module")
def word_table(tmp_path_factory) -> Path:
    """A sentence-transformers folder without a transformer: the mean of three word vectors."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"pen": 0, "blue": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    weights = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 1.0]])
    folder = tmp_path_factory.mktemp("model") / "words"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


def test_any_sentence_transformers_folder_will_do(word_table):
    found = encoded(["blue", "pen", "blue pen"], model=str(word_table), normalize=False, batch_size=2)
    assert found.tolist() == [[0, 4], [3, 0], [1.5, 2]]
    assert encoded(["pen blue"], model=str(word_table)).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


def test_a_model_without_pooling_has_none_to_replace(word_table):
    with pytest.raises(InputError, match="no pooling"):
        encoded(["pen"], model=str(word_table), pooling="masked_mean")


def test_unknown_encoder_says_what_to_do():
    with pytest.raises(InputError, match="no/such/folder"):
        encoded(["a"], model="/no/such/folder")


def test_embedding_table_keeps_the_contract(tmp_path, fake_encoder):
    _, frame = embed(tmp_path / "1", catalogue(tmp_path / "c", a="ant"))
    Embeddings.validate(frame)
