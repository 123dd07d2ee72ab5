"""The web server's GraphQL, asked by a script: list assets, launch and end runs, read what was made.

from web_api import WebApi
api = WebApi("http://127.0.0.1:3000")
run = api.launch([["games", "raw_items"]], "2018-10")
print(api.wait(run), api.metadata(["games", "raw_items"], "2018-10"))
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

#: The code location of workspace.yaml, its only repository, and the job that materializes any assets.
LOCATION, REPOSITORY, JOB = "sidr_assets", "__repository__", "__ASSET_JOB"
ENDED = ("SUCCESS", "FAILURE", "CANCELED")
Key = Sequence[str]

_ASSETS = """query($selector: AssetGroupSelector!) {
  assetNodes(group: $selector) { assetKey { path } description owners { ... on TeamAssetOwner { team } } kinds
    hasAssetChecks partitionKeys } }"""
_LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
_BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on Error { message }
  ... on PartitionKeysNotFoundError { partitionKeys } } }"""
_TERMINATE = """mutation($run: String!) { terminateRun(runId: $run) {
  __typename ... on TerminateRunFailure { message } ... on Error { message } } }"""
_STATUS = "query($run: ID!) { runOrError(runId: $run) { __typename ... on Run { status } ... on Error { message } } }"
_BACKFILL_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  __typename ... on PartitionBackfill { status } ... on Error { message } } }"""
_ERRORS = """query($run: ID!) { logsForRun(runId: $run, limit: 10000) { ... on EventConnection { events {
  ... on ExecutionStepFailureEvent { stepKey error { message errorChain { error { message } } } } } } } }"""
_MADE = """query($key: AssetKeyInput!, $partitions: [String!]) { assetNodeOrError(assetKey: $key) {
  __typename ... on AssetNotFoundError { message }
  ... on AssetNode { assetMaterializations(partitions: $partitions, limit: 1) {
    runId metadataEntries { label ... on IntMetadataEntry { intValue intRepr } ... on FloatMetadataEntry { floatValue }
      ... on JsonMetadataEntry { jsonString } ... on TextMetadataEntry { text }
      ... on BoolMetadataEntry { boolValue } ... on PathMetadataEntry { path }
      ... on MarkdownMetadataEntry { mdStr } ... on TableMetadataEntry { table { records schema {
        columns { name } } } } ... on TableSchemaMetadataEntry { schema { columns { name } } } } } } } }"""
_CHECKS = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { assetChecksOrError {
  ... on AssetChecks { checks { name executionForLatestMaterialization { status evaluation { success } } } } } } } }"""
#: What holds the value of a metadata entry, by its type.
_VALUES = ("floatValue", "jsonString", "text", "boolValue", "path", "mdStr", "table", "schema")


class WebError(RuntimeError):
    """The server did not do what it was asked; the message is its own."""


