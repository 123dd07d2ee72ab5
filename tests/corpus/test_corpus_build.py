"""The corpus stage on a small catalogue, and attempts to get past its guards."""

import ast
import csv
import gzip
import hashlib
import io
import json
import time

import polars as pl
import pytest

from builders.corpus import TITLES, forged, frames, run
from builders.stage import stage_config
from sidr_core.corpus import guards, tasks
from sidr_core.corpus.catalogue import Catalogue
from sidr_core.corpus.prompts import next_item
from sidr_core.corpus.relations import learn_relations
from sidr_core.errors import InputError
from sidr_core.settings import GENERAL_TASK, REASONING_TASK, TASKS
from sidr_core.sids.tokens import SID_PATTERN, format_sid
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return run(tmp_path_factory.mktemp("corpus"), *frames())


@pytest.fixture(scope="module")
def corpus(built):
    return tables.read(built[1] / "synthetic_corpus.parquet")


@pytest.fixture(scope="module")
def catalogue():
    _, items, codebook = frames()
    return Catalogue.read(items, codebook)


@pytest.fixture(scope="module")
def rows(catalogue):
    return tasks.read_rows(frames()[0], catalogue)


def test_every_task_is_there_in_order_and_the_table_keeps_its_contract(built, corpus):
    report, _ = built
    Corpus.validate(corpus)
    assert [*corpus["task"].unique(maintain_order=True)] == [t for t in (*TASKS, REASONING_TASK) if t != GENERAL_TASK]
    assert dict(corpus.group_by("task").len().iter_rows()) == {
        "sids_to_sid": 6,
        "sid_to_title": 7,  # i7 has no title that can be shown
        "title_to_sid": 7,
        "sids_to_title": 5,
        "titles_to_title": 5,
        "titles_to_sid": 6,
        "item_narrative": 8,
        "user_narrative": 3,
        "sid_to_fact": 7,  # their brand
        "practice": 2000,
        "reasoning": 6,
    }
    assert report.metrics["titles_ambiguous"] == 1
    assert [check.passed for check in report.checks] == [True, True, True]
    assert report.metrics["sid_coverage"] == 1


def test_next_item_and_reasoning_have_the_same_prompt(corpus, catalogue):
    direct = corpus.filter(task="sids_to_sid")
    thinking = corpus.filter(task="reasoning")
    assert direct["prompt"].to_list() == thinking["prompt"].to_list()
    assert direct["completion"].to_list() == thinking["completion"].to_list()
    assert direct["prompt"][2] == next_item([catalogue[i].sid for i in ("i0", "i1", "i2")])
    assert direct["thought"].null_count() == 6 and thinking["thought"].null_count() == 0


def test_translation_keeps_every_right_answer(corpus):
    asked = corpus.filter(task="title_to_sid", prompt="Item titled: Gloom Cellar")
    assert sorted(asked["completion"]) == ["<a_1><b_0><c_1>", "<a_1><b_1><c_0>"]
    shared = corpus.filter(task="sid_to_title", prompt="Title of <a_1><b_0><c_1>?")["completion"].to_list()
    assert "Gloom Cellar" in shared and len(shared) == 2


def test_a_title_with_many_answers_names_nothing():
    titles = {f"i{n}": ("Pen", (n, 0)) for n in range(5)} | {"j": ("Ink", (9, 0))}
    _, items, codebook = frames([], titles)
    assert [i.item_id for i in tasks.translation_pairs(Catalogue.read(items, codebook))] == ["j"]


def test_user_narratives_tell_of_the_newest_row(corpus):
    told = corpus.filter(task="user_narrative")
    assert sorted(zip(told["user_id"], told["position"], strict=True)) == [("u0", 3), ("u1", 2), ("u2", 4)]
    assert all(text.split()[-1].rstrip(".") in set(SID_PATTERN.findall(text)) for text in told["completion"])


def test_the_teacher_section_chooses_what_is_written(tmp_path):
    report, out = run(tmp_path, *frames(), item_narratives=False, user_narratives=False, traces_per_user=1)
    table = tables.read(out / "synthetic_corpus.parquet")
    assert report.metrics["examples_item_narrative"] == report.metrics["examples_user_narrative"] == 0
    traced = table.filter(task="reasoning")
    assert sorted(zip(traced["user_id"], traced["position"], strict=True)) == [("u0", 3), ("u1", 2), ("u2", 4)]


