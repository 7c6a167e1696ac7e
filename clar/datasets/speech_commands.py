"""Speech Commands v0.02 from its unpacked folder: the ten digits (the paper's SC-10) or all 35 words (SC-35).

Splits are the data set's own, speaker-disjoint: `testing_list.txt`, `validation_list.txt`, all other files train.
"""

import os
from pathlib import Path

import numpy as np

from clar.clips import SPLITS, Source
from clar.datasets.decode import decode_files
from clar.errors import UserError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy"),
    *("house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop"),
    *("three", "tree", "two", "up", "visual", "wow", "yes", "zero"),
)

LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
"""Of the audio files in a word's folder, in any case of letters; libsndfile reads them all."""

SAMPLE_RATE = 16_000
SAMPLES = 16_000


def source(name: str, words: tuple[str, ...], root: Path) -> Source:
    """The data set in the folder `root`: one folder a word, and the two lists.

    Classes are `words` in their order; files are sorted within a class. `_background_noise_` and other words are left
    out. Audio may be of any format in `SUFFIXES`; the lists name the files as they are called. An entry that is called
    like audio but cannot be read, such as a broken link, is in the list of files, and counts as bad when it is decoded.

    Raises:
        UserError: the folder, a list or a word's folder is missing or cannot be read, a recording is there in two
            formats, or the lists do not fit the files.
    """
    try:
        return _scan(name, words, root)
    except OSError as error:
        raise UserError(f"{name}: cannot read {error.filename or root}: {error.strerror or error}") from error


def _scan(name: str, words: tuple[str, ...], root: Path) -> Source:
    if not root.is_dir():
        raise UserError(f"{name}: no folder {root}; unpack the Speech Commands archive and pass its folder with --root")
    listed = {split: _read_list(root / file, words) for split, file in LISTS.items()}
    missing = [word for word in words if not (root / word).is_dir()]
    if missing:
        raise UserError(f"{name}: {root} has no folder for the word{'s' * (len(missing) > 1)} {', '.join(missing)}")
    files, stamps, labels = [], [], []
    for label, word in enumerate(words):
        with os.scandir(root / word) as entries:
            found = sorted((e.name, _stamp(e)) for e in entries if e.name.lower().endswith(SUFFIXES))
        _check_formats(root / word, [file for file, _ in found])
        files += [f"{word}/{file}" for file, _ in found]
        stamps += [stamp for _, stamp in found]
        labels += [label] * len(found)
    _check_lists(root, listed, set(files))
    splits = np.zeros(len(files), np.uint8)
    for split, members in listed.items():
        splits[[file in members for file in files]] = SPLITS.index(split)
    return Source(
        name=name,
        classes=words,
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        files=files,
        stamps=stamps,
        labels=np.array(labels, np.int64),
        splits=splits,
        decode=decode_files(root, files, SAMPLE_RATE, SAMPLES),
    )


def _stamp(entry: os.DirEntry[str]) -> str:
    try:
        status = entry.stat()
    except OSError:  # a broken link: the link itself, until its target is there
        status = entry.stat(follow_symlinks=False)
    return f"{status.st_size} {status.st_mtime_ns}"


def _check_formats(folder: Path, files: list[str]) -> None:
    """The lists name one of two formats only, so that the other would train on what is tested."""
    first: dict[str, str] = {}
    for file in files:
        other = first.setdefault(os.path.splitext(file)[0], file)  # noqa: PTH122 - a third of the time of a Path
        if other != file:
            raise UserError(f"{folder} holds one recording twice, {other} and {file}; remove one of them")


def _read_list(path: Path, words: tuple[str, ...]) -> set[str]:
    """The lines of a list that name files of `words`."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {path.parent} is not a whole Speech Commands folder, which has word folders, "
            f"{' and '.join(LISTS.values())}"
        )
    content = path.read_bytes()
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason}); save the list as UTF-8") from None
    wanted = set(words)
    return {line for line in lines if line and line.split("/")[0] in wanted}


def _check_lists(root: Path, listed: dict[str, set[str]], files: set[str]) -> None:
    both = sorted(listed["valid"] & listed["test"])
    if both:
        raise UserError(f"{root}: {both[0]} stands in both lists ({len(both):,} such); a file has one split")
    for split, members in listed.items():
        absent = sorted(members - files)
        if absent:
            raise UserError(
                f"{root / LISTS[split]} names {len(absent):,} files that do not exist, first {absent[0]}; "
                "is the archive unpacked to its end?"
            )
