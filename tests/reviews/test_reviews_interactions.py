"""k-core, order, histories and the split, on logs small enough to do by hand."""

from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.reviews import DAY, JUNE_2018, Bench, amazon, checks, item, review, rows
from sidr_core.errors import InputError, ProfileError
from sidr_core.reviews.interactions import _log_checks, _order_of_time, _order_of_users
from sidr_core.reviews.samples import Log, Samples


def bench(tmp_path, log, items=None, **sections):
    """`log`: (user, item, day) or (user, item, day, rating)."""
    lines = [review(user, thing, JUNE_2018 + day * DAY, *rest) for user, thing, day, *rest in log]
    records = [item(known) for known in (items or sorted({entry[1] for entry in log}))]
    filters = {"k_core": 1} | sections.pop("filters", {})
    return Bench(tmp_path / "home", amazon(tmp_path / "data", lines, records), filters=filters, **sections)


def samples(artifact, split):
    return rows(artifact, split).select("row_id", "history_item_ids", "target_item_id").rows()


def test_samples_by_hand(tmp_path):
    # Ten samples: 4 of U1, 3 of U2, 3 of U3. Times are days; U2's and U3's last targets fall on one day.
    log = [
        ("U1", "b", 2), ("U1", "a", 1), ("U1", "c", 2), ("U1", "d", 5), ("U1", "e", 9),
        ("U3", "a", 3), ("U3", "b", 4), ("U3", "c", 6), ("U3", "a", 10),
        ("U2", "e", 1), ("U2", "d", 7), ("U2", "c", 8), ("U2", "b", 10),
    ]  # fmt: skip
    out = bench(tmp_path, log, split={"max_history": 2}).interactions()
    assert rows(out, "interactions").select("user_id", "position", "item_id").rows()[:5] == [
        ("U1", 0, "a"),
        ("U1", 1, "b"),  # b before c: the same day, so the order of the file
        ("U1", 2, "c"),
        ("U1", 3, "d"),
        ("U1", 4, "e"),
    ]
    assert samples(out, "train") == [
        ("U1:1", ["a"], "b"),
        ("U1:2", ["a", "b"], "c"),
        ("U3:1", ["a"], "b"),
        ("U1:3", ["b", "c"], "d"),
        ("U3:2", ["a", "b"], "c"),
        ("U2:1", ["e"], "d"),
        ("U2:2", ["e", "d"], "c"),
        ("U1:4", ["c", "d"], "e"),
    ]
    assert samples(out, "valid") == [("U3:3", ["b", "c"], "a")]  # U3 stands before U2 in the file
    assert samples(out, "test") == [("U2:3", ["d", "c"], "b")]
    assert rows(out, "test")["target_timestamp"].to_list() == [JUNE_2018 + 10 * DAY]
    assert rows(out, "items")["item_id"].to_list() == ["a", "b", "c", "d", "e"]
    metrics = out.manifest["metrics"]
    assert (metrics["users"], metrics["items"], metrics["interactions"]) == (3, 5, 13)
    assert (metrics["train_rows"], metrics["valid_rows"], metrics["test_rows"]) == (8, 1, 1)
    assert metrics["mean_history"] == 1.7  # (3 * 1 + 7 * 2) / 10
    assert metrics["repeat_target_share"] == 0.0  # U3's second a lies outside its two-item history
    assert metrics["cold_target_share"] == 0.0
    assert (metrics["first_date"], metrics["last_date"]) == ("2018-06-02", "2018-06-11")
    assert all(checks(out).values())


def test_cold_and_repeated_targets_are_counted(tmp_path):
    log = [("U", f"i{n}", n) for n in range(9)] + [("U", "i8", 9), ("U", "new", 10)]
    metrics = bench(tmp_path, log).interactions().manifest["metrics"]
    assert metrics["test_rows"] == 1
    assert metrics["cold_target_share"] == 1.0
    assert metrics["repeat_target_share"] == 0.1


