"""A web server and daemon on the small world of the unit tests, whose lists are there and whose evaluation is not."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; tests are skipped without one."""
    import screenshot

    pytest.importorskip("playwright")
    found = screenshot.browser()
    if found is None:
        pytest.skip("no chromium: apt-get install chromium, or set CHROMIUM")
    return found


@pytest.fixture(scope="module")  # its environment is that of no other file
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address. Everything down to the recommendations is published; `broken` has a source that is none."""
    import screenshot
    import walk

    from builders import small_world

    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        raw = json.loads(json.dumps(small_world.profile().raw))
        raw["datasets"]["toys"]["gru4rec"] |= {"epochs": 100_000, "patience": 100_000}  # long enough to be stopped
        raw["datasets"]["toys"]["recommendations_all"] = {"model": "gru4rec/direct"}  # or nobody needs it
        profile = folder / "test.yaml"
        profile.write_text(yaml.safe_dump(raw))
        environment = screenshot.make_home(folder, walk.with_broken_source(profile, folder))
        for name, value in environment.items():
            patch.setenv(name, value)
        world = small_world.build(folder / "sidr")
        world.run("recommendations")
        with screenshot.web_server(environment, daemon=True) as address:
            yield address
