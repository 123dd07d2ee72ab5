"""Two months of a dataset in the UI, in a headless browser: `day.py --ui`, with pictures for docs/operations.md.

One backfill from the dialog makes both months, in one run each; the verdicts of both months lie side by side; and a
page of another site, open in the same browser, changes nothing.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from screenshot import ROOT, browser, make_home, web_server
from walk import ENDED, SHOWN, Walk, walking
from web_api import LOCATION, REPOSITORY, WebApi

DATASET, MONTHS = "games", ("2018-09", "2018-10")
_BACKFILLS = """{ partitionBackfillsOrError(limit: 1) { ... on PartitionBackfills { results { id status } } } }"""
_RUNS = """query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) {
  ... on Runs { results { status tags { key value } } } } }"""
#: A run of a backfill names its snapshot as a range of one.
_MONTH_OF_RUN = "dagster/asset_partition_range_start"
_CHECK = """query($key: AssetKeyInput!, $name: String!) { assetCheckExecutions(assetKey: $key, checkName: $name,
  limit: 20) { evaluation { partition success description } } }"""
_SENSOR = """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) {
  ... on Sensor { sensorState { status } } } }"""
_COUNT = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  assetMaterializations { runId } } } }"""

#: What a page of another site can try: a mutation by GET as a picture, the socket, a request without CORS, and a form,
#: whose answer the browser shows.
_PAGE = """<!doctype html><title>another site</title><h1>A page of another site</h1><pre id=said></pre>
<form method=post target=answer action="UI/report_asset_materialization/games/evaluation?partition=MONTH">
<button>write a false figure</button></form>
<iframe name=answer width=800 height=100></iframe><script>
const say = text => document.getElementById("said").textContent += text + "\\n";
const picture = new Image();
picture.onerror = () => say("picture: no");
picture.src = "UI/graphql?query=" + encodeURIComponent(`mutation { startSensor(sensorSelector: {
  repositoryName: "__repository__", repositoryLocationName: "sidr_assets", sensorName: "games_automation" }) {
  __typename } }`);
const socket = new WebSocket("UI/graphql".replace("http", "ws"), "graphql-ws");
socket.onopen = () => say("socket: open");
socket.onerror = () => say("socket: no");
fetch("UI/report_asset_materialization/games/evaluation?partition=MONTH", {method: "POST", mode: "no-cors"})
  .then(() => say("request: sent, answer unseen"), () => say("request: no"));
</script>"""


