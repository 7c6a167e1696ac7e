"""ClipStore: a data set decoded once into one memory-mapped file of 16-bit clips.

All trials on a machine read the same file through the page cache: opening costs a millisecond, no trial holds a copy.
On disk a store is a folder: `clips.int16` (raw, N x T), `labels.npy`, `splits.npy`, `folds.npy` where the set has
folds, `seconds.npy` (length of each recording), `files.txt`, `groups.txt` where groups are known, and `meta.json`,
which is written last and has the size of every other file. Stores of the same recordings under other labels share one
`clips.int16` by a hard link.

Letters in names: N clips, T samples of a clip.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clar.errors import UserError, near

SPLITS = ("train", "valid", "test")
"""Names of the splits; `splits.npy` holds positions in this tuple."""

FORMAT = 1
"""Of the folder on disk. A store of another format is built again."""


class DamagedStore(UserError):
    """A store that is half there or of another format; `clar.datasets.load` builds it again."""


class ClipStore:
    """A decoded data set. `ClipStore.open(path)` is instant: it compares sizes, looks over the labels, and never
    reads the clips.

    Pickles as its path, so a worker process opens the same memory map instead of receiving the data.

    Attributes:
        clips: (N, T) int16, read-only memory map.
        labels: (N,) int64, positions in `classes`.
        classes: names of the classes.
        sample_rate: hertz.
        name: of the data set.
        fingerprint: 64 hex digits, a hash of clips, labels, splits, classes and rate: equal content, equal digits.
        folds: (N,) uint8 from 1 to K, for a set with K official folds; None: it has none.
        grouped: whether the store holds groups; one of an older version holds none.
        recording_seconds: (N,) float32, length of the recording that each clip is the beginning of; NaN: not known.
        notes: lines about the set, such as words that are missing.
        left_out: (file, reason) of each source file that could not be used.
        fresh: whether it was built, or its notes changed, just now and in this process.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.fresh = False
        meta = _read_meta(self.path)
        try:
            self._map(meta)
        except (KeyError, TypeError, ValueError, AttributeError, FileNotFoundError) as error:
            raise DamagedStore(f"the clip store {self.path} is damaged ({type(error).__name__}: {error})") from None
        if _read_meta(self.path) != meta:  # put in place anew while it was opened: all must be of one of them
            self.__init__(path)  # type: ignore[misc]

    def _map(self, meta: dict[str, Any]) -> None:
        self.name: str = meta["name"]
        self.classes: list[str] = meta["classes"]
        self.sample_rate: int = meta["sample_rate"]
        self.fingerprint: str = meta["fingerprint"]
        self.manifest: str = meta["manifest"]
        # Stores of an older version have none of these.
        self.recordings: str = meta.get("recordings", "")
        self.content: str = meta.get("content", "")
        self.notes: list[str] = meta.get("notes", [])
        self.grouped = "groups.txt" in meta["bytes"]
        self.left_out: list[tuple[str, str]] = [(file, reason) for file, reason in meta["left_out"]]
        self._file: BinaryIO | None = None
        shape = (meta["clips"], meta["samples"])
        self.clips: NDArray[np.int16] = np.memmap(self.path / "clips.int16", np.dtype("<i2"), "r", shape=shape)
        count = len(self.clips)
        self.labels: NDArray[np.int64] = _mapped(self.path / "labels.npy", np.int64, count, len(self.classes))
        self._splits: NDArray[np.uint8] = _mapped(self.path / "splits.npy", np.uint8, count, len(SPLITS))
        self.folds: NDArray[np.uint8] | None = None
        if "folds.npy" in meta["bytes"]:
            self.folds = _mapped(self.path / "folds.npy", np.uint8, count)
        self.recording_seconds: NDArray[np.float32] = (
            _mapped(self.path / "seconds.npy", np.float32, count)
            if "seconds.npy" in meta["bytes"]
            else np.full(count, np.nan, np.float32)
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "ClipStore":
        """The store in the folder `path`.

        Raises:
            UserError: there is no such folder.
            DamagedStore: the folder is not a whole store.
        """
        return cls(path)

    def split(self, name: str, fold: int | None = None) -> NDArray[np.int64]:
        """The indices (n,) of the clips of `"train"`, `"valid"` or `"test"`, ascending.

        Args:
            name: of the split.
            fold: to test on, for a set with folds; the one after it is then valid. None: the set's own split, which of
                a set with folds tests on the last one.

        Raises:
            UserError: there is no such split or fold.
        """
        if name not in SPLITS:
            raise UserError(f"no split {name!r}{near(name, SPLITS)}")
        splits_N = self._splits
        if fold is not None:
            if self.folds is None:
                raise UserError(f"fold = {fold}: {self.name} has no folds; leave it out")
            splits_N = fold_splits(self.folds, fold)
        return np.flatnonzero(splits_N == SPLITS.index(name))

    @property
    def fold_count(self) -> int:
        """How many folds the set has; 0: none."""
        return 0 if self.folds is None else int(self.folds.max())

    @cached_property
    def files(self) -> list[str]:
        """What each of the N clips was decoded from, relative to the data set's root: `word/speaker_nohash_0.wav`."""
        return self._lines("files.txt")

    @cached_property
    def groups(self) -> list[str]:
        """The speaker, instrument or recording that each of the N clips is of; empty where it is not known."""
        return self._lines("groups.txt") if self.grouped else [""] * len(self)

    def _lines(self, name: str) -> list[str]:
        return (self.path / name).read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]

    def will_need(self, indices: NDArray[np.int64]) -> None:
        """Have the system read these clips into memory, in the background, unless they are there.

        Read through the memory map alone, a clip comes in one page after the other: 37 times slower from a disk.
        """
        if self._file is None:
            self._file = open(self.path / "clips.int16", "rb")  # noqa: SIM115 - for as long as the store is open
        size = 2 * self.clips.shape[1]
        for index in indices.tolist():
            os.posix_fadvise(self._file.fileno(), index * size, size, os.POSIX_FADV_WILLNEED)

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


