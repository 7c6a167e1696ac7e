"""Building a store: every file of a source decoded once, on all cores, in little memory, and resumable at the file.

`build` puts the store in place in one step. What it works on until then lies beside it, in `.NAME.building`.
"""

import ctypes
import errno
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clar import progress
from clar.clips import FORMAT, SPLITS, ClipStore, Decoded, Source, cache_errors, cores, fingerprint, fold_splits
from clar.errors import UserError
from clar.files import held, linked, read_json, write_atomically, write_json

_SHARD_FILES, _SHARD_BYTES = 32, 2**21
"""Most that one worker has in hand: what a killed build loses of it, and what it takes of memory. Handing out a shard
costs 0.2 ms: a quarter of it is half slower, twice as much no faster."""

_JOURNAL = "journal-4"
"""Of a build that is under way. A journal of another format is not found, and all is decoded again."""

BAD_SHARE = 0.01
"""Share of the files that may be unreadable or silent before building stops, unless the caller names a number."""


def build(path: Path, source: Source, allow_bad: int | None = None) -> ClipStore:
    """Decode `source` into the folder `path`, unless a store of the same source lies there already.

    Two processes that ask at the same time build once. A build that was interrupted, by Ctrl-C, SIGKILL or power, goes
    on: files that were finished are not decoded again. `path` appears, or changes, in one step at the end.

    Args:
        path: the folder of the store.
        source: what to build from.
        allow_bad: files that may be bad; none: 1 % of them.

    Raises:
        UserError: too many files are bad, a class has no training clip, a split is empty, or the folder of `path`
            cannot be written. All bad files are then listed in `<path>-bad-files.txt`.
    """
    if (store := _current(path, source, allow_bad)) is not None:  # before the lock: the cache may be for reading only
        return _renewed(store, source)
    with ExitStack() as stack:
        with cache_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock")
            stack.enter_context(held(lock, f"another process is building {path.name}"))
        if (store := _current(path, source, allow_bad)) is not None:
            return store
        _check_complete(source, np.ones(len(source.files), np.bool_))
        with cache_errors(path.parent):
            adopted = _adopt(path, source)
        work = path.with_name(f".{path.name}.building")
        with cache_errors(path.parent):
            _take_back(path, work)
        rows = adopted[0] if adopted else _decode_all(work, source)
        left_out = [(file, reason) for file, reason in zip(source.files, rows.reasons, strict=True) if reason]
        keep = np.array([reason is None for reason in rows.reasons])
        with cache_errors(path.parent):
            listing = path.with_name(f"{path.name}-bad-files.txt")
            _check_bad(left_out, len(keep), allow_bad, source.name, listing)
            _check_complete(source, keep, " that can be used")
            new = _new_folder(path)
            if adopted:
                if not linked(adopted[1], new / "clips.int16"):
                    shutil.copyfile(adopted[1], new / "clips.int16")
            elif keep.all():
                # Moved and not linked: a later build writes into the working file, and must never write into a store.
                (work / "decoded.int16").rename(new / "clips.int16")
            else:
                _check_room(new, 2 * int(keep.sum()) * source.samples)
                _copy_rows(work / "decoded.int16", new / "clips.int16", keep, 2 * source.samples)
            notes = [
                *source.notes,
                *_padding(source.samples / source.sample_rate, rows.seconds[keep]),
                *_twice(new / "clips.int16", source, keep, rows.sums),
            ]
            _index(new, source, keep, rows, left_out, notes)
            _put_in_place(new, path)
            shutil.rmtree(work, ignore_errors=True)
            return _opened(path)


def _current(path: Path, source: Source, allow_bad: int | None) -> ClipStore | None:
    """The store at `path`, where it is of this source as it is today."""
    try:
        store = ClipStore.open(path)
    except (UserError, OSError):
        return None
    enough = allow_bad is None or len(store.left_out) <= allow_bad
    return store if enough and store.manifest == source.manifest and not _repaired(source, store.left_out) else None


