"""Anybody's recordings: a folder with a sub-folder a class, or a table (CSV or Parquet) of paths and labels.

Where no splits are given they are drawn: stratified by class, no group in two splits, by the hash of the files' names,
so that they are the same on every machine, do not depend on any order, and stay what they are when files are added.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clar.clips import SPLITS, Source
from clar.datasets import listing
from clar.datasets.listing import Row, shown
from clar.errors import UserError, near

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""The words for the splits, in any case of letters."""

WEIGHTS = (70, 15, 15)
"""Percent of the clips of a class in train, valid and test, where splits are drawn."""

LIMIT = 5.0
"""Seconds of a clip at most, where the caller does not say how long it is."""


class Clip(NamedTuple):
    """One file of the data set.

    Attributes:
        path: relative to the root, or absolute.
        label: name of the class.
        where: it is listed, such as `line 3`; empty where the folder itself is the list.
        split: as it is given, a name in `SPLITS`, else empty.
        group: as it is given, such as a speaker; else empty.
    """

    path: str
    label: str
    where: str = ""
    split: str = ""
    group: str = ""


def source(name: str, root: Path, seconds: float | None = None, rate: int = 16_000, seed: int = 0) -> Source:
    """The recordings in the folder, or listed in the table, `root`.

    A folder has a sub-folder a class, whose own sub-folders belong to that class; or a sub-folder a split (`train`,
    `valid` or `validation`, `test`), which has those. A table is a `.csv` or `.parquet` file with the columns `path`
    (relative to the table's folder, or absolute), `label`, and if there are any `split` and `group`. Clips of a group,
    such as a speaker, are in one split. Classes are sorted, by value where all are numbers; files are sorted by class,
    then by path.

    Args:
        name: of the data set.
        root: the folder, or the table.
        seconds: length of a clip. None: that of the longest file, up to 5 s, rounded up to 0.1 s.
        rate: hertz.
        seed: of the splits, where they are not given.

    Raises:
        UserError: something is missing, cannot be read or is broken, a file is there twice, a group or file is in two
            splits, a split's name is unknown, a label is empty, there is one class only, or a class is too small to
            have all splits.
    """
    if seconds is not None and not 1 / rate <= seconds < 3600:
        raise UserError(f"{shown(name)}: clips of {seconds:g} s; choose a length below an hour")
    with listing.reading(name, root):
        if root.is_dir():
            return _source(name, root, *_scan(root), seconds, rate, seed)
        clips, stamps = _read_table(name, root)
        return _source(name, root.parent, clips, stamps, [], seconds, rate, seed)


def _source(
    name: str,
    root: Path,
    clips: list[Clip],
    stamps: dict[str, str],
    notes: list[str],
    seconds: float | None,
    rate: int,
    seed: int,
) -> Source:
    classes = _in_order({clip.label for clip in clips})
    if len(classes) < 2:
        raise UserError(f"{shown(name)}: {shown(classes[0])} is its only class; there must be two to tell apart")
    position = {label: place for place, label in enumerate(classes)}
    clips.sort(key=lambda clip: (position[clip.label], clip.path))
    labels = [position[clip.label] for clip in clips]
    splits, said = _splits(name, clips, labels, seed)
    listing.check_training(name, classes, labels, splits.tolist())
    if seconds is None:
        seconds = listing.longest(root, [clip.path for clip in clips], LIMIT)
        if not seconds:
            raise UserError(
                f"{shown(name)}: none of {len(clips):,} audio files can be read, first {shown(clips[0].path)}"
            )
        said.append(f"clips of {seconds:g} s, the longest file's length up to {LIMIT:g} s")
    return listing.listed_source(
        name=name,
        root=root,
        classes=classes,
        files=[clip.path for clip in clips],
        stamps=[stamps[clip.path] for clip in clips],
        labels=labels,
        splits=splits,
        groups=[clip.group for clip in clips],
        sample_rate=rate,
        samples=max(1, math.ceil(seconds * rate - 1e-6)),
        notes=[*notes, *said, *listing.coverage(classes, labels, splits.tolist())],
    )


def _in_order(labels: set[str]) -> list[str]:
    numbers = all(label.isascii() and label.isdigit() and len(label) < 19 for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))


# A folder


