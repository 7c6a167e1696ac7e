"""ESC-50 and its subset ESC-10 from the unpacked repository: environmental sounds of 5 s in five official folds.

Recordings cut from one source lie in one fold. Data set: Piczak 2015.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from clar.clips import Source, fold_splits
from clar.datasets import listing
from clar.datasets.listing import Row, shown
from clar.errors import UserError

CSV = "meta/esc50.csv"
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
SIZES = {"esc_50": (50, 2000), "esc_10": (10, 400)}
"""Classes and clips of each set."""

FOLDS = 5
SAMPLE_RATE = 16_000
SAMPLES = 80_000


def source(name: str, root: Path) -> Source:
    """`esc_50` or `esc_10` from the folder `root`, which holds `meta/esc50.csv` and `audio`, or a folder with these.

    Classes are in the order of the data set's targets, files sorted by name. `splits` tests on fold 5, see
    `clar.clips.fold_splits`. The audio, 44.1 kHz in the original, is stored at 16 kHz.

    Raises:
        UserError: a file is missing or cannot be read, the CSV is broken or has a value that cannot be, a file or a
            source is in two folds, or audio and CSV do not fit.
    """
    with listing.reading(name, root):
        return _scan(name, listing.real_root(name, root, (CSV,), "ESC-50"))


def _scan(name: str, root: Path) -> Source:
    base = name.partition(":")[0]
    path, folder = root / CSV, root / "audio"
    rows = listing.read_csv(path, COLUMNS)
    for row in rows:
        _check_row(path, row)
    _check_folds(path, rows)
    if not folder.is_dir():
        raise UserError(f"{name}: no folder {shown(folder)}; is the archive unpacked to its end?")
    stamps = listing.scan(folder)
    named = [row.cells["filename"] for row in rows]
    listing.check_absent(path, len(named), sorted(set(named) - stamps.keys()))
    listing.check_unlisted(path, folder, sorted(stamps.keys() - set(named)))

    chosen = sorted((row for row in rows if base == "esc_50" or row.cells["esc10"] == "True"), key=_filename)
    targets = _targets(path, chosen, SIZES[base][0])
    labels = [list(targets).index(int(row.cells["target"])) for row in chosen]
    folds = np.array([int(row.cells["fold"]) for row in chosen], np.uint8)
    absent = set(range(1, FOLDS + 1)) - set(folds.tolist())
    if absent:
        raise UserError(f"{shown(path)} has no clip in fold {min(absent)} of 1 to {FOLDS}; get the archive again")
    splits = fold_splits(folds, FOLDS)
    listing.check_training(name, list(targets.values()), labels, splits.tolist())
    notes = [] if len(chosen) == SIZES[base][1] else [f"{len(chosen):,} clips of the data set's {SIZES[base][1]:,}"]
    return listing.listed_source(
        name=name,
        root=root,
        classes=list(targets.values()),
        files=[f"audio/{_filename(row)}" for row in chosen],
        stamps=[stamps.get(_filename(row), listing.ABSENT) for row in chosen],
        labels=labels,
        splits=splits,
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        folds=folds,
        groups=[row.cells["src_file"] for row in chosen],
        notes=notes,
    )


def _filename(row: Row) -> str:
    return row.cells["filename"]


def _check_row(path: Path, row: Row) -> None:
    listing.check_plain(path, row.where, _filename(row))
    fold, target, category, esc10 = (row.cells[column] for column in ("fold", "target", "category", "esc10"))
    wrong = None
    if fold not in map(str, range(1, FOLDS + 1)):
        wrong = f"fold is {fold!r}, not one of 1 to {FOLDS}"
    elif target not in map(str, range(SIZES["esc_50"][0])):
        wrong = f"target is {target!r}, not one of 0 to 49"
    elif not category:
        wrong = "category is empty"
    elif esc10 not in ("True", "False"):
        wrong = f"esc10 is {esc10!r}, not True or False"
    if wrong:
        raise UserError(f"{shown(path)}, {row.where}: {shown(wrong)}; get the archive again")


def _check_folds(path: Path, rows: list[Row]) -> None:
    """Folds share no file and no source: what is tested would have been trained on."""
    seen: set[str] = set()
    fold_of: dict[str, str] = {}
    for row in rows:
        if _filename(row) in seen:
            raise UserError(f"{shown(path)}, {row.where}: {shown(_filename(row))} is there twice; remove one row")
        seen.add(_filename(row))
        origin, fold = row.cells["src_file"], row.cells["fold"]
        if fold_of.setdefault(origin, fold) != fold:
            raise UserError(
                f"{shown(path)}, {row.where}: clips of the source {shown(origin)!r} are in the folds "
                f"{fold_of[origin]} and {fold}; a source has one fold, get the archive again"
            )


def _targets(path: Path, rows: list[Row], count: int) -> dict[int, str]:
    """The categories by target, in the order of the targets; each of the two means one of the other."""
    pairs = sorted({(int(row.cells["target"]), row.cells["category"]) for row in rows})
    for column, values in (("target", [target for target, _ in pairs]), ("category", [name for _, name in pairs])):
        value, times = Counter(values).most_common(1)[0] if values else ("", 0)
        if times > 1:
            meant = ", ".join(f"{target} = {name}" for target, name in pairs if value in (target, name))
            raise UserError(f"{shown(path)}: the {column} {value} is ambiguous: {shown(meant)}")
    if len(pairs) != count:
        raise UserError(f"{shown(path)} has {len(pairs)} classes, not {count}; get the archive again")
    return dict(pairs)
