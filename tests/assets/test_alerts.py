"""What a chat is told of failed runs and drift, by a server of our own on loopback."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from fake_stages import NUMBERS, TOTAL, fake_profile

from sidr_assets.alerts import URL, alert_sensors
from sidr_assets.definitions import build_definitions
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import CheckSpec, Stage

SECRET = "T0KEN-of-the-webhook"


class Chat:
    """A webhook that keeps what it is sent and answers with `code`."""

    def __init__(self) -> None:
        self.code, self.sent, self.paths = 200, [], []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                chat.paths.append(self.path)
                chat.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(chat.code)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook/{SECRET}"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    chat = Chat()
    monkeypatch.setenv(URL, chat.url)
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    yield chat
    chat.server.shutdown()
    chat.server.server_close()


DRIFTING = Stage(
    name="reevaluation",
    run="test_alerts:drifting",
    inputs={},
    sections=(),
    code_version="1",
    description="Drifts.",
    checks=(CheckSpec("drift", "None.", blocking=False),),
)


def drifting(inputs, config, out_dir, progress) -> Report:
    (out_dir / "x.txt").write_text("x")
    return Report(checks=(Check("drift", False, "of 12 figures 12 are <apart>"),))


def told(which: str, profile, stages: tuple[Stage, ...]) -> str | None:
    """Run all stages, then the sensor on what came of it; what it says."""
    sensor = next(sensor for sensor in alert_sensors() if sensor.name == which)
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_definitions(profile, stages).resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(partition_key="2018-10", instance=instance, raise_on_error=False)
        event = result.get_run_success_event() if result.success else result.get_run_failure_event()
        context = dg.build_run_status_sensor_context(which, event, instance, result.dagster_run)
        said = sensor(context.for_run_failure() if which == "alert_failures" else context)
    return said.skip_message


def test_a_failed_run_is_one_message(chat: Chat, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = told("alert_failures", fake_profile(quantizer={"size": 13}), (NUMBERS, TOTAL))
    assert said is not None and said.startswith("told of run ")
    (message,) = chat.sent
    assert message.keys() == {"text"} and chat.paths == [f"/hook/{SECRET}"]
    assert " failed\n• toys/numbers, snapshot 2018-10: thirteen numbers" in message["text"]
    assert "choose another" in message["text"] and SECRET not in caplog.text


def test_drift_is_told_and_its_absence_is_not(chat: Chat) -> None:
    told("alert_drift", fake_profile(), (DRIFTING,))
    (message,) = chat.sent
    assert "found drift\n• toys/reevaluation, snapshot 2018-10: of 12 figures 12 are &lt;apart&gt;" in message["text"]
    assert told("alert_drift", fake_profile(), (NUMBERS,)) == "no drift" and len(chat.sent) == 1


@pytest.mark.parametrize("url", [None, "refused", "http://127.0.0.1:9/{}", "file:///etc/{}", "http://[{}"])
def test_what_cannot_be_delivered_fails_nothing_and_names_no_address(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str | None
) -> None:
    caplog.set_level(logging.DEBUG)
    chat.code = 500
    if url is None:
        monkeypatch.delenv(URL)
    elif url != "refused":
        monkeypatch.setenv(URL, url.format(SECRET))
    said = told("alert_failures", fake_profile(quantizer={"size": 13}), (NUMBERS,)) or ""
    known = {None: "is not set", "refused": "HTTP 500"}
    assert known.get(url, "was not delivered") in said
    assert SECRET not in said + caplog.text


def test_they_are_off_until_there_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL, raising=False)
    assert {sensor.default_status for sensor in alert_sensors()} == {dg.DefaultSensorStatus.STOPPED}
    monkeypatch.setenv(URL, "https://example.org")
    assert {sensor.default_status for sensor in alert_sensors()} == {dg.DefaultSensorStatus.RUNNING}
