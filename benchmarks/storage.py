"""What a trial's checkpoints and records cost it, in a folder and in a bucket: `python -m benchmarks storage`.

The paper's encoder trains for some minutes on digits, with its storage in a folder of this machine and then in a bucket
that moto serves on loopback, or at the place that --storage names. Every write counts, with its bytes and its seconds,
which is what the training waits for it. Writing after every epoch, whatever it takes, is the peer.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks.data import describe_machine
from clar import datasets, files, train, trainer
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.presets import preset
from clar.result import TrialFolder


def main(argv: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks storage", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each trial [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="trials of each kind [%(default)s]")
    parser.add_argument("--max-lost", type=float, default=300.0, help="seconds [%(default)s]")
    parser.add_argument("--width", type=int, default=64, help="of the encoder [%(default)s]")
    parser.add_argument("--storage", type=files.place, help="measure this one alone")
    options = parser.parse_args(argv)
    store = datasets.load("digits:120")
    table = Table(
        "storage", "checkpoint, MB", "a write, s", "checkpoints", "most lost, s", "of the time", "peer: of the time"
    )
    with tempfile.TemporaryDirectory() as folder, _bucket() as bucket:
        for place in [options.storage] if options.storage else [Path(folder), bucket]:
            runs = [
                Measured.of(store, place / str(run), options.width, 60 * options.minutes, options.max_lost)
                for run in range(options.repeats)
            ]
            middle = {name: statistics.median(getattr(run, name) for run in runs) for name in Measured.names}
            table.add_row(
                "bucket" if not files.is_folder(place) else "folder",
                f"{middle['megabytes']:.0f}",
                f"{middle['seconds']:.2f}",
                f"{middle['count']:.0f}",
                f"{middle['lost']:.0f}",
                f"{100 * middle['share']:.2f} %",
                f"{100 * middle['always']:.1f} %",
            )
    console = Console(highlight=False)
    console.print(describe_machine())
    console.print(table)
    return 0


class Measured:
    """One trial, as its storage saw it.

    Attributes:
        megabytes: of a checkpoint.
        seconds: of a checkpoint's write.
        count: of checkpoints.
        lost: seconds of work that a killed process would have lost at most.
        share: of the trial's time that went into writes, of checkpoints and records.
        always: what it would have been with both after every epoch.
    """

    names = ("megabytes", "seconds", "count", "lost", "share", "always")

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.writes: list[tuple[str, float, float]] = []
        self.gaps: list[float] = []

    @classmethod
    def of(cls, store: ClipStore, place: Path, width: int, seconds: float, max_lost: float) -> "Measured":
        """Train for so long, and see to its writes."""
        config = TrialConfig(
            **preset("paper", "speech_commands_10")
            | {"dataset": store.name, "epochs": 10_000, "batch_size": 32, "encoder_width": width, "probe_every": 10_000,
               "optimizer": "adamw", "warmup_epochs": 0, "loss": "self_supervised"}
        )  # fmt: skip
        folder = TrialFolder(place, config, store.fingerprint)
        found, real, append = cls(), files.write_atomically, files.append
        epochs = 0

        def write(path: Path, content: object) -> None:
            began = time.monotonic()
            real(path, content)  # type: ignore[arg-type]
            found.wrote(path, began)

        def appended(path: Path, text: str) -> None:
            began = time.monotonic()
            append(path, text)
            found.wrote(path, began)

        def count(record: object) -> None:
            nonlocal epochs
            epochs += 1

        with (
            mock.patch.object(trainer, "write_atomically", write),
            mock.patch("clar.result.write_json", lambda path, value: write(path, json.dumps(value))),
            mock.patch.object(files, "append", appended),
            suppress(trainer.Stopped),
        ):
            train.run(
                folder, store, on_epoch=count, max_lost=max_lost,
                stop=lambda: time.monotonic() - found.began > seconds,
            )  # fmt: skip
        found.end(folder, epochs)
        return found

    def wrote(self, path: Path, began: float) -> None:
        """A file has been written."""
        now = time.monotonic()
        self.writes.append((path.name, began, now - began))
        if path.name == trainer.CHECKPOINT:
            self.gaps.append(now - self.last)
            self.last = now

    def end(self, folder: TrialFolder, epochs: int) -> None:
        """The trial is over: what it comes to."""
        wall = time.monotonic() - self.began
        checkpoints = [seconds for name, _, seconds in self.writes if name == trainer.CHECKPOINT]
        records = [seconds for name, _, seconds in self.writes if name in ("epochs.json", "log.txt")]
        self.megabytes = len(files.read_bytes(folder.path / trainer.CHECKPOINT)) / 1e6
        self.seconds, self.count = statistics.median(checkpoints), len(checkpoints)
        self.lost = max(self.gaps)
        self.share = sum(seconds for _, _, seconds in self.writes) / wall
        each = self.seconds + 2 * statistics.median(records)
        # A trial's own time without its writes, with one of each after every epoch.
        self.always = epochs * each / (wall * (1 - self.share) + epochs * each)


@contextmanager
def _bucket() -> Iterator[Path]:
    """A place in a bucket on loopback."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    login = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with mock.patch.dict(os.environ, {**login, "AWS_ENDPOINT_URL": url}):
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.1)
            boto3.client("s3").create_bucket(Bucket="clar")
            yield files.place("s3://clar/runs")
    finally:
        server.kill()
        server.wait()