def live(pictures: Path) -> int:
    """The two months, in a home that is gone afterwards; 1 if there is no chromium.

    Raises:
        AssertionError: a page shows something else than it should, or the foreign page changed something.
    """
    chromium = browser()
    if chromium is None:
        print("error: no chromium found; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="sidr-day-") as scratch:
        profile = Path(scratch) / "day.yaml"
        fields = yaml.safe_load((ROOT / "tests" / "profiles" / "tiny.yaml").read_text())["datasets"][DATASET]
        fields["decoding"]["models"] = ["sft/direct", "popularity/direct", "item_item/direct", "shortcut/direct"]
        profile.write_text(yaml.safe_dump({"datasets": {DATASET: fields}}))
        environment = make_home(Path(scratch), profile)
        os.environ.update(environment)
        with (
            web_server(environment, daemon=True) as address,
            walking(address, DATASET, chromium, pictures) as walk,
        ):
            print(f"one backfill: {', '.join(f'{month} {status}' for month, status in backfill(walk))}", flush=True)
            for month, verdict in verdicts(walk, "evaluation", "learnt").items():
                print(f"evaluation / learnt, {month}: {verdict}", flush=True)
            print(f"a page of another site: {foreign_page(walk)}")
    return 0


def backfill(walk: Walk) -> list[tuple[str, str]]:
    """Press the button on the graph, choose both months, launch, and wait; returns month and end of each run."""
    walk.graph()
    box = walk.page.get_by_placeholder("ex: ")
    walk.press_materialize(box)
    box.fill(f"[{MONTHS[0]}...{MONTHS[1]}]")
    box.press("Enter")
    launch = walk.page.get_by_role("button", name=re.compile("^Launch (backfill|2 runs|2-run backfill)$"))
    launch.wait_for(timeout=SHOWN)
    walk.shot("day-dialog")
    launch.click()
    launch.wait_for(state="detached", timeout=SHOWN)
    made = _ended(walk)
    walk.page.goto(f"{walk.address}/runs/b/{made['id']}?tab=runs")
    walk.page.get_by_text(MONTHS[1]).first.wait_for(timeout=SHOWN)
    walk.shot("day-backfill")
    results = WebApi(walk.address).ask(_RUNS, id=made["id"])["runsOrError"]["results"]
    runs = sorted(
        (next(tag["value"] for tag in run["tags"] if tag["key"] == _MONTH_OF_RUN), run["status"]) for run in results
    )
    assert runs == [(month, "SUCCESS") for month in MONTHS], f"one run per month, not {runs}"
    return runs


def _ended(walk: Walk) -> dict[str, Any]:
    """The newest backfill, once it has ended."""
    api = WebApi(walk.address)
    for _ in range(ENDED // 1_000):
        found = api.ask(_BACKFILLS)["partitionBackfillsOrError"]["results"]
        if found and found[0]["status"].startswith(("COMPLETED", "FAILED", "CANCELED")):
            return found[0]
        walk.page.wait_for_timeout(1_000)
    raise TimeoutError(f"the backfill has not ended within {ENDED // 1_000} s")


def verdicts(walk: Walk, stage: str, check: str) -> dict[str, str]:
    """What a check says of each month; the later month did not overwrite the earlier one."""
    key = {"path": [walk.dataset, stage]}
    executions = WebApi(walk.address).ask(_CHECK, key=key, name=check)["assetCheckExecutions"]
    found = {
        one["evaluation"]["partition"]: f"{'passed' if one['evaluation']['success'] else 'did not hold'}: "
        f"{one['evaluation']['description']}"
        for one in executions
    }
    assert sorted(found) == list(MONTHS), f"a verdict for each month, not for {sorted(found)}"
    walk.page.goto(f"{walk.address}/assets/{walk.dataset}/{stage}?view=checks&checkDetail={check}")
    walk.text("Execution history").click()
    for month in MONTHS:
        walk.text(month)
    walk.shot("day-verdicts")
    return dict(sorted(found.items()))


def foreign_page(walk: Walk) -> str:
    """Let a page of another site try; nothing changes, and the form is told why."""
    api = WebApi(walk.address)
    sensor = {
        "repositoryName": REPOSITORY,
        "repositoryLocationName": LOCATION,
        "sensorName": f"{walk.dataset}_automation",
    }

    def state() -> tuple[str, int]:
        node = api.ask(_COUNT, key={"path": [walk.dataset, "evaluation"]})["assetNodeOrError"]
        status = api.ask(_SENSOR, sensor=sensor)["sensorOrError"]["sensorState"]["status"]
        return status, len(node["assetMaterializations"])

    before = state()
    with _site(_PAGE.replace("UI", walk.address).replace("MONTH", MONTHS[1])) as site:
        walk.page.goto(site)
        for said in ("picture: no", "socket: no", "request:"):
            walk.page.get_by_text(said).first.wait_for(timeout=SHOWN)
        walk.page.get_by_role("button").click()
        refused = walk.page.frame_locator("iframe").get_by_text(re.compile("^refused: ")).first
        refused.wait_for(timeout=SHOWN)
        walk.shot("day-foreign")
    assert state() == before, f"the foreign page changed {before} to {state()}"
    return refused.inner_text().strip()


@contextmanager
def _site(page: str) -> Iterator[str]:
    """Serve one page on another port of this machine; yields its address, whose host the UI does not have."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
