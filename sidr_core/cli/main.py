"""`sidr`: look at what was published, ask for recommendations, and see why something is stale.

Nothing here computes a stage; `dagster asset materialize` does. Each command imports what it needs
when it runs, so `sidr --help` is instant.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sidr_core.errors import SidrError

app = typer.Typer(
    help="Reasoning recommendations over Semantic IDs. SIDR_PROFILE names the profile, SIDR_HOME the working folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Default: the profile's default dataset.")]
Snapshot = Annotated[str | None, typer.Option("--snapshot", "-s", help="Default: the newest one published.")]


@app.command()
def status(
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Default: all.")] = None,
    format: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table",
) -> None:
    """What is published, what is stale because of which change, and what a refresh would cost."""
    from sidr_core.cli import status as cli_status

    cli_status.status(dataset, format)


@app.command()
def doctor(format: Annotated[str, typer.Option("--format", "-f", help="table or json.")] = "table") -> None:
    """Check packages, machine, working folder, profile, keys and ledger; say what to do. Exit code 1 on a failure."""
    from sidr_core.cli import doctor as cli_doctor

    raise typer.Exit(cli_doctor.doctor(format))


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it (--dry-run) the list is all.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List only: the default.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also what current outputs were made from: later snapshots make it anew.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Also the caches: vectors, downloads, unpacked models.")
    ] = False,
    days: Annotated[float, typer.Option("--days", min=0, help="Younger unfinished work stays.")] = 7,
) -> None:
    """Delete what no snapshot refers to, old unfinished work and litter of dead processes. Never the ledger."""
    from sidr_core.cli import gc as cli_gc

    cli_gc.gc(yes and not dry_run, deep, cache, days)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One statement, such as: select * from games.evaluation")],
    format: Annotated[str, typer.Option("--format", "-f", help="table, csv or json.")] = "table",
) -> None:
    """Ask the catalog of published tables, read-only. `show all tables` lists them."""
    from sidr_core.cli import sql as cli_sql

    cli_sql.sql(query, format)


@app.command()
def recommend(
    user: Annotated[str | None, typer.Option("--user", "-u", help="A user of the snapshot.")] = None,
    history: Annotated[str | None, typer.Option("--history", help="Item ids, oldest first: A,B,C.")] = None,
    mode: Annotated[str, typer.Option("--mode", "-m", help="thinking or direct.")] = "thinking",
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the list.")] = 10,
    dataset: Dataset = None,
    snapshot: Snapshot = None,
) -> None:
    """Recommend with the GRPO checkpoint: titles, SIDs, scores and the thought."""
    from sidr_core.cli import lists as cli_lists

    cli_lists.recommend(dataset, snapshot, user, history, mode, k)


@app.command()
def explain(
    user: Annotated[str, typer.Option("--user", "-u", help="A user with test rows.")],
    row: Annotated[str | None, typer.Option("--row", help="row_id; default: the user's last test row.")] = None,
    model: Annotated[str, typer.Option("--model", help="<model>/<mode>")] = "grpo/thinking",
    k: Annotated[int, typer.Option("-k", min=1, help="Places to show.")] = 10,
    dataset: Dataset = None,
    snapshot: Snapshot = None,
) -> None:
    """A published list beside its history, its thought and the truth."""
    from sidr_core.cli import lists as cli_lists

    cli_lists.explain(dataset, snapshot, user, row, model, k)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="<dataset>/<model>/<mode>, the one to compare with first.")],
    snapshot: Snapshot = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Cut-off of HR and NDCG.")] = 10,
    format: Annotated[str, typer.Option("--format", "-f", help="markdown or csv.")] = "markdown",
) -> None:
    """Compare models across datasets that share their test rows: intervals, paired differences, corrected verdicts."""
    from sidr_core.cli import compare as cli_compare

    cli_compare.compare(names, snapshot, k, format)


@app.command()
def estimate(dataset: Dataset = None, snapshot: Snapshot = None) -> None:
    """What the corpus would cost with this teacher: calls, tokens and USD, before anything is spent."""
    from sidr_core.cli import estimate as cli_estimate

    cli_estimate.estimate(dataset, snapshot)


@app.command()
def newest(dataset: Dataset = None) -> None:
    """Print the key of the newest snapshot."""
    from sidr_core.pipeline.profile import load_profile

    typer.echo(load_profile().newest(dataset))


@app.command()
def show(dataset: Dataset = None, snapshot: Snapshot = None) -> None:
    """Print the evaluation of a snapshot."""
    from sidr_core.cli import status as cli_status

    cli_status.show(dataset, snapshot)


def main() -> None:
    """Run the command line; a mistake of the user is one message and exit code 1."""
    try:
        app()
    except SidrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