def _repaired(source: Source, left_out: Sequence[tuple[str, str]]) -> bool:
    """Whether a file that was left out can be used now.

    Nothing that is known of a file need have changed with it: a disk that answers again, a permission given.
    """
    bad = {file for file, _ in left_out if "\n" not in file}
    rows = [row for row, file in enumerate(source.files) if file in bad] if bad else []
    return any(Decoded(*source.decode(row, row + 1)).reasons[0] is None for row in rows)


def _renewed(store: ClipStore, source: Source) -> ClipStore:
    """The store with the groups and notes that the source gives today: for those nothing is decoded again."""
    gone = {file for file, _ in store.left_out}
    given = source.groups or [""] * len(source.files)
    groups = [group for file, group in zip(source.files, given, strict=True) if file not in gone]
    found = [note for note in store.notes if _TWICE in note]
    notes = [*source.notes, *_padding(store.seconds, store.recording_seconds), *found]
    if notes == store.notes and groups == store.groups:
        return store
    try:
        with held(store.path.with_name(f".{store.path.name}.lock"), f"another process is building {store.path.name}"):
            meta = read_json(store.path / "meta.json")
            write_atomically(store.path / "groups.txt", _as_lines(groups))
            meta["bytes"]["groups.txt"] = (store.path / "groups.txt").stat().st_size
            write_json(store.path / "meta.json", meta | {"notes": notes})
    except OSError:  # the cache may be for reading only
        return store
    return _opened(store.path)


def _opened(path: Path) -> ClipStore:
    store = ClipStore.open(path)
    store.fresh = True
    return store