def _scan(root: Path) -> tuple[list[Clip], dict[str, str], list[str]]:
    """The clips in the folder `root`, their stamps, and notes."""
    with os.scandir(root) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if listing.is_data(entry.name))
    folders = [name for name, is_dir in found if is_dir]
    loose = [name for name, is_dir in found if not is_dir and listing.is_audio(name)]
    if not folders:
        raise UserError(
            f"{shown(root)} has no sub-folders; make one for each class and put its audio files in it, or list "
            "the files in a CSV with the columns path and label"
        )
    others: list[str] = []
    seen = _Seen(root)
    stamps: dict[str, str] = {}
    clips: list[Clip] = []
    for top, label, split in _classes(root, folders, loose):
        walked = dict(_walk(root, top, seen, others))
        if not walked:
            raise UserError(
                f"{shown(root / top)} holds no audio file; remove it, or put in the files of the class "
                f"(of {', '.join(listing.SUFFIXES)})"
            )
        listing.check_formats(root, list(walked))
        stamps |= walked
        clips += [Clip(path, label, split=split) for path in walked]
    notes = []
    for files, kind, where in (
        (loose, "audio file", "in no class's folder"),
        (others, "file", "not called as audio is"),
    ):
        if files:
            notes.append(f"left out: {len(files):,} {kind}{'s' * (len(files) > 1)} {where}, first {min(files)}")
    return clips, stamps, notes


def _classes(root: Path, folders: list[str], loose: list[str]) -> Iterator[tuple[str, str, str]]:
    """Of each class's folder its path below `root`, the class, and the split, empty where it is not given.

    Audio files beside classes in a split's folder are added to `loose`.
    """
    kinds = {SPLIT_OF.get(folder.lower(), "") for folder in folders}
    if "" in kinds:
        if len(kinds) > 2:
            other = next(folder for folder in folders if folder.lower() not in SPLIT_OF)
            raise UserError(
                f"{shown(root)} has folders of splits, such as train, and {shown(other)}, which is none; remove it, or "
                "list the files in a CSV with a column split"
            )
        yield from ((folder, folder, "") for folder in folders)
        return
    for folder in folders:
        with os.scandir(root / folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if listing.is_data(entry.name))
        labels = [name for name, is_dir in found if is_dir]
        loose += [f"{folder}/{name}" for name, is_dir in found if not is_dir and listing.is_audio(name)]
        if not labels:
            raise UserError(f"{shown(root / folder)}, by its name a split, has no sub-folder; make one a class")
        yield from ((f"{folder}/{label}", label, SPLIT_OF[folder.lower()]) for label in labels)


