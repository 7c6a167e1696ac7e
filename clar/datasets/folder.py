"""Anybody's recordings: a folder with a sub-folder a class, or a table (CSV or Parquet) of paths and labels.

What is not given comes from the data: splits are drawn (`clar.datasets.drawing`), the length of a clip and the rate are
those of the recordings.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clar.clips import SPLITS, Source, fold_splits
from clar.datasets import listing
from clar.datasets.decode import HIGHEST_RATE, LOWEST_RATE, header_of
from clar.datasets.drawing import WEIGHTS, Clip, drawn_folds, stratified, unit_of
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

SHORTEST, LIMIT = 0.1, 5.0
"""Seconds of a clip, where the caller does not say how long it is."""

QUANTILE = 95
"""Percent of the recordings that fit into a clip, where the caller does not say how long it is: were the longest the
measure, most of a clip would be padding."""

TOP_RATE = 16_000
"""Hertz at most, where the caller does not say the rate."""

MOST_FOLDS = 99

FEW_GROUPS = 5
"""Groups of a split under which its value hangs on who they are: with six speakers, one of them for testing, a baseline
had from 29 to 85 by who that was."""


class Settings(NamedTuple):
    """What the caller says about the clips: their length in seconds (None: of the recordings), their rate in hertz
    (None: of the files), the seed of what is drawn, and how many folds to draw (0: none)."""

    seconds: float | None = None
    rate: int | None = None
    seed: int = 0
    folds: int = 0


def source(
    name: str, root: Path, seconds: float | None = None, rate: int | None = None, seed: int = 0, folds: int = 0
) -> Source:
    """The recordings in the folder, or listed in the table, `root`.

    A folder has a sub-folder a class, whose own sub-folders belong to that class; or a sub-folder a split (`train`,
    `valid` or `validation`, `test`), which has those. A table is a `.csv` or `.parquet` file with the columns `path`
    (relative to the table's folder, or absolute), `label`, and if there are any `split`, `group` and `fold`. Clips of a
    group, such as a speaker, are in one split, or fold. Where there are folds, splits do not count. Classes are sorted,
    by value where all are numbers; files are sorted by class, then by path.

    Args:
        name: of the data set.
        root: the folder, or the table.
        seconds: length of a clip. None: the `QUANTILE` of the recordings' lengths, rounded up, from 0.1 to 5 s.
        rate: hertz. None: the files' most common rate, at most 16,000.
        seed: of the splits or folds, where they are not given.
        folds: how many to draw; 0: those of the table, if it has any.

    Raises:
        UserError: something is missing, cannot be read or is broken, a file is there twice, a group or file is in two
            splits or folds, a split's name is unknown, a fold is no number or has no clip, a label is empty, there is
            one class only, or a class is too small to have all splits.
    """
    if seconds is not None and not 1 / (rate or TOP_RATE) <= seconds < 3600:
        raise UserError(f"{shown(name)}: clips of {seconds:g} s; choose a length below an hour")
    with listing.reading(name, root):
        settings = Settings(seconds, rate, seed, folds)
        if root.is_dir():
            return _source(name, root, *_scan(root), settings)
        clips, stamps = _read_table(name, root)
        return _source(name, root.parent, clips, stamps, [], settings)


def folds(path: Path) -> int:
    """How many folds the table `path` has; 0: it has none, or is a folder.

    Raises:
        UserError: the table is broken, or one of its folds is no number.
    """
    if path.is_dir():
        return 0
    return max(clip.fold for clip in _read_clips(str(path), path))


def _source(
    name: str, root: Path, clips: list[Clip], stamps: dict[str, str], notes: list[str], settings: Settings
) -> Source:
    classes = _in_order({clip.label for clip in clips})
    if len(classes) < 2:
        raise UserError(f"{shown(name)}: {shown(classes[0])} is its only class; there must be two to tell apart")
    position = {label: place for place, label in enumerate(classes)}
    clips.sort(key=lambda clip: (position[clip.label], clip.path))
    labels = [position[clip.label] for clip in clips]
    folds_N, splits_N, said = _parts(name, clips, labels, settings)
    if folds_N is not None:
        for number in range(1, int(folds_N.max()) + 1):
            parts = fold_splits(folds_N, number).tolist()
            listing.check_training(f"{name}, tested on fold {number}", classes, labels, parts)
    listing.check_training(name, classes, labels, splits_N.tolist())
    seconds, rate, measured = _length_and_rate(name, root, clips, settings)
    return listing.listed_source(
        name=name,
        root=root,
        classes=classes,
        files=[clip.path for clip in clips],
        stamps=[stamps[clip.path] for clip in clips],
        labels=labels,
        splits=splits_N,
        folds=folds_N,
        groups=[clip.group for clip in clips],
        sample_rate=rate,
        samples=max(1, math.ceil(seconds * rate - 1e-6)),
        notes=[
            *notes,
            *said,
            *measured,
            *listing.coverage(classes, labels, splits_N.tolist()),
            *_few_groups(clips, splits_N, folds_N),
        ],
    )


def _length_and_rate(name: str, root: Path, clips: list[Clip], settings: Settings) -> tuple[float, int, list[str]]:
    """Seconds and hertz of a clip, by the headers of the files where the caller does not say, and a note about them."""
    seconds, rate = settings.seconds, settings.rate
    if seconds is not None and rate is not None:
        return seconds, rate, []
    # A third of the time of a Path.
    headers = [header_of(os.fsencode(os.path.join(root, clip.path))) for clip in clips]  # noqa: PTH118
    lengths = sorted(length for length, _ in headers if length)
    if not lengths:
        raise UserError(f"{shown(name)}: none of {len(clips):,} audio files can be read, first {shown(clips[0].path)}")
    of_length = of_rate = ""
    if seconds is None:
        wanted = lengths[math.ceil(QUANTILE / 100 * len(lengths)) - 1]
        seconds = min(max(_rounded_up(min(wanted, LIMIT)), SHORTEST), LIMIT)
        median, most = lengths[len(lengths) // 2], lengths[-1]
        of_length = (
            f" of {seconds:g} s, the {QUANTILE} % quantile of the recordings' lengths (median {median:.3g} s, longest "
            f"{'not known' if math.isinf(most) else f'{most:.3g} s'}){f', at most {LIMIT:g} s' * (wanted > LIMIT)}"
        )
    if rate is None:
        rate, why = _common_rate([hertz for _, hertz in headers if LOWEST_RATE <= hertz <= HIGHEST_RATE])
        of_rate = f"{',' * bool(of_length)} at {rate:,} Hz, {why}"
    ways = ["#seconds=S"] * bool(of_length) + ["#rate=R"] * bool(of_rate)
    say = "say others" if len(ways) > 1 else "says another"
    return seconds, rate, [f"clips{of_length}{of_rate}; {' and '.join(ways)} {say}"]


def _rounded_up(seconds: float) -> float:
    """To 0.01 s, from a second on to 0.1 s: a file more seldom changes it."""
    steps = 100 if seconds < 1 else 10
    return math.ceil(round(seconds * steps, 6)) / steps


def _common_rate(rates: list[int]) -> tuple[int, str]:
    """The rate of most files, of two the higher one, at most `TOP_RATE`; and why it is that."""
    if not rates:
        return TOP_RATE, "for no file has a rate that can be read"
    count, rate = max((count, rate) for rate, count in Counter(rates).items())
    if rate > TOP_RATE:
        return TOP_RATE, f"the most for files of {rate:,} Hz"
    return rate, "the files' rate" if count == len(rates) else f"the rate of {count:,} of {len(rates):,} files"


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
    clips = _read_clips(name, path)
    return clips, _stamps(path, clips)


def _read_clips(name: str, path: Path) -> list[Clip]:
    if not path.is_file():
        raise UserError(f"{shown(name)}: no folder and no file {shown(path)}")
    readers = {".csv": listing.read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{shown(path)}: neither a folder nor a table, which is a .csv or a .parquet file")
    rows = readers[path.suffix.lower()](path, ("path", "label"), ("split", "group", "fold"))
    clips = [_clip(path, row) for row in rows]
    _check_folds(path, {clip.fold for clip in clips})
    return clips


def _check_folds(path: Path, found: set[int]) -> None:
    count = max(found)
    if count and (gone := set(range(1, count + 1)) - found):
        raise UserError(
            f"{shown(path)} has no clip in fold {min(gone)} of 1 to {count}; number the folds from 1 on, without gaps"
        )
    if 0 < count < 3:
        raise UserError(f"{shown(path)} has {count} folds, and needs 3: to test, to validate, and to train on")


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
    fold = row.cells.get("fold", "0")
    if "fold" in row.cells and not (fold.isascii() and fold.isdigit() and 1 <= int(fold) <= MOST_FOLDS):
        raise UserError(
            f"{shown(table)}, {row.where}: {shown(path)} has the fold {shown(fold)!r}; folds are numbers from 1 to "
            f"{MOST_FOLDS}, and every file has one"
        )
    return Clip(Path(path).as_posix(), label, row.where, given, row.cells.get("group", ""), int(fold))


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


# Splits and folds


def _parts(
    name: str, clips: list[Clip], labels: list[int], settings: Settings
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8], list[str]]:
    """The fold of each clip, None where there are no folds, its split, and notes."""
    given, count = clips[0].fold > 0, settings.folds
    if not given and not count:
        return None, *_splits(name, clips, labels, settings.seed)
    if given and count:
        raise UserError(f"{shown(name)}: its table has a column fold already; leave out #folds={count}")
    notes = []
    if given:
        _check_groups(name, clips, "fold")
        folds_N = np.array([clip.fold for clip in clips], np.uint8)
    else:
        _check_sizes(name, clips)
        units = len({unit_of(clip) for clip in clips})
        kind = _kind(clips)
        if units < count:
            raise UserError(
                f"{shown(name)}: there are {units} {kind}s, and each of {count} folds needs one; choose 3 to {units}"
            )
        folds_N = drawn_folds(clips, labels, settings.seed, count)
        notes.append(f"folds: {count}, drawn {_how(clips, settings.seed)}")
    if clips[0].split:
        notes.append("the splits that are given do not count: the folds say what is tested")
    return folds_N, fold_splits(folds_N, int(folds_N.max())), notes


def _kind(clips: list[Clip]) -> str:
    """What is not divided between splits."""
    return "group" if any(clip.group for clip in clips) else "file"


def _how(clips: list[Clip], seed: int) -> str:
    return f"by seed {seed}, stratified by class{', groups kept whole' * (_kind(clips) == 'group')}"


def _few_groups(clips: list[Clip], splits_N: NDArray[np.uint8], folds_N: NDArray[np.uint8] | None) -> list[str]:
    """A note where a split, or fold, has so few groups that what is measured on it hangs on who they are."""
    if _kind(clips) == "file":
        return []
    kind, parts_N, names = "split", splits_N, list(SPLITS)
    if folds_N is not None:
        kind, parts_N = "fold", folds_N - 1
        names = [f"fold {number}" for number in range(1, int(folds_N.max()) + 1)]
    members: list[set[str]] = [set() for _ in names]
    for clip, part in zip(clips, parts_N.tolist(), strict=True):
        members[part].add(unit_of(clip))
    if min(map(len, members)) >= FEW_GROUPS:
        return []
    total = len(set().union(*members))
    draw = f"#folds={total if total <= 2 * FEW_GROUPS else FEW_GROUPS} and " if folds_N is None else ""
    counts = ", ".join(f"{len(groups)} in {name}" for groups, name in zip(members, names, strict=True))
    if len({len(groups) for groups in members}) == 1:
        counts = f"{len(members[0])} in each {kind}"
    return [
        f"few groups: {counts}; where a {kind} has under five, its value hangs on who they are: test on all in turn, "
        f"with {draw}--folds"
    ]


def _splits(name: str, clips: list[Clip], labels: list[int], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """The split of each clip, and notes: as it is given, or drawn."""
    how = _how(clips, seed)
    if not clips[0].split:
        _check_sizes(name, clips)
        return stratified(clips, labels, seed), [f"splits: drawn {how}"]
    _check_groups(name, clips, "split")
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
        units[clip.label].add(unit_of(clip))
    small = sorted((len(members), label) for label, members in units.items() if len(members) < len(SPLITS))
    if small:
        count, label = small[0]
        kind = _kind(clips)
        more = f" (and {len(small) - 1:,} other classes are too small)" if len(small) > 1 else ""
        raise UserError(
            f"{shown(name)}: the class {shown(label)} has {count} {kind}{'s' * (count > 1)}, and needs {len(SPLITS)}, "
            f"one for each of train, valid and test{more}; add some, remove the class, or list the files in a CSV with "
            "a column split"
        )


def _check_groups(name: str, clips: list[Clip], kind: Literal["split", "fold"]) -> None:
    def part(clip: Clip) -> str:
        return clip.split if kind == "split" else f"fold {clip.fold}"

    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.group, clip)
        if clip.group and part(other) != part(clip):
            raise UserError(
                f"{shown(name)}: the group {shown(clip.group)} is in {part(other)} ({other.where}) and in {part(clip)} "
                f"({clip.where}); a group has one {kind}"
            )
