"""Upstream: the tables that the shop exports, where the profile (`sidr/shop.yaml`) looks for them."""

import csv
import os
import random
from datetime import date, timedelta
from pathlib import Path

import dagster as dg

SHELVES = {
    "Pens": ("Fountain pen", "Ballpoint pen", "Brush pen", "Gel pen", "Marker", "Highlighter"),
    "Paper": ("Notebook", "Sketchbook", "Letter paper", "Index cards", "Envelopes", "Calendar"),
    "Desk": ("Desk lamp", "Paper tray", "Pencil cup", "Stapler", "Hole punch", "Bookend"),
}
CUSTOMERS, ORDERS_EACH = 60, 8


def data_folder() -> Path:
    """`SHOP_DATA`, or `data` in the folder where Dagster was started."""
    return Path(os.environ.get("SHOP_DATA", "data"))


@dg.asset(kinds={"csv"}, description="Orders and products, as the shop's database exports them.")
def orders() -> dg.MaterializeResult:
    """Invented here: each customer keeps to a favourite shelf, mostly."""
    draw = random.Random(7)
    products = {f"{shelf}-{n}": (title, shelf) for shelf, titles in SHELVES.items() for n, title in enumerate(titles)}
    rows = []
    for customer in range(CUSTOMERS):
        favourite = draw.choice(list(SHELVES))
        wanted = sorted(products, key=lambda sku: draw.random() - 0.5 * sku.startswith(favourite))
        days = sorted(draw.sample(range(120), ORDERS_EACH))
        for sku, day in zip(wanted, days, strict=False):
            rows.append((f"customer-{customer}", sku, (date(2026, 1, 1) + timedelta(day)).isoformat()))
    _write("orders.csv", ("customer", "sku", "ordered_on"), rows)
    _write("products.csv", ("sku", "name", "shelf"), [(sku, *about) for sku, about in products.items()])
    return dg.MaterializeResult(metadata={"dagster/row_count": len(rows)})


def _write(name: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    data_folder().mkdir(parents=True, exist_ok=True)
    with (data_folder() / name).open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
