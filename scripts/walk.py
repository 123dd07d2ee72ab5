"""Walks through the UI as a person does, in a headless browser, and takes the pictures of docs/ui.md.

    .venv/bin/python scripts/walk.py                                       # the checkout's own home, once built
    .venv/bin/python scripts/walk.py --profile tests/profiles/tiny.yaml    # a home of its own, built by clicks

It opens the graph, materializes snapshots through the dialog, watches their runs, and opens what they made; each
step fails where the page does not show what it should. Needs chromium (on Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image
from screenshot import LYING, ROOT, browser, make_home, picture, web_server
from web_api import LOCATION, REPOSITORY, WebApi

from sidr_core.pipeline.graph import stages_of
from sidr_core.pipeline.profile import home, load_profile
from sidr_core.pipeline.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

VIEW = {"width": 1600, "height": 1000}
#: Milliseconds for a page to show something, and for a run to end: a busy machine is slow.
SHOWN, ENDED = 180_000, 1_800_000
#: A dataset whose source file is missing, to see how the UI shows a mistake.
BROKEN = "broken"

_RUNS = """query($snapshot: String!) { runsOrError(filter: {tags: [{key: "dagster/partition", value: $snapshot}]}) {
  ... on Runs { results { runId assetSelection { path } } } } }"""


@dataclass
class Walk:
    """One page of the browser, on one dataset.

    Args:
        page: at any address.
        address: of the web server.
        dataset: the asset group to look at.
        pictures: the folder that screenshots go to, as `ui-<name>.png`; None for none.
    """

    page: Page
    address: str
    dataset: str
    pictures: Path | None = None

    def shot(self, name: str) -> None:
        """Take a picture once nothing loads any more."""
        if self.pictures is not None:
            self.page.wait_for_timeout(1_500)
            save(self.page.screenshot(), self.pictures / f"ui-{name}.png")

    def text(self, text: str, **options: Any) -> Locator:
        """Wait until the page shows a text; returns where."""
        locator = self.page.get_by_text(text, exact=True, **options).first
        locator.wait_for(timeout=SHOWN)
        return locator

    def graph(self) -> None:
        """Open the graph of the dataset; each of its stages is drawn."""
        self.page.goto(f"{self.address}/locations/{REPOSITORY}@{LOCATION}/asset-groups/{self.dataset}/lineage")
        stages = stages_of(load_profile().dataset(self.dataset))
        for stage in (one.name for one in stages):  # a long name is cut in a small graph
            label = re.compile(rf"^({stage}|{stage[:4]}\w*…\w*)$")
            self.page.get_by_text(label).first.wait_for(timeout=SHOWN)

    def materialize(self, snapshot: str) -> None:
        """On the graph or an asset: press the button, choose the snapshot in the dialog, launch, open the run."""
        before = self._runs(snapshot)
        box = self.page.get_by_placeholder("ex: ")
        self.press_materialize(box)
        launch = self.page.get_by_role("button", name="Launch 1 run")
        self.choose(box, snapshot, launch)
        self.shot("launch")
        launch.click()
        launch.wait_for(state="detached", timeout=SHOWN)
        deadline = time.monotonic() + SHOWN / 1000
        while not (made := self._runs(snapshot) - before):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no run of {self.dataset}, {snapshot}, within {SHOWN // 1000} s of its launch")
            self.page.wait_for_timeout(500)
        (run,) = made
        self.page.goto(f"{self.address}/runs/{run}")

    def choose(self, box: Locator, snapshot: str, launch: Locator) -> None:
        """Type the snapshot until the dialog has taken it; typed while its partitions load, it is forgotten."""
        from playwright.sync_api import TimeoutError as NotShown

        for left in reversed(range(6)):
            box.fill(snapshot)
            box.press("Enter")
            try:
                return launch.wait_for(timeout=SHOWN // 6)
            except NotShown:
                if not left:
                    raise

    def press_materialize(self, box: Locator) -> None:
        """Open the dialog; pressed while the page still loads, the button does nothing.

        Where Dagster has seen no run of what is upstream (it was made by another home), it asks first.
        """
        from playwright.sync_api import TimeoutError as NotShown

        ready = "button:has-text('Materialize'):not(:has([role=progressbar])):not([disabled])"
        sure = self.page.get_by_role("button", name="Confirm", exact=True)
        for left in reversed(range(6)):
            self.page.locator(ready).first.click(timeout=SHOWN)
            try:
                box.or_(sure).first.wait_for(timeout=SHOWN // 6)
                if sure.is_visible():
                    sure.click()
                return box.wait_for(timeout=SHOWN // 6)
            except NotShown:
                if not left:
                    raise
                self.page.keyboard.press("Escape")

    def _runs(self, snapshot: str) -> set[str]:
        """Ids of the runs of this dataset's assets for a snapshot."""
        runs = WebApi(self.address).ask(_RUNS, snapshot=snapshot)["runsOrError"]["results"]
        ours = [run for run in runs if any(key["path"][0] == self.dataset for key in run["assetSelection"] or ())]
        return {run["runId"] for run in ours}

    def watch(self) -> str:
        """On the page of a run: wait until it says how the run ended."""
        ended = self.page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
        ended.wait_for(timeout=ENDED)
        return ended.inner_text()

    def asset_page(self, stage: str) -> None:
        """Open the page of an asset."""
        self.page.goto(f"{self.address}/assets/{self.dataset}/{stage}?view=overview")
        self.text("Source code")

    def asset(self, stage: str) -> None:
        """Open the page of an asset that was materialized."""
        self.asset_page(stage)
        self.text("fingerprint")

    def tab(self, name: str, shows: str) -> None:
        """On the page of an asset: change to another tab, which shows a text."""
        self.page.get_by_role("tab", name=name).or_(self.page.get_by_role("link", name=name)).last.click()
        self.text(shows)

    @contextmanager
    def opened(self, label: str) -> Iterator[Locator]:
        """On the page of an asset: open the page or picture behind a metadata label, and close it afterwards."""
        row = self.page.get_by_role("row").filter(has=self.page.get_by_text(label, exact=True)).last
        row.get_by_text("[Show Markdown]").click(timeout=SHOWN)
        dialog = self.page.locator("[role=dialog], .bp5-dialog").last
        dialog.wait_for(timeout=SHOWN)
        yield dialog
        self.page.keyboard.press("Escape")
        dialog.wait_for(state="detached", timeout=SHOWN)


