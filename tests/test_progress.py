"""Bars of progress: on a terminal, and nowhere else."""

import os
import pty
import subprocess
import sys

CODE = """
from clar.progress import bar

with bar("counting", 3) as shown:
    shown.advance()
    shown.show("adding up", 2, 3)
print("done")
"""


def test_a_terminal_shows_a_bar() -> None:
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=slave, stdout=slave, stderr=slave) as process:
        process.wait(timeout=60)
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:  # Linux' way to say that nobody writes any more
        pass
    os.close(master)
    assert b"adding up" in output
    assert b"2/3" in output
    assert b"done" in output


def test_a_pipe_shows_nothing_and_loads_nothing() -> None:
    code = f"{CODE}\nimport sys; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\nFalse\n"
    assert done.stderr == ""