def _as_lines(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode(errors="surrogateescape")


# Building
#
# A row of the working file `decoded.int16` counts once the journal has its line: the row, a key of its file, a checksum
# of its bytes, the length of its recording, and what is wrong with it. Both are only ever added to. A line is believed
# where its key is that of today's file and the row's bytes have its checksum, so nothing has to be synchronised with
# the disk before the end: after a power cut, bytes or lines that never got there are decoded again.


def _decode_all(work: Path, source: Source) -> "_Rows":
    """Decode every row that `work` lacks into `work/decoded.int16`."""
    total = len(source.files)
    with cache_errors(work.parent):
        work.mkdir(parents=True, exist_ok=True)
        for leftover in set(work.iterdir()) - {work / "decoded.int16", work / _JOURNAL}:
            leftover.unlink()
        _check_room(work, 2 * total * source.samples)
        building = _Building(work, source)
    step = source.shard or max(1, min(_SHARD_FILES, _SHARD_BYTES // (2 * source.samples)))
    shards = [(start, min(start + step, total)) for start in range(0, total, step)]
    executor, make = _workers(building, len(shards), total)
    start = 0
    try:
        futures = [executor.submit(make, *shard) for shard in shards]
        with progress.bar(f"{source.name}: decoding", total) as bar:
            # In order, since the hash of the content is: it is taken while the other cores decode what follows.
            for future, (start, stop) in zip(futures, shards, strict=True):
                building.note(start, future.result())
                building.hash(start, stop)
                bar.advance(stop - start)
        with cache_errors(work.parent):
            building.flushing.result()
    except BrokenExecutor as error:
        raise UserError(
            f"{source.name}: a process that decodes was killed, by a file from {source.files[start]} on or by the "
            "system for want of memory; the same command goes on there"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        building.close()
    return building.rows


def _workers(building: "_Building", shards: int, total: int) -> tuple[Executor, Callable[[int, int], "_Made"]]:
    """Workers on all cores, and what they do for a shard: processes where they pay and are safe, else threads.

    Reading a short file is a dozen calls of a few microseconds, each of which gives the interpreter's lock away and
    waits for it: two threads are slower than one. A forked process takes ten milliseconds to start. It may find locks
    that another thread held in that moment held for good, so a process with threads of Python's own does not fork.
    """
    count = min(cores(), shards)
    if count == 1 or total < _FORK_FROM or threading.active_count() > 1 or not hasattr(os, "fork"):
        return ThreadPoolExecutor(count), building.make
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(count, context, initializer=_begin_child, initargs=(building,)), _make_in_child


_FLUSHED = 2**26
"""Bytes after which the disk is told to write them."""

_FORK_FROM = 1000
"""Clips from which on processes decode and not threads."""

_in_child: "_Building | None" = None


def _begin_child(building: "_Building") -> None:
    """Ctrl-C is the parent's to handle; where it is killed, this process has nothing left to do."""
    global _in_child
    _in_child = building
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != building.process:  # it was killed before that call
            os._exit(1)


_PR_SET_PDEATHSIG = 1


def _make_in_child(start: int, stop: int) -> "_Made":
    assert _in_child is not None
    return _in_child.make(start, stop)


_Made = list[tuple[str | None, float | None, int]]
"""Of each row of a shard: what is wrong with it, the seconds of its recording, and the checksum of its clip."""


@dataclass
class _Rows:
    """What is known of the rows of a working file: (N,) reasons and seconds, the hash of those without a reason, and
    (N,) checksums; None: another store was built with them."""

    reasons: list[str | None]
    seconds: NDArray[np.float32]
    content: Any
    sums: NDArray[np.uint64] | None = None


class _Building:
    """A working file and its journal, open for reading and writing from several threads."""

    def __init__(self, work: Path, source: Source) -> None:
        total = len(source.files)
        self.source = source
        self.process = os.getpid()
        self.bytes = 2 * source.samples
        self.rows = _Rows([None] * total, np.full(total, np.nan, np.float32), hashlib.sha256())
        self.sums = self.rows.sums = np.zeros(total, np.uint64)
        self.parent = work.parent
        self.known = _read_journal(work / _JOURNAL, source)
        write_atomically(work / _JOURNAL, "".join(self.known.values()).encode())
        self.journal = os.open(work / _JOURNAL, os.O_WRONLY | os.O_APPEND)
        self.flusher = ThreadPoolExecutor(1)
        self.flushing: Future[None] = Future()
        self.flushing.set_result(None)
        self.unwritten = 0
        self.buffer = memoryview(bytearray(max(source.shard * self.bytes, _SHARD_BYTES, self.bytes)))
        self.file = os.open(work / "decoded.int16", os.O_RDWR | os.O_CREAT, 0o666)
        os.truncate(self.file, total * self.bytes)

    def close(self) -> None:
        self.flusher.shutdown()
        os.close(self.journal)
        os.close(self.file)

    def make(self, start: int, stop: int) -> _Made:
        """Have the rows start to stop in the file: those that are there are checked, the others decoded."""
        made = {row: found for row in range(start, stop) if (found := self._find(row)) is not None}
        wanted = [row for row in range(start, stop) if row not in made]
        if self.source.shard and wanted:  # a source with its own shards makes them as a whole
            wanted = list(range(start, stop))
        while wanted:
            first = last = wanted.pop(0)
            while wanted and wanted[0] == last + 1:
                last = wanted.pop(0)
            made.update(enumerate(self._decode(first, last + 1), first))
        return [made[row] for row in range(start, stop)]

    def note(self, start: int, made: _Made) -> None:
        """Remember what was found about rows."""
        for row, (reason, seconds, checksum) in enumerate(made, start):
            self.rows.reasons[row] = reason
            self.rows.seconds[row] = np.nan if seconds is None else seconds
            self.sums[row] = checksum

    def hash(self, start: int, stop: int) -> None:
        """Add the rows start to stop, which are in the file, to the hash of the content."""
        self.unwritten += (stop - start) * self.bytes
        if self.unwritten > _FLUSHED and self.flushing.done():
            # The disk gets on with it meanwhile: all at the end would be a wait for it alone.
            with cache_errors(self.parent):
                self.flushing.result()
            self.flushing, self.unwritten = self.flusher.submit(os.fdatasync, self.file), 0
        # Into one buffer: a new one each time costs as much as reading does.
        chunk = self.buffer[: (stop - start) * self.bytes]
        with cache_errors(self.parent):
            if os.preadv(self.file, [chunk], start * self.bytes) != len(chunk):
                raise OSError(errno.EIO, "a part of the working file is gone")
        bad = [row - start for row in range(start, stop) if self.rows.reasons[row]]
        for first, last in itertools.pairwise([-1, *bad, stop - start]):
            self.rows.content.update(chunk[(first + 1) * self.bytes : last * self.bytes])

    def _find(self, row: int) -> tuple[str | None, float | None, int] | None:
        """What the journal says of a row that is there; None where it is not."""
        line = self.known.get(row)
        if line is None:
            return None
        _, _, checksum, seconds, _ = json.loads(line)
        clip_T = np.frombuffer(os.pread(self.file, self.bytes, row * self.bytes), "<i2")
        return (None, seconds, checksum) if _checksums(clip_T[None]) == [checksum] else None

    def _decode(self, start: int, stop: int) -> _Made:
        clips_NT, reasons, seconds_N = Decoded(*self.source.decode(start, stop))
        lengths = [math.nan] * len(reasons) if seconds_N is None else seconds_N.tolist()
        seconds = [None if math.isnan(length) else round(length, 4) for length in lengths]
        clips_NT = np.ascontiguousarray(clips_NT, "<i2")
        made: _Made = []
        lines = []
        for row, (checksum, reason, length) in enumerate(
            zip(_checksums(clips_NT), reasons, seconds, strict=True), start
        ):
            why = "a line break in its name" if "\n" in self.source.files[row] else reason
            made.append((why, length, checksum))
            lines.append(_line(row, _row_key(self.source, row), checksum, length, why))
        with cache_errors(self.parent):
            _write_all(self.file, clips_NT.data.cast("B"), start * self.bytes)
            _write_all(self.journal, memoryview("".join(lines).encode()), None)
        return made


def _checksums(clips_NT: NDArray[np.int16]) -> list[int]:
    """A number for each clip that tells it from bytes that never got to the disk: the sum of its words."""
    words = np.uint64 if clips_NT.shape[1] % 4 == 0 else np.uint16
    sums: list[int] = clips_NT.view(words).sum(1, dtype=np.uint64).tolist()
    return sums


def _row_key(source: Source, row: int) -> str:
    """Hex digits that change with anything that this row depends on."""
    parts = (source.name, source.decoder, source.sample_rate, source.samples, source.files[row], source.stamps[row])
    about = "\0".join(map(str, parts))
    return hashlib.blake2b(about.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _line(row: int, key: str, checksum: int, seconds: float | None, reason: str | None) -> str:
    shown = "null" if seconds is None else seconds
    return f'[{row}, "{key}", {checksum}, {shown}, {"null" if reason is None else json.dumps(reason)}]\n'


def _read_journal(path: Path, source: Source) -> dict[int, str]:
    """The lines of rows whose file is the same today, by row."""
    known: dict[int, str] = {}
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return known
    for line in content.splitlines(keepends=True):
        try:
            row, key, checksum, seconds, reason = json.loads(line)
        except (ValueError, TypeError):  # cut off by a power cut
            continue
        if type(row) is not int or type(checksum) is not int or type(seconds) not in (int, float, type(None)):
            continue  # another digit than was written
        # What was wrong with a file may have passed: it is tried again.
        if reason is None and 0 <= row < len(source.files) and key == _row_key(source, row):
            known[row] = line if line.endswith("\n") else f"{line}\n"
    return known


def _write_all(file: int, content: memoryview, offset: int | None) -> None:
    """Write all of it, at an offset or at the end: a signal or a full disk may have the system take a part."""
    while content:
        done = os.write(file, content) if offset is None else os.pwrite(file, content, offset)
        content = content[done:]
        offset = None if offset is None else offset + done


def _check_room(work: Path, size: int) -> None:
    """See to it that the disk can hold the working file before hours are spent on it."""
    decoded = work / "decoded.int16"
    held = 512 * decoded.stat().st_blocks if decoded.exists() else 0
    free = shutil.disk_usage(work).free
    if free < size - held:
        raise OSError(errno.ENOSPC, f"{(size - held) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")


def _copy_rows(old: Path, new: Path, keep: NDArray[np.bool_], size: int) -> None:
    """The kept rows of a file of rows of `size` bytes, as a file, a few megabytes at a time."""
    rows = max(1, _SHARD_BYTES // size)
    with open(old, "rb") as source, open(new, "wb") as target:
        for start in range(0, len(keep), rows):
            kept = keep[start : start + rows]
            chunk = np.frombuffer(source.read(len(kept) * size), np.uint8).reshape(len(kept), size)
            target.write(chunk[kept].data)


def _index(
    new: Path,
    source: Source,
    keep: NDArray[np.bool_],
    rows: _Rows,
    left_out: list[tuple[str, str]],
    notes: list[str],
) -> None:
    """Write what belongs to the clips in the folder `new`: labels, splits, folds, lengths, names, groups, meta.json."""
    labels, splits = source.labels[keep].astype(np.int64), source.splits[keep].astype(np.uint8)
    folds = None if source.folds is None else source.folds[keep].astype(np.uint8)
    np.save(new / "labels.npy", labels)
    np.save(new / "splits.npy", splits)
    np.save(new / "seconds.npy", rows.seconds[keep])
    if folds is not None:
        np.save(new / "folds.npy", folds)
    files = [file for file, kept in zip(source.files, keep, strict=True) if kept]
    content = rows.content.hexdigest()
    (new / "files.txt").write_bytes(_as_lines(files))
    if any(source.groups):
        groups = (group for group, kept in zip(source.groups, keep, strict=True) if kept)
        (new / "groups.txt").write_bytes(_as_lines(groups))
    meta = {
        "format": FORMAT,
        "name": source.name,
        "clips": len(labels),
        "samples": source.samples,
        "sample_rate": source.sample_rate,
        "classes": list(source.classes),
        "fingerprint": fingerprint(content, source.samples, source.sample_rate, source.classes, labels, splits, folds),
        "manifest": source.manifest,
        "recordings": source.recordings_key,
        "content": content,
        "notes": notes,
        "left_out": left_out,
        "bytes": {file.name: file.stat().st_size for file in sorted(new.iterdir())},
    }
    for part in new.iterdir():
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
    write_json(new / "meta.json", meta)


def _padding(seconds: float, recordings_N: NDArray[np.float32]) -> list[str]:
    """A note where most of a clip is padding: a trial then learns from silence, and computes for it."""
    known = recordings_N[np.isfinite(recordings_N)]
    if not len(known) or np.median(known) >= seconds / 2:
        return []
    return [
        f"most of a clip is padding: it has {seconds:g} s, half of the recordings have less than "
        f"{np.median(known):.3g} s; of a folder of your own, #seconds=S says how long clips are"
    ]


_TWICE = "the clip of another"


def _twice(clips: Path, source: Source, keep: NDArray[np.bool_], sums: NDArray[np.uint64] | None) -> list[str]:
    """A note where files of two splits, or folds, hold the same clip: what is tested was then trained on.

    No error, for published sets have such clips, and their results count them.
    """
    if sums is None:
        return []
    parts = (source.splits if source.folds is None else source.folds)[keep]
    _, value_N, count = np.unique(sums[keep], return_inverse=True, return_counts=True)
    rows = np.flatnonzero(keep)
    first: dict[bytes, int] = {}
    pairs = []
    size = 2 * source.samples
    with open(clips, "rb") as file:
        for row in np.flatnonzero(count[value_N] > 1).tolist():
            file.seek(row * size)
            other = first.setdefault(hashlib.blake2b(file.read(size)).digest(), row)
            if parts[row] != parts[other]:
                pairs.append((other, row))
    if not pairs:
        return []
    one, two = (
        f"{source.files[rows[row]]} ({SPLITS[parts[row]] if source.folds is None else f'fold {parts[row]}'})"
        for row in pairs[0]
    )
    kind = "split" if source.folds is None else "fold"
    many = "files hold" if len(pairs) > 1 else "file holds"
    return [f"{len(pairs):,} {many} {_TWICE} {kind}'s file, first {two} that of {one}"]


def _take_back(path: Path, work: Path) -> None:
    """Where a build ended between its last file and the store, killed or out of room: have its clips in `work` again.

    Not those that another store shares: what is in `work` may be written to.
    """
    clips, decoded = path.with_name(f".{path.name}.new") / "clips.int16", work / "decoded.int16"
    if (work / _JOURNAL).exists() and not decoded.exists() and clips.exists() and clips.stat().st_nlink == 1:
        clips.rename(decoded)


def _new_folder(path: Path) -> Path:
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    return new


def _put_in_place(new: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _adopt(path: Path, source: Source) -> tuple[_Rows, Path] | None:
    """Rows and clips of a store beside `path` that was decoded from the same recordings, if there is one."""
    if not source.recordings:
        return None
    for meta_file in sorted(path.parent.glob("*/meta.json")):
        if meta_file.parent == path:
            continue
        try:
            other = ClipStore.open(meta_file.parent)
        except (UserError, OSError):
            continue
        if other.recordings == source.recordings_key and not _repaired(source, other.left_out):
            gone = dict(other.left_out)
            reasons = [gone.get(file) for file in source.files]
            seconds = np.full(len(reasons), np.nan, np.float32)
            seconds[[reason is None for reason in reasons]] = other.recording_seconds
            return _Rows(reasons, seconds, _Known(other.content)), other.path / "clips.int16"
    return None


@dataclass(frozen=True)
class _Known:
    """A hash that was taken before."""

    digits: str

    def hexdigest(self) -> str:
        return self.digits


def _check_bad(left_out: list[tuple[str, str]], total: int, allow_bad: int | None, name: str, listing: Path) -> None:
    """Say which files are left out, the first here and all in the file `listing`; stop where they are too many."""
    if not left_out:
        listing.unlink(missing_ok=True)
        return
    lines = [f"{file}: {reason}\n" for file, reason in left_out]
    write_atomically(listing, "".join(lines).encode(errors="surrogateescape"))
    shown = "".join(f"\n  {line.rstrip()}" for line in lines[:20])
    more = f"\n  … and {len(left_out) - 20:,} more" if len(left_out) > 20 else ""
    summary = f"{len(left_out):,} of {total:,} files of {name} cannot be used"
    limit = int(BAD_SHARE * total) if allow_bad is None else allow_bad
    if len(left_out) > limit:
        raise UserError(
            f"{summary}, above the limit of {limit:,}; repair or remove them, or leave them out: add "
            f"--allow-bad {len(left_out)} to the command `python -m clar.datasets prepare`. "
            f"All of them stand in {listing}:{shown}{more}"
        )
    print(f"{summary} and are left out; all of them stand in {listing}:{shown}{more}", file=sys.stderr)


def _check_complete(source: Source, keep: NDArray[np.bool_], usable: str = "") -> None:
    """See to it that the kept clips are a task: no split is empty, and every class has something to train on."""
    labels, splits = source.labels[keep], source.splits[keep]
    for position, split in enumerate(SPLITS):
        if not (splits == position).any():
            raise UserError(f"{source.name}: the {split} split has no file{usable}")
    if source.vocabulary:
        return
    training = {"": splits == SPLITS.index("train")}
    if source.folds is not None:
        folds = source.folds[keep]
        training = {
            f", tested on fold {fold}": fold_splits(folds, fold) == SPLITS.index("train")
            for fold in range(1, int(folds.max()) + 1)
        }
    for where, trained in training.items():
        counts = np.bincount(labels[trained], minlength=len(source.classes))
        empty = np.flatnonzero(counts == 0).tolist()
        if empty:
            names = ", ".join(str(source.classes[label]) for label in empty[:20]) + " ..." * (len(empty) > 20)
            many = "es" * (len(empty) > 1)
            raise UserError(f"{source.name}{where}: no training file{usable} for the class{many} {names}")