@pytest.mark.parametrize(
    ("activation", "also"),
    [
        ({"replay": 0.0}, set()),
        ({"replay": 0.5}, {"sids_to_sid"}),
        ({"replay": 0.0, "tasks": {"practice": 0.1}}, {"practice"}),
    ],
)
def test_a_task_that_no_training_weighs_is_not_written(activation, also, tmp_path, corpus):
    sft = {"tasks": dict.fromkeys(TASKS, 0.0) | {"title_to_sid": 0.5}}
    report, out = run(tmp_path, *frames(), {"sft": sft, "activation": activation})
    table = tables.read(out / "synthetic_corpus.parquet")
    wanted = {"title_to_sid", REASONING_TASK} | also
    assert set(table["task"]) == wanted and all(check.passed for check in report.checks)
    assert table.equals(corpus.filter(pl.col("task").is_in(list(wanted)))), "the others are as ever"


def test_what_the_corpus_leaves_out_counts_for_its_fingerprint_and_only_then():
    def key(**sections):
        return stage_config(**sections).key()

    assert "unread_tasks" not in key(sft={"tasks": {"practice": 0.5}})
    left_out = key(sft={"tasks": {"practice": 0}})
    assert left_out["unread_tasks"] == ["practice"]
    assert json.loads(json.dumps(left_out)) == left_out, "a manifest holds it alike, so nothing looks stale"
    assert "unread_tasks" not in key(sft={"tasks": {"practice": 0}}, activation={"tasks": {"practice": 1}})


def test_open_thoughts_leave_their_rows_without_a_trace(tmp_path):
    pairs = [("v", "i0", "i1"), ("w", "i5", "i6"), ("x", "i0", "i6")]
    rows = [(f"{user}{n}", 1, [item], target) for n in range(10) for user, item, target in pairs]
    made = {}
    for choice in ("keep", "drop"):
        train, items, codebook = frames(rows)
        nameless = items.with_columns(pl.lit("").alias("brand"))  # nothing is stated, so nothing follows
        report, out = run(tmp_path / choice, train, nameless, codebook, open_thoughts=choice)
        made[choice] = report, tables.read(out / "synthetic_corpus.parquet")
    (kept, all_rows), (dropped, some_rows) = made["keep"], made["drop"]
    is_open = pl.col("thought").str.contains("Next: open").fill_null(False)
    assert some_rows.equals(all_rows.filter(~is_open)) and some_rows.height < all_rows.height
    assert kept.metrics["thoughts_open"] > 0
    assert dropped.metrics.get("thoughts_open", 0) == 0


def test_the_same_input_gives_the_same_bytes(built, tmp_path):
    _, again = run(tmp_path, *frames())
    for name in ("synthetic_corpus.parquet", "teacher_quarantine.parquet", "card.md", "corpus.png"):
        assert _sha(built[1] / name) == _sha(again / name)


def _sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_card_says_synthetic_and_stays_in_its_fences(built):
    text = built[0].markdown["card"]
    assert "Synthetic: the reviews and items" in text
    inside = False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            assert "<" not in line, line
    assert not inside
    assert len(text) < 60_000


def test_wrong_input_is_named(tmp_path):
    train, items, codebook = frames()
    with pytest.raises(InputError, match="no train rows"):
        run(tmp_path / "a", train.head(0), items, codebook)
    with pytest.raises(InputError, match="'i3'"):
        run(tmp_path / "b", train, items.filter(pl.col("item_id") != "i3"), codebook)
    with pytest.raises(InputError, match="have no SID"):
        run(tmp_path / "c", train, items, codebook.head(7))


# getting past the guards


SID = {k: format_sid(c) for k, (_, c) in TITLES.items()}


