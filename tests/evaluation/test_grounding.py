"""What checkpoints know of their SIDs: scores by hand, and a model that learned its titles against one that did not."""

import polars as pl
import pytest
import torch

from builders import small_world
from builders.corpus import item
from builders.models import TINY
from sidr_core.corpus import prompts
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.stated import StatedFacts, read_facts
from sidr_core.decoding.decoder import Decoder
from sidr_core.evaluation import grounding
from sidr_core.evaluation.grounding import EXACT, F1, HR_1, HR_10, SID_TO_FACT, SID_TO_TITLE, TITLE_TO_SID, Quiz, Score
from sidr_core.models.base import build_base
from sidr_core.models.prompt import PromptRenderer
from sidr_core.pipeline.graph import stage_named
from sidr_core.sids.index import SidIndex
from sidr_core.tables import files as tables
from sidr_core.tables.columns import DIRECT
from sidr_core.tables.contracts import Grounding


@pytest.mark.parametrize(
    ("answer", "exact", "f1"),
    [
        ("Blue Glue Stick", 1, 1),
        ("Blue Glue", 0, 4 / 5),  # 2 of 2 words right, 2 of 3 there
        ("blue glue stick", 0, 1),  # words do not count capitals
        ("Glue Glue Glue", 0, 2 / 6),  # a word counts as often as it stands
        ("", 0, 0),
    ],
)
def test_a_title_counts_whole_and_by_its_words(answer, exact, f1):
    found = grounding.title_scores(answer, ["Tape", "Blue Glue Stick"])
    assert found == (exact, pytest.approx(f1))


def test_items_are_apart_by_what_training_met():
    train = pl.DataFrame({"history_item_ids": [["a"], ["a", "b"]], "target_item_id": ["b", "c"]})
    items = [item(name, name, (n, 0)) for n, name in enumerate("abcd")]
    found = grounding.items_by_training(items, train)
    assert {name: [one.item_id for one in of] for name, of in found.items()} == {
        "target": ["b", "c"],
        "history": ["a"],
        "unseen": ["d"],
    }


def test_a_draw_keeps_the_order_and_is_the_same_again():
    items = [item(str(n), str(n), (n, 0)) for n in range(9)]
    four = grounding.drawn(items, 4, 1)
    assert four == grounding.drawn(items, 4, 1) != grounding.drawn(items, 4, 2)
    assert [one.item_id for one in four] == sorted(one.item_id for one in four) and len(set(four)) == 4
    assert grounding.drawn(items, 9, 1) == items


def test_groups_weigh_as_many_items_as_they_have_and_repeated_titles_by_words():
    items = [item("a", "Glue", (0, 0)), item("b", "Glue", (1, 0)), item("c", "Tape", (2, 0))]
    quiz = Quiz(catalogue := Catalogue({one.item_id: one for one in items}), read_facts(catalogue))
    assert quiz.repeated == {"a", "b"} and quiz.sids_of["Glue"] == {items[0].sid, items[1].sid}
    answers = [("a", "target", 0.0, 0.5), ("c", "unseen", 1.0, 1.0)]
    scores = [
        Score("sft", SID_TO_TITLE, group, metric, value, name)
        for name, group, exact, f1 in answers
        for metric, value in ((EXACT, exact), (F1, f1))
    ]
    # (3 × F1 of a + 1 × exact of c) / 4, though one item of each group was asked about
    share = grounding.grounded_share(scores, "sft", {"target": 3, "history": 0, "unseen": 1}, quiz)
    assert share == pytest.approx((3 * 0.5 + 1 * 1.0) / 4)
    assert not grounding.grounded_check({"sft": share}, 0.95).passed
    assert grounding.grounded_check({"sft": 0.95}, 0.95).passed and grounding.grounded_check({}, 0.95).passed


NAMES = ("Orange", "Violet", "Mint", "Amber")
COLOURS = Catalogue({name: item(name, f"{name} Toy", (n, 0)) for n, name in enumerate(NAMES)})


