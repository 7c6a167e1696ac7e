"""ClipStore: a data set decoded once into one memory-mapped file of 16-bit clips.

All trials on a machine read the same file through the page cache: opening costs a millisecond, no trial holds a copy.
On disk a store is a folder: `clips.int16` (raw, N x T), `labels.npy`, `splits.npy`, `files.txt`, and `meta.json`,
which is written last and records the size of every other file.

Letters in names: N clips, T samples of a clip.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clar import progress
from clar.errors import UserError, near
from clar.files import write_atomically, write_json

SPLITS = ("train", "valid", "test")
"""Names of the splits; `splits.npy` holds positions in this tuple."""

FORMAT = 1
"""Of the folder on disk. A store of another format is built again."""

BAD_SHARE = 0.01
"""Share of the files that may be unreadable or silent before building stops, unless the caller names a number."""


_MARK_FORMAT = 2
"""Of the marks of finished shards. A mark of another format is not found, and its shard is decoded again."""


class DamagedStore(UserError):
    """A store that is half there or of another format; `clar.datasets.load` builds it again."""


class ClipStore:
    """A decoded data set. `ClipStore.open(path)` is instant: it compares sizes and never reads the clips.

    Pickles as its path, so a worker process opens the same memory map instead of receiving the data.

    Attributes:
        clips: (N, T) int16, read-only memory map.
        labels: (N,) int64, positions in `classes`.
        classes: names of the classes.
        sample_rate: hertz.
        name: of the data set.
        fingerprint: 64 hex digits, a hash of clips, labels, splits, classes and rate: equal content, equal digits.
        left_out: (file, reason) of each source file that could not be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        meta = _read_meta(self.path)
        self.name: str = meta["name"]
        self.classes: list[str] = meta["classes"]
        self.sample_rate: int = meta["sample_rate"]
        self.fingerprint: str = meta["fingerprint"]
        self.manifest: str = meta["manifest"]
        self.left_out: list[tuple[str, str]] = [(file, reason) for file, reason in meta["left_out"]]
        shape = (meta["clips"], meta["samples"])
        self.clips: NDArray[np.int16] = np.memmap(self.path / "clips.int16", np.dtype("<i2"), "r", shape=shape)
        self.labels: NDArray[np.int64] = np.load(self.path / "labels.npy")
        self._splits: NDArray[np.uint8] = np.load(self.path / "splits.npy")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ClipStore":
        """The store in the folder `path`.

        Raises:
            UserError: there is no such folder.
            DamagedStore: the folder is not a whole store.
        """
        return cls(path)

    def split(self, name: str) -> NDArray[np.int64]:
        """The indices (n,) of the clips of `"train"`, `"valid"` or `"test"`, ascending.

        Raises:
            UserError: there is no such split.
        """
        if name not in SPLITS:
            raise UserError(f"no split {name!r}{near(name, SPLITS)}")
        return np.flatnonzero(self._splits == SPLITS.index(name))

    @cached_property
    def files(self) -> list[str]:
        """What each of the N clips was decoded from, relative to the data set's root: `word/speaker_nohash_0.wav`."""
        return (self.path / "files.txt").read_text(encoding="utf-8").split("\n")[:-1]

    @property
    def seconds(self) -> float:
        """The length of a clip."""
        return self.clips.shape[1] / self.sample_rate

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipStore.open, (self.path,)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(self.split(name)):,}" for name in SPLITS)
        return (
            f"ClipStore({self.name}: {len(self):,} clips of {self.seconds:g} s at {self.sample_rate:,} Hz, "
            f"{len(self.classes)} classes, {sizes}, fingerprint {self.fingerprint[:12]})"
        )