class _Seen:
    """Which folders and files were met, by what they are and not by name, for links give many names to one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[tuple[int, int], str] = {}

    def check(self, path: str, status: os.stat_result, kind: str) -> None:
        """Raise a UserError where `path`, below the root, was met under another name."""
        if not status.st_ino:  # Windows's quick listing has none
            return
        other = self._names.setdefault((status.st_dev, status.st_ino), path)
        if other != path:
            raise UserError(
                f"{shown(self._root / path)} is the same {kind} as {shown(self._root / other)}, by a link; "
                "remove one of them"
            )


def _walk(root: Path, top: str, seen: _Seen, others: list[str]) -> Iterator[tuple[str, str]]:
    """Path below `root` and stamp of each audio entry in the folder `top` and all folders in it.

    A folder that is called like audio is an entry, which turns out to be bad when it is decoded. What is neither audio
    nor a folder is added to `others`.
    """
    pending = [top]
    while pending:
        folder = pending.pop()
        seen.check(folder, (root / folder).stat(), "folder")
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = f"{folder}/{entry.name}"
                if listing.is_audio(entry.name):
                    status = listing.status(entry)
                    seen.check(path, status, "file")
                    yield path, listing.stamp_of(status)
                elif listing.is_data(entry.name):
                    (pending if entry.is_dir() else others).append(path)


# A table


def _read_table(name: str, path: Path) -> tuple[list[Clip], dict[str, str]]:
    """The clips that the table lists, and their stamps."""
    if not path.is_file():
        raise UserError(f"{shown(name)}: no folder and no file {shown(path)}")
    readers = {".csv": listing.read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{shown(path)}: neither a folder nor a table, which is a .csv or a .parquet file")
    rows = readers[path.suffix.lower()](path, ("path", "label"), ("split", "group"))
    clips = [_clip(path, row) for row in rows]
    return clips, _stamps(path, clips)


def _clip(table: Path, row: Row) -> Clip:
    path, label, split = row.cells["path"], row.cells["label"], row.cells.get("split")
    if not path or "\0" in path:
        raise UserError(f"{shown(table)}, {row.where}: the path {shown(path)!r} is empty or has a zero byte")
    if not label or label.lower() == "nan":
        raise UserError(
            f"{shown(table)}, {row.where}: {shown(path)} has the label {label!r}; give it one or remove the row"
        )
    if split is not None and split.lower() not in SPLIT_OF:
        raise UserError(
            f"{shown(table)}, {row.where}: {shown(path)} has the split {shown(split)!r}{near(split, SPLIT_OF)}"
        )
    given = "" if split is None else SPLIT_OF[split.lower()]
    return Clip(Path(path).as_posix(), label, row.where, given, row.cells.get("group", ""))


def _stamps(table: Path, clips: list[Clip]) -> dict[str, str]:
    """The stamp of each file; one that is not there has `listing.ABSENT`."""
    seen = _Seen(table.parent)
    stamps: dict[str, str] = {}
    where: dict[str, str] = {}
    for clip in clips:
        if where.setdefault(clip.path, clip.where) != clip.where:
            raise UserError(
                f"{shown(table)}, {clip.where}: {shown(clip.path)} stands in {where[clip.path]} too; remove one row"
            )
        try:
            status = (table.parent / clip.path).stat()
        except PermissionError:
            raise
        except OSError:  # not there; a link to itself; a name that no file can have
            stamps[clip.path] = listing.ABSENT
        else:
            seen.check(clip.path, status, "file")
            stamps[clip.path] = listing.stamp_of(status)
    listing.check_absent(table, len(clips), [path for path, stamp in stamps.items() if stamp == listing.ABSENT])
    return stamps


def _read_parquet(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """As `listing.read_csv`. Reads the named columns only: others may hold gigabytes of audio."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        header = [column.strip().lower() for column in file.schema_arrow.names]
        places = listing.positions(path, header, required, optional)
        table = file.read(columns=[file.schema_arrow.names[place] for place in places.values()])
        columns = {column: table.column(file.schema_arrow.names[place]).to_pylist() for column, place in places.items()}
        nested = [column for column, place in places.items() if pa.types.is_nested(file.schema_arrow.types[place])]
        if nested:
            raise UserError(f"{shown(path)}: the column {nested[0]} holds lists or records; write one text a row")
        cells = {column: [_text(value) for value in values] for column, values in columns.items()}
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the system's, such as no permission
            raise
        reason = f"{error}".strip().partition("\n")[0]
        raise UserError(f"{shown(path)}: broken Parquet ({shown(reason)}); write it again") from None
    if not len(table):
        raise UserError(f"{shown(path)} has no rows; it must list the files")
    return [
        Row(f"row {number}", dict(zip(cells, values, strict=True)))
        for number, values in enumerate(zip(*cells.values(), strict=True), 1)
    ]


def _text(value: object) -> str:
    """A cell as a CSV would hold it: nothing for a missing value, no fraction for a whole number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


# Splits


def _splits(name: str, clips: list[Clip], labels: list[int], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The split of each clip, and notes: as it is given, or drawn."""
    grouped = any(clip.group for clip in clips)
    how = f"by seed {seed}, stratified by class{', groups kept whole' if grouped else ''}"
    if not clips[0].split:
        _check_sizes(name, clips)
        return stratified(clips, labels, seed), [f"splits: drawn {how}"]
    _check_groups(name, clips)
    given = np.array([SPLITS.index(clip.split) for clip in clips], np.uint8)
    if (given == SPLITS.index("valid")).any():
        return given, []
    train = np.flatnonzero(given == SPLITS.index("train"))
    weights = (WEIGHTS[0], WEIGHTS[1], 0)
    given[train] = stratified([clips[i] for i in train], [labels[i] for i in train], seed, weights)
    return given, [f"valid split: {100 * WEIGHTS[1] / sum(WEIGHTS[:2]):.0f} % of the training clips, drawn {how}"]


def _check_sizes(name: str, clips: list[Clip]) -> None:
    """A class needs a clip, or a group, for each split."""
    units: defaultdict[str, set[str]] = defaultdict(set)
    for clip in clips:
        units[clip.label].add(_unit(clip))
    small = sorted((len(members), label) for label, members in units.items() if len(members) < len(SPLITS))
    if small:
        count, label = small[0]
        kind = "group" if any(clip.group for clip in clips) else "file"
        more = f" (and {len(small) - 1:,} other classes are too small)" if len(small) > 1 else ""
        raise UserError(
            f"{shown(name)}: the class {shown(label)} has {count} {kind}{'s' * (count > 1)}, and needs {len(SPLITS)}, "
            f"one for each of train, valid and test{more}; add some, remove the class, or list the files in a CSV with "
            "a column split"
        )


def _check_groups(name: str, clips: list[Clip]) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.group, clip)
        if clip.group and other.split != clip.split:
            raise UserError(
                f"{shown(name)}: the group {shown(clip.group)} is in {other.split} ({other.where}) and in {clip.split} "
                f"({clip.where}); a group has one split"
            )