def learned(right: bool) -> Decoder:
    """A decoder whose model was trained on titles and SIDs until it has them by heart, or on those of the next item."""
    book = pl.DataFrame(
        {"item_id": list(NAMES), "codes": [list(one.codes) for one in COLOURS.values()]},
        schema_overrides={"codes": pl.List(pl.Int32)},
    )
    model, tokenizer = build_base(TINY.model_copy(update={"dropout": 0.0}), [" ".join(NAMES)], book)
    render, items = PromptRenderer(tokenizer), list(COLOURS.values())
    shift = 0 if right else 1
    pairs = [(prompts.title_of(one.sid), items[(n + shift) % 4].full_title) for n, one in enumerate(items)]
    pairs += [(prompts.item_titled(one.full_title), items[(n + shift) % 4].sid) for n, one in enumerate(items)]
    pairs += [(prompts.fact_of("Colour", one.sid), NAMES[(n + shift) % 4]) for n, one in enumerate(items)]
    texts = [(render.prompt(turn, DIRECT), render.completion(answer, None)) for turn, answer in pairs]
    longest = max(len(turn) + len(answer) for turn, answer in texts)
    ids = torch.tensor([[*t, *a, *[render.pad_id] * (longest - len(t) - len(a))] for t, a in texts])
    labels = torch.tensor([[*[-100] * len(t), *a, *[-100] * (longest - len(t) - len(a))] for t, a in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(300):
        loss = model.train()(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.01:
            break
    return Decoder(model.eval(), render, SidIndex.build(book, tokenizer.get_vocab().__getitem__), 4, 4)


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_knows_its_titles_is_told_from_one_that_takes_each_for_the_next(right):
    facts = StatedFacts({name: {"Colour": name} for name in NAMES}, {}, ("Colour",), frozenset())
    quiz = Quiz(COLOURS, facts)
    scores = quiz.ask(learned(right), "sft", "target", list(COLOURS.values()))
    rows = grounding.table_of(scores).rows_by_key(["direction", "metric"], named=True, unique=True)
    value = {key: (row["value"], row["n"]) for key, row in rows.items()}
    assert value[SID_TO_TITLE, EXACT] == value[TITLE_TO_SID, HR_1] == (float(right), 4)
    assert value[SID_TO_TITLE, F1] == ((1.0 if right else 0.5), 4)  # "Toy" is one of two words
    assert value[TITLE_TO_SID, HR_10] == (1.0, 4)  # of four items
    assert value[SID_TO_FACT, EXACT] == value[SID_TO_FACT, f"{EXACT}:Colour"] == (float(right), 4)


def test_the_stage_asks_every_checkpoint_about_every_group(world):
    made = world.run("grounding").artifact
    table = tables.read(made.path("grounding.parquet"))
    Grounding.validate(table)
    train = small_world.samples(1, 2)
    targets = set(train["target_item_id"])
    histories = set(train["history_item_ids"].explode()) - targets
    sizes = {"target": len(targets), "history": len(histories), "unseen": 16 - len(targets | histories)}
    metrics = [(SID_TO_TITLE, EXACT), (SID_TO_TITLE, F1), (TITLE_TO_SID, HR_1), (TITLE_TO_SID, HR_10)]
    metrics += [(SID_TO_FACT, f"{EXACT}:Category")]
    expected = {
        (stage, direction, group, metric): size
        for stage in ("sft", "activation", "grpo")
        for direction, metric in metrics
        for group, size in sizes.items()
        if size
    }
    found = {row[:4]: row[4] for row in table.select("checkpoint_stage", "direction", "items", "metric", "n").rows()}
    assert expected.items() <= found.items()
    check = next(check for check in made.manifest["checks"] if check["name"] == "grounded")
    assert not check["passed"] and "sft 0.0%" in check["detail"]  # untrained models know nothing
    assert made.path("grounding.png").read_bytes().startswith(b"\x89PNG")
    assert "synthetic sample data" in made.path("grounding.md").read_text()


def test_checkpoints_that_the_dataset_does_not_train_are_not_asked(world):
    reads = stage_named("grounding").reads
    plain = small_world.profile(models=["activation/direct", "popularity/direct"])
    assert {name for name in reads(plain.dataset("toys")) if "checkpoint" in name} == {
        "sft_checkpoint",
        "activation_checkpoint",
    }
    none = small_world.profile(models=["popularity/direct"])
    made = world.run("grounding", none).artifact
    assert tables.read(made.path("grounding.parquet")).is_empty()
    assert "No language model" in made.path("grounding.md").read_text()
