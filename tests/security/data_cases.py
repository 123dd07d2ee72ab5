"""Expressions, paths, links, addresses and keys that would reach further than they should."""

import csv
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import hostile
from hostile import Case

from builders.reviews import JUNE_2018, Bench, amazon, item, review, rows, write
from sidr_core.errors import SidrError
from sidr_core.pipeline.profile import load_profile, parse_profile
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import General
from sidr_core.settings.base import Endpoint

LENIENT = {"filters": {"max_quarantine_share": 1.0, "k_core": 1}}
REVIEWS = [review("U1", "I1"), review("U2", "I1"), review("U1", "I2", JUNE_2018 + 9)]
TABLE = "user_id,item_id,timestamp\n" + "".join(f"U{n % 3},I{n},{JUNE_2018 + n}\n" for n in range(9))

# -- expressions -------------------------------------------------------------------------------


def metadata_2014(folder: Path, canary: Path) -> str:
    evil = [f"{{'asin': 'E{n}', 'title': {code}}}" for n, code in enumerate(hostile.expressions(canary))]
    sound = [repr({"asin": f"I{n}", "title": f"Thing {n}", "imUrl": "u"}) for n in range(20)]
    source = amazon(folder, REVIEWS, sound + evil) | {"kind": "amazon_2014"}
    metrics = Bench(folder / "home", source, **LENIENT).run("raw_items").manifest["metrics"]
    return f"quarantined {metrics['quarantined']} of {len(evil)}"


def csv_history(folder: Path, canary: Path) -> str:
    names = [
        "user_id",
        "history_item_title",
        "item_title",
        "history_item_id",
        "item_id",
        "history_item_sid",
        "item_sid",
    ]
    codes = hostile.expressions(canary)
    lines = [["A1", "['T']", "T", "[1]", "1", "['<a_1>']", "<a_1>"]]
    lines += [["A1", code, "T", code, "1", code, "<a_1>"] for code in codes]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([names, *lines])
    splits = {}
    for split in ("train", "valid", "test"):
        (folder / split).mkdir()
        (folder / split / "Toys.csv").write_text(out.getvalue())
        splits[split] = str(folder / split / "Toys.csv")
    source = {"kind": "minionerec", **splits, "info": write(folder / "Toys.txt", "<a_1>\tThing\t1")}
    metrics = Bench(folder / "home", source, **LENIENT).run("raw_reviews").manifest["metrics"]
    return f"quarantined {metrics['quarantined'] // 3} of {len(codes)}"


def descriptions(folder: Path, canary: Path) -> str:
    codes = hostile.expressions(canary)
    items = [item(f"I{n}", description=[f"[{code}]"], category=f"[{code}]") for n, code in enumerate(codes)]
    bench = Bench(folder / "home", amazon(folder, REVIEWS, items), **LENIENT)
    return f"read as text: {len(rows(bench.run('raw_items'), 'raw_items'))} of {len(codes)}"


def general_examples(folder: Path, canary: Path) -> str:
    from sidr_core.corpus import general

    codes = [*hostile.expressions(canary), "-" * 9000 + "1", "[" * 9000]
    lines = [json.dumps({"messages": code}) for code in codes]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write(folder / "general.jsonl", *lines, json.dumps({"messages": repr(turns)}))
    read = general.read(General(path=path), 0, Progress(lambda line: None))
    assert len(read.examples) == 1
    return f"quarantined {read.counts['general_not_readable']} of {len(codes)}"


# -- names and paths ---------------------------------------------------------------------------


def every(bad: list, attempt: Callable[[object], object]) -> str:
    """Whether each of some values is refused as a mistake of the user."""
    passed = []
    for value in bad:
        try:
            attempt(value)
        except (SidrError, ValueError):
            continue
        passed.append(value)
    return f"refused {len(bad) - len(passed)} of {len(bad)}" + (f", not {passed[0]!r}" if passed else "")


