"""One trial in its folder, and the command that runs one: `python -m clar.train`. No Ray, no MLflow server.

The folder is the same one that a sweep would use, so what this command has trained, a sweep finds done.
"""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from filelock import FileLock
from rich.console import Console

from clar import datasets, trainer
from clar.cli import (
    DataRoot,
    Dataset,
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
from clar.config import TrialConfig
from clar.result import EpochRecord, TrialFolder, TrialResult


def run(
    folder: TrialFolder,
    store: ClipStore,
    device: str = "cpu",
    version: str = "",
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> TrialResult:
    """Train the trial of a folder, or go on with it, or read its result where it is done.

    A second process that asks for the same trial waits for the first and then finds it done.

    Args:
        folder: the trial and its place in the storage.
        store: the data set.
        device: `cpu` or `cuda`.
        version: of the code, for the record.
        on_epoch: called with each epoch as it ends.
        on_start: called when the trial is this process's to run, after any wait for another.

    Raises:
        Whatever `clar.trainer.train` raises; the traceback is then in the folder's log.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.lock):
        if (result := folder.result()) is not None:
            return result
        if on_start:
            on_start()
        folder.begin(version)
        known = len(folder.epochs())

        def keep(epochs: Sequence[EpochRecord]) -> None:
            nonlocal known
            folder.write_epochs(epochs)
            for record in epochs[known:]:
                log(epoch_line(folder.config, record))
                if on_epoch:
                    on_epoch(record)
            known = len(epochs)

        with open(folder.log, "a", buffering=1) as log_file:

            def log(text: str) -> None:
                log_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

            log(f"{folder.config.title()} on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
            try:
                result = trainer.train(folder.config, store, device, folder.path, keep)
            except Exception:
                log(traceback.format_exc())
                raise
            log(f"done: test top-1 {result.test_top1:.4f}, {result.train_seconds:.1f} s")
        folder.write_result(result)
        (folder.path / trainer.CHECKPOINT).unlink(missing_ok=True)
        return result


def epoch_line(config: TrialConfig, record: EpochRecord) -> str:
    """One finished epoch in one line."""
    probe = "" if record.valid_top1 is None else f", valid top-1 {record.valid_top1:.3f}"
    return (
        f"epoch {record.epoch}/{config.epochs}: loss {record.train_loss:.4f}{probe}, "
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
    tracking_uri: TrackingURI = None,
    cpus_per_trial: Annotated[int, typer.Option(min=0, help="Threads; 0: all cores.")] = 0,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, help="0: train on the CPU.")] = None,
) -> None:
    """Train one trial in this process, or go on with it; with --seeds N one after another."""
    gpu = gpus_here() > 0 if gpus_per_trial is None else gpus_per_trial > 0
    base = configure(dataset, preset, setting or [], gpu)
    store = datasets.load(base.dataset, data_root)
    place = storage_path(storage)
    if cpus_per_trial:
        torch.set_num_threads(cpus_per_trial)
    console = Console(highlight=False, soft_wrap=True)
    folders = []
    for seed in range(base.seed, base.seed + seeds):
        config = base.but(seed=seed)
        folder = TrialFolder(place, config, store.fingerprint)
        folders.append(folder)
        console.print(f"trial {folder.identity}: {config.loss} on {config.input}, {config.title()}; {folder.path}")
        if folder.result():
            console.print("done before; its result:")
        result = run(
            folder,
            store,
            "cuda" if gpu else "cpu",
            code_version(),
            lambda record, config=config: console.print(epoch_line(config, record)),  # type: ignore[misc]
        )
        for name, value in result.metrics().items():
            console.print(f"  {name:16} {value:.4g}")
    if tracking_uri:
        from clar.tracking import Tracker

        key = base.identity(store.fingerprint)
        with Tracker(tracking_uri, "train", place, base, key, code_version(), console.print) as tracker:
            tracker.finish(folders, [], "One trial at a time, by hand.", dict, True)


if __name__ == "__main__":
    sys.exit(command(app))
