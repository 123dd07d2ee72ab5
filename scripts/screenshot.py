"""Takes the picture of the asset graph in the README: starts the web server, opens the graph of the default
dataset in headless chromium, saves a PNG.

    .venv/bin/python scripts/screenshot.py docs/images/graph.png

Needs chromium (on Debian: `apt-get install chromium`); `CHROMIUM` names another path to it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sidr_core.pipeline.graph import STAGES
from sidr_core.pipeline.profile import load_profile

ROOT = Path(__file__).resolve().parent.parent
#: Large enough that no name is cut. At 1600 × 1000 the graph fits too, with smaller boxes.
VIEW = {"width": 2900, "height": 1400}
#: Draws the graph from left to right: it is longer than wide.
LYING = """localStorage.setItem("asset-graph-direction", '"horizontal"')"""
START_SECONDS = 240


def browser() -> str | None:
    """Path of the installed chromium, or None."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def make_home(folder: Path, profile: Path | str) -> dict[str, str]:
    """An empty home of Dagster and SIDR in `folder`, with the settings of this project; returns its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = (ROOT / "dagster.yaml").read_text().replace(".sidr/dagster", str(folder / "dagster"))
    (folder / "dagster.yaml").write_text(settings)
    names = {"DAGSTER_HOME": folder, "SIDR_HOME": folder / "sidr", "SIDR_PROFILE": profile}
    return {name: str(value) for name, value in names.items()}


@contextmanager
def web_server(environment: Mapping[str, str] | None = None, daemon: bool = False) -> Iterator[str]:
    """Serve `workspace.yaml` on a free port of this machine; yields the address.

    Args:
        environment: variables beside those of this process; without it the home is the project's root.
        daemon: whether to start what `make ui` starts, the daemon and the guard; without it no run leaves the queue.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {name: value for name, value in os.environ.items() if name != "DAGSTER_MODULE_NAME"}
    variables = {"DAGSTER_HOME": str(ROOT)} | variables | dict(environment or {})
    guarded = [sys.executable, ROOT / "scripts" / "ui.py"]
    program = guarded if daemon else [Path(sys.executable).with_name("dagster-webserver")]
    command = [*program, "--host", "127.0.0.1", "--port", port, "-w", ROOT / "workspace.yaml"]
    home = Path(variables["DAGSTER_HOME"])
    _initialise(variables, home)
    # A session of its own: the servers end together, whatever the caller's shell ignores. Relative folders of the
    # instance are those of its home.
    server = subprocess.Popen(
        command, cwd=home, env=variables, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/server_info", server)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _initialise(variables: Mapping[str, str], home: Path) -> None:
    """Let one process alone make the schema of a new home: two at the same time break it."""
    command = [Path(sys.executable).with_name("dagster"), "run", "list", "--limit", "1"]
    subprocess.run(command, cwd=home, env=variables, check=True, capture_output=True)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"dagster-webserver ended with exit code {server.returncode}; try `make ui` to see why")
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 (our own server)
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"dagster-webserver did not answer within {START_SECONDS} s")


def picture(address: str, dataset: str, target: Path, chromium: str) -> None:
    """Save the graph of one dataset once it is drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = window.new_page(viewport=VIEW)  # type: ignore[arg-type]
        page.add_init_script(LYING)
        page.goto(f"{address}/locations/__repository__@sidr_assets/asset-groups/{dataset}/lineage")
        page.get_by_text("Hide navigation").click(timeout=60_000)
        page.reload()  # the graph fits itself to the window when it is drawn
        for stage in STAGES:
            page.get_by_text(stage.name, exact=True).first.wait_for(timeout=60_000)
        page.wait_for_timeout(3_000)  # it glides into place
        page.wait_for_function("() => !document.body.innerText.includes('Loading')", timeout=60_000)
        target.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=target)
        window.close()


def main(argv: list[str]) -> int:
    """Take the picture; 1 if there is no chromium."""
    target = Path(argv[0] if argv else "docs/images/graph.png")
    chromium = browser()
    if chromium is None:
        print("error: no chromium found; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    with web_server() as address:
        picture(address, load_profile().default_dataset, target, chromium)
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