@pytest.mark.parametrize(
    ("example_id", "changes"),
    [
        ("sids_to_sid:u0-1", {"user_id": "stranger"}),
        ("sids_to_sid:u0-1", {"position": 9}),
        ("sids_to_sid:u0-1", {"user_id": None, "position": None}),
        ("sids_to_sid:u0-1", {"item_id": "i5", "completion": SID["i5"]}),
        ("sids_to_sid:u0-1", {"completion": SID["i5"]}),
        ("sids_to_sid:u0-1", {"prompt": next_item([SID["i0"], SID["i2"]])}),  # a later item
        ("sids_to_sid:u0-1", {"prompt": next_item([SID["i0"], SID["i1"]])}),  # the answer
        ("titles_to_title:u0-1", {"prompt": "Titles:\n- Kart Cup racing\nNext title?"}),
        ("titles_to_title:u0-1", {"completion": "Gloom Cellar"}),
        ("user_narrative:u0-3", {"completion": f"Next comes {SID['i6']}."}),
        ("practice:0", {"user_id": "u0"}),
        ("sid_to_fact:i0:Brand", {"prompt": f"Brand of {SID['i5']}?"}),
        ("item_narrative:i0", {"user_id": "u0"}),
        ("item_narrative:i0", {"item_id": "unheard"}),
        ("item_narrative:i0", {"completion": f"{SID['i0']} is followed by {SID['i1']}."}),
    ],
)
def test_what_is_not_of_a_train_row_is_found(corpus, rows, catalogue, example_id, changes):
    assert guards.not_from_train(corpus, rows, catalogue) == []
    found = guards.not_from_train(forged(corpus, example_id, **changes), rows, catalogue)
    assert [name for name, _ in found] == [example_id]


@pytest.mark.parametrize(
    ("example_id", "changes"),
    [
        ("reasoning:u0-1", {"thought": f"It will be {SID['i1']}."}),
        ("reasoning:u0-1", {"thought": "Brand: Nobody. Next: open."}),
        ("reasoning:u0-1", {"thought": f"Next: Another title {SID['i0']}."}),
        ("practice:1", {"thought": "Brand: Nobody. Next: open."}),
        ("sid_to_title:i0", {"prompt": f"Title of {SID['i0']}, Starfall One racing?"}),
        ("sid_to_title:i0", {"prompt": "Starfall One racing"}),
        ("title_to_sid:i0", {"prompt": f"Item titled: Starfall One racing {SID['i0']}"}),
        ("title_to_sid:i0", {"prompt": "Anything else"}),
    ],
)
def test_what_leaks_is_found(corpus, rows, catalogue, example_id, changes):
    relations = learn_relations(catalogue, [(row.history, row.target) for row in rows])
    assert guards.leaks(corpus, rows, relations) == []
    found = guards.leaks(forged(corpus, example_id, **changes), rows, relations)
    assert [name for name, _ in found] == [example_id]


@pytest.mark.parametrize(
    "text",
    ["<a_7><b_0><c_0>", "<a_0><b_0>", "<b_0>", "<a_0><b_0><c_0><d_0>", "<|im_end|>", "<think>", "</think>", "a > b"],
)
@pytest.mark.parametrize("column", ["prompt", "thought", "completion"])
def test_what_is_no_sid_of_the_codebook_is_found(corpus, column, text):
    assert guards.unknown_sids(corpus, SID.values()) == []
    found = guards.unknown_sids(forged(corpus, "reasoning:u0-1", **{column: f"so {text} it is"}), SID.values())
    assert [name for name, _ in found] == ["reasoning:u0-1"]


# real data


def test_real_titles_pass_the_guards_in_seconds(real_data, tmp_path):
    base = real_data / "minionerec"
    index = json.loads(gzip.decompress((base / "index/Office_Products.index.json.gz").read_bytes()))
    records = json.loads(gzip.decompress((base / "index/Office_Products.item.json.gz").read_bytes()))
    items = pl.DataFrame(
        [
            dict(item_id=k, title=v["title"], description=str(v["description"]), brand=v["brand"], category="",
                 published_sid="".join(index[k]), synthetic=False)
            for k, v in sorted(records.items()) if k in index
        ]
    )  # fmt: skip
    codes = [[int(token[3:-1]) for token in index[k]] for k in items["item_id"]]
    codebook = pl.DataFrame(
        {"item_id": items["item_id"], "sid": [format_sid(c) for c in codes], "codes": codes},
        schema_overrides={"codes": pl.List(pl.Int32)},
    ).with_columns(text_digest=pl.lit(""))
    text = gzip.decompress((base / "train/Office_Products_5_2016-10-2018-11.partial.csv.gz").read_bytes()).decode()
    rows = [
        (f"{row['user_id']}", n, [str(i) for i in ast.literal_eval(row["history_item_id"])], row["item_id"])
        for n, row in enumerate(csv.DictReader(io.StringIO(text)), start=1)
        if n <= 1500
    ]
    train = frames(rows)[0]
    started = time.monotonic()
    report, _ = run(tmp_path, train, items, codebook)
    assert time.monotonic() - started < 30
    assert [check.detail for check in report.checks if not check.passed] == []
    assert report.metrics["item_narratives_naming_title"] == 0
    assert report.metrics["thought_words_p95"] <= 80
