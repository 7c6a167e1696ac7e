"""One trial in its folder, and the command that runs one: `python -m clar.train`. No Ray, no MLflow server.

The folder is the same one that a sweep would use, so what this command has trained, a sweep finds done.
"""

import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import torch
import typer
from filelock import Timeout
from rich.console import Console

from clar import datasets, files, local, trainer
from clar.cli import (
    DataCache,
    DataRoot,
    Dataset,
    MaxLost,
    Preset,
    Seeds,
    Setting,
    Storage,
    TrackingURI,
    code_version,
    command,
    configure,
    gpus_here,
    storage_path,
)  # fmt: skip
from clar.clips import ClipStore
from clar.config import Runtime, TrialConfig
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult


class Elsewhere(Exception):
    """Another process is at work on the trial, or on its pre-training."""


def run(
    folder: TrialFolder,
    store: ClipStore,
    device: str = "cpu",
    version: str = "",
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_start: Callable[[], None] | None = None,
    *,
    until: int | None = None,
    stop: Callable[[], bool] | None = None,
    wait: bool = True,
    gpu_share: float = 1.0,
    max_lost: float = 300.0,
    say: Callable[[str], None] | None = None,
) -> TrialResult | None:
    """Train the trial of a folder, or go on with it, or read its result where it is done.

    A trial that starts from another's encoder has that one trained first, in that one's own folder. A second process
    that asks for the same trial waits for the first and then finds it done.

    Args:
        folder: the trial and its place in the storage.
        store: the data set.
        device: `cpu` or `cuda`.
        version: of the code, for the record.
        on_epoch: called with each of the trial's own epochs as it ends.
        on_start: called once, when the first of it is this process's to run, after any wait for another.
        until: return None once that many of its own epochs are finished; None: to the end.
        stop: asked before every step, and while waiting; when it says so, the trial stops with a checkpoint.
        wait: for another process that is at work on the trial.
        gpu_share: the trial's part of its GPU, above 0 to 1, for the count of its energy and the room for its data.
        max_lost: seconds of work that a process that is killed may lose.
        say: told in a line where the clips come from; the trial's log is, too.

    Raises:
        Elsewhere: another process is, and `wait` is off.
        Stopped: `stop` said so.
        Whatever else `clar.trainer.train` raises; the traceback is then in the folder's log.
    """
    if (result := folder.result()) is not None:
        return result
    pretraining = folder.pretraining()
    if pretraining and pretraining.result() is None:
        run(
            pretraining, store, device, version, None, on_start,
            stop=stop, wait=wait, gpu_share=gpu_share, max_lost=max_lost,
        )  # fmt: skip
        on_start = None
    with _held(folder, wait, stop):
        if (result := folder.result()) is not None:
            return result
        if on_start:
            on_start()
        folder.begin(version)
        records = _Records(folder)
        log = records.log

        def keep(epochs: Sequence[EpochRecord]) -> None:
            for record in records.add(epochs):
                log(epoch_line(folder.config, record))
                if on_epoch:
                    on_epoch(record)
            records.write_if_due()

        def placed(text: str) -> None:
            log(text)
            if say:
                say(text)

        log(f"{folder.config.title()} on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        encoder = pretraining.path / trainer.ENCODER if pretraining else None
        try:
            result = trainer.train(
                folder.config, store, device, folder.path, keep,
                max_lost=max_lost, pretrained=encoder, until=until, stop=stop, gpu_share=gpu_share, say=placed,
            )  # fmt: skip
            records.write()
            if result is not None and folder.config.probes_only and pretraining:
                trained = pretraining.result()
                assert trained is not None  # its encoder was just read
                same = {name: getattr(trained, name) for name in ("head_test_top1", "loss_left", "finetune_rate")}
                result = dataclasses.replace(result, **same)
            if result is None:
                log(f"paused after epoch {len(records.epochs)}")
                return None
            log(f"done: test top-1 {result.test_top1:.4f}, {result.train_seconds:.1f} s")
            folder.write_result(result)
        except trainer.Stopped:
            records.write()
            log("stopped")
            raise
        except Exception:
            log(traceback.format_exc())
            raise
        finally:
            records.flush()
        files.remove(folder.path / trainer.CHECKPOINT)
        return result


class _Records:
    """A trial's `epochs.json` and `log.txt`, written as often as that takes no time worth mentioning.

    On a disk that is after every epoch; in a bucket, where each write takes a tenth of a second, it may be every tenth.
    """

    def __init__(self, folder: TrialFolder) -> None:
        self.folder = folder
        self.epochs: Sequence[EpochRecord] = folder.epochs()
        self.known = len(self.epochs)
        self.lines: list[str] = []
        self.pace = files.Pace(trainer.TRAFFIC)

    def add(self, epochs: Sequence[EpochRecord]) -> Sequence[EpochRecord]:
        """The records of all finished epochs; gives those that are new."""
        new = epochs[self.known :]
        self.epochs, self.known = epochs, len(epochs)
        return new

    def log(self, text: str) -> None:
        """One line, with the time; more for a traceback."""
        self.lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def write_if_due(self) -> None:
        """Write both, where it is time."""
        if self.pace.due():
            with self.pace.writing():
                self.write()
                self.flush()

    def write(self) -> None:
        """Write the epochs' records."""
        self.folder.write_epochs(self.epochs)

    def flush(self) -> None:
        """Write the log."""
        # A full disk should fail where it loses something, with that file's name, and not here.
        with suppress(OSError):
            files.append(self.folder.log, "".join(self.lines))
            self.lines.clear()


@contextmanager
def _held(folder: TrialFolder, wait: bool, stop: Callable[[], bool] | None) -> Iterator[None]:
    """The trial's lock. The operating system gives it back when the process dies."""
    lock = files.lock(folder.lock)
    while True:
        try:
            lock.acquire(timeout=1 if wait else 0)
            break
        except Timeout:
            if not wait:
                raise Elsewhere(f"another process is at work on trial {folder.identity}") from None
            if stop and stop():
                raise trainer.Stopped(
                    f"trial {folder.identity}: stopped while another process was at work on it"
                ) from None
    try:
        yield
    finally:
        lock.release()


def epoch_line(config: TrialConfig, record: EpochRecord) -> str:
    """One finished epoch in one line."""
    probe = "" if record.valid_top1 is None else f", valid top-1 {record.valid_top1:.3f}"
    return (
        f"epoch {record.epoch}/{config.stage_epochs}: loss {record.train_loss:.4f}{probe}, "
        f"{record.clips_per_second:.0f} clips/s"
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dataset: Dataset = "digits",
    preset: Preset = None,
    setting: Setting = None,
    seeds: Seeds = 1,
    storage: Storage = Path("clar_runs"),
    data_root: DataRoot = None,
    data_cache: DataCache = None,
    max_lost: MaxLost = 300.0,
    tracking_uri: TrackingURI = None,
    cpus_per_trial: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, help="0: train on the CPU.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train again what is done; the old results move to replaced/.")
    ] = False,
) -> None:
    """Train one trial in this process, or go on with it; with --seeds N one after another."""
    gpu = gpus_here() > 0 if gpus_per_trial is None else gpus_per_trial > 0
    first = configure(dataset, preset, setting or [], gpu)
    store = local.copy(datasets.load(first.dataset, data_root).path, data_cache)
    base = configure(dataset, preset, setting or [], gpu, len(store.split("train")))
    runtime = Runtime(
        device="cuda" if gpu else "cpu",
        threads=cpus_per_trial or torch.get_num_threads(),
        storage=storage_path(storage),
        store=store.path,
        code_version=code_version(),
        gpu_share=min(1.0, gpus_per_trial or 1.0),
        max_lost=max_lost,
    )
    torch.set_num_threads(runtime.threads)
    console = Console(highlight=False, soft_wrap=True, emoji=False)  # digits:100: is no picture

    def train(folder: TrialFolder, label: str) -> TrialResult:
        config = folder.config
        console.print(f"{label} {folder.identity}: {config.loss} on {config.input}, {config.title()}; {folder.path}")
        if folder.result():
            console.print("done before; its result:")
        result = run(
            folder,
            store,
            runtime.device,
            runtime.code_version,
            lambda record: console.print(epoch_line(config, record)),
            gpu_share=runtime.gpu_share,
            max_lost=runtime.max_lost,
            say=console.print,
        )
        assert result is not None  # no `until`
        return result

    folders = []
    for seed in range(base.seed, base.seed + seeds):
        folder = TrialFolder(runtime.storage, base.but(seed=seed), store.fingerprint)
        folders.append(folder)
        if fresh:
            folder.archive()
        pretraining = folder.pretraining()
        if pretraining and not folder.result() and not pretraining.result():
            train(pretraining, "pre-training, trial")
        for name, value in train(folder, "trial").metrics().items():
            console.print(f"  {name:16} {value:.4g}")
    if tracking_uri:
        _track(folders, base, runtime, tracking_uri, console)


def _track(folders: Sequence[TrialFolder], base: TrialConfig, runtime: Runtime, uri: str, console: Console) -> None:
    """Write finished trials to MLflow, as a sweep called `train`."""
    from clar.tracking import Tracker

    first = folders[0]
    sweep = SweepFolder(runtime.storage, "train", first.identity)
    known = sweep.read() or {"trials": [], "titles": {}}
    with sweep.driver(), Tracker(uri, sweep, console.print) as tracker:
        sweep.write(
            {
                "name": sweep.name,
                "key": sweep.key,
                "dataset": base.dataset,
                "base": base.model_dump(mode="json"),
                "code_version": runtime.code_version,
                "trials": list(dict.fromkeys([*known["trials"], *(folder.identity for folder in folders)])),
                "titles": known["titles"] | {folder.identity: folder.config.title(base) for folder in folders},
                "state": "done",
                "note": "One trial at a time, by hand.",
                "files": [],
                "clock": {},
            }
        )
        tracker.finish()


if __name__ == "__main__":
    sys.exit(command(app))