NAMES = [
    *("../x", "..", ".", "", "/etc", "a/b", "a\\b", "a\0b", "a\nb", "a\n", "a b", "~", "$HOME", "%2e%2e", "a'b", 'a"b'),
    *("a;drop schema main", "a--", "\u202ea", "\uff41", "1a", "x" * 300, "main", "TEMP", "information_schema"),
]
FIELDS = {"source": {"kind": "sample", "category": "games"}, "snapshots": {"start": "2018-03", "end": "2018-10"}}


def dataset_names(folder: Path, canary: Path) -> str:
    return every(NAMES, lambda name: parse_profile("p", {"datasets": {name: FIELDS}}))


def member_names(folder: Path, canary: Path) -> str:
    def attempt(name: object) -> None:
        mix = {"kind": "mix", "sources": {name: FIELDS["source"], "b": FIELDS["source"]}}
        parse_profile("p", {"datasets": {"d": FIELDS | {"source": mix}}})

    return every(NAMES[:20], attempt)


def snapshot_keys(folder: Path, canary: Path) -> str:
    bench = Bench(folder / "home", FIELDS["source"])
    keys = ["../../../etc", "2018-03/../2018-04", "", "2018-3", "2018-03\n", "'; drop", "2018-13", "１８"]
    return every(keys, lambda key: bench.run("raw_items", str(key)))


def address(url: str) -> dict:
    return parse_profile("p", {"datasets": {"d": FIELDS | {"encoder": {"endpoint": {"base_url": url, "model": "m"}}}}})  # type: ignore[return-value]


BASES = [
    *("ftp://h/v1", "file:///etc/passwd", "javascript:alert(1)", "//h/v1", "h/v1", "", "http://", "http:///v1"),
    *("http+unix://%2fvar%2frun/v1", "data:text/plain,x", "http://h/v1\r\nX-Evil: 1", "http://h/\tv1", "http://h /v1"),
    *("http://[::1", "https://u:hunter2@h/v1", "https://hunter2@h/v1", "gopher://h", "\nhttp://h/v1", "ws://h/v1"),
]


def base_urls(folder: Path, canary: Path) -> str:
    said = every(BASES, address)
    for url in BASES:
        try:
            address(url)
        except SidrError as error:
            assert "hunter2" not in str(error), "a password is shown"
    return said


def source_urls(folder: Path, canary: Path) -> str:
    from sidr_core.reviews.files import resolve

    urls = ["file:///etc/passwd", "FILE:///etc/passwd", "ftp://h/x", "s3://b/x", "data://x", "jar://x", "gs://b/x"]
    urls += ["http+unix://x", "https://u:hunter2@127.0.0.1:9/x"]
    return every(urls, lambda url: resolve([str(url)], "reviews"))


def download_name(folder: Path, canary: Path) -> str:
    from file_server import BODY, FileServer

    from sidr_core.reviews import downloads

    names = [f"..%2f..%2f..%2f{canary.name}", "..", f"%2e%2e%2f{canary.name}", f"..%5c{canary.name}", "%2fetc%2fpasswd"]
    cache, here = folder / "home" / "cache" / "downloads", {"no_proxy": "127.0.0.1"}
    patient, quiet = patch.object(downloads, "PATIENCE", downloads.Patience(retries=0)), Progress(lambda line: None)
    with FileServer() as server, patient, patch.dict(os.environ, here):
        read = [downloads.download(server.url.replace("reviews.json", name), quiet).resolve() for name in names]
    inside = sum(path.parent == cache.resolve() and path.read_bytes() == BODY for path in read)
    outside = [path for path in folder.rglob("*") if path.is_file() and path.parent != cache]
    return f"read {inside} of {len(names)}, outside the cache: {len(outside)}"