def save(png: bytes, target: Path) -> None:
    """Write a picture no wider than a page of the docs, in few colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((VIEW["width"], 2 * VIEW["height"]), Image.Resampling.LANCZOS)
    picture.quantize(colors=128).save(target, optimize=True)


def evaluation_cells(snapshot: str, dataset: str) -> list[str]:
    """The values with intervals that the page of the evaluation should show, item level."""
    from sidr_core.evaluation.pages import leaderboard
    from sidr_core.tables import files as tables

    artifact = Store(home() / "store").require(dataset, snapshot, "evaluation")
    grid = leaderboard(tables.read(artifact.path("evaluation.parquet")))
    return [cell for row in grid.rows for cell in row]


def read_evaluation(walk: Walk, snapshot: str) -> None:
    """Open the evaluation; the page behind it holds the very numbers of the table, and plots are drawn.

    Raises:
        AssertionError: a number is missing or another one.
    """
    walk.asset("evaluation")
    walk.shot("asset")
    with walk.opened("evaluation") as page:
        page.locator("h2").filter(has_text="Item level").first.wait_for(timeout=SHOWN)
        page.locator("h1").first.scroll_into_view_if_needed()  # it opens at its end
        walk.shot("evaluation")
        text = " ".join(page.inner_text().split())
        missing = [cell for cell in evaluation_cells(snapshot, walk.dataset) if cell not in text]
    assert not missing, f"the page of the evaluation lacks {missing[:5]}"


def see_picture(walk: Walk, stage: str, name: str) -> None:
    """Open an asset's picture; it is drawn.

    Raises:
        AssertionError: the browser could not show it.
    """
    walk.asset(stage)
    with walk.opened(f"figure: {name}") as page:
        image = page.locator("img").first
        image.wait_for(timeout=SHOWN)
        walk.page.wait_for_function("() => [...document.images].every(image => image.complete)", timeout=SHOWN)
        width = image.evaluate("image => image.naturalWidth")
        walk.shot("figure")
    assert width > 100, f"the picture {name} of {stage} is {width} pixels wide"


def see_plots(walk: Walk, stage: str, first: str) -> None:
    """Open the plots of an asset's numbers over snapshots."""
    walk.asset(stage)
    plots = walk.text("Plots")
    plots.click()
    walk.text(first).scroll_into_view_if_needed()
    walk.page.locator("canvas").first.wait_for(timeout=SHOWN)
    plots.evaluate("button => button.scrollIntoView()")
    walk.shot("plots")


