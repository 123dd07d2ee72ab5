"""Tells a chat about failed runs and about drift: one message per run, to the webhook in `SIDR_ALERT_URL`.

The message is `{"text": …}`, as Slack and chats that speak its form take it. Both sensors are off unless the variable
is set. The URL is a secret: it stands in no log and in no error, and a message that cannot be delivered fails nothing.
"""

import html
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence

import dagster as dg
from dagster._core.execution.plan.objects import StepFailureData

#: Environment variable with the address of the webhook.
URL = "SIDR_ALERT_URL"
DRIFT = "drift"
_SECONDS = 10
_MOST_CHARACTERS = 600


def alert_sensors() -> list[dg.SensorDefinition]:
    """The sensor of failed runs and that of drift."""
    status = dg.DefaultSensorStatus.RUNNING if os.environ.get(URL) else dg.DefaultSensorStatus.STOPPED

    @dg.run_failure_sensor(
        name="alert_failures", default_status=status, description=f"Tells of each failed run to the webhook in {URL}."
    )
    def failures(context: dg.RunFailureSensorContext) -> dg.SkipReason:
        reasons = [
            (event.step_key or "", _reason(event.step_failure_data)) for event in context.get_step_failure_events()
        ]
        return _tell(
            context.dagster_run, "failed", reasons or [("", context.failure_event.message or "no reason given")]
        )

    @dg.run_status_sensor(
        run_status=dg.DagsterRunStatus.SUCCESS,
        name="alert_drift",
        default_status=status,
        description=f"Tells of each run whose check `{DRIFT}` failed to the webhook in {URL}.",
    )
    def drift(context: dg.RunStatusSensorContext) -> dg.SkipReason:
        run = context.dagster_run
        logs = context.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        events = [log.dagster_event for log in logs if log.dagster_event]
        checks = [(event.step_key or "", event.asset_check_evaluation_data) for event in events]
        failed = [(step, check) for step, check in checks if check.check_name == DRIFT and not check.passed]
        reasons = [(step, check.description or DRIFT) for step, check in failed]
        return _tell(run, "found drift", reasons) if reasons else dg.SkipReason("no drift")

    return [failures, drift]


def _reason(failure: StepFailureData | None) -> str:
    """What a step says of its failure: the message of a SidrError, else the innermost error."""
    error = failure.error if failure else None
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error else "no reason given"


def _tell(run: dg.DagsterRun, what: str, reasons: Sequence[tuple[str, str]]) -> dg.SkipReason:
    """Send one message; says whether it arrived, never where."""
    url = os.environ.get(URL)
    if not url:
        return dg.SkipReason(f"{URL} is not set: nobody is told")
    lines = [f"SIDR: run {run.run_id[:8]} {what}"]
    snapshot = run.tags.get("dagster/partition")
    for step, reason in reasons:
        dataset, _, stage = step.rpartition("__")
        where = f"{dataset}/{stage}" if dataset else run.tags.get("dataset") or run.job_name
        lines.append(f"• {where}{f', snapshot {snapshot}' if snapshot else ''}: {reason[:_MOST_CHARACTERS]}")
    body = json.dumps({"text": html.escape("\n".join(lines), quote=False)}).encode()
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError("not an http(s) address")
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (checked above)
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
            return dg.SkipReason(f"told of run {run.run_id[:8]}")
    except urllib.error.HTTPError as error:
        return dg.SkipReason(f"the webhook refused the message: HTTP {error.code}")
    except (OSError, ValueError) as error:  # their texts may hold the address
        return dg.SkipReason(f"the message was not delivered: {type(error).__name__}")
