"""`sidr`: look at what was published, get recommendations, and see why something is stale.

No command but `rehearse` runs a stage; `dagster asset materialize` does. Each command imports what it needs when it
runs, so `sidr --help` is instant.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from sidr_core.errors import SidrError

app = typer.Typer(
    help="Recommendations that reason over Semantic IDs. SIDR_PROFILE names the profile, SIDR_HOME the working folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Default: the profile's default dataset.")]
Snapshot = Annotated[str | None, typer.Option("--snapshot", "-s", help="Default: the newest published one.")]
FORMAT = typer.Option("--format", "-f", help="Form of the output.")


@app.command()
def status(
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Default: all.")] = None,
    format: Annotated[Literal["table", "json"], FORMAT] = "table",
) -> None:
    """Show what is published, what is stale and why, and what a refresh would cost."""
    from sidr_core.cli import status as command

    command.status(dataset, format)


@app.command()
def doctor(format: Annotated[Literal["table", "json"], FORMAT] = "table") -> None:
    """Check packages, machine, working folder, profile, keys and ledger, with fixes. Exit code 1 on a failure."""
    from sidr_core.cli import doctor as command

    raise typer.Exit(command.doctor(format))


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it the command only lists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, even with --yes.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also the inputs of current outputs; later snapshots rebuild them.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Also the caches: vectors, downloads, unpacked models.")
    ] = False,
    days: Annotated[float, typer.Option("--days", min=0, help="Keep unfinished work that is younger.")] = 7,
) -> None:
    """Delete what no snapshot refers to, old unfinished work, and leftovers of crashes. Never the ledger."""
    from sidr_core.cli import gc as command

    command.gc(yes and not dry_run, deep, cache, days)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One statement, such as: select * from games.evaluation")],
    format: Annotated[Literal["table", "csv", "json"], FORMAT] = "table",
) -> None:
    """Query the catalog of published tables, read-only. `show all tables` lists them."""
    from sidr_core.cli import sql as command

    command.sql(query, format)


@app.command()
def recommend(
    user: Annotated[str | None, typer.Option("--user", "-u", help="A user of the snapshot.")] = None,
    history: Annotated[str | None, typer.Option("--history", help="Item ids, oldest first: A,B,C.")] = None,
    mode: Annotated[
        Literal["thinking", "direct"], typer.Option("--mode", "-m", help="With a thought, or without.")
    ] = "thinking",
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the list.")] = 10,
    dataset: Dataset = None,
    snapshot: Snapshot = None,
) -> None:
    """Recommend with the GRPO checkpoint: titles, SIDs, scores and the thought."""
    from sidr_core.cli import recommend as command

    command.recommend(dataset, snapshot, user, history, mode, k)


@app.command()
def explain(
    user: Annotated[str, typer.Option("--user", "-u", help="A user with a test row.")],
    row: Annotated[str | None, typer.Option("--row", help="row_id; default: the user's last test row.")] = None,
    model: Annotated[str, typer.Option("--model", help="<model>/<mode>")] = "grpo/thinking",
    k: Annotated[int, typer.Option("-k", min=1, help="Items to show.")] = 10,
    dataset: Dataset = None,
    snapshot: Snapshot = None,
) -> None:
    """Show a published list with its history, its thought and the truth."""
    from sidr_core.cli import explain as command

    command.explain(dataset, snapshot, user, row, model, k)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="<dataset>/<model>/<mode>; the first is the reference.")],
    snapshot: Snapshot = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Cut-off of HR and NDCG.")] = 10,
    format: Annotated[Literal["markdown", "csv"], FORMAT] = "markdown",
) -> None:
    """Compare models across datasets with the same test rows: intervals and corrected paired differences."""
    from sidr_core.cli import compare as command

    command.compare(names, snapshot, k, format)


@app.command()
def estimate(dataset: Dataset = None, snapshot: Snapshot = None) -> None:
    """Estimate the corpus with this profile's teacher: calls, tokens and USD, before anything is spent."""
    from sidr_core.cli import estimate as command

    command.estimate(dataset, snapshot)


@app.command()
def rehearse(
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Default: SIDR_PROFILE.")] = None,
    dataset: Dataset = None,
    items: Annotated[int | None, typer.Option("--items", min=1, help="Items of the real data, if known.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Train rows of the real data, if known.")] = None,
) -> None:
    """Play the whole graph on small stand-ins of data, models and servers, and estimate the real run."""
    from sidr_core.cli import rehearse as command

    command.rehearse(profile, dataset, items, rows)


@app.command()
def newest(dataset: Dataset = None) -> None:
    """Print the key of the newest snapshot."""
    from sidr_core.pipeline.profile import load_profile

    typer.echo(load_profile().newest(dataset))


@app.command()
def show(dataset: Dataset = None, snapshot: Snapshot = None) -> None:
    """Print the evaluation of a snapshot."""
    from sidr_core.cli import show as command

    command.show(dataset, snapshot)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 1."""
    try:
        app()
    except SidrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
