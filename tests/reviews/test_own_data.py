"""Files as the world writes them: one test per kind of docs/own-data.md, "Kinds of files that the world writes"."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from builders.reviews import DAY, JUNE_2018, Bench, amazon, item, review, rows, write
from sidr_core.errors import InputError, ProfileError
from sidr_core.reviews import text
from sidr_core.reviews.layouts import detect

HEADER = "user_id,item_id,timestamp,rating"
#: Twenty orders of four users and five items, one an hour.
ORDERS = [(f"u{n % 4}", f"i{n % 5}", JUNE_2018 + 3600 * n, n % 5 + 1) for n in range(20)]


def lines(separator: str = ",", orders=ORDERS) -> list[str]:
    return [separator.join(map(str, order)) for order in orders]


def tables(folder: Path, *content: str | bytes, name: str = "orders.csv", filters=None, **source) -> Bench:
    """A bench over one table of these lines."""
    path = write(folder / name, *content)
    return Bench(folder / "home", {"kind": "tables", "reviews": [path], **source}, filters=filters or {})


def accepted(bench: Bench) -> list[tuple]:
    return rows(bench.run("raw_reviews"), "raw_reviews").select("user_id", "item_id", "timestamp", "rating").rows()


def refused(bench: Bench, stage: str = "raw_reviews") -> InputError:
    with pytest.raises(InputError) as caught:
        bench.run(stage)
    return caught.value


def check(artifact, name: str) -> dict:
    return next(check for check in artifact.manifest["checks"] if check["name"] == name)


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "%", "2018", "@version", "a " * 60, "price (€; net)", "note"])
def test_other_columns_may_be_called_anything(tmp_path, name):
    header = f'"{name}",{HEADER},note'
    bench = tables(tmp_path, header, *(f"x,{line},y" for line in lines()))
    assert accepted(bench) == ORDERS
    frame = pl.DataFrame({name or "__index_level_0__": ["x"], "user_id": "u", "item_id": "i", "timestamp": JUNE_2018})
    frame.write_parquet(tmp_path / "t.parquet")
    source = {"kind": "tables", "reviews": [str(tmp_path / "t.parquet")]}
    assert accepted(Bench(tmp_path / "parquet", source)) == [("u", "i", JUNE_2018, None)]


def test_a_mapped_column_may_have_any_name_but_not_twice(tmp_path):
    odd = HEADER.replace("timestamp", "@timestamp")
    assert accepted(tables(tmp_path / "a", odd, *lines(), review_columns={"timestamp": "@timestamp"})) == ORDERS
    error = refused(tables(tmp_path / "b", f"{HEADER},item_id", *(f"{line},x" for line in lines())))
    assert "2 columns 'item_id'" in error.what


@pytest.mark.parametrize("separator", [",", "\t", "::", "|", ";"])
def test_separators_and_files_without_a_header(tmp_path, separator):
    numbers = {"user_id": 1, "item_id": 2, "timestamp": 3, "rating": 4}
    assert accepted(tables(tmp_path / "a", HEADER.replace(",", separator), *lines(separator))) == ORDERS
    assert accepted(tables(tmp_path / "b", *lines(separator), review_columns=numbers)) == ORDERS
    swapped = [(user, thing, rating, time) for user, thing, time, rating in ORDERS]
    source = {"kind": "ratings_csv", "ratings": [write(tmp_path / "r.dat", *lines(separator, swapped))]}
    assert accepted(Bench(tmp_path / "c", source | {"order": "user_item"})) == ORDERS
    items = {"items": [write(tmp_path / "items.csv", *[separator.join((f"i{n}", f'The "{n}"')) for n in range(5)])]}
    named = tables(tmp_path / "d", HEADER, *lines(), item_columns={"item_id": "1", "title": "2"}, **items)
    assert rows(named.run("raw_items"), "raw_items")["title"].to_list() == [f'The "{n}"' for n in range(5)]


def test_a_missing_header_is_named(tmp_path):
    error = refused(tables(tmp_path / "a", *[f"{n},{n},{JUNE_2018}" for n in range(9)]))
    assert "without a header" in error.found and "by their numbers" in error.fix
    error = refused(tables(tmp_path / "b", *[f"u{n},i{n},2018-06-01" for n in range(9)]))
    assert "no column 'user_id'" in error.what and "numbers" in error.fix


def test_ratings_of_another_scale(tmp_path):
    doubled = [(*order[:3], 2 * order[3]) for order in ORDERS]
    content = HEADER, *lines(orders=doubled)
    error = refused(tables(tmp_path / "a", *content))
    assert "'rating' are of another scale" in error.what
    assert "rating_scale" in error.fix and "rating: null" in error.fix
    assert accepted(tables(tmp_path / "b", *content, review_columns={"rating": None})) == [
        (*order[:3], None) for order in ORDERS
    ]
    assert accepted(tables(tmp_path / "c", *content, rating_scale=[0, 10])) == ORDERS
    ends = HEADER, f"u,i,{JUNE_2018},-10", f"u,i,{JUNE_2018},0", f"u,i,{JUNE_2018},10"
    assert [row[3] for row in accepted(tables(tmp_path / "d", *ends, rating_scale=[-10, 10]))] == [0.0, 2.5, 5.0]
    swapped = [(user, thing, rating, time) for user, thing, time, rating in doubled]
    source = {"kind": "ratings_csv", "ratings": [write(tmp_path / "r.csv", *lines(orders=swapped))]}
    source |= {"order": "user_item"}
    assert "another scale" in refused(Bench(tmp_path / "e", source)).what
    assert accepted(Bench(tmp_path / "f", source | {"rating_scale": [0, 10]})) == ORDERS


@pytest.mark.parametrize("settings", [{"rating_scale": [5, 5]}, {"review_columns": {"user_id": None}}])
def test_impossible_scales_and_maps_are_profile_errors(tmp_path, settings):
    with pytest.raises(ProfileError, match="expected the"):
        tables(tmp_path, HEADER, **settings)


def test_fractions_of_a_second_are_cut_off(tmp_path):
    times = {f"{JUNE_2018}.25": 1, f"{JUNE_2018}.75": 1, f"{JUNE_2018 + 1}": 1}
    for number, unit in enumerate((1, 1000)):
        content = [f"u,i,{float(time) * unit:.3f},5" for time in times]
        bench = tables(tmp_path / str(number), HEADER, *content)
        assert [row[2] for row in accepted(bench)] == [JUNE_2018, JUNE_2018, JUNE_2018 + 1]
    frame = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": [float(time) for time in times]})
    frame.write_parquet(tmp_path / "t.parquet")
    source = {"kind": "tables", "reviews": [str(tmp_path / "t.parquet")]}
    assert len(accepted(Bench(tmp_path / "parquet", source))) == 3
    ratings = write(tmp_path / "r.csv", *[f"u,i,5,{time}" for time in times])
    source = {"kind": "ratings_csv", "ratings": [ratings], "order": "user_item"}
    assert len(accepted(Bench(tmp_path / "ratings", source))) == 3
    source = amazon(tmp_path / "json", [review("u", "i", float(time)) for time in times], [item("i")])
    assert [row[2] for row in accepted(Bench(tmp_path / "json", source))] == [JUNE_2018, JUNE_2018, JUNE_2018 + 1]


@pytest.mark.parametrize(
    ("column", "value", "form"),
    [("timestamp", "06/01/2018", "ISO 8601"), ("rating", "good", "numbers"), ("timestamp", "20180601", "unix times")],
)
def test_a_column_in_another_form_is_named(tmp_path, column, value, form):
    fields = {"user_id": "u", "item_id": "i", "timestamp": str(JUNE_2018), "rating": "5"} | {column: value}
    error = refused(tables(tmp_path, HEADER, *[",".join(fields.values())] * 5))
    assert f"column '{column}'" in error.what
    assert form in error.expected and value in error.found


def test_iso_dates_in_a_ratings_csv(tmp_path):
    source = {"kind": "ratings_csv", "ratings": [write(tmp_path / "r.csv", "u,i,5,2018-06-01T00:00:09Z")]}
    assert accepted(Bench(tmp_path, source | {"order": "user_item"})) == [("u", "i", JUNE_2018 + 9, 5.0)]


@pytest.mark.parametrize(
    ("bad", "reason", "fix"),
    [
        ("é,i,1527811200,5".encode("latin-1"), "bad_encoding", "iconv"),
        ("u,i,1527811200,7", "rating_out_of_range", "rating_scale"),
        ("u,i,yesterday,5", "wrong_type", "ISO 8601"),
        ("u,i,1527811200", "wrong_columns", "separator"),
    ],
)
def test_advice_fits_the_reason(tmp_path, bad, reason, fix):
    error = refused(tables(tmp_path, HEADER, *lines(), bad))
    assert f"{reason} 1" in error.found and fix in error.fix and "max_quarantine_share" in error.fix


# -- which files are read --------------------------------------------------------------------------


def test_hidden_files_are_passed_over(tmp_path):
    folder = tmp_path / "orders"
    for name in (
        "a.csv",
        ".ipynb_checkpoints/a.csv",
        "_temporary/0/b.csv",
        ".Trash-1/files/c.csv",
        "part=1/_d.csv",
        "~$a.csv",
    ):
        write(folder / name, HEADER, *lines())
    for number, pattern in enumerate((folder, folder / "**" / "*.csv")):
        bench = Bench(tmp_path / str(number), {"kind": "tables", "reviews": [str(pattern)]})
        assert accepted(bench) == ORDERS
        assert any("names with . or _ first" in line and "_temporary" in line for line in bench.said)
    spelt_out = Bench(tmp_path / "home", {"kind": "tables", "reviews": [str(folder / "_temporary" / "*" / "*.csv")]})
    assert accepted(spelt_out) == ORDERS
    (folder / "a.csv").unlink()
    assert "5 in names that begin with . or _" in refused(bench := Bench(tmp_path / "x", bench_source(folder))).found
    assert bench.published() == []


def bench_source(*paths: Path) -> dict:
    return {"kind": "tables", "reviews": list(map(str, paths))}


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    path = Path(write(tmp_path / "a" / "orders.csv", HEADER, *lines()))
    (tmp_path / "b").symlink_to(tmp_path / "a")
    source = bench_source(path, tmp_path / "b" / "orders.csv", tmp_path / "a" / ".." / "a" / "*.csv")
    metrics = Bench(tmp_path, source).run("raw_reviews").manifest["metrics"]
    assert (metrics["lines"], metrics["exact_duplicates"]) == (20, 0)


@pytest.mark.parametrize(
    "log", ["_delta_log/00.json", ".hoodie/hoodie.properties", "metadata/v1.metadata.json", "_spark_metadata/0"]
)
def test_a_table_with_a_log_is_refused(tmp_path, log):
    part = Path(write(tmp_path / "orders" / "day=1" / "part.csv", HEADER, *lines()))
    write(tmp_path / "orders" / log, "{}")
    for number, pattern in enumerate((tmp_path / "orders", part.parent, tmp_path / "orders" / "*" / "*.csv")):
        error = refused(Bench(tmp_path / str(number), bench_source(pattern)))
        assert str(tmp_path / "orders") in error.what and "export the table" in error.fix
    assert accepted(Bench(tmp_path / "named", bench_source(part))) == ORDERS


def archive(kind: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
            entry = tarfile.TarInfo("orders.csv")
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        packed.writestr("xl/workbook.xml" if kind == "xlsx" else "orders.csv", content)
    return buffer.getvalue()


CSV = "\n".join([HEADER, *lines()]).encode()
FORMATS = {
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(200)), "zstd"),
    "bzip2": (bz2.compress(CSV), "bunzip2"),
    "xz": (lzma.compress(CSV), "unxz"),
    "zip": (archive("zip", CSV), "unzip"),
    "Excel (.xlsx)": (archive("xlsx", CSV), "CSV UTF-8"),
    "tar": (archive("tar", CSV), "tar -xf"),
    "UTF-16": (CSV.decode().encode("utf-16"), "iconv"),
    "UTF-16 text": (CSV.decode().encode("utf-16-be"), "iconv -f UTF-16BE"),
    "pickle": (pickle.dumps({"a": [1]}), "nothing is unpickled"),
    "JSON array": (json.dumps([{"user_id": "u"}] * 3).encode(), "jq"),
    "web page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "login"),
    "text whose lines end in CR alone": (CSV.replace(b"\n", b"\r"), "tr '\\r' '\\n'"),
    "text above the header": (b"Shop export\n" + CSV.replace(b"\n", b",x\n"), f"the first line has to be '{HEADER},x'"),
    "a first line of 4 cells above lines of 5": (
        "\n".join([HEADER, *(line + "," for line in lines())]).encode(),
        "one cell more",
    ),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "XML": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "fetch it again"),
    "SQL statements": (b"-- MySQL dump 10.13\nINSERT INTO `orders` VALUES (1, 2, 3);\n", "export the table"),
    "a DuckDB database": (bytes(8) + b"DUCK" + bytes(100), "duckdb orders.csv"),
    "an Arrow stream": (b"\xff\xff\xff\xff" + bytes(100), "read_ipc_stream"),
    "bytes that are no text": (bytes(range(128, 256)) * 9, "source.kind"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_named_for_what_they_are(tmp_path, kind):
    content, fix = FORMATS[kind]
    path = tmp_path / "orders.csv"
    path.write_bytes(gzip.compress(content))
    inside = {"Excel (.xlsx)": "a zip archive", "tar": "gzip within gzip"}
    assert inside.get(kind, kind) in detect(path).name
    path.write_bytes(content)
    for number, source in enumerate(
        (
            bench_source(path),
            {"kind": "ratings_csv", "ratings": [str(path)]},
            {"kind": "amazon_2018", "reviews": [str(path)]},
        )
    ):
        error = refused(Bench(tmp_path / str(number), source))
        assert kind in error.found and fix in error.fix


NOTHING = ("\\N", "NULL", "null", "None", "nan", "NaN", "NA", "N/A", "#N/A", "<NA>")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_stands_for_nothing_is_no_user_and_no_rating(tmp_path, kind):
    users = [*NOTHING, "Null", "", *(f"u{n}" for n in range(20))]
    ratings = ["5"] * 12 + [*NOTHING, *["4"] * 10]
    rows = [
        (user, f"i{n}", str(JUNE_2018 + n * DAY), rating)
        for n, (user, rating) in enumerate(zip(users, ratings, strict=True))
    ]
    path = tmp_path / f"orders.{kind}"
    frame = pl.DataFrame(rows, schema=HEADER.split(","), orient="row")
    frame.write_csv(path) if kind == "csv" else frame.write_parquet(path)
    bench = Bench(tmp_path, bench_source(path), filters={"max_quarantine_share": 0.5})
    kept = accepted(bench)
    assert [user for user, *_ in kept] == ["Null", *(f"u{n}" for n in range(20))]
    assert [rating for *_, rating in kept] == [5.0, *[None] * 10, *[4.0] * 10]
    assert bench.run("raw_reviews").manifest["metrics"]["quarantined"] == 11


# -- nothing vanishes ------------------------------------------------------------------------------


def test_blanks_around_ids_are_cut_off(tmp_path):
    padded = [(f"{user} ", f"{thing}   ", *rest) for user, thing, *rest in ORDERS]
    items = write(tmp_path / "items.csv", "item_id,title", *[f" i{n},Thing {n}" for n in range(5)])
    bench = tables(tmp_path, HEADER, *lines(orders=padded), items=[items], filters={"k_core": 1})
    assert accepted(bench) == ORDERS
    assert bench.interactions().manifest["metrics"]["interactions"] == 20
    assert [bench.run(stage).manifest["metrics"]["trimmed_ids"] for stage in ("raw_reviews", "raw_items")] == [20, 5]
    assert sum("blanks around them" in line for line in bench.said) == 2
    source = amazon(tmp_path / "json", [review(" u", "i ")], [item("i")])
    assert accepted(Bench(tmp_path / "json", source)) == [("u", "i", JUNE_2018, 5.0)]


def test_reviews_of_unknown_items_are_counted(tmp_path):
    orders = [(user, f"0{n}" if n % 2 else f"{n}.0", time, rating) for n, (user, _, time, rating) in enumerate(ORDERS)]
    orders += [("u1", "A", JUNE_2018, 5), ("u1", "nowhere", JUNE_2018, 5), ("u1", "0", JUNE_2018 + 5, 5)]
    items = write(tmp_path / "items.csv", "item_id,title", *[f"{n},Thing {n}" for n in range(20)], "a,Thing a", "b,<b")
    few = [("u2", str(n), JUNE_2018 + n * DAY, 5) for n in range(9)]
    bench = tables(tmp_path, HEADER, *lines(orders=orders + few), items=[items], filters={"k_core": 1})
    out = bench.interactions()
    assert out.manifest["metrics"]["unknown_items"] == 22
    known = check(out, "known_items")
    assert not known["passed"] and "22 of 32 reviews" in known["detail"] and "title_html 1" in known["detail"]
    counted = check(out, "every_line_counted")
    assert counted["passed"]
    sentence = (
        "32 reviews = 10 in the 1-core + 1 of unknown items + 10 of unknown items (a decimal point differ) + "
        "10 of unknown items (leading zeros differ) + 1 of unknown items (upper and lower case differ)"
    )
    assert counted["detail"] == sentence and sentence in bench.said
    assert "leading zeros differ) | 10 |" in out.manifest["markdown"]["Where every review went"]


@pytest.mark.parametrize(("lonely", "passed"), [(20, True), (21, False)])
def test_a_core_that_leaves_little_is_told(tmp_path, lonely, passed):
    orders = [*ORDERS, *[(f"once{n}", "i0", JUNE_2018 + n, 5) for n in range(lonely)]]
    out = tables(tmp_path, HEADER, *lines(orders=orders), filters={"k_core": 2}).interactions()
    core = check(out, "core_share")
    assert core["passed"] is passed
    assert core["detail"].startswith(
        f"{lonely} of {20 + lonely} reviews are outside the 2-core, half allowed; left are 20 "
    )


def test_reviews_outside_the_filters_are_counted(tmp_path):
    orders = [*ORDERS, *ORDERS[:3], ("u1", "i1", JUNE_2018 - 40 * DAY, 5), ("u1", "lonely", JUNE_2018, 5)]
    reviews = [review(user, thing, time, rating) for user, thing, time, rating in orders]
    reviews += [review("u1", "i2", JUNE_2018, 0.5), review("u0", "i0", JUNE_2018 + DAY), review("u9", "none")]
    source = amazon(tmp_path, reviews, [item(name) for name in ("i0", "i1", "i2", "i3", "i4", "lonely")])
    filters = {"k_core": 2, "since": "2018-06", "min_rating": 1, "keep_repeats": False}
    bench = Bench(tmp_path / "home", source, filters=filters)
    assert check(bench.run("raw_reviews"), "every_line_counted")["detail"] == (
        "28 lines = 25 accepted + 3 exact duplicates of an earlier line"
    )
    assert check(bench.interactions(), "every_line_counted")["detail"] == (
        "25 reviews = 20 in the 2-core + 1 of unknown items + 1 before `filters.since` + "
        "1 below `filters.min_rating` or unrated + 1 repeats of a user and an item + 1 outside the 2-core"
    )


def test_every_line_of_a_file_is_counted(tmp_path):
    later = [("u", "i", JUNE_2018 + 200 * DAY, 5)]
    content = HEADER, *lines(orders=ORDERS + ORDERS[:2] + later), "u,i", "", "u,i,1527811200,9"
    bench = tables(tmp_path, *content, filters={"max_quarantine_share": 0.5})
    sentence = (
        "25 lines = 20 accepted + 2 exact duplicates of an earlier line + 1 later than the snapshot + "
        "1 refused (rating_out_of_range) + 1 refused (wrong_columns)"
    )
    assert check(bench.run("raw_reviews"), "every_line_counted")["detail"] == sentence
    assert sentence in bench.said


@pytest.mark.parametrize("keep", [False, True])
def test_exact_duplicates_are_said(tmp_path, keep):
    bench = tables(tmp_path, HEADER, *lines(orders=ORDERS * 2), filters={"keep_duplicates": keep})
    out = bench.run("raw_reviews")
    assert out.manifest["metrics"]["exact_duplicates"] == 20
    assert check(out, "duplicate_share")["passed"] is keep
    assert ("keep_duplicates" in check(out, "duplicate_share")["detail"]) is not keep
    assert any("20 exact duplicates" in line for line in bench.said) is not keep


def test_a_file_that_was_saved_twice_is_refused_where_every_line_counts(tmp_path):
    copies = [write(tmp_path / name, HEADER, *lines()) for name in ("orders.csv", "orders (1).csv")]
    empty = [write(tmp_path / name, HEADER) for name in ("part-1.csv", "part-2.csv")]
    source = {"kind": "tables", "reviews": copies + empty}
    error = refused(Bench(tmp_path / "kept", source, filters={"keep_duplicates": True}))
    assert "orders.csv and orders (1).csv" in error.found and "delete one" in error.fix
    out = Bench(tmp_path / "once", source).run("raw_reviews")
    assert out.manifest["metrics"]["rows"] == len(ORDERS) == out.manifest["metrics"]["exact_duplicates"]
    alone = Bench(tmp_path / "alone", {**source, "reviews": [copies[0], *empty]}, filters={"keep_duplicates": True})
    assert alone.run("raw_reviews").manifest["metrics"]["rows"] == len(ORDERS)


# -- titles ----------------------------------------------------------------------------------------

TITLES = {
    '"Weird Al" Yankovic': '"Weird Al" Yankovic',
    'The "K"': 'The "K"',
    "Tape 6\" x 100'": "Tape 6\" x 100'",
    "'Til Dawn": "'Til Dawn",
    '"A name"': "A name",
    "&quot;A name&quot;": "A name",
    'Pencils" />': "Pencils",
    'Monitor 19"': 'Monitor 19"',
    "Ø": "Ø",
    "M": "M",
}


def test_titles_of_real_catalogues(tmp_path):
    assert [text.clean_title(title) for title in TITLES] == list(TITLES.values())
    quoted = [f'{n},"{title.replace(chr(34), chr(34) * 2)}"' for n, title in enumerate(TITLES)]
    items = write(tmp_path / "items.csv", "item_id,title", *quoted)
    for keep in ("drop", "keep"):
        bench = tables(tmp_path / keep, HEADER, *lines(), items=[items], filters={"items_without_text": keep})
        assert rows(bench.run("raw_items"), "raw_items")["title"].to_list() == list(TITLES.values())


def test_a_short_title_of_amazon_is_refused_under_its_name_or_kept(tmp_path):
    source = amazon(tmp_path, [review("u", "i")], [item("i", "M"), item("j", "Thing")])
    assert rows(Bench(tmp_path / "a", source).run("raw_items"), "quarantine")["reason"].to_list() == ["title_too_short"]
    keep = Bench(tmp_path / "b", source, filters={"items_without_text": "keep"}).run("raw_items")
    assert rows(keep, "raw_items")["title"].to_list() == ["M", "Thing"]
