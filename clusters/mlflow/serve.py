"""A shared MLflow on a machine of one's own: accounts, PostgreSQL, artifacts on S3. See docs/tracking.md.

    MLFLOW_AUTH_ADMIN_PASSWORD=... python clusters/mlflow/serve.py --artifacts s3://BUCKET/mlflow

The container of `compose.yaml` runs it too. It needs the packages of `clar[cluster]`, Debian's `postgresql` unless it
is told of a database, and nothing of clar. Secrets come by the environment, stay off the command line, which every user
of the machine can read, and out of URIs, which get logged.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_MOST_SOCKET_PATH = 107
"""Characters, of Linux."""
_SHORTEST_PASSWORD = 12
"""MLflow's own rule."""

_AUTH = """\
[mlflow]
# Whoever has an account may read all and add to all; deleting is for the one who made it, and for the administrator.
default_permission = EDIT
database_uri = {database}
admin_username = {admin}
# A password is checked with scrypt, tens of milliseconds each time; so once a minute and not for every request.
auth_cache_ttl_seconds = 60
"""


class Wrong(Exception):
    """What the user can put right, in one line."""


class Postgres:
    """PostgreSQL in a folder of its own, for this machine's owner of the folder alone: a socket in it, no port.

    File permissions are the lock: the folder and the socket are closed to others, so that no password is needed.
    As root, which PostgreSQL refuses to run as, it belongs to Debian's user `postgres`.

    Args:
        folder: of the database; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "server.log"
        self.user = "postgres" if os.geteuid() == 0 else None
        if len(str(folder / ".s.PGSQL.5432")) > _MOST_SOCKET_PATH:
            raise Wrong(f"--data: the path of {folder} is too long for a socket; take a shorter one")
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        found = shutil.which("initdb") or next((str(place / "initdb") for place in reversed(places)), None)
        if found is None:
            raise Wrong("no PostgreSQL here: apt-get install postgresql, or name a database by --database")
        self.programs = Path(found).resolve().parent
        # The database that every PostgreSQL has from the start.
        self.uri = f"postgresql://mlflow@/postgres?host={folder}"

    def start(self) -> None:
        """Run it; one that a killed script has left behind is used on."""
        if not (self.folder / "PG_VERSION").exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.user:
                shutil.chown(self.folder, self.user, self.user)
            self._run("initdb", "-D", self.folder, "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        if self._run("pg_ctl", "-D", self.folder, "status", check=False):
            options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c unix_socket_permissions=0700"
            self._run("pg_ctl", "-D", self.folder, "-l", self.log, "-o", options, "-w", "start")

    def stop(self) -> None:
        """End it; what has been written is on the disk."""
        self._run("pg_ctl", "-D", self.folder, "-m", "fast", "-w", "stop", check=False)

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> int:
        line = [str(self.programs / program), *map(str, arguments)]
        groups = [] if self.user else None
        # To a file: a daemon that is started would hold a pipe open for as long as it runs.
        said = os.memfd_create("said")
        try:
            code = subprocess.run(
                line, user=self.user, group=self.user, extra_groups=groups, cwd="/", stdin=subprocess.DEVNULL,
                stdout=said, stderr=said, check=False,
            ).returncode  # fmt: skip
            if code and check:
                os.lseek(said, 0, os.SEEK_SET)
                raise Wrong(f"{program} failed: {' '.join(os.read(said, 2000).decode(errors='replace').split())}")
        finally:
            os.close(said)
        return code


def environment(data: Path, database: str, artifacts: str) -> dict[str, str]:
    """What `mlflow server` is to know. Its accounts lie in the same database as the runs.

    Args:
        data: folder for the two files that are made: settings of the accounts, and the key of sessions.
        database: URI of it.
        artifacts: URI of the place.
    """
    settings, key = data / "auth.ini", data / "session.key"
    # SQLAlchemy's own choice of a driver has changed between its versions.
    database = database.replace("postgresql://", "postgresql+psycopg2://", 1)
    admin = os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
    # A percent sign has a meaning in this kind of file.
    write_closed(settings, _AUTH.format(database=database.replace("%", "%%"), admin=admin))
    if not key.exists():
        write_closed(key, secrets.token_hex(32))
    defaults = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        # By default a server is 15 processes and 2.3 GB, most of them for jobs that clar has no use for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WORKERS": "1",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": "5000",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    fixed = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
    }
    return {**defaults, **os.environ, **fixed}


def write_closed(path: Path, content: str) -> None:
    """A file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(content)


def serve(chosen: argparse.Namespace) -> int:
    """Run the server until it ends or a signal ends it; its exit code."""
    password = os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")
    if len(password) < _SHORTEST_PASSWORD:
        raise Wrong(f"set MLFLOW_AUTH_ADMIN_PASSWORD to {_SHORTEST_PASSWORD} characters or more")
    data: Path = chosen.data.expanduser().absolute()
    data.mkdir(parents=True, exist_ok=True)
    postgres = None if chosen.database else Postgres(data / "postgres")
    server: subprocess.Popen[bytes] | None = None

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        if postgres:
            postgres.start()
        # A line a request, hundreds a minute, would tell nothing that the database does not.
        options = ["--app-name", "basic-auth", "--uvicorn-opts", "--no-access-log"]
        known = environment(data, postgres.uri if postgres else chosen.database, chosen.artifacts)
        # From the data's folder: what MLflow leaves in the current one it leaves there.
        server = subprocess.Popen([sys.executable, "-m", "mlflow", "server", *options], env=known, cwd=data)
        return server.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if server is not None and server.poll() is None:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
        if postgres:
            postgres.stop()


def main(arguments: Sequence[str]) -> int:
    """The command; exit code 2 where it was wrong."""
    parser = argparse.ArgumentParser(
        prog="serve.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", required=True, metavar="URI", help="where files go: s3://BUCKET/FOLDER")
    parser.add_argument("--data", type=Path, default=Path("clar-mlflow"), metavar="FOLDER",
                        help="the database and the server's own files [./%(default)s]")  # fmt: skip
    parser.add_argument("--database", default=os.environ.get("MLFLOW_BACKEND_STORE_URI"), metavar="URI",
                        help="a PostgreSQL that runs already, its password in PGPASSWORD or ~/.pgpass")  # fmt: skip
    try:
        return serve(parser.parse_args(arguments))
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