def archive(folder: Path, canary: Path) -> str:
    """Archives with members that climb out: no archive is ever opened."""
    with zipfile.ZipFile(folder / "reviews.zip", "w") as packed:
        packed.writestr(f"../{canary.name}", TABLE)
    with tarfile.open(folder / "reviews.tar.gz", "w:gz") as packed:
        member = tarfile.TarInfo(f"../{canary.name}")
        member.size = len(TABLE)
        packed.addfile(member, io.BytesIO(TABLE.encode()))

    (folder / "reviews.tar").write_bytes(gzip.decompress((folder / "reviews.tar.gz").read_bytes()))

    def attempt(what: object) -> None:
        kind, name = str(what).split()
        Bench(folder / "home", {"kind": kind, "reviews": [str(folder / name)]}).run("raw_reviews")

    names = ["reviews.zip", "reviews.tar.gz", "reviews.tar"]
    return every([f"{kind} {name}" for kind in ("tables", "amazon_2018", "amazon_2023") for name in names], attempt)


def odd_file_names(folder: Path, canary: Path) -> str:
    names = ["a'b.csv", 'a";drop table x;--.csv', "a[1]*?.csv", "a\nb.csv", "-rf.csv", "\u202efdp.csv", "${HOME}.csv"]
    (folder / "in").mkdir()
    for number, name in enumerate(names):
        (folder / "in" / name).write_text(TABLE.replace("U", f"U{number}"))
    bench = Bench(folder / "home '\";--", {"kind": "tables", "reviews": [str(folder / "in")]}, **LENIENT)
    with patch.dict(os.environ, {"SIDR_HOME": str(folder / "home '\";--")}):
        read = rows(bench.run("raw_reviews"), "raw_reviews")
    return f"read as data: {read['file'].n_unique() if 'file' in read.columns else len(read) // 9} of {len(names)}"


# -- links -------------------------------------------------------------------------------------


def linked_source(folder: Path, canary: Path) -> str:
    """A link among the sources is the user's own: it is read as a table, or refused as none."""
    (folder / "in").mkdir()
    (folder / "outside.csv").write_text(TABLE)
    (folder / "in" / "a.csv").symlink_to(folder / "outside.csv")
    (folder / "in" / "loop").symlink_to(folder / "in")
    (folder / "in" / "dangling.csv").symlink_to(folder / "nothing")
    bench = Bench(folder / "home", {"kind": "tables", "reviews": [str(folder / "in")]}, **LENIENT)
    return f"read as data: {len(rows(bench.run('raw_reviews'), 'raw_reviews'))} rows"


def linked_secret(folder: Path, canary: Path) -> str:
    (folder / "in").mkdir()
    (folder / "in" / "a.csv").symlink_to("/etc/passwd")
    Bench(folder / "home", {"kind": "tables", "reviews": [str(folder / "in")]}, **LENIENT).run("raw_reviews")
    return "read"


def linked_output(target: str) -> Callable[[Path, Path], str]:
    """A published output in which a link is planted is not taken for sound, and is rebuilt."""

    def run(folder: Path, canary: Path) -> str:
        bench = Bench(folder / "home", amazon(folder, REVIEWS, [item("I1"), item("I2")]), **LENIENT)
        made = bench.run("raw_items")
        if target == "file":
            real = made.folder / "raw_items.parquet"
            real.rename(folder / "outside.parquet")
            real.symlink_to(folder / "outside.parquet")  # even with the very same bytes
        else:
            (made.folder / "more").symlink_to({"folder": "/etc", "nothing": folder / "none"}[target])
        assert bench.store.sound("raw_items", made.fingerprint) is None, "taken for sound"
        again = bench.run("raw_items")
        assert not any(path.is_symlink() for path in again.folder.rglob("*"))
        return "refused and rebuilt"

    return run


# -- keys and profiles -------------------------------------------------------------------------


def key_with_a_header(folder: Path, canary: Path) -> str:
    from sidr_core.remote.endpoint import read_key

    keys = ["k\r\nX-Evil: 1", "k\nX", "k X", "k\x00X".replace("\0", "\x01"), "k\x7f", "schlüssel", "k\u2028"]

    def attempt(key: object) -> None:
        with patch.dict(os.environ, {"EVIL_KEY": str(key)}):
            try:
                read_key(Endpoint(model="m", api_key_env="EVIL_KEY"))
            except SidrError as error:
                assert "X-Evil" not in str(error), "the key is shown"
                raise

    # What stands at an end is cut off: a file with the key ends with a newline.
    return every([key for key in keys if not key.endswith("\u2028")], attempt)


