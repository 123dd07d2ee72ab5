"""A Postgres server of Debian's binaries on loopback, for the length of a block."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "only-for-tests"


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, None where there is none, or nobody who may run them."""
    if os.getuid() == 0 and not any(account.pw_name == "postgres" for account in pwd.getpwall()):
        return None
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Start a server with an empty database; gives the environment that `deploy/postgres/dagster.yaml` reads.

    Postgres refuses to run as root: there it runs as the user `postgres`.
    """
    programs = binaries()
    assert programs is not None
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="sidr-pg-"))
    (folder / "password").write_text(PASSWORD)
    if user is not None:
        for path in (folder, folder / "password"):
            os.chown(path, user.pw_uid, user.pw_gid)
    account = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["-U", "sidr", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
    subprocess.run([programs / "initdb", "-D", folder / "data", *options], check=True, capture_output=True, **account)
    settings = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    control = [programs / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", settings, "start"], check=True, stdout=subprocess.DEVNULL, **account)
    try:
        yield {
            "SIDR_PG_HOST": "127.0.0.1",
            "SIDR_PG_PORT": port,
            "SIDR_PG_USER": "sidr",
            "SIDR_PG_PASSWORD": PASSWORD,
            "SIDR_PG_DB": "postgres",
        }
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, stdout=subprocess.DEVNULL, **account)
        shutil.rmtree(folder, ignore_errors=True)
