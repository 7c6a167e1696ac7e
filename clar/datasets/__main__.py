"""`python -m clar.datasets`: what data sets exist, decode one, what is in it, write the embedded one as audio files."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from clar import datasets, progress
from clar.cli import command
from clar.clips import SPLITS, ClipStore
from clar.datasets import digits
from clar.datasets.speech_commands import LISTS
from clar.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

Root = Annotated[Path | None, typer.Option("--root", help="folder of the unpacked data set")]
Clips = Annotated[int | None, typer.Option("--clips", help="of digits only: about so many clips")]
AllowBad = Annotated[int | None, typer.Option("--allow-bad", min=0, help="files that may be unreadable [1 %]")]


@app.command("list")
def list_() -> None:
    """The data sets that exist."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "built", "what"):
        table.add_column(column, no_wrap=column != "what")
    for name, description in datasets.DESCRIPTIONS.items():
        table.add_row(name, "yes" if datasets.built(name) else "no", description)
    Console().print(table)


@app.command()
def prepare(name: str, root: Root = None, clips: Clips = None, allow_bad: AllowBad = None) -> None:
    """Decode a data set once; run again after an interruption it goes on."""
    store = datasets.load(_with_clips(name, clips), root, allow_bad)
    print(f"{store!r}\nin {store.path}")


@app.command()
def info(name: str, root: Root = None) -> None:
    """What is in a data set, which is decoded first if need be."""
    store = datasets.load(name, root)
    console = Console(highlight=False)
    print(f"{store!r}\nfingerprint {store.fingerprint}\nin {store.path}")
    hours = len(store) * store.seconds / 3600
    print(f"{store.seconds:g} s a clip, {hours:.2f} h in all, {store.sample_rate:,} Hz, {len(store.classes)} classes")
    table = Table(box=None, header_style="bold")
    table.add_column("class", no_wrap=True)
    counts = {split: np.bincount(store.labels[store.split(split)], minlength=len(store.classes)) for split in SPLITS}
    for split in SPLITS:
        table.add_column(split, justify="right")
    for label, word in enumerate(store.classes):
        table.add_row(word, *(f"{counts[split][label]:,}" for split in SPLITS))
    table.add_row("all", *(f"{counts[split].sum():,}" for split in SPLITS))
    console.print(table)
    print(f"{len(store.left_out)} files left out" + "".join(f"\n  {file}: {why}" for file, why in store.left_out))


@app.command()
def export(
    name: str,
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    clips: Clips = None,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export")] = False,
) -> None:
    """Write `digits` as a Speech Commands folder of 16-bit WAV files, which `prepare speech_commands_10` reads."""
    if name.partition(":")[0] != "digits":
        raise UserError(f"export {name}: only digits, whose audio is made here, can be exported")
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        held = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}; choose another folder") from error
    if held and not force:
        raise UserError(f"{folder} is not empty; choose another folder, or replace an earlier export with --force")
    foreign = set(held) - {*digits.WORDS, *LISTS.values()}
    if foreign:
        raise UserError(
            f"{folder} holds {min(foreign)}, which is no part of an export: not replaced, also with --force"
        )
    export_folder(datasets.load(_with_clips(name, clips)), folder)
    print(f"wrote {folder}; read it with `python -m clar.datasets prepare speech_commands_10 --root {folder}`")


def export_folder(store: ClipStore, folder: Path) -> None:
    """Write the clips of `store` into `folder` by way of a folder beside it, so that `folder` is never half there.

    Raises:
        UserError: the disk is full, or the folder that `folder` lies in cannot be written.
    """
    import soundfile

    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for word in store.classes:
            (partial / word).mkdir(parents=True)
        with progress.bar(f"{folder.name}: writing", len(store)) as bar:
            for clip_T, file in zip(store.clips, store.files, strict=True):
                soundfile.write(partial / file, clip_T, store.sample_rate, "PCM_16")
                bar.advance()
        for split, name in LISTS.items():
            lines = sorted(store.files[i] for i in store.split(split))
            (partial / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except (OSError, soundfile.LibsndfileError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot write {folder}: {reason}; choose a folder elsewhere, or make room") from error


def _with_clips(name: str, clips: int | None) -> str:
    if clips is None:
        return name
    if name.startswith("digits:"):
        raise UserError(f"--clips {clips} and {name} name two sizes; give one")
    if name != "digits":
        raise UserError(f"--clips {clips}: only digits has a size to choose, {name} has not")
    return f"{name}:{clips}"


if __name__ == "__main__":
    sys.exit(command(app))
