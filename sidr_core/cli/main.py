"""`sidr`: look at what was published, get recommendations, and see why something is stale.

No command but `rehearse` runs a stage; `dagster asset materialize` does. Each command imports what it needs when it
runs, so `sidr --help` is instant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from sidr_core.errors import SidrError

app = typer.Typer(
    help="Recommendations that reason over Semantic IDs. SIDR_PROFILE names the profile, SIDR_HOME the working folder, "
    "SIDR_STORE a bucket for the outputs.",
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
    unlisted: Annotated[
        bool, typer.Option("--unlisted", help="Also datasets and snapshots that the profile does not have.")
    ] = False,
) -> None:
    """Delete what no snapshot refers to, old unfinished work, and leftovers of crashes. Never the ledger."""
    from sidr_core.cli import gc as command

    command.gc(yes and not dry_run, deep, cache, days, unlisted)


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
    history: Annotated[str | None, typer.Option("--history", help='Item ids, oldest first: A,B,"C,D".')] = None,
    mode: Annotated[
        Literal["thinking", "direct", "merged", "mixed"],
        typer.Option("--mode", "-m", help="With a thought, without, or a combined list as it is served."),
    ] = "thinking",
    k: Annotated[
        int | None, typer.Option("-k", min=1, help="Length of the list; default: 10, or all there are.")
    ] = None,
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
def serve(
    dataset: Dataset = None,
    model: Annotated[str | None, typer.Option("--model", help="Default: the language model trained last.")] = None,
    host: Annotated[str, typer.Option("--host", help="Another one than this machine needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535)] = 8000,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token; or set SIDR_SERVE_TOKEN.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name in the Host header; may be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Questions decoded together, at most.")] = 32,
    most_waiting: Annotated[int, typer.Option("--queue", min=1, help="Questions that may wait; then 429.")] = 256,
    seconds: Annotated[float, typer.Option("--time-limit", min=0.1, help="Seconds for an answer; then 504.")] = 60,
    reload_seconds: Annotated[
        float, typer.Option("--reload", min=0, help="Seconds between looks for another release; 0: never.")
    ] = 5,
) -> None:
    """Serve lists over HTTP: POST /recommend, an OpenAI-compatible API, a page at /, metrics."""
    from sidr_core.cli import serve as command

    command.serve(
        dataset, model, host, port, token_file, allow_host or (), batch_size, most_waiting, seconds, reload_seconds
    )


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
def audit(
    index: Annotated[
        Path | None,
        typer.Option(
            "--index", help="Another's SIDs: JSON or Parquet. Default: the codebook.", exists=True, dir_okay=False
        ),
    ] = None,
    dataset: Dataset = None,
    snapshot: Snapshot = None,
) -> None:
    """Audit SIDs against train rows: prefixes and what is taken together, popularity, fan-out, collisions, churn."""
    from sidr_core.cli import audit as command

    command.audit(dataset, snapshot, index)


@app.command()
def verify(
    cards: Annotated[
        list[Path], typer.Argument(help="Claim cards, `claims/*.json` of a leaderboard.", exists=True, dir_okay=False)
    ],
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also make the lists again from their checkpoint, and compare.")
    ] = False,
) -> None:
    """Check claim cards against the stored rows and lists: true or false, and what differs. Exit code 1 if false."""
    from sidr_core.cli import verify as command

    raise typer.Exit(command.verify(cards, rebuild))


@app.command()
def promote(
    dataset: Dataset = None,
    force: Annotated[
        str | None, typer.Option("--force", help="Promote whatever the gate says; why, for the log.")
    ] = None,
) -> None:
    """Make the newest judged candidate live, if the gate lets it pass. Exit code 1 if it does not."""
    from sidr_core.cli import promote as command

    command.promote(dataset, force)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log.")],
    dataset: Dataset = None,
) -> None:
    """Make live again what was live before."""
    from sidr_core.cli import promote as command

    command.rollback(dataset, reason)


@app.command()
def live(
    dataset: Dataset = None,
    log: Annotated[bool, typer.Option("--log", help="Every decision, oldest first.")] = False,
    format: Annotated[Literal["table", "json"], FORMAT] = "table",
) -> None:
    """Show what is live, and what was before it."""
    from sidr_core.cli import promote as command

    command.live(dataset, log, format)


@app.command()
def estimate(dataset: Dataset = None, snapshot: Snapshot = None) -> None:
    """Estimate the corpus with this profile's teacher: calls, tokens and USD, before anything is spent."""
    from sidr_core.cli import estimate as command

    command.estimate(dataset, snapshot)


class _Export(TyperGroup):
    """`sidr export OUT` writes; `sidr export verify FOLDER` verifies."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        plain = args[:1] in ([], ["verify"], ["write"], ["--help"])
        return super().parse_args(ctx, args if plain else ["write", *args])


export_app = typer.Typer(
    cls=_Export, no_args_is_help=True, help="Write a checkpoint for another engine, and verify it."
)
app.add_typer(export_app, name="export")


@export_app.command()
def write(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    to: Annotated[Literal["vllm", "sglang", "static", "hf"], typer.Option("--to", help="The engine.")] = "hf",
    model: Annotated[Literal["sft", "activation", "grpo"], typer.Option("--model", help="The checkpoint.")] = "grpo",
    rows: Annotated[int, typer.Option("--rows", min=2, help="Valid rows with reference lists.")] = 200,
    dataset: Dataset = None,
    snapshot: Snapshot = None,
) -> None:
    """Write a plain Hugging Face folder with contiguous codes, the catalogue in an engine's form, reference lists."""
    from sidr_core.cli import export as command

    command.export(dataset, snapshot, to, model, rows, out)


@export_app.command("verify")
def verify_export(
    folder: Annotated[Path, typer.Argument(help="What `sidr export` wrote.")],
    lists: Annotated[
        Path | None, typer.Option("--lists", help="The engine's lists as JSON lines; without it our decoder answers.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="A running engine: its address up to /v1, as OpenAI's."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The engine's model; default: that of the folder, or the only one.")
    ] = None,
    body: Annotated[
        str | None, typer.Option("--body", metavar="JSON", help="More fields of each question to the engine.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"] | None, typer.Option("--dtype", help="Our decoder's weights.")
    ] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Items per list that count; default: all.")] = None,
) -> None:
    """Compare an engine's lists with the reference: an equivalence certificate. Exit code 1 if not equivalent."""
    from sidr_core.cli import export as command

    raise typer.Exit(command.verify(folder, lists, endpoint, model, body, dtype, k))


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
def show(
    dataset: Dataset = None,
    snapshot: Snapshot = None,
    whole: Annotated[bool, typer.Option("--all", help="Print every list and every difference.")] = False,
) -> None:
    """Print the evaluation of a snapshot, in at most 25 lines."""
    from sidr_core.cli import show as command

    command.show(dataset, snapshot, whole)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 1."""
    try:
        app()
    except SidrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
