"""What the adapters share: a folder's files and their stamps, the files that hold labels, and checks of both."""

import csv
import io
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clar.building import BAD_SHARE
from clar.clips import SPLITS, Source
from clar.datasets.decode import VERSION, decode_files, header_of
from clar.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
"""Of audio files, in any case of letters; libsndfile reads them all."""

ABSENT = "absent"
"""The stamp of a file that is listed and not there."""

_NO_DATA = (".", "__MACOSX")
"""How the names of entries begin that are never data: hidden ones, and what macOS puts beside them in an archive."""


# Folders


@contextmanager
def reading(name: str, root: Path) -> Iterator[None]:
    """Say in one line what of the data set cannot be read.

    Raises:
        UserError: instead of an OSError inside.
    """
    try:
        yield
    except OSError as error:
        path = os.fsdecode(error.filename or root)
        raise UserError(f"{shown(name)}: cannot read {shown(path)}: {error.strerror or error}") from error


def real_root(name: str, root: Path, marks: Sequence[str], what: str) -> Path:
    """The folder that holds one of `marks`: `root`, or one in it, beside whatever else (up to three deep, where each is
    the only folder), as archives unpack.

    Where there is none it is `root`, so that messages name what the user gave.

    Raises:
        UserError: `root` is no folder, or two folders in it hold the data set.
    """
    if not root.is_dir():
        raise UserError(
            f"{shown(name)}: no folder {shown(root)}; unpack the {what} archive and pass its folder with --root"
        )

    def is_marked(folder: Path) -> bool:
        return any((folder / mark).exists() for mark in marks)

    folder = root
    for _ in range(4):
        if is_marked(folder):
            return folder
        with os.scandir(folder) as entries:
            inner = sorted(Path(entry.path) for entry in entries if entry.is_dir() and is_data(entry.name))
        found = [path for path in inner if is_marked(path)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"{shown(name)}: {shown(folder)} holds the data set twice, in {shown(names)}; name one of them"
            )
        if not found and len(inner) != 1:
            break
        folder = (found or inner)[0]
    return root


def is_data(name: str) -> bool:
    """Whether an entry of this name may be data."""
    return not name.startswith(_NO_DATA)


def is_audio(name: str) -> bool:
    """Whether an entry of this name is audio, or claims to be."""
    return name.lower().endswith(SUFFIXES) and is_data(name)


def scan(folder: Path) -> dict[str, str]:
    """The audio entries right in `folder`: their names, sorted, to their stamps. One stat call an entry."""
    with os.scandir(folder) as entries:
        return dict(sorted((entry.name, stamp_of(status(entry))) for entry in entries if is_audio(entry.name)))


def status(entry: os.DirEntry[str]) -> os.stat_result:
    """Of what a link leads to; of the link itself where that is not there."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


def stamp_of(entry: os.stat_result) -> str:
    """What changes with a file's content: its size and the time of its last change."""
    return f"{entry.st_size} {entry.st_mtime_ns}"


def check_formats(folder: Path, files: Sequence[str]) -> None:
    """One recording in two formats would have two splits where splits are lists of file names.

    Raises:
        UserError: two of `files`, relative to `folder`, differ in their suffix only.
    """
    first: dict[str, str] = {}
    for file in files:
        other = first.setdefault(os.path.splitext(file)[0], file)  # noqa: PTH122 - a third of the time of a Path
        if other != file:
            raise UserError(
                f"{shown(folder)} holds one recording twice, {shown(other)} and {shown(file)}; remove one of them"
            )


def longest(root: Path, files: Sequence[str], limit: float) -> float:
    """The length in seconds of the longest file, rounded up to 0.1 s, at most `limit`; 0 where none can be read.

    From the headers, 0.01 to 0.1 ms a file; stops at the first that is as long as `limit`.
    """
    most = 0.0
    for file in files:
        most = max(most, header_of(os.fsencode(os.path.join(root, file)))[0])  # noqa: PTH118 - a third of a Path's time
        if most >= limit:
            return limit
    return math.ceil(round(most * 10, 6)) / 10


