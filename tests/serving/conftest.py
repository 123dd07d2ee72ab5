"""One small world with every mode published, and a server over it without a port."""

import shutil

import pytest
from fastapi.testclient import TestClient

from builders import serving
from builders.small_world import World
from sidr_core.pipeline.store import Store
from sidr_core.serving.app import application


@pytest.fixture(scope="session")
def listed_home(tmp_path_factory):
    """A working folder with the lists of `serving.MODELS`; not to be written to."""
    home = tmp_path_factory.mktemp("listed") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDR_HOME", str(home))
        serving.build(home)
    return home


@pytest.fixture(scope="session")
def listed(listed_home) -> World:
    from builders import small_world

    return World(Store(listed_home / "store"), small_world.profile(models=serving.MODELS))


@pytest.fixture
def own(listed, listed_home, tmp_path, monkeypatch) -> World:
    """A copy that a test may change."""
    home = tmp_path / "home"
    shutil.copytree(listed_home, home)
    monkeypatch.setenv("SIDR_HOME", str(home))
    return World(Store(home / "store"), listed.profile)


@pytest.fixture(scope="session")
def server(listed):
    return serving.server_over(listed)


@pytest.fixture(scope="session")
def client(server):
    with TestClient(application(server), base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client
