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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clar import files, progress
from clar.clips import ClipStore, DamagedStore, fingerprint_of
from clar.errors import UserError
from clar.files import held, linked

_CHUNK = 2**22
_CLIPS = "clips.int16"
_LAST = "meta.json"
"""What makes a folder a store: written last where it may be seen half done."""
_SPARE = 2**30
"""Bytes of the disk that a copy leaves free."""


def copy(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> ClipStore:
    """The store at `path`, from this node's copy of it in `folder`, which is made where it is missing.

    One process copies, the others wait for it. A copy is believed once its content has been read back from what was
    written and has the store's fingerprint. Copies of other stores are left alone; two of the same recordings under
    different labels share their clips by a hard link, as the stores do.

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
    here, there = target.resolve(), store.path.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here.parent):
        return store  # it lies in that folder already, which may be that of all decoded data sets
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
            # What was damaged, or half copied when its process was killed, must not take the room of the new copy.
            for ruin in (target, _partial(target)):
                shutil.rmtree(ruin, ignore_errors=True)
            return _copy(source, target) if isinstance(source, ClipStore) else _fetch(source, target)
    except OSError as error:
        raise UserError(
            f"--data-cache {target.parent}: cannot keep a copy of {name} there: {error.strerror or error}; "
            "make room or name another folder"
        ) from error


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _open(target: Path) -> ClipStore | None:
    """The copy that is there, if it is whole and nobody has written to it since it was verified."""
    try:
        there = ClipStore.open(target) if target.is_dir() else None
        written = {file.stat().st_mtime_ns for file in target.iterdir()} if there else set()
    except (DamagedStore, FileNotFoundError):  # the latter where another process is making it again
        return None
    return there if there and target.name.endswith(there.fingerprint[:16]) and len(written) == 1 else None


def _seal(copy: Path) -> None:
    """Give all files of a verified copy one modification time: what is written to later has another.

    Reading 39 GB again would tell for certain, and take every trial half a minute.
    """
    moment = (copy / _CLIPS).stat().st_mtime_ns  # which another copy may share
    for file in copy.iterdir():
        os.utime(file, ns=(moment, moment))


def _twin(store: ClipStore, folder: Path) -> Path | None:
    """The clips of a whole copy in `folder` that has the same ones as the store."""
    for other in sorted(folder.iterdir()):
        if not other.name.startswith(".") and (there := _open(other)) and there.content == store.content != "":
            return other / _CLIPS
    return None


def _copy(store: ClipStore, target: Path) -> ClipStore:
    twin = _twin(store, target.parent)
    size = _size(store) - (store.clips.nbytes if twin else 0)
    free = shutil.disk_usage(target.parent).free
    if free < size + _SPARE:
        # A sweep on fifty nodes should not end because one of them has a small disk.
        print(
            f"{target.parent} has {free / 1e9:.1f} GB free, {store.name} takes {size / 1e9:.1f} GB and "
            f"{_SPARE / 1e9:.1f} GB are to stay free: it is read from {store.path}",
            file=sys.stderr,
        )
        return store

    def fill(partial: Path) -> None:
        nonlocal twin
        with progress.bar(f"{store.name}: copying to {target.parent}", size, in_bytes=True) as bar:
            for file in store.path.iterdir():
                if not (twin and file.name == _CLIPS and linked(twin, partial / _CLIPS)):
                    _copy_file(file, partial / file.name, bar)
        twin = None  # if these are not the clips after all, they are copied

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
    partial = _partial(target)
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
                _seal(partial)
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
    with open(path / _CLIPS, "rb") as file:
        while chunk := file.read(_CHUNK):
            content.update(chunk)
    return fingerprint_of(ClipStore.open(path), content.hexdigest())


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that may still be filled, by the system's and the control groups' account; None: not known.

    A limit holds for a group and all below it, and under Slurm, systemd or Kubernetes it may be set on any of those
    that this process is in: the least room of them all counts.

    Args:
        root: of the file system; for tests.
    """
    available = _numbers(root / "proc/meminfo").get("MemAvailable:")
    rooms = [] if available is None else [1024 * available]
    for group, limits, used, cached in _control_groups(root):
        most = [limit for name in limits if (limit := _number(group / name)) is not None]
        taken = _number(group / used)
        if most and taken is not None:
            # A group is charged for the files that it reads, most of all for the data set. The kernel drops their pages
            # as soon as it needs room, so they are not used memory; MemAvailable does not count them as such either.
            # Shared memory and tmpfs are on other lists.
            numbers = _numbers(group / "memory.stat")
            rooms.append(min(most) - taken + sum(numbers.get(name, 0) for name in cached))
    return max(0, min(rooms)) if rooms else None


_V2 = ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")
_V1 = ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
"""Of both versions of control groups: the limits (beyond `high` a process is slowed down until it fits again), what is
used, and how much of that are pages of files."""


def _control_groups(root: Path) -> Iterator[tuple[Path, Sequence[str], str, Sequence[str]]]:
    """The groups that this process is in, from its own to the topmost, each with the names of its files.

    A container may see the path that its group has on the host, and only its own group's files, at the top: what is not
    there has no number.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (root / "sys/fs/cgroup/memory", _V1) if controllers else (root / "sys/fs/cgroup", _V2)
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            yield top / group, *names


def _number(path: Path) -> int | None:
    """What a file of a control group says; None: there is none, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file that have a name and a number, such as /proc/meminfo."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
