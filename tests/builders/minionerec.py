"""MiniOneRec's published split in small: three items, and rows of two users."""

import csv
import io
import json
from pathlib import Path

from builders.reviews import write

SIDS = {"7": "<a_1><b_2><c_3>", "8": "<a_1><b_2><c_4>", "9": "<a_0><b_0><c_0>"}
HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
INFO = [f"{sid}\tTitle, of {known}\t{known}" for known, sid in SIDS.items()]
DETAILS = {
    "7": {"title": "Title, of 7", "description": "['<b>Seven</b>']", "brand": "B", "categories": ""},
    "8": {"title": "Title, of 8", "description": ""},
}


def row(user: str, history: list[int], target: int, **cells: str) -> str:
    values = {
        "user_id": user,
        "history_item_title": str([f"Title, of {known}" for known in history]),
        "item_title": f"Title, of {target}",
        "history_item_id": str(history),
        "item_id": str(target),
        "history_item_sid": str([SIDS.get(str(known), "?") for known in history]),
        "item_sid": SIDS.get(str(target), "?"),
    } | cells
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(values.values())
    return out.getvalue()


def source(folder: Path, train=None, valid=None, test=None, info=INFO):
    splits = {
        "train": train or [row("A2", [7], 8), row("A1", [7, 8], 9), row("A2", [7, 8], 7)],
        "valid": valid or [row("A1", [7, 8, 9], 7)],
        "test": test or [row("A2", [7, 8, 7], 9), row("A1", [7, 8, 9, 7], 7)],
    }
    paths = {name: write(folder / name / "Office.csv.gz", HEADER, *lines) for name, lines in splits.items()}
    items = write(folder / "index" / "Office.item.json.gz", json.dumps(DETAILS))
    return {"kind": "minionerec", **paths, "info": write(folder / "info" / "Office.txt", *info), "items": items}
