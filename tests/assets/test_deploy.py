"""The files for containers. No engine runs here: their commands, flags, paths and names are tried one by one."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
INSTRUCTIONS = [
    line.split(maxsplit=1) for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line and line[0] not in "#"
]
COMMANDS = [(name, service["command"]) for name, service in SERVICES.items() if "command" in service]
COMMANDS += [
    (f"{name}, health", service["healthcheck"]["test"][1:])
    for name, service in SERVICES.items()
    if service.get("healthcheck", {}).get("test", [""])[0] == "CMD"
]


def program(name: str) -> Any:
    """The click command behind a console script of the image."""
    import typer.main
    from dagster._cli import create_dagster_cli
    from dagster._daemon.cli import create_dagster_daemon_cli
    from dagster_webserver.cli import create_dagster_webserver_cli

    from sidr_core.cli.main import app

    programs = {
        "dagster": create_dagster_cli,
        "dagster-daemon": create_dagster_daemon_cli,
        "dagster-webserver": create_dagster_webserver_cli,
        "sidr": lambda: typer.main.get_command(app),
    }
    return programs[name]()


@pytest.mark.parametrize(("service", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_each_command_exists_and_its_flags_parse(service: str, command: list[str]) -> None:
    assert Path(sys.executable).with_name(command[0]).exists()
    # Where the image has its settings.
    parser, arguments = program(command[0]), [word.replace("/opt/dagster/", f"{DEPLOY}/") for word in command[1:]]
    context = parser.make_context(command[0], list(arguments))
    while hasattr(parser, "commands"):
        rest = [*context._protected_args, *context.args]
        if rest[0] not in parser.commands:
            assert rest[0] == "serve", f"{service}: there is no command {rest[0]!r}"
            pytest.skip("sidr has no command serve yet")
        name, parser, arguments = parser.resolve_command(context, rest)
        context = parser.make_context(name, list(arguments), parent=context)
    assert context.params


def test_services_fit_together() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", ())) <= set(SERVICES), name
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens to everybody"
        image = service["image"]
        assert ":" in image and not image.endswith(":latest"), name
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for waited, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[waited], name


def test_no_secret_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|TOKEN|KEY|URL", variable):
                assert re.fullmatch(r"\$\{\w+:(\?.+|-)\}", value), f"{name}: {variable}"
    assert not re.search(r"(?i)(password|token|secret)\s*=", DOCKERFILE)


def test_addresses_and_ports_agree() -> None:
    (location,) = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]
    server, command = location["grpc_server"], SERVICES["code"]["command"]
    assert server["host"] in SERVICES and str(server["port"]) == command[command.index("--port") + 1]
    assert server["location_name"] == command[command.index("--module-name") + 1]
    storage = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())["storage"]["postgres"]["postgres_db"]
    postgres = SERVICES[storage["hostname"]]["environment"]
    assert (storage["username"], storage["db_name"]) == (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"])
    for name in ("code", "webserver", "daemon"):
        assert storage["password"]["env"] in SERVICES[name]["environment"], name
    home = dict(pair.split("=") for pair in shlex.split(dict(INSTRUCTIONS)["ENV"]))
    assert SERVICES["code"]["volumes"] == [f"data:{home['SIDR_HOME']}"]
    assert SERVICES["daemon"]["command"][-1] == f"{home['DAGSTER_HOME']}/workspace.yaml"


def test_the_image_is_built_of_what_is_there_and_runs_as_nobody_special() -> None:
    kinds = [kind for kind, _ in INSTRUCTIONS]
    assert kinds[0] == "FROM" and re.search(r":\d[\w.-]+$", dict(INSTRUCTIONS)["FROM"])
    assert set(kinds) <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "CMD"}
    assert kinds.index("USER") > max(place for place, kind in enumerate(kinds) if kind == "RUN")
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    for kind, rest in INSTRUCTIONS:
        if kind == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and source in kept, source
        if kind == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest and "-c constraints.txt" in rest


def test_openlineage_takes_settings_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the settings of docs/operations.md each asset and each check becomes an event."""
    pytest.importorskip("dagster_openlineage")
    import dagster as dg

    text = (ROOT / "docs" / "operations.md").read_text()
    (settings,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "OpenLineage" in block]
    quiet = "telemetry: {enabled: false}\n"
    (tmp_path / "dagster.yaml").write_text(quiet + settings.replace(".sidr", str(tmp_path)))
    events, client = tmp_path / "events.jsonl", tmp_path / "client.yaml"
    client.write_text(yaml.safe_dump({"transport": {"type": "file", "log_file_path": str(events), "append": True}}))
    monkeypatch.setenv("OPENLINEAGE_CONFIG", str(client))

    @dg.asset(key=["games", "raw"], check_specs=[dg.AssetCheckSpec("sound", asset=["games", "raw"])])
    def raw() -> dg.MaterializeResult:
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(check_name="sound", passed=True)])

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([raw], instance=instance).success
    told = [json.loads(line) for line in events.read_text().splitlines()]
    kinds = {(event["eventType"], event["job"]["namespace"], event["job"]["name"]) for event in told}
    assert {("START", "sidr", "games/raw"), ("COMPLETE", "sidr", "games/raw")} <= kinds
    assert any(name == "games/raw__checks" for _, _, name in kinds)


def test_the_instance_is_one_that_dagster_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings are valid, and the storage is the class of the package that the extra installs."""
    pytest.importorskip("dagster_postgres")
    from dagster._core.instance.config import dagster_instance_config

    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "x")
    config, _ = dagster_instance_config(str(DEPLOY))
    assert config["storage"]["postgres"]["postgres_db"]["hostname"] == "postgres"