def test_k_core_is_iterated(tmp_path):
    # x holds only through W, W only through x and y; without V's z, V falls, then y, then W, then x.
    core = [(user, thing, day) for user in ("A", "B") for day, thing in enumerate("pqp")]
    core += [(user, thing, day + 5) for user in ("A", "B") for day, thing in enumerate("qpq")]
    chain = [("W", "x", 1), ("W", "y", 2), ("V", "y", 1), ("V", "z", 2)]
    out = bench(tmp_path, core + chain, filters={"k_core": 2}).interactions()
    assert set(rows(out, "interactions")["user_id"]) == {"A", "B"}
    assert rows(out, "items")["item_id"].to_list() == ["p", "q"]
    assert out.manifest["metrics"]["k_core_rounds"] > 2


def brute_core(log, k):
    while True:
        users, things = Counter(u for u, _, _ in log), Counter(i for _, i, _ in log)
        kept = [entry for entry in log if users[entry[0]] >= k and things[entry[1]] >= k]
        if len(kept) == len(log):
            return kept
        log = kept


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from("UVWXY"), st.sampled_from("abcdef"), st.integers(0, 20)), min_size=1, max_size=60
    ),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_any_log_keeps_its_promises(tmp_path_factory, log, k, longest):
    made = bench(tmp_path_factory.mktemp("log"), log, filters={"k_core": k}, split={"max_history": longest})
    expected = brute_core(list(dict.fromkeys(log)), k)  # an exact duplicate counts once
    by_user: dict[str, list] = {}
    for user, thing, day in sorted(expected, key=lambda entry: entry[2]):  # stable: file order within a day
        by_user.setdefault(user, []).append((thing, day))
    total = len(expected) - len(by_user)
    if total < 10 or not expected:
        return
    out = made.interactions()
    got = rows(out, "interactions")
    for user, events in by_user.items():
        assert got.filter(user_id=user)["item_id"].to_list() == [thing for thing, _ in events]
    splits = [rows(out, name) for name in ("train", "valid", "test")]
    first, second = total * 8 // 10, total * 9 // 10
    assert [len(frame) for frame in splits] == [first, second - first, total - second]
    together = pl.concat(splits)
    assert together["target_timestamp"].is_sorted()
    assert together["row_id"].n_unique() == total
    for user, position, history, target in together.select(
        "user_id", "position", "history_item_ids", "target_item_id"
    ).iter_rows():
        things = [thing for thing, _ in by_user[user]]
        assert target == things[position]
        assert history == things[max(0, position - longest) : position]
    assert all(checks(out).values())


TWENTY = [(user, "abc"[n % 3], n) for user in ("U", "V") for n in range(10)]


def test_filters(tmp_path):
    extra = [("U", "a", 40, 2.0), ("W", "unknown", 1)]
    made = bench(tmp_path / "rating", TWENTY + extra, ["a", "b", "c"], filters={"min_rating": 3})
    out = made.interactions()
    assert len(rows(out, "interactions")) == 20
    out = bench(tmp_path / "since", [*TWENTY, ("U", "a", 30)], filters={"since": "2018-07"})
    with pytest.raises(InputError, match="split is empty"):
        out.interactions()
    distinct = [("U", thing, n) for n, thing in enumerate("abcdefghijka")]
    out = bench(tmp_path / "repeats", distinct, filters={"keep_repeats": False}).interactions()
    assert rows(out, "interactions")["item_id"].to_list() == list("abcdefghijk")
    with pytest.raises(ProfileError, match=r"filters\.since"):
        bench(tmp_path / "bad", TWENTY, filters={"since": "July"})


def test_an_empty_core_says_what_was_there(tmp_path):
    made = bench(tmp_path, TWENTY, filters={"k_core": 11})
    with pytest.raises(InputError) as caught:
        made.interactions()
    message = str(caught.value)
    assert "the 11-core is empty" in message
    assert "20 reviews of 2 users and 3 items read" in message
    assert "k_core" in caught.value.fix
    assert "interactions" not in made.published()


def test_reviews_of_other_items_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="0 reviews of 0 users and 0 items with an accepted item"):
        bench(tmp_path, TWENTY, ["other"]).interactions()


def test_too_few_rows_for_three_splits(tmp_path):
    with pytest.raises(InputError, match="split is empty"):
        bench(tmp_path, [("U", "a", 1), ("U", "b", 2)]).interactions()