def stratified(
    clips: Sequence[Clip], labels: Sequence[int], seed: int, weights: Sequence[int] = WEIGHTS
) -> NDArray[np.uint8]:
    """Positions (N,) in `SPLITS`, drawn by the hash of the clips' paths, or of their groups' names.

    Without groups each class has its shares to within one clip, and at least one clip in each split where it has enough
    of them. A file more moves at most a few others to another split. With groups, whose clips stay together, the shares
    are as near as a greedy choice gets (that of scikit-learn's StratifiedGroupKFold, the largest group first), and a
    class has all the splits where its groups allow it; a file more may move any group.

    Args:
        clips: N files.
        labels: N positions of their classes.
        seed: of the hash.
        weights: of the splits; one of weight 0 gets no clip.
    """
    units: defaultdict[str, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        units[_unit(clip)].append(row)
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}\n{unit}".encode(errors="surrogatepass")).digest())
    counts = [Counter(labels[row] for row in units[unit]) for unit in order]
    single = all(len(units[unit]) == 1 for unit in order)
    chosen = _ranked([labels[units[unit][0]] for unit in order], weights) if single else _greedy(counts, weights)
    splits = np.zeros(len(clips), np.uint8)
    for unit, split in zip(order, chosen, strict=True):
        splits[units[unit]] = split
    return splits


def _unit(clip: Clip) -> str:
    """What is not divided between splits: a group, or a file that has none."""
    return f"group {clip.group}" if clip.group else f"file {clip.path}"


def _held_out(count: int, weights: Sequence[int]) -> list[int]:
    """Clips of a class of `count` for each split after the first: its share, at least one; none of a tiny class."""
    if count < sum(weight > 0 for weight in weights):
        return [0 for _ in weights[1:]]
    return [
        max(1, (2 * count * weight + sum(weights)) // (2 * sum(weights))) if weight else 0 for weight in weights[1:]
    ]


def _ranked(labels: list[int], weights: Sequence[int]) -> list[int]:
    """The split of each clip: the first of a class are held out, test before valid."""
    left = {label: _held_out(count, weights) for label, count in Counter(labels).items()}
    chosen = []
    for label in labels:
        split = next((place for place in range(len(weights) - 1, 0, -1) if left[label][place - 1]), 0)
        if split:
            left[label][split - 1] -= 1
        chosen.append(split)
    return chosen


def _greedy(counts: list[Counter[int]], weights: Sequence[int]) -> list[int]:
    """The split of each group, given how many clips of each class it has.

    The next group goes where it adds least to the sum over splits and classes of (clips)^2 / (clips wanted), whose
    minimum is at the shares wanted.
    """
    total = Counter[int]()
    for group in counts:
        total.update(group)
    wanted: list[dict[int, float]] = [{} for _ in weights]
    for label, count in total.items():
        held = _held_out(count, weights)
        for split, size in enumerate([count - sum(held), *held]):
            wanted[split][label] = max(1.0, size)
    have = [Counter[int]() for _ in weights]
    usable = [split for split, weight in enumerate(weights) if weight]

    def cost(group: Counter[int], split: int) -> float:
        terms = ((2 * have[split][label] + n) * n / wanted[split][label] for label, n in sorted(group.items()))
        return math.fsum(terms)

    chosen = [0] * len(counts)
    for place in sorted(range(len(counts)), key=lambda place: -counts[place].total()):
        chosen[place] = min(usable, key=lambda split: cost(counts[place], split))
        have[chosen[place]].update(counts[place])
    _fill_gaps(counts, chosen, usable)
    return chosen


def _fill_gaps(counts: list[Counter[int]], chosen: list[int], usable: list[int]) -> None:
    """Move groups, the smallest that will do, into splits that lack a class: train first, which must have all.

    A group is moved out of another split only if that one keeps all its classes, but for the sake of train.
    """
    holders = {split: Counter[int]() for split in usable}
    for group, split in zip(counts, chosen, strict=True):
        holders[split].update(group.keys())
    by_size = sorted(range(len(counts)), key=lambda place: counts[place].total())
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place in by_size:
        for label in counts[place]:
            places[label].append(place)
    for split in usable:
        for label in sorted(places):
            if holders[split][label]:
                continue
            for place in places[label]:
                other = holders[chosen[place]]
                if split == 0 or all(other[each] > 1 for each in counts[place]):
                    other.subtract(counts[place].keys())
                    holders[split].update(counts[place].keys())
                    chosen[place] = split
                    break