class WebApi:
    """Asks the web server at an address such as `http://127.0.0.1:3000`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a query and return its data.

        Raises:
            WebError: the query is wrong or failed.
        """
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/graphql", body, headers)  # noqa: S310 (our own server)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310
                answer = json.load(reply)
        except urllib.error.HTTPError as error:  # what the server refused: the reasons are in the body
            answer = json.load(error)
        if answer.get("errors"):
            raise WebError("; ".join(error["message"] for error in answer["errors"]))
        return answer["data"]

    def assets(self, group: str) -> list[dict[str, Any]]:
        """The assets of a group, as the server knows them."""
        selector = {"groupName": group, "repositoryName": REPOSITORY, "repositoryLocationName": LOCATION}
        return self.ask(_ASSETS, selector=selector)["assetNodes"]

    def launch(self, keys: Sequence[Key], partition: str) -> str:
        """Put one run of these assets into the queue; returns its id."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": JOB}
        selector["assetSelection"] = [{"path": list(key)} for key in keys]  # type: ignore[assignment]
        tags = [{"key": "dagster/partition", "value": partition}]
        params = {"selector": selector, "mode": "default", "runConfigData": "{}", "executionMetadata": {"tags": tags}}
        reply = self.ask(_LAUNCH, params=params)["launchPipelineExecution"]
        return _expect(reply, "LaunchRunSuccess")["run"]["runId"]

    def backfill(self, keys: Sequence[Key], partitions: Sequence[str]) -> str:
        """Ask for these assets of several snapshots, one run each; returns the backfill's id."""
        params = {"assetSelection": [{"path": list(key)} for key in keys], "partitionNames": list(partitions)}
        reply = self.ask(_BACKFILL, params=params)["launchPartitionBackfill"]
        return _expect(reply, "LaunchBackfillSuccess")["backfillId"]

    def status(self, run: str) -> str:
        """QUEUED, STARTED, SUCCESS, FAILURE, CANCELED …"""
        return _expect(self.ask(_STATUS, run=run)["runOrError"], "Run")["status"]

    def backfill_status(self, backfill: str) -> str:
        """REQUESTED, COMPLETED_SUCCESS, COMPLETED_FAILED …"""
        reply = self.ask(_BACKFILL_STATUS, id=backfill)["partitionBackfillOrError"]
        return _expect(reply, "PartitionBackfill")["status"]

    def wait(self, run: str, statuses: Sequence[str] = ENDED, seconds: float = 600) -> str:
        """Poll a run until it is in one of these statuses; returns it.

        Raises:
            TimeoutError: it was not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while (status := self.status(run)) not in statuses:
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run} is {status} after {seconds:.0f} s, not {' or '.join(statuses)}")
            time.sleep(0.3)
        return status

    def wait_backfill(self, backfill: str, seconds: float = 600) -> str:
        """Poll a backfill until it ended; returns its status.

        Raises:
            TimeoutError: it did not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not (status := self.backfill_status(backfill)).startswith(("COMPLETED", "FAILED", "CANCELED")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"backfill {backfill} is {status} after {seconds:.0f} s")
            time.sleep(0.3)
        return status

    def terminate(self, run: str) -> None:
        """End a run that is queued or running."""
        _expect(self.ask(_TERMINATE, run=run)["terminateRun"], "TerminateRunSuccess")

    def errors(self, run: str) -> list[str]:
        """The errors of the steps of a failed run, each with its causes."""
        events = self.ask(_ERRORS, run=run)["logsForRun"]["events"]
        errors = [event["error"] for event in events if event.get("error")]
        return ["".join([one["message"], *(more["error"]["message"] for more in one["errorChain"])]) for one in errors]

    def metadata(self, key: Key, partition: str) -> dict[str, Any]:
        """Label -> value of the latest materialization of an asset's snapshot; empty if there is none.

        A table is the list of its rows, a column schema the list of its names.
        """
        reply = self.ask(_MADE, key={"path": list(key)}, partitions=[partition])["assetNodeOrError"]
        made = _expect(reply, "AssetNode")["assetMaterializations"]
        return {entry["label"]: _value(entry) for entry in made[0]["metadataEntries"]} if made else {}

    def checks(self, key: Key) -> dict[str, bool]:
        """Name -> whether it passed, of the checks of an asset's latest materialization."""
        checks = self.ask(_CHECKS, key={"path": list(key)})["assetNodeOrError"]["assetChecksOrError"]["checks"]
        executions = {check["name"]: check["executionForLatestMaterialization"] for check in checks}
        return {
            name: bool(one["evaluation"]["success"]) for name, one in executions.items() if one and one["evaluation"]
        }


def _expect(reply: dict[str, Any], kind: str) -> dict[str, Any]:
    if reply["__typename"] != kind:
        more = [error["message"] for error in reply.get("errors") or ()] + (reply.get("partitionKeys") or [])
        raise WebError(f"{reply['__typename']}: {reply.get('message') or '; '.join(more)}")
    return reply


def _value(entry: dict[str, Any]) -> Any:
    if "intRepr" in entry:
        return int(entry["intRepr"])
    name = next((name for name in _VALUES if name in entry), None)
    value = entry[name] if name else None
    if name == "table":
        return [json.loads(record) for record in value["records"]]
    if name == "jsonString":
        return json.loads(value)
    return [column["name"] for column in value["columns"]] if name == "schema" else value