def test_another_ratio_cuts_elsewhere(tmp_path):
    log = [("U", "abc"[n % 3], n) for n in range(101)]
    out = bench(tmp_path, log, split={"ratios": [0.29, 0.01, 0.7]}).interactions()
    assert [len(rows(out, name)) for name in ("train", "valid", "test")] == [29, 1, 70]


def test_same_input_same_bytes(tmp_path):
    one, two = (bench(tmp_path / name, TWENTY).interactions() for name in ("a", "b"))
    assert one.digest == two.digest


def test_repeats_are_kept_or_dropped(tmp_path):
    # U buys a three times (twice on one day), an exact duplicate of the last is no purchase of its own.
    log = [("U", "a", 1), ("U", "b", 2), ("U", "a", 3, 4.0), ("U", "a", 3, 3.0), ("U", "a", 3, 3.0)]
    log += [("U", thing, 4 + n) for n, thing in enumerate("cdefghijk")]
    kept = rows(bench(tmp_path / "kept", log).interactions(), "interactions")
    assert kept["item_id"].to_list() == list("abaacdefghijk")
    dropped = rows(bench(tmp_path / "dropped", log, filters={"keep_repeats": False}).interactions(), "interactions")
    assert dropped["item_id"].to_list() == list("abcdefghijk")
    assert dropped["position"].to_list() == list(range(11))


def small_log(**changes):
    fields = {"user": [0, 0, 0, 1, 1], "item": [0, 1, 0, 1, 1], "time": [1, 2, 3, 2, 5]} | changes
    arrays = [np.array(fields[name], kind) for name, kind in (("user", "i4"), ("item", "i4"), ("time", "i8"))]
    return Log(*arrays, pa.array(["u", "v"], pa.large_string()), pa.array(["a", "b"], pa.large_string()))


def test_samples_of_a_small_log():
    samples = Samples(small_log(), longest=1)
    table = pl.DataFrame(pa.concat_tables(samples.tables([np.array([1, 4]), np.array([], int), np.array([2])])))
    assert table.rows() == [
        ("u:1", "u", 1, ["a"], "b", 2),
        ("v:1", "v", 1, ["b"], "b", 5),
        ("u:2", "u", 2, ["b"], "a", 3),
    ]
    assert (samples.rows, samples.history_items, samples.repeated_targets) == (3, 3, 1)
    assert (samples.misplaced, samples.repeated_places) == (0, 0)


def test_samples_count_what_breaks_their_promises():
    late = Samples(small_log(time=[1, 9, 3, 2, 5]), longest=5)
    list(late.tables([np.array([1, 2])]))
    assert late.misplaced == 1  # the second item is later than the third, whose history holds it
    twice = Samples(small_log(), longest=5)
    list(twice.tables([np.array([1, 2]), np.array([2])]))
    assert twice.repeated_places == 1


def test_checks_fail_when_train_reaches_into_the_future():
    log = small_log()
    good = {"train": np.array([1]), "valid": np.array([2]), "test": np.array([4])}
    for places, failed in (
        (good, set()),
        (good | {"train": np.array([4]), "test": np.array([1])}, {"split_order", "train_only_past"}),
        (good | {"train": np.array([1, 4])}, {"split_order", "splits_disjoint", "train_only_past"}),
    ):
        samples = Samples(log, longest=5)
        list(samples.tables(places.values()))
        found = (*_log_checks(log, samples, k=2), *_order_of_time(log, places))
        assert {check.name for check in found if not check.passed} == failed
    assert not _log_checks(log, samples, k=3)[0].passed


def test_checks_of_leave_one_out_fail_when_a_user_s_order_is_broken():
    log = small_log()
    good = {"train": np.array([1]), "valid": np.array([2]), "test": np.array([4])}
    for places, failed in (
        (good, set()),
        (good | {"train": np.array([2]), "valid": np.array([1])}, {"split_order", "train_only_past"}),
        (good | {"train": np.array([1, 4])}, {"train_only_past"}),
    ):
        found = _order_of_users(log, places)
        assert {check.name for check in found if not check.passed} == failed
