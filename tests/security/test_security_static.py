"""What the source itself must and must not hold, the loopback of the UI, and that tests stay on this machine."""

import ast
import re
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted(path for folder in ("sidr_core", "sidr_assets", "scripts") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle", "tarfile", "zipfile", "imp"}


def problems(tree: ast.AST) -> list[str]:
    """Calls and imports that would run, or unpack, what they are given."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            # An error class runs nothing.
            found += [f"{node.module}.{a.name}" for a in node.names if a.name != "UnpicklingError"]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            fields = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "os.system",
                "os.popen",
                "yaml.load",
                "yaml.unsafe_load",
            ):
                found.append(name)
            if name == "torch.load" and fields.get("weights_only") != "True":
                found.append(name)
            found += [
                f"{key}=True" for key in ("trust_remote_code", "allow_pickle", "shell") if fields.get(key) == "True"
            ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    assert problems(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "A.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "import zipfile as z",
    ],
)
def test_the_search_finds_it(text):
    assert problems(ast.parse(text))


def test_every_model_folder_is_read_without_remote_code():
    """Each file that loads a model or tokenizer from a folder says so: the library's default may ask the user."""
    for path in SOURCES:
        text = path.read_text()
        if re.search(r"Auto\w+\.from_pretrained\(|SentenceTransformer\(\s*name", text):
            assert re.search(r'trust_remote_code"?\s*[:=]\s*False', text), path


def test_the_ui_is_bound_to_this_machine():
    recipe = (ROOT / "Makefile").read_text()
    servers = r"^\t.*(dagster dev|dagster-webserver|scripts/ui\.py)"
    started = [line for line in recipe.splitlines() if re.search(servers, line)]
    assert started and all("--host 127.0.0.1" in line for line in started)
    assert "0.0.0.0" not in recipe + (ROOT / "dagster.yaml").read_text()
    for path in SOURCES:
        assert "0.0.0.0" not in path.read_text(), path


def test_a_ui_started_otherwise_is_bound_to_this_machine_too():
    """`dagster dev` without `--host`, as a user may type it."""
    from dagster_webserver.cli import dagster_webserver

    host = next(option for option in dagster_webserver.params if option.name == "host")
    assert host.default == "127.0.0.1"


def test_tests_stay_on_this_machine():
    """The guard of tests/conftest.py: connections elsewhere fail as they do without a network."""
    for address in (("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0)):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family) as one, pytest.raises(OSError, match="stay on this machine"):
            one.connect(address)
    with pytest.raises(OSError, match="stay on this machine"):
        socket.getaddrinfo("example.org", 443)
    assert socket.getaddrinfo("localhost", 80)
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
