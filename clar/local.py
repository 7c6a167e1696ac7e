"""A data set on this node: its own copy of a store on shared storage, and whether the store fits into memory.

A cluster's nodes see one store through the network. Each copies it once to its own disk, and every trial of the node
maps that one file.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from clar import progress
from clar.clips import ClipStore, DamagedStore, fingerprint_of
from clar.errors import UserError
from clar.files import held

_CHUNK = 2**22
_SPARE = 2**30
"""Bytes of the disk that a copy leaves free."""


def copy(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> ClipStore:
    """The store at `path`, from this node's copy of it in `folder`, which is made where it is missing.

    One process copies, the others wait for it. A copy is believed once its content has been read back from what was
    written and has the store's fingerprint. Copies of other stores are left alone.

    Args:
        path: the store.
        folder: of copies, on a disk of this node; None: the store itself is used.

    Raises:
        UserError: there is no store at `path`, the folder cannot be written, or what arrives is not the store, twice.
    """
    store = ClipStore.open(path)
    if folder is None:
        return store
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", store.name)[-80:]
    target = Path(folder).expanduser().absolute() / f"{name}-{store.fingerprint[:16]}"
    if target.is_relative_to(store.path) or store.path.is_relative_to(target):
        return store
    try:
        if (there := _open(target, store)) is not None:
            return there
        target.parent.mkdir(parents=True, exist_ok=True)
        with held(target.with_name(f".{target.name}.lock"), f"another process is copying {store.name}"):
            if (there := _open(target, store)) is not None:
                return there
            return _copy(store, target)
    except OSError as error:
        raise UserError(
            f"--data-cache {os.fspath(folder)}: cannot keep a copy of {store.name} there: {error.strerror or error}; "
            "make room or name another folder"
        ) from error


def _open(target: Path, store: ClipStore) -> ClipStore | None:
    try:
        there = ClipStore.open(target) if target.is_dir() else None
    except DamagedStore:
        return None
    return there if there and there.fingerprint == store.fingerprint else None


def _copy(store: ClipStore, target: Path) -> ClipStore:
    size = sum(file.stat().st_size for file in store.path.iterdir())
    free = shutil.disk_usage(target.parent).free
    if free < size + _SPARE:
        # A sweep on fifty nodes should not end because one of them has a small disk.
        print(
            f"{target.parent} has {free / 1e9:.1f} GB free, {store.name} is {size / 1e9:.1f} GB: "
            f"it is read from {store.path}",
            file=sys.stderr,
        )
        return store
    partial = target.with_name(f".{target.name}.partial")
    try:
        return _copy_twice(store, target, partial, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{target.parent} is full: {store.name} is read from {store.path}", file=sys.stderr)
        return store
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_twice(store: ClipStore, target: Path, partial: Path, size: int) -> ClipStore:
    """Copy, and once more if the first copy is not what the store is."""
    found = ""
    for _ in range(2):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with progress.bar(f"{store.name}: copying to {target.parent}", size, in_bytes=True) as bar:
            # meta.json last: without it, a folder is no store.
            for file in sorted(store.path.iterdir(), key=lambda file: (file.name == "meta.json", file.name)):
                _copy_file(file, partial / file.name, bar)
        found = _fingerprint(partial)
        if found == store.fingerprint:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            return ClipStore.open(target)
    raise UserError(
        f"{store.path}: its copy in {target.parent} has the fingerprint {found[:12]} and not {store.fingerprint[:12]}, "
        f"twice: the store is damaged, or one of the disks; build it again with `python -m clar.datasets prepare`"
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
