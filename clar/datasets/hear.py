"""A task folder of the HEAR benchmark (Turian et al. 2022): scenes with one label a clip, in official splits or folds.

The folder, as `hear-preprocess` writes it, holds `task_metadata.json`, `labelvocabulary.csv` (idx, label), for each
split or fold a JSON of file names to lists of labels, and the audio as `<sample rate>/<split>/<file>`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from clar.clips import SPLITS, Source, fold_splits
from clar.datasets import listing
from clar.datasets.listing import shown
from clar.errors import UserError

METADATA = "task_metadata.json"
KFOLD = ("presplit_kfold", "new_split_kfold")
SAMPLE_RATE = 16_000
LIMIT = 5.0
"""Seconds of a clip, where the task does not say."""


def source(name: str, root: Path) -> Source:
    """The task in the folder `root`, or in the only folder in it, as HEAR's archives unpack.

    Classes are the task's vocabulary, of which a split may have no clip; files are in the order of the splits or folds,
    then of their names. Folds count from 1: HEAR's `fold00` is 1. `splits` tests on the last fold. The audio is that of
    16,000 Hz where there is any, else of the highest rate, and is stored at 16 kHz.

    Raises:
        UserError: the task is of events or has several labels a clip, a file is missing, broken or cannot be read, a
            label is not in the vocabulary, a clip is in two splits, or audio and JSON do not fit.
    """
    with listing.reading(name, root):
        return _scan(name, listing.real_root(name, root, (METADATA,), "HEAR task"))


def folds(root: Path) -> int:
    """How many folds the task in the folder `root` has; 0: train, valid and test. Reads its metadata only.

    Raises:
        UserError: it is no task, or none that `source` takes.
    """
    with listing.reading("hear", root):
        path = listing.real_root("hear", root, (METADATA,), "HEAR task") / METADATA
        parts = _parts(path, _metadata(path))
    return 0 if parts == SPLITS else len(parts)


def _scan(name: str, root: Path) -> Source:
    metadata = _metadata(root / METADATA)
    parts = _parts(root / METADATA, metadata)
    classes = _vocabulary(root / "labelvocabulary.csv")
    audio = _audio(root)
    files: list[str] = []
    stamps: list[str] = []
    labels: list[int] = []
    places: list[int] = []
    part_of: dict[str, str] = {}
    for place, part in enumerate(parts):
        label_of = _labels(root / f"{part}.json", classes)
        found = _find(root / f"{part}.json", audio / part, set(label_of))
        for file in sorted(label_of):
            if part_of.setdefault(file, part) != part:
                raise UserError(
                    f"{shown(root / f'{part}.json')}: {shown(file)} is in {part_of[file]} too; a clip has one split"
                )
            files.append(f"{audio.name}/{part}/{file}")
            stamps.append(found.get(file, listing.ABSENT))
            labels.append(label_of[file])
            places.append(place)
    folds_N = None if parts == SPLITS else np.array(places, np.uint8) + np.uint8(1)
    splits_N = np.array(places, np.uint8) if folds_N is None else fold_splits(folds_N, len(parts))
    seconds, said = _seconds(root, metadata, files)
    return listing.listed_source(
        name=name,
        root=root,
        classes=classes,
        files=files,
        stamps=stamps,
        labels=labels,
        splits=splits_N,
        sample_rate=SAMPLE_RATE,
        samples=max(1, round(seconds * SAMPLE_RATE)),
        folds=folds_N,
        notes=[
            f"HEAR task {metadata.get('task_name', root.name)} {metadata.get('version', '')}".rstrip(),
            *said,
            *listing.coverage(classes, labels, splits_N.tolist(), folds_N is not None),
        ],
        vocabulary=True,
    )


def _metadata(path: Path) -> dict[str, Any]:
    metadata = listing.read_json(path)
    if not isinstance(metadata, dict):
        raise UserError(f"{shown(path)}: a {type(metadata).__name__} and no object; get the archive again")
    kind, prediction = metadata.get("embedding_type"), metadata.get("prediction_type")
    if (kind, prediction) != ("scene", "multiclass"):
        raise UserError(
            f"{shown(path)}: embedding_type {shown(kind)} and prediction_type {shown(prediction)}; "
            "supported are tasks with one label a clip, scene and multiclass"
        )
    return metadata


def _parts(path: Path, metadata: dict[str, Any]) -> tuple[str, ...]:
    """The names of the task's splits or folds."""
    mode = metadata.get("split_mode")
    if mode == "trainvaltest":
        return SPLITS
    if mode not in KFOLD:
        raise UserError(f"{shown(path)}: split_mode {shown(mode)}; known: trainvaltest, {', '.join(KFOLD)}")
    count = metadata.get("nfolds")
    if type(count) is not int or not 3 <= count <= 99:
        raise UserError(f"{shown(path)}: nfolds is {shown(count)}, not a number of folds from 3 to 99")
    return tuple(f"fold{place:02d}" for place in range(count))