# Files that hold labels


class Row(NamedTuple):
    """A row of a table: where it stands, such as `line 3`, and its cells by column."""

    where: str
    cells: dict[str, str]


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: it is missing, empty, or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing; is the archive unpacked to its end?")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown(path)}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8 text") from None
    if not text.strip():
        raise UserError(f"{shown(path)} is empty; is the archive unpacked to its end?")
    return text


def read_json(path: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A JSON file; `pairs_hook` as of `json.loads`.

    Raises:
        UserError: as `read_text`; or it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{shown(path)}, line {error.lineno}: broken JSON ({error.msg}); is the archive unpacked to its end?"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets without end
        raise UserError(f"{shown(path)}: broken JSON ({error}); is the archive unpacked to its end?") from None


def read_csv(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a CSV file with a header, only the named columns, cells without spaces around them.

    Raises:
        UserError: as `read_text`; a column is missing or there twice, a row is longer or shorter than the header, the
            quotes do not match, or there is no row.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        header = [cell.strip().lower() for cell in next(reader)]
        wanted = positions(path, header, required, optional)
        for cells in reader:
            where = f"line {reader.line_num}"
            if len(cells) == len(header):
                rows.append(Row(where, {column: cells[place].strip() for column, place in wanted.items()}))
            elif cells:
                raise UserError(
                    f"{shown(path)}, {where}: {len(cells)} cells where the header has {len(header)}; "
                    "put quotes around cells with commas"
                )
    except csv.Error as error:
        raise UserError(f"{shown(path)}, line {reader.line_num}: broken CSV ({error}); repair that line") from None
    if not rows:
        raise UserError(f"{shown(path)} has a header and no rows; it must list the files")
    return rows


def positions(path: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """The columns among `required` and `optional` that `header` has, and where.

    Raises:
        UserError: a required one is missing, or one is there twice.
    """
    missing = [column for column in required if column not in header]
    if missing:
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), "")
        way = f", with commas between them and not {other!r}" if other else ""
        raise UserError(
            f"{shown(path)}: no column {', '.join(missing)}; it has {shown(', '.join(header))[:200]}, "
            f"and needs {', '.join(required)}{way}"
        )
    twice = [column for column in (*required, *optional) if header.count(column) > 1]
    if twice:
        raise UserError(f"{shown(path)}: the column {twice[0]} is there twice; rename or remove one")
    return {column: header.index(column) for column in (*required, *optional) if column in header}


def check_plain(path: Path, where: str, file: str) -> None:
    """Labels files of published sets name files right in one folder; any other name is a fault or an attack.

    Raises:
        UserError: `file` has a slash, backslash or zero byte, is `..`, or cannot be a name on this system.
    """
    try:
        plain = bool(file) and file not in (".", "..") and not set(os.fsencode(file)) & set(b"/\\\0")
    except UnicodeEncodeError:  # half a character, which JSON can hold
        plain = False
    if not plain:
        raise UserError(
            f"{shown(path)}, {where}: {shown(file)!r} is not the plain name of a file; get the archive again"
        )


def check_absent(path: Path, listed: int, absent: Sequence[str]) -> None:
    """Few files that are not there count as bad when they are decoded; more mean that the folder is not whole.

    Raises:
        UserError: more than 1 % of the `listed` files that `path` names are `absent`.
    """
    if len(absent) > BAD_SHARE * listed:
        raise UserError(
            f"{shown(path)} names {listed:,} files, of which {len(absent):,} do{'es' * (len(absent) == 1)} not exist, "
            f"first {shown(absent[0])}; is everything there, and unpacked to its end?"
        )


def check_unlisted(path: Path, folder: Path, unlisted: Sequence[str]) -> None:
    """A recording without a label cannot be told from one whose label was lost.

    Raises:
        UserError: there are files in `folder` that `path` does not name.
    """
    if unlisted:
        raise UserError(
            f"{shown(folder)} holds {len(unlisted):,} audio files that {path.name} does not name, first "
            f"{shown(unlisted[0])}; remove them, or get the archive again"
        )


# The source


def check_training(name: str, classes: Sequence[str], labels: Sequence[int], splits: Sequence[int]) -> None:
    """No class may be tested that was not trained.

    Raises:
        UserError: a class has no training clip, or a split no clip at all.
    """
    for position, split in enumerate(SPLITS):
        if position not in splits:
            raise UserError(f"{shown(name)}: the {split} split has no file")
    counts = Counter(label for label, split in zip(labels, splits, strict=True) if split == 0)
    empty = [shown(each) for label, each in enumerate(classes) if not counts[label]]
    if empty:
        raise UserError(
            f"{shown(name)}: no training file for {_classes(empty)}; add some, or remove what belongs to "
            f"{'it' if len(empty) == 1 else 'them'}"
        )


def coverage(classes: Sequence[str], labels: Sequence[int], splits: Sequence[int], folds: bool = False) -> list[str]:
    """Notes about the classes that a split has no clip of; of sets with folds only those without any clip."""
    labels_N, splits_N = np.asarray(labels), np.asarray(splits)
    notes = []
    for position, split in ((0, ""),) if folds else enumerate(SPLITS):
        members_N = labels_N if folds else labels_N[splits_N == position]
        counts = np.bincount(members_N, minlength=len(classes))
        lacking = [shown(name) for name, count in zip(classes, counts, strict=True) if not count]
        if lacking:
            notes.append(f"no {split}{' ' * bool(split)}clip of {_classes(lacking)}")
    return notes


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"the class{'es' * (len(names) > 1)} {', '.join(names[:10])}{more}"


def listed_source(
    name: str,
    root: Path,
    classes: Sequence[str],
    files: Sequence[str],
    stamps: Sequence[str],
    labels: Sequence[int],
    splits: Sequence[int] | NDArray[np.uint8],
    sample_rate: int,
    samples: int,
    folds: NDArray[np.uint8] | None = None,
    groups: Sequence[str] = (),
    notes: Sequence[str] = (),
    vocabulary: bool = False,
    recordings: str = "",
) -> Source:
    """A `Source` of `files` under `root`, or with absolute paths, whose names may be any that the system allows.

    `Source.files`, the groups and the classes are what `escaped` makes of them: they are written as UTF-8, one a line.
    """
    names = [escaped(file) for file in files]
    if any(map(os.path.isabs, files)):  # `decode_files` takes relative paths only
        paths = [root.absolute() / file for file in files]
        root, files = Path(paths[0].anchor), [str(path.relative_to(path.anchor)) for path in paths]
    return Source(
        name=escaped(name),
        classes=[escaped(each) for each in classes],
        sample_rate=sample_rate,
        samples=samples,
        files=names,
        stamps=stamps,
        labels=np.asarray(labels, np.int64),
        splits=np.asarray(splits, np.uint8),
        decode=decode_files(root, files, sample_rate, samples),
        folds=folds,
        groups=[escaped(group) for group in groups],
        notes=[escaped(note) for note in notes],
        vocabulary=vocabulary,
        recordings=recordings,
        decoder=f"decode {VERSION}",
    )


def shown(value: object) -> str:
    """A text or path for a message: `escaped`, and cut off where it is very long."""
    text = escaped(str(value))
    return text if len(text) <= 300 else f"{text[:150]}…{text[-100:]}"


def escaped(text: str) -> str:
    """A text with its control characters, line breaks and what is not UTF-8 as backslash sequences."""
    if text.isprintable():
        return text
    kinds = ("Cc", "Cs", "Zl", "Zp")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in kinds else c for c in text)
