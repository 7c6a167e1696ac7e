"""Exit codes and the one line for what a user can see to; faults keep their traceback."""

import errno
import re

import pytest
import typer

from clar.cli import command, configure
from clar.errors import UserError


def app_that(error: BaseException | None) -> typer.Typer:
    """A command line that ends so."""
    app = typer.Typer()

    @app.command()
    def main() -> int | None:
        if error:
            raise error
        return 1

    return app


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["command"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 1, ""),
        (UserError("no data set 'x'"), 2, r"error: no data set 'x'"),
        (KeyboardInterrupt(), 130, r"interrupted; the same command goes on"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, r"error: /a/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, r"error: a disk: No space left .* make room"),
        (OSError(errno.ESTALE, "Stale file handle", "/nfs/b"), 1, r"error: /nfs/b: Stale file handle; nothing .* lost"),
        (OSError(errno.EREMOTEIO, "Remote I/O error", b"/nfs/b"), 1, r"error: .*Remote I/O error; nothing .* lost"),
    ],
)
def test_how_a_command_ends(
    error: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(app_that(error)) == code
    said = capsys.readouterr().err
    assert re.match(line, said)
    assert said.count("\n") == bool(error)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), FileNotFoundError(2, "x")],
)
def test_faults_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        command(app_that(error))


def test_a_version_that_is_named_stays_in_the_paper_preset() -> None:
    names = ("speech_commands_10", "speech_commands_10:v0.02")
    plain, named = (configure(name, "paper", [], False).dataset for name in names)
    assert plain == "speech_commands_10:v0.01"
    assert named == "speech_commands_10"  # its canonical name
    assert configure(names[0], "small", [], False).dataset == "speech_commands_10"