@dataclass(frozen=True)
class Source:
    """What a store is built from: a list of clips, and a function that makes any range of them.

    Attributes:
        name: of the data set.
        classes: names of the classes.
        sample_rate: hertz.
        samples: T, length of a clip.
        files: N relative paths, how messages and `ClipStore.files` name the clips.
        stamps: N strings that change with the content of the files, such as size and modification time.
        labels: (N,) positions in `classes`.
        splits: (N,) positions in `SPLITS`.
        decode: of (start, stop) to the clips (stop - start, T) int16 and for each row a reason, None where it is good.
            Called from several threads at a time.
        shard: clips that one call of `decode` makes, and that an interrupted build loses at most per worker.
        folds: (N,) from 1 to K, for a set with K official folds; `splits` is then `fold_splits(folds, K)`.
        notes: lines about the set that `python -m clar.datasets info` shows, such as words that are missing.
        vocabulary: the classes are a fixed list of which some may have no clip, such as 128 pitches.
    """

    name: str
    classes: Sequence[str]
    sample_rate: int
    samples: int
    files: Sequence[str]
    stamps: Sequence[str]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    decode: Callable[[int, int], tuple[NDArray[np.int16], list[str | None]]]
    shard: int = 512
    folds: NDArray[np.uint8] | None = None
    notes: Sequence[str] = ()
    vocabulary: bool = False

    @cached_property
    def manifest(self) -> str:
        """64 hex digits that change with the list of clips, their labels and splits, and the stamps of their files."""
        return _digest(self.name, self.sample_rate, self.samples, list(self.classes), self._lines(0, len(self.files)))

    def shard_key(self, start: int, stop: int) -> str:
        """Hex digits that change with anything that rows `start` to `stop` of the decoded clips depend on."""
        lines = [line[:2] for line in self._lines(start, stop)]
        return _digest(_MARK_FORMAT, self.name, self.sample_rate, self.samples, start, lines)[:32]

    def _lines(self, start: int, stop: int) -> list[tuple[str, str, int, int]]:
        columns = (self.files, self.stamps, self.labels.tolist(), self.splits.tolist())
        return list(zip(*(column[start:stop] for column in columns), strict=True))


def build(path: Path, source: Source, allow_bad: int | None = None) -> ClipStore:
    """Decode `source` into the folder `path`, unless a store of the same source lies there already.

    Two processes that ask at the same time build once. A build that was interrupted, by Ctrl-C, SIGKILL or power, goes
    on: shards that were finished are not decoded again. `path` appears, or changes, in one step at the end.

    Args:
        path: the folder of the store.
        source: what to build from.
        allow_bad: files that may be bad; none: 1 % of them.

    Raises:
        UserError: too many files are bad, a class has no training clip, a split is empty, or the folder of `path`
            cannot be written. All bad files are then listed in `<path>-bad-files.txt`.
    """
    with _locked(path):
        try:
            store = ClipStore.open(path)
        except (UserError, OSError):
            pass
        else:
            if store.manifest == source.manifest and (allow_bad is None or len(store.left_out) <= allow_bad):
                return store
        _check_complete(source.classes, source.labels, source.splits, "")
        work = path.with_name(f".{path.name}.building")
        reasons = _decode_all(work, source)
        left_out = [(file, reason) for file, reason in zip(source.files, reasons, strict=True) if reason]
        with cache_errors(path.parent):
            listing = path.with_name(f"{path.name}-bad-files.txt")
            _check_bad(left_out, len(reasons), allow_bad, source.name, listing)
            _finish(path, work, source, np.array([reason is None for reason in reasons]), left_out)
            shutil.rmtree(work, ignore_errors=True)
            return ClipStore.open(path)


def fold_splits(folds_N: NDArray[np.uint8], fold: int) -> NDArray[np.uint8]:
    """Positions (N,) in `SPLITS` where fold `fold` is the test split, the one after it valid, and the others train.

    Args:
        folds_N: the fold of each clip, from 1 on.
        fold: the one to test on; after the last one comes the first.

    Raises:
        UserError: there is no such fold, or there are fewer than three.
    """
    count = int(folds_N.max(initial=0))
    if count < 3:
        raise UserError(f"{count} folds are too few: one is for testing, one for validation, the others for training")
    if not 1 <= fold <= count:
        raise UserError(f"fold = {fold}: there are {count} folds, 1 to {count}")
    splits_N = np.zeros(len(folds_N), np.uint8)
    splits_N[folds_N == fold % count + 1] = SPLITS.index("valid")
    splits_N[folds_N == fold] = SPLITS.index("test")
    return splits_N


