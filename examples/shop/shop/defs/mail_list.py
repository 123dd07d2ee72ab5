"""Downstream: what to mail to whom, from the published lists."""

from pathlib import Path

import dagster as dg
import polars as pl
from shop.defs.orders import data_folder

from sidr_assets.partitions import snapshot_partitions
from sidr_core.pipeline.profile import home, load_profile
from sidr_core.pipeline.store import Store

DATASET, TOP, MODEL = "shop", 3, "item_item"
PROFILE = load_profile(str(Path(__file__).parent / "sidr" / "shop.yaml"))


@dg.asset(
    deps=[["sidr", DATASET, "recommendations"]],
    partitions_def=snapshot_partitions(PROFILE.dataset(DATASET).snapshots),
    kinds={"csv"},
    description=f"The {TOP} best items of each customer, by title.",
)
def mail_list(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """`mail_list-<snapshot>.csv`: customer, rank, sku, title; of a customer's lists the one of the newest order."""
    store, snapshot = Store(home() / "store"), context.partition_key
    lists = pl.read_parquet(store.require(DATASET, snapshot, "recommendations").path("recommendations.parquet"))
    rows = pl.read_parquet(store.require(DATASET, snapshot, "recommendations").path("rows.parquet"))
    items = pl.read_parquet(store.require(DATASET, snapshot, "interactions").path("items.parquet"))
    newest = rows.sort("target_timestamp", "row_id").group_by("user_id").last().select("row_id")
    mails = (
        lists.filter(pl.col("model") == MODEL, pl.col("rank") <= TOP)
        .join(newest, on="row_id", how="semi")
        .join(items.select("item_id", "title"), on="item_id", how="left")
        .select(customer="user_id", rank="rank", sku="item_id", title="title")
        .sort("customer", "rank")
    )
    path = data_folder() / f"mail_list-{snapshot}.csv"
    mails.write_csv(path)
    customers = mails["customer"].n_unique()
    return dg.MaterializeResult(metadata={"path": dg.MetadataValue.path(str(path)), "customers": customers})