def see_rest(walk: Walk, stage: str, check: str, upstream: str) -> None:
    """Checks and lineage of an asset, and what runs by itself."""
    walk.asset(stage)
    walk.tab("Checks", check)
    walk.shot("checks")
    walk.tab("Lineage", upstream)
    walk.page.goto(f"{walk.address}/automation")
    walk.text(f"{walk.dataset}_reevaluation")
    walk.shot("automation")


def see_failure(walk: Walk, snapshot: str) -> None:
    """A source whose file is a wrong one: the run fails and says so in one message.

    Raises:
        AssertionError: it did not fail.
    """
    walk = Walk(walk.page, walk.address, BROKEN, None)
    walk.asset_page("raw_reviews")
    walk.materialize(snapshot)
    ended = walk.watch()
    assert ended == "Failure", f"a wrong file gives {ended}"
    walk.page.get_by_text(re.compile("expected:.*found:.*fix:", re.DOTALL)).first.wait_for(timeout=SHOWN)


def with_broken_source(profile: Path, folder: Path) -> Path:
    """A copy of a profile in a folder, with one more dataset, whose reviews are no reviews."""
    raw = yaml.safe_load(profile.read_text())
    wrong = folder / "reviews.json.gz"
    wrong.write_bytes(b"this is no archive\n")
    snapshots = next(iter(raw["datasets"].values()))["snapshots"]
    raw["datasets"][BROKEN] = {"source": {"kind": "amazon_2018", "reviews": [str(wrong)]}, "snapshots": snapshots}
    target = folder / "walk.yaml"
    target.write_text(yaml.safe_dump(raw, sort_keys=False))
    return target


def whole(walk: Walk, snapshots: Sequence[str], broken: bool) -> None:
    """The whole walk over some snapshots, oldest first."""
    for snapshot in snapshots:
        walk.graph()
        walk.materialize(snapshot)
        ended = walk.watch()
        assert ended == "Success", f"the run of {snapshot} ended with {ended}: {walk.page.url}"
        walk.shot("run")
        print(f"{snapshot}: Success", flush=True)
    read_evaluation(walk, snapshots[-1])
    see_picture(walk, "sid_codebook", "codes")
    see_plots(walk, "evaluation", "grpo_thinking_ndcg@10")
    see_rest(walk, "interactions", "history_before_target", "raw_reviews")
    if broken:
        see_failure(walk, snapshots[-1])
        walk.shot("failure")


@contextmanager
def walking(address: str, dataset: str, chromium: str, pictures: Path | None = None) -> Iterator[Walk]:
    """A browser with one page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = window.new_page(viewport=VIEW)  # type: ignore[arg-type]
        page.set_default_timeout(SHOWN)
        page.add_init_script(LYING)
        try:
            yield Walk(page, address, dataset, pictures)
        finally:
            window.close()


def main(argv: list[str]) -> int:
    """Walk; 1 if there is no chromium, or nothing to look at."""
    options = argparse.ArgumentParser(description="Walk through the UI and take its pictures.")
    options.add_argument("--profile", type=Path, help="build this profile by clicks, in a home of its own")
    options.add_argument("--home", type=Path, help="where that home is; what is built there is reused")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    arguments = options.parse_args(argv)
    chromium = browser()
    if chromium is None:
        print("error: no chromium found; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="sidr-walk-") as scratch:
        environment: dict[str, str] = {}
        if arguments.profile:
            folder = (arguments.home or Path(scratch)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            environment = make_home(folder, with_broken_source(arguments.profile, folder))
            os.environ.update(environment)
        profile = load_profile()
        dataset = profile.default_dataset
        if not arguments.profile and Store(home() / "store").current(dataset, profile.newest(), "evaluation") is None:
            print("error: nothing is built here: `make run` first, or walk with --profile", file=sys.stderr)
            return 1
        arguments.out.mkdir(parents=True, exist_ok=True)
        snapshots = profile.dataset(dataset).snapshots.keys()[-2:] if arguments.profile else [profile.newest()]
        with web_server(environment, daemon=True) as address:
            with walking(address, dataset, chromium, arguments.out) as walk:
                whole(walk, snapshots, broken=bool(arguments.profile))
            graph = arguments.out / "ui-graph.png"
            picture(address, dataset, graph, chromium)
            save(graph.read_bytes(), graph)
    print(f"the walk is done; pictures in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
