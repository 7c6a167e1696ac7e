"""A data set on this node: its own copy of a store on shared storage, and whether the store fits into memory.

A cluster's nodes see one store through the network, or fetch it from the bucket of the sweep's storage. Each copies it
once to its own disk, and every trial of the node maps that one file.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from clar import files, progress
from clar.clips import ClipStore, DamagedStore, fingerprint_of
from clar.errors import UserError
from clar.files import held

_CHUNK = 2**22
_LAST = "meta.json"
"""What makes a folder a store: written last where it may be seen half done."""
_SPARE = 2**30
"""Bytes of the disk that a copy leaves free."""


def copy(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> ClipStore:
    """The store at `path`, from this node's copy of it in `folder`, which is made where it is missing.

    One process copies, the others wait for it. A copy is believed once its content has been read back from what was
    written and has the store's fingerprint. Copies of other stores are left alone.

    Args:
        path: the store, or where `publish` has put it into a bucket.
        folder: of copies, on a disk of this node; None: the store itself is used, or, from a bucket, a copy in the
            cache folder.

    Raises:
        UserError: there is no store at `path`, the folder cannot be written, or what arrives is not the store, twice.
    """
    place = files.place(os.fspath(path) if isinstance(path, os.PathLike) else path)
    if not files.is_folder(place):
        # Its name says what it is: neither the bucket nor this node's disk need be asked for more.
        return _kept(Path(folder or files.cache_dir()).expanduser().absolute() / place.name, place.name, place)
    store = ClipStore.open(place)
    if folder is None:
        return store
    target = Path(folder).expanduser().absolute() / _named(store)
    if target.is_relative_to(store.path) or store.path.is_relative_to(target):
        return store
    return _kept(target, store.name, store)


def publish(store: ClipStore, storage: Path) -> Path:
    """Put a store into the bucket of a storage, unless it is there, for nodes to fetch it; gives its place."""
    place = storage / "data" / _named(store)
    if not (place / _LAST).exists():
        names = sorted((file.name for file in store.path.iterdir()), key=lambda name: (name == _LAST, name))
        with progress.bar(f"{store.name}: copying to {storage}", _size(store), in_bytes=True) as bar:
            for name in names:
                files.upload(store.path / name, place / name)
                bar.advance((store.path / name).stat().st_size)
    return place


def _named(store: ClipStore) -> str:
    """A file name that says which data these are."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', store.name)[-80:]}-{store.fingerprint[:16]}"


def _size(store: ClipStore) -> int:
    return sum(file.stat().st_size for file in store.path.iterdir())


def _kept(target: Path, name: str, source: ClipStore | Path) -> ClipStore:
    """The copy at `target` of a store, or of one in a bucket, made where it is missing."""
    try:
        if (there := _open(target)) is not None:
            return there
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(target.with_name(f".{target.name}.lock"), f"another process is copying {name}"):
            if (there := _open(target)) is not None:
                return there
            return _copy(source, target) if isinstance(source, ClipStore) else _fetch(source, target)
    except OSError as error:
        raise UserError(
            f"--data-cache {target.parent}: cannot keep a copy of {name} there: {error.strerror or error}; "
            "make room or name another folder"
        ) from error


def _open(target: Path) -> ClipStore | None:
    """The copy that is there, if it is whole."""
    try:
        there = ClipStore.open(target) if target.is_dir() else None
    except DamagedStore:
        return None
    return there if there and target.name.endswith(there.fingerprint[:16]) else None


def _copy(store: ClipStore, target: Path) -> ClipStore:
    size = _size(store)
    free = shutil.disk_usage(target.parent).free
    if free < size + _SPARE:
        # A sweep on fifty nodes should not end because one of them has a small disk.
        print(
            f"{target.parent} has {free / 1e9:.1f} GB free, {store.name} is {size / 1e9:.1f} GB: "
            f"it is read from {store.path}",
            file=sys.stderr,
        )
        return store

    def fill(partial: Path) -> None:
        with progress.bar(f"{store.name}: copying to {target.parent}", size, in_bytes=True) as bar:
            for file in store.path.iterdir():
                _copy_file(file, partial / file.name, bar)

    try:
        return _made(target, fill, store.path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{target.parent} is full: {store.name} is read from {store.path}", file=sys.stderr)
        return store


def _fetch(place: Path, target: Path) -> ClipStore:
    """Copy a store from a bucket: its clips are mapped, and so must be here."""

    def fill(partial: Path) -> None:
        if not (place / _LAST).exists():
            raise UserError(f"there is no clip store at {place}")
        for file in place.iterdir():
            files.download(file, partial / file.name)

    return _made(target, fill, place)


def _made(target: Path, fill: Callable[[Path], None], source: Path) -> ClipStore:
    """Have `target` filled, and once more if what is in it then is not what its name says."""
    partial = target.with_name(f".{target.name}.partial")
    expected, found = target.name[-16:], ""
    try:
        for _ in range(2):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            try:
                found = _fingerprint(partial)[:16]
            except DamagedStore:
                found = "of no store"
            if found == expected:
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
                return ClipStore.open(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    raise UserError(
        f"{source}: its copy in {target.parent} has the fingerprint {found} and not {expected}, twice: the store is "
        f"damaged, or one of the disks; build it again with `python -m clar.datasets prepare`"
    )


def _copy_file(old: Path, new: Path, bar: progress.Bar) -> None:
    with open(old, "rb") as source, open(new, "wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            bar.advance(len(chunk))
        target.flush()
        os.fsync(target.fileno())


def _fingerprint(path: Path) -> str:
    """The fingerprint of a store by what it really holds."""
    content = hashlib.sha256()
    with open(path / "clips.int16", "rb") as file:
        while chunk := file.read(_CHUNK):
            content.update(chunk)
    return fingerprint_of(ClipStore.open(path), content.hexdigest())


def free_memory() -> int | None:
    """Bytes of memory that may still be filled, by the system's and the control group's account; None: not known."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            limits.append(int(most) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(limits)) if limits else None
