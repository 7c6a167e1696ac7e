"""`python -m clar.datasets`: what data sets exist, fetch and decode one, what is in it, write one as audio files."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clar import datasets, progress
from clar.cli import command
from clar.clips import SPLITS, ClipStore
from clar.datasets import digits, originals
from clar.datasets.speech_commands import LISTS
from clar.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)

Root = Annotated[
    Path | None,
    typer.Option(
        "--root", metavar="DIR", help="folder of the unpacked data set, or where to put it", show_default=False
    ),
]
Clips = Annotated[int | None, typer.Option("--clips", help="of an embedded data set: about so many clips")]
AllowBad = Annotated[int | None, typer.Option("--allow-bad", min=0, help="files that may be unreadable; default: 1 %")]


@app.command("list")
def list_() -> None:
    """The data sets that exist."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "built", "what"):
        table.add_column(column, no_wrap=column != "what")
    for name, description in datasets.DESCRIPTIONS.items():
        known = not name.endswith(":PATH")
        table.add_row(name, ("yes" if datasets.built(name) else "no") if known else "", description)
    Console().print(table)


@app.command()
def prepare(
    name: str,
    root: Root = None,
    archive: Annotated[
        list[Path] | None,
        typer.Option(
            "--archive",
            metavar="FILE",
            help="unpack this into the folder, and fetch nothing; repeatable",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="a mirror: the archive, or a folder of archives ending in /; repeatable",
            show_default=False,
        ),
    ] = None,
    checksum: Annotated[
        str | None,
        typer.Option(
            "--checksum",
            help="of the archive at --url, if it is not the original: sha256:HEX, md5:HEX, none",
            show_default=False,
        ),
    ] = None,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="keep what was fetched when it is unpacked")
    ] = False,
    clips: Clips = None,
    allow_bad: AllowBad = None,
) -> None:
    """Fetch, unpack and decode a data set once; run again after an interruption it goes on.

    Fetched is what the folder --root lacks; nothing, with --archive or where the folder holds the unpacked data set.
    """  # fmt: skip
    name = _with_clips(name, clips)
    base = name.partition(":")[0]
    if base in datasets.FOLDERS and root is None and (archive or url):
        raise UserError(f"prepare {name}: say with --root DIR which folder to unpack into")
    if base not in datasets.FOLDERS and (url or checksum):
        raise UserError(f"prepare {name}: nothing is fetched for it; leave out {'--url' if url else '--checksum'}")
    if checksum and not url:
        raise UserError(f"--checksum {checksum}: is that of the archive at a --url; name that too")
    if base in datasets.EMBEDDED and archive:
        raise UserError(f"prepare {name}: it is synthesised; leave out --archive {archive[0]}")
    if base in datasets.PATHS and root is not None:
        raise UserError(f"prepare {name}: it lies where its name says; leave out --root {root}")
    if archive:
        originals.unpack_given(name, root or datasets.place_of(name), archive)
    elif base in datasets.FOLDERS and root is not None:
        originals.obtain(name, root, url or (), checksum, keep_archive)
    store = datasets.load(name, root, allow_bad, quiet=True)
    print("\n".join([f"{store!r}", f"in {store.path}", *store.notes]))


@app.command()
def info(
    name: str,
    root: Root = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="PNG with one example of each class; default: beside the store", show_default=False
        ),
    ] = None,
) -> None:
    """What is in a data set, which is decoded first if need be, and a picture of it."""
    from clar.datasets.picture import draw

    store = datasets.load(name, root, quiet=True)
    hours = len(store) * store.seconds / 3600
    print(f"{store!r}\nfingerprint {store.fingerprint}\nin {store.path}")
    print(f"{store.seconds:g} s a clip, {hours:.2f} h in all, {store.sample_rate:,} Hz, {len(store.classes)} classes")
    print(_durations(store))
    Console(highlight=False).print(_counts(store))
    for note in [*store.notes, *_untrained(store)]:
        print(note)
    shown = [f"  {file}: {why}" for file, why in store.left_out[:SHOWN]]
    if len(store.left_out) > SHOWN:
        shown.append(f"  and {len(store.left_out) - SHOWN:,} more, in {store.path.name}-bad-files.txt beside the store")
    print("\n".join([f"{len(store.left_out):,} files left out", *shown]))
    path = picture or store.path.with_name(f"{store.path.name}.png")
    try:
        draw(store, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another place with --picture") from error
    print(f"one example of each class: {path}")


SHOWN = 20
"""Of the files that were left out."""


def _durations(store: ClipStore) -> str:
    """One line about how long the recordings are, of which the clips are the beginnings."""
    known = store.recording_seconds[np.isfinite(store.recording_seconds)]
    if not len(known):
        return f"every clip was made {store.seconds:g} s long"
    # A file may be a sample off; nobody calls it cut for that.
    longer, shorter = int((known > store.seconds + 0.001).sum()), int((known < store.seconds - 0.001).sum())
    return (
        f"recordings of {known.min():.3g} to {known.max():.3g} s, median {np.median(known):.3g}, "
        f"{known.sum(dtype=np.float64) / 3600:.2f} h in all; {longer:,} longer ones are cut, "
        f"{shorter:,} shorter ones end in silence"
    )


def _counts(store: ClipStore) -> Table:
    """Clips of each class in each split, or of a data set with folds in each fold."""
    if store.folds is None:
        parts = {split: store.split(split) for split in SPLITS}
    else:
        parts = {f"fold {fold}": np.flatnonzero(store.folds == fold) for fold in range(1, store.fold_count + 1)}
    counts = {part: np.bincount(store.labels[rows], minlength=len(store.classes)) for part, rows in parts.items()}
    table = Table(box=None, header_style="bold")
    table.add_column("class", no_wrap=True)
    for part in parts:
        table.add_column(part, justify="right")
    for label, word in enumerate(store.classes):
        table.add_row(escape(word), *(f"{each[label]:,}" for each in counts.values()))
    table.add_row("all", *(f"{each.sum():,}" for each in counts.values()))
    return table


def _untrained(store: ClipStore) -> list[str]:
    """A line about clips of classes, out of a fixed list, that have no training clip; the notes name those."""
    trained = np.bincount(store.labels[store.split("train")], minlength=len(store.classes)) > 0
    rows = np.flatnonzero(~trained[store.labels])
    return [f"{len(rows):,} clips of valid and test are of classes without a training clip"] if len(rows) else []


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
    base, colon, _ = name.partition(":")
    if base not in datasets.EMBEDDED:
        raise UserError(f"--clips {clips}: only embedded data sets have a size to choose, {name} has not")
    if colon:
        raise UserError(f"--clips {clips} and {name} name two sizes; give one")
    return f"{name}:{clips}"


if __name__ == "__main__":
    sys.exit(command(app))