def _vocabulary(path: Path) -> list[str]:
    """The labels in the order of their indices."""
    rows = listing.read_csv(path, ("idx", "label"))
    label_of: dict[int, str] = {}
    for where, cells in rows:
        index, label = cells["idx"], cells["label"]
        if not (index.isascii() and index.isdigit()) or int(index) >= len(rows) or int(index) in label_of:
            raise UserError(
                f"{shown(path)}, {where}: idx is {shown(index)!r}; each of 0 to {len(rows) - 1} must be there once"
            )
        if not label or label in label_of.values():
            raise UserError(f"{shown(path)}, {where}: the label {shown(label)!r} is empty or there twice")
        label_of[int(index)] = label
    return [label_of[index] for index in range(len(rows))]


def _audio(root: Path) -> Path:
    """The folder of the audio at 16 kHz, else at the highest rate."""
    rates = [int(path.name) for path in root.iterdir() if path.name.isascii() and path.name.isdigit() and path.is_dir()]
    if not rates:
        raise UserError(
            f"{shown(root)} has no folder of audio, such as {SAMPLE_RATE}; unpack the task's archive of that rate"
        )
    return root / str(SAMPLE_RATE if SAMPLE_RATE in rates else max(rates))


def _labels(path: Path, classes: list[str]) -> dict[str, int]:
    """The position in `classes` of each file's label."""
    content = listing.read_json(path, lambda pairs: pairs)
    if not isinstance(content, list) or not all(isinstance(pair, tuple) for pair in content):
        raise UserError(f"{shown(path)}: no object of files and labels; get the archive again")
    position = {label: place for place, label in enumerate(classes)}
    labels: dict[str, int] = {}
    for file, value in content:
        listing.check_plain(path, "a file's name", file)
        if not isinstance(value, list) or len(value) != 1:
            raise UserError(f"{shown(path)}: {shown(file)} has labels {shown(value)[:80]}, not a list of one")
        if str(value[0]) not in position:  # numbers stay numbers in the JSON
            raise UserError(
                f"{shown(path)}: {shown(file)} has the label {shown(value[0])!r}, which labelvocabulary.csv lacks"
            )
        if file in labels:
            raise UserError(f"{shown(path)} names {shown(file)} twice; get the archive again")
        labels[file] = position[str(value[0])]
    if not labels:
        raise UserError(f"{shown(path)} names no file; get the archive again")
    return labels


def _find(path: Path, folder: Path, named: set[str]) -> dict[str, str]:
    """The stamps of the audio in `folder`, which `path` names."""
    if not folder.is_dir():
        raise UserError(f"{shown(folder)} is missing; is the archive unpacked to its end?")
    found = listing.scan(folder)
    listing.check_absent(path, len(named), sorted(named - found.keys()))
    listing.check_unlisted(path, folder, sorted(found.keys() - named))
    return found


def _seconds(root: Path, metadata: dict[str, Any], files: list[str]) -> tuple[float, list[str]]:
    """The length of a clip, and a note where the task does not say it."""
    seconds = metadata.get("sample_duration")
    if seconds is None:
        seconds = listing.longest(root, files, LIMIT)
        if not seconds:
            raise UserError(f"{shown(root)}: none of {len(files):,} audio files can be read")
        return seconds, [f"clips of {seconds:g} s, the longest file's length up to {LIMIT:g} s: the task names none"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3600:
        raise UserError(f"{shown(root / METADATA)}: sample_duration is {shown(seconds)}, not seconds from 0 to 3600")
    return float(seconds), []