def fit(clip_T: NDArray[Any], samples: int) -> NDArray[np.int16]:
    """A clip as (samples,) int16: zero-padded or clipped on the right (the paper's rule).

    Args:
        clip_T: int16 as it is; or float, full scale 1, which is rounded to the nearest step and saturates.
        samples: length of the result.
    """
    clip_T = clip_T[:samples]
    if clip_T.dtype != np.int16:
        clip_T = np.clip(np.rint(clip_T * 32768.0), -32768, 32767)
    fitted = np.zeros(samples, np.int16)
    fitted[: len(clip_T)] = clip_T
    return fitted


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Say in one line what is wrong with the cache folder: no permission, read-only, full, no folder at all.

    Raises:
        UserError: instead of an OSError inside; with the folder and the way out.
    """
    try:
        yield
    except BrokenPipeError:  # no file has that: whoever read the messages is gone, which the command line handles
        raise
    except OSError as error:
        raise UserError(
            f"cannot keep decoded clips in {folder}: {error.strerror or error}; "
            "make room or get permission there, or set CLAR_CACHE to another folder"
        ) from error


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Building


def _decode_all(work: Path, source: Source) -> list[str | None]:
    """Decode every shard that `work` lacks into `work/decoded.int16`; for each row a reason, None where it is good."""
    total = len(source.files)
    shards = [(start, min(start + source.shard, total)) for start in range(0, total, source.shard)]
    marks = [work / f"{source.shard_key(start, stop)}.json" for start, stop in shards]
    decoded = work / "decoded.int16"
    with cache_errors(work.parent):
        work.mkdir(parents=True, exist_ok=True)
        # This build moves, overwrites or cuts off the rows that marks of any other source stand for.
        for leftover in set(work.iterdir()) - {decoded, *marks}:
            leftover.unlink()
        with open(decoded, "ab") as file:
            file.truncate(2 * total * source.samples)
        todo = [
            (mark, start, stop)
            for mark, (start, stop) in zip(marks, shards, strict=True)
            if not _is_finished(decoded, mark, 2 * start * source.samples, 2 * stop * source.samples)
        ]
    with progress.bar(f"{source.name}: decoding", total) as bar:
        bar.advance(total - sum(stop - start for _, start, stop in todo))
        if todo:
            _run_shards(work, source, todo, bar.advance)
    return [reason for mark in marks for reason in json.loads(mark.read_text())["reasons"]]


def _is_finished(decoded: Path, mark: Path, start: int, stop: int) -> bool:
    """Whether the bytes start to stop of `decoded` are those that `mark` was written for."""
    try:
        digest = json.loads(mark.read_text())["sha256"]
    except (FileNotFoundError, ValueError):
        return False
    with open(decoded, "rb") as file:
        file.seek(start)
        return bool(hashlib.sha256(file.read(stop - start)).hexdigest() == digest)


def _run_shards(work: Path, source: Source, todo: list[tuple[Path, int, int]], advance: Callable[[int], None]) -> None:
    """Decode the shards `todo` (mark, start, stop) on all cores; ends early, with what runs, on Ctrl-C or an error."""
    # Threads: reading audio and NumPy free the interpreter's lock. Two threads measured twice the speed of two spawned
    # processes, which would also import the caller's script again.
    executor = ThreadPoolExecutor(min(cores(), len(todo)))
    try:
        futures = {executor.submit(_decode_shard, work, source, *shard): shard for shard in todo}
        for future in as_completed(futures):
            future.result()
            _, start, stop = futures[future]
            advance(stop - start)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _decode_shard(work: Path, source: Source, mark: Path, start: int, stop: int) -> None:
    clips_NT, reasons = source.decode(start, stop)
    content = clips_NT.astype("<i2", copy=False).tobytes()
    with cache_errors(work.parent):
        with open(work / "decoded.int16", "r+b") as file:
            file.seek(2 * start * source.samples)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        write_atomically(mark, json.dumps({"reasons": reasons, "sha256": hashlib.sha256(content).hexdigest()}))


def _finish(path: Path, work: Path, source: Source, keep: NDArray[np.bool_], left_out: list[tuple[str, str]]) -> None:
    """Put the kept clips and their index into a folder beside `path`, then rename it to `path`."""
    labels, splits = source.labels[keep].astype(np.int64), source.splits[keep].astype(np.uint8)
    _check_complete(source.classes, labels, splits, " that can be used")
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    decoded = np.memmap(work / "decoded.int16", np.dtype("<i2"), "r", shape=(len(keep), source.samples))
    content = hashlib.sha256()
    if keep.all():
        for chunk in _chunks(decoded):
            content.update(chunk)
        del decoded  # Windows moves no file that is mapped
        # Moved and not linked: a later build writes into the working file, and must never write into a store.
        (work / "decoded.int16").rename(new / "clips.int16")
    else:
        with open(new / "clips.int16", "wb") as file:
            for chunk in _chunks(decoded, keep):
                content.update(chunk)
                file.write(chunk)
    np.save(new / "labels.npy", labels)
    np.save(new / "splits.npy", splits)
    files = [file for file, kept in zip(source.files, keep, strict=True) if kept]
    (new / "files.txt").write_text("".join(f"{file}\n" for file in files), encoding="utf-8", newline="\n")
    meta = {
        "format": FORMAT,
        "name": source.name,
        "clips": len(labels),
        "samples": source.samples,
        "sample_rate": source.sample_rate,
        "classes": list(source.classes),
        "fingerprint": _digest(
            content.hexdigest(),
            source.samples,
            source.sample_rate,
            list(source.classes),
            labels.tolist(),
            splits.tolist(),
        ),
        "manifest": source.manifest,
        "left_out": left_out,
        "bytes": {file.name: file.stat().st_size for file in sorted(new.iterdir())},
    }
    for part in new.iterdir():
        with open(part, "rb+") as handle:
            os.fsync(handle.fileno())
    write_json(new / "meta.json", meta)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _chunks(decoded: NDArray[np.int16], keep: NDArray[np.bool_] | None = None, rows: int = 1024) -> Iterator[bytes]:
    for start in range(0, len(decoded), rows):
        chunk = decoded[start : start + rows]
        yield (chunk if keep is None else chunk[keep[start : start + rows]]).tobytes()


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


def _check_complete(classes: Sequence[str], labels: NDArray[np.int64], splits: NDArray[np.uint8], usable: str) -> None:
    for position, split in enumerate(SPLITS):
        if not (splits == position).any():
            raise UserError(f"the {split} split has no file{usable}")
    counts = np.bincount(labels[splits == 0], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise UserError(f"no training file{usable} for the class{'es' * (len(empty) > 1)} {', '.join(empty)}")


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"no clip store at {path}; build it with `python -m clar.datasets prepare`")
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedStore(f"the clip store {path} has no readable meta.json ({type(error).__name__})") from None
    if meta.get("format") != FORMAT:
        raise DamagedStore(f"the clip store {path} has format {meta.get('format')}, this version reads {FORMAT}")
    for name, size in meta["bytes"].items():
        found = (path / name).stat().st_size if (path / name).exists() else 0
        if found != size:
            raise DamagedStore(f"the clip store {path} is damaged: {name} has {found:,} of {size:,} bytes")
    return meta


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the store `path`; the system frees it when a process dies."""
    from filelock import FileLock, Timeout

    with cache_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process is building {path.name}; waiting for it", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