class Decoded(NamedTuple):
    """Some clips of a source.

    Attributes:
        clips_NT: int16.
        reasons: what is wrong with each, None where it is good.
        seconds_N: length of each recording, of which the clip may be the beginning; None: not known.
    """

    clips_NT: NDArray[np.int16]
    reasons: Sequence[str | None]
    seconds_N: NDArray[np.float32] | None = None


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
        decode: of (start, stop) to those rows as `Decoded`, or its first two parts. Called from several threads at a
            time.
        shard: clips that one call of `decode` makes; 0: any number.
        folds: (N,) from 1 to K, for a set with K official folds; `splits` is then `fold_splits(folds, K)`.
        groups: N names of speakers, instruments or recordings, empty where not known; none: the source knows none.
        notes: lines about the set that `python -m clar.datasets info` shows, such as words that are missing.
        vocabulary: the classes are a fixed list of which some may have no clip, such as 128 pitches.
        recordings: sources of this one name whose files and stamps agree decode to the same clips, whatever the labels:
            their stores share them. Empty: nobody does.
        decoder: changes with the code that makes clips of files: an older store is then built again.
    """

    name: str
    classes: Sequence[str]
    sample_rate: int
    samples: int
    files: Sequence[str]
    stamps: Sequence[str]
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    decode: Callable[[int, int], Decoded | tuple[NDArray[np.int16], Sequence[str | None]]]
    shard: int = 0
    folds: NDArray[np.uint8] | None = None
    groups: Sequence[str] = ()
    notes: Sequence[str] = ()
    vocabulary: bool = False
    recordings: str = ""
    decoder: str = ""

    @cached_property
    def manifest(self) -> str:
        """64 hex digits that change with the list of clips, their labels and splits, the stamps of their files, and
        the decoder."""
        columns = [self.files, self.stamps, self.labels.tolist(), self.splits.tolist()]
        if self.folds is not None:
            columns.append(self.folds.tolist())
        decoder = [self.decoder] * bool(self.decoder)
        head = json.dumps([self.name, self.sample_rate, self.samples, list(self.classes), *decoder])
        return _digest_lines(head, zip(*columns, strict=True))

    @cached_property
    def recordings_key(self) -> str:
        """64 hex digits that change with what the clips are decoded from; empty where no other source shares them."""
        if not self.recordings:
            return ""
        head = json.dumps([self.recordings, self.sample_rate, self.samples, self.decoder])
        return _digest_lines(head, zip(self.files, self.stamps, strict=True))


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


def fit(clip_T: NDArray[Any], samples: int, out: NDArray[np.int16] | None = None) -> NDArray[np.int16]:
    """A clip as (samples,) int16: zero-padded or clipped on the right (the paper's rule).

    Args:
        clip_T: int16 as it is; or float, full scale 1, which is rounded to the nearest step and saturates.
        samples: length of the result.
        out: where to put it; holds zeros.
    """
    clip_T = clip_T[:samples]
    fitted = np.zeros(samples, np.int16) if out is None else out
    if clip_T.dtype == np.int16:
        fitted[: len(clip_T)] = clip_T
    else:
        steps_T = clip_T * 32768.0
        np.rint(steps_T, steps_T)
        np.clip(steps_T, -32768, 32767, fitted[: len(clip_T)], casting="unsafe")
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


def _mapped(path: Path, kind: type, count: int, limit: int | None = None) -> NDArray[Any]:
    """The array (count,) in a file, which is read when it is looked at: its values lie below `limit`.

    Raises:
        ValueError: the file holds another one, or none.
    """
    try:
        values_N = np.load(path, mmap_mode="r").view(np.ndarray)
    except OSError:
        raise
    except Exception as error:  # NumPy takes the head of the file for Python, to which other bytes are anything
        raise ValueError(f"{path.name} holds no array: {type(error).__name__}") from None
    if values_N.shape != (count,) or values_N.dtype != kind:
        raise ValueError(f"{path.name} holds {values_N.shape} {values_N.dtype}, and not {count:,} {kind.__name__}")
    # A training would fail far from here, or not fail. A millisecond for a million clips.
    if limit is not None and count and not 0 <= values_N.min() <= values_N.max() < limit:
        raise ValueError(f"{path.name} holds {values_N.min()} to {values_N.max()}, and not 0 to {limit - 1}")
    return values_N


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"no clip store at {path}; build it with `python -m clar.datasets prepare`")
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedStore(f"the clip store {path} has no readable meta.json ({type(error).__name__})") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("bytes", {}), dict):
        raise DamagedStore(f"the clip store {path} has no readable meta.json")
    if meta.get("format") != FORMAT:
        raise DamagedStore(f"the clip store {path} has format {meta.get('format')}, this version reads {FORMAT}")
    for name, size in meta.get("bytes", {}).items():
        found = (path / name).stat().st_size if (path / name).exists() else 0
        if found != size:
            raise DamagedStore(f"the clip store {path} is damaged: {name} has {found:,} of {size:,} bytes")
    return meta


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _digest_lines(head: str, lines: Iterable[tuple[Any, ...]]) -> str:
    """The digest of a list, which is what the JSON `head` holds and the lines, without ever holding it as one text."""
    digest = hashlib.sha256(f"{head[:-1]}, [".encode())
    rest = iter(lines)
    between = ""
    while some := list(itertools.islice(rest, 1000)):  # one by one they would take three times as long
        digest.update(f"{between}{json.dumps(some)[1:-1]}".encode())
        between = ", "
    digest.update(b"]]")
    return digest.hexdigest()


def fingerprint_of(store: ClipStore, content: str) -> str:
    """The fingerprint of a store whose clips have this SHA-256: its own, unless the clips are not what they were."""
    samples = store.clips.shape[1]
    return fingerprint(content, samples, store.sample_rate, store.classes, store.labels, store._splits, store.folds)


def fingerprint(
    content: str,
    samples: int,
    sample_rate: int,
    classes: Sequence[str],
    labels_N: NDArray[np.int64],
    splits_N: NDArray[np.uint8],
    folds_N: NDArray[np.uint8] | None,
) -> str:
    """64 hex digits of everything that a trial may see of a data set; `content` is the SHA-256 of its clips."""
    folds = [] if folds_N is None else [folds_N.tolist()]  # a set without folds has the fingerprint it always had
    return _digest(content, samples, sample_rate, list(classes), labels_N.tolist(), splits_N.tolist(), *folds)