def key_names(folder: Path, canary: Path) -> str:
    names = ["A\nB", "A=B", "", "A B", "1A", "Ä"]
    return every(names, lambda name: Endpoint(model="m", api_key_env=str(name)))


def yaml_file(text: str) -> Callable[[Path, Path], str]:
    def run(folder: Path, canary: Path) -> str:
        path = folder / "p.yaml"
        path.write_text(text.replace("CANARY", str(canary)))
        load_profile(str(path))
        return "read"

    return run


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
_MERGES = "a0: &a0 {x0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], x{n}: 1}}\n" for n in range(1, 9)
)
YAML = {
    "aliases of aliases (YAML)": _LAUGHS + "datasets: {d: {source: *a11}}\n",
    "merges of merges (YAML)": _MERGES + "datasets: {d: *a8}\n",
    "an alias inside itself (YAML)": "datasets: &d {d: {source: *d}}\n",
    "100,000 levels (YAML)": "datasets: " + "[" * 100_000,
    "a Python object (YAML)": "datasets: !!python/object/apply:os.system ['touch CANARY']\n",
    "an impossible date (YAML)": "datasets: {d: {since: 2018-99-99}}\n",
    "a number of 10,000 digits (YAML)": "datasets: {d: {seed: " + "9" * 10_000 + "}}\n",
}


def gzip_of_gzip(folder: Path, canary: Path) -> str:
    (folder / "r.json.gz").write_bytes(gzip.compress(gzip.compress(REVIEWS[0].encode())))
    Bench(folder / "home", {"kind": "amazon_2018", "reviews": [str(folder / "r.json.gz")]}).run("raw_reviews")
    return "read"


def all_cases() -> list[Case]:
    return [
        Case("12 expressions", "2014 metadata", metadata_2014, "quarantined 12 of 12"),
        Case("12 expressions", "history columns of a CSV", csv_history, "quarantined 12 of 12"),
        Case("12 expressions", "descriptions and categories", descriptions, "read as text: 12 of 12"),
        Case("12 expressions, deep nesting", "general examples", general_examples, "quarantined 14 of 14"),
        Case("25 names", "dataset", dataset_names, "refused 25 of 25"),
        Case("20 names", "member of a mix", member_names, "refused 20 of 20"),
        Case("8 keys", "snapshot", snapshot_keys, "refused 8 of 8"),
        Case("19 base URLs", "endpoint", base_urls, "refused 19 of 19"),
        Case("9 URLs", "source", source_urls, "refused 9 of 9"),
        Case("5 URLs that climb out", "download cache", download_name, "read 5 of 5, outside the cache: 0"),
        Case("archives with members that climb out", "three kinds of source", archive, "refused 9 of 9"),
        Case("gzip inside gzip", "amazon source", gzip_of_gzip),
        Case("7 file names, odd home", "tables source", odd_file_names, "read as data: 7 of 7"),
        Case("links to a file, a loop, nothing", "folder of tables", linked_source, "read as data: 9 rows"),
        Case("link to /etc/passwd", "folder of tables", linked_secret),
        Case("link to a file", "published output", linked_output("file"), "refused and rebuilt"),
        Case("link to a folder", "published output", linked_output("folder"), "refused and rebuilt"),
        Case("link to nothing", "published output", linked_output("nothing"), "refused and rebuilt"),
        Case("6 keys with a header inside", "API key", key_with_a_header, "refused 6 of 6"),
        Case("6 names of variables", "API key", key_names, "refused 6 of 6"),
        *(Case(thing, "profile", yaml_file(text)) for thing, text in YAML.items()),
    ]
