"""The UI as a person meets it, in a real browser, and its GraphQL as a script does: real web server, real daemon.

Nothing here depends on how fast the machine is: each step waits for what it needs to see.
"""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
import screenshot
import walk
from web_api import WebApi, WebError

from builders.small_world import MODELS, SNAPSHOT
from sidr_core.pipeline.graph import stages_of
from sidr_core.pipeline.profile import home, load_profile
from sidr_core.pipeline.store import Store
from sidr_core.tables import files as tables

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]
EVALUATION = ["toys", "evaluation"]


@pytest.fixture(scope="module")
def api(served: str) -> WebApi:
    return WebApi(served)


def test_a_person_looks_and_materializes(served: str, chromium: str, tmp_path: Path) -> None:
    """Graph, a run by clicks, the evaluation's numbers, a picture, plots, checks, lineage; then a wrong file's run."""
    with walk.walking(served, "toys", chromium, tmp_path) as person:
        person.graph()
        person.asset_page("evaluation")
        person.materialize(SNAPSHOT)
        assert person.watch() == "Success"
        walk.read_evaluation(person, SNAPSHOT)
        walk.see_picture(person, "evaluation", "evaluation")
        walk.see_plots(person, "evaluation", "grpo_thinking_ndcg@5")
        walk.see_rest(person, "evaluation", "complete", "recommendations")
        walk.see_failure(person, SNAPSHOT)
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures >= {"ui-launch", "ui-asset", "ui-evaluation", "ui-figure", "ui-plots", "ui-checks", "ui-automation"}


def test_the_graph_of_the_readme_is_drawn(chromium: str, tmp_path: Path) -> None:
    """`picture` waits for the name of every stage and fails where one is not shown."""
    environment = screenshot.make_home(tmp_path, "quickstart")
    with screenshot.web_server(environment) as address:
        dataset = load_profile("quickstart").default_dataset
        screenshot.picture(address, dataset, tmp_path / "graph.png", chromium)
    assert (tmp_path / "graph.png").stat().st_size > 50_000


def test_a_script_lists_the_assets(api: WebApi) -> None:
    assets = {tuple(asset["assetKey"]["path"]): asset for asset in api.assets("toys")}
    assert set(assets) == {("toys", stage.name) for stage in stages_of(load_profile().dataset("toys"))}
    assert all(asset["description"] and asset["owners"] and asset["kinds"] for asset in assets.values())
    assert all(asset["partitionKeys"] == ["2020-01", SNAPSHOT] for asset in assets.values())


def test_a_script_launches_and_reads_the_evaluation(api: WebApi) -> None:
    run = api.launch([EVALUATION], SNAPSHOT)
    assert api.wait(run) == "SUCCESS", api.errors(run)
    table = tables.read(Store(home() / "store").require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    told = api.metadata(EVALUATION, SNAPSHOT)
    assert told["dagster/row_count"] == told["all numbers"]["rows/evaluation"] == table.height
    assert told["dagster/column_schema"] == table.columns
    assert [row["model"] for row in told["preview"]] == table["model"].head(5).to_list()
    for name in MODELS:
        model, mode = name.split("/")
        one = table.filter(model=model, mode=mode, metric="hr", k=5, level="item").row(0, named=True)
        assert told["all numbers"][f"{model}_{mode}_hr@5"] == pytest.approx(one["value"], abs=1e-6)
        assert f"{one['value']:.4f} [{one['ci_low']:.4f}, {one['ci_high']:.4f}]" in told["evaluation"]
    checks = api.checks(EVALUATION)
    assert checks.keys() == {"schema", "complete", "learnt"}  # a tiny model may have learnt nothing
    assert checks["schema"] and checks["complete"]
    assert table.select(pl.col("n_rows").unique()).item() == told["all numbers"]["rows"]


@pytest.mark.long
def test_a_script_asks_for_a_backfill(api: WebApi) -> None:
    with pytest.raises(WebError):
        api.backfill([EVALUATION], ["2017-01"])
    assert api.wait_backfill(api.backfill([EVALUATION], [SNAPSHOT])) == "COMPLETED_SUCCESS"


def test_a_wrong_snapshot_and_a_wrong_name_are_told(api: WebApi) -> None:
    run = api.launch([EVALUATION], "2017-01")
    assert api.wait(run) == "FAILURE"
    assert any("there is no snapshot '2017-01'" in text and "fix:" in text for text in api.errors(run))
    with pytest.raises(WebError):
        api.launch([["toys", "evaluations"]], SNAPSHOT)


def test_a_script_ends_a_running_run(api: WebApi) -> None:
    run = api.launch([["toys", "baseline_gru4rec"]], SNAPSHOT)
    assert api.wait(run, ("STARTED", "SUCCESS", "FAILURE")) == "STARTED", api.errors(run)
    api.terminate(run)
    assert api.wait(run) == "CANCELED", api.errors(run)
    assert Store(home() / "store").current("toys", SNAPSHOT, "baseline_gru4rec") is None


_FOREIGN = """<!doctype html><title>another site</title><script>
const ui = "ADDRESS", told = [];
const change = "mutation { startSensor(sensorSelector: {repositoryName: \\"__repository__\\", " +
  "repositoryLocationName: \\"sidr_assets\\", sensorName: \\"toys_automation\\"}) { __typename } }";
const image = new Image();
image.onload = image.onerror = () => told.push("image");
image.src = ui + "/graphql?query=" + encodeURIComponent(change);
fetch(ui + "/report_asset_materialization/toys/evaluation?partition=2020-01&metadata=" +
  encodeURIComponent('{"hr": 0.99}'), {method: "POST", mode: "no-cors"}).finally(() => told.push("report"));
fetch(ui + "/graphql", {method: "POST", mode: "no-cors", body: JSON.stringify({query: change})})
  .finally(() => told.push("post"));
const socket = new WebSocket(ui.replace("http", "ws") + "/graphql", "graphql-ws");
socket.onopen = () => { window.opened = true; told.push("socket"); };
socket.onerror = () => told.push("socket");
</script>"""
_SENSOR = """{ sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "sidr_assets",
  sensorName: "toys_automation"}) { ... on Sensor { sensorState { status } } } }"""


def test_a_page_of_another_site_changes_nothing(served: str, api: WebApi, chromium: str, tmp_path: Path) -> None:
    """The browser has the cookie of the UI, which was open in it; the page lies at another port of this machine."""
    (tmp_path / "index.html").write_text(_FOREIGN.replace("ADDRESS", served))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with walk.walking(served, "toys", chromium) as person, ThreadingHTTPServer(("127.0.0.1", 0), handler) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        person.page.goto(served)
        person.page.goto(f"http://127.0.0.1:{foreign.server_port}/index.html")
        person.page.wait_for_function("() => new Set(told).size == 4")
        assert person.page.evaluate("() => window.opened") is None
        foreign.shutdown()
    assert api.ask(_SENSOR)["sensorOrError"]["sensorState"]["status"] == "STOPPED"
    assert api.metadata(EVALUATION, "2020-01") == {}
