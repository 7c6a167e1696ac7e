"""Speech Commands from its unpacked folder: the ten digits (the paper's SC-10) or all 35 words (SC-35).

Splits are the data set's own, speaker-disjoint: `testing_list.txt`, `validation_list.txt`, all other files train.
Version 0.02 unless the name asks for the first one, which lacks five words: `speech_commands_35:v0.01`.
"""

from pathlib import Path

import numpy as np

from clar.clips import SPLITS, Source
from clar.datasets import listing
from clar.datasets.listing import SUFFIXES, shown
from clar.errors import UserError, near

__all__ = ["DIGITS", "LISTS", "SUFFIXES", "VERSIONS", "WORDS", "source"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy"),
    *("house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop"),
    *("three", "tree", "two", "up", "visual", "wow", "yes", "zero"),
)

VERSIONS = {"v0.02": (), "v0.01": ("backward", "follow", "forward", "learn", "visual")}
"""The words of the 35 that each version lacks."""

LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
NOISE = "_background_noise_"

SAMPLE_RATE = 16_000
SAMPLES = 16_000


def source(name: str, words: tuple[str, ...], root: Path) -> Source:
    """The data set in the folder `root`, or in the only folder in it: one folder a word, and the two lists.

    Classes are `words` in their order, without those that the version lacks; files are sorted within a class.
    `_background_noise_` and other words are left out. Audio may be of any format in `SUFFIXES`; the lists name the
    files as they are called. An entry that is called like audio but cannot be read, such as a broken link, is in the
    list of files, and counts as bad when it is decoded.

    Args:
        name: of the data set, with the version after a colon where it is not v0.02.
        words: the classes.
        root: the folder.

    Raises:
        UserError: there is no such version, the folder, a list or a word's folder is missing or cannot be read, a
            recording is there in two formats, or the lists do not fit the files.
    """
    with listing.reading(name, root):
        return _scan(name, words, listing.real_root(name, root, tuple(LISTS.values()), "Speech Commands"))


def _scan(name: str, words: tuple[str, ...], root: Path) -> Source:
    words, notes = _present(name, words, root)
    listed = {split: _read_list(root / file, words) for split, file in LISTS.items()}
    files: list[str] = []
    stamps: list[str] = []
    labels: list[int] = []
    for label, word in enumerate(words):
        found = listing.scan(root / word)
        listing.check_formats(root / word, list(found))
        files += [f"{word}/{file}" for file in found]
        stamps += found.values()
        labels += [label] * len(found)
    _check_lists(root, listed, set(files))
    splits = np.zeros(len(files), np.uint8)
    for split, members in listed.items():
        splits[[file in members for file in files]] = SPLITS.index(split)
    return listing.listed_source(
        name=name,
        root=root,
        classes=words,
        files=files,
        stamps=stamps,
        labels=labels,
        splits=splits,
        groups=[_speaker(file) for file in files],
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        notes=notes,
    )


def _speaker(file: str) -> str:
    """What a file's name, `eight/1a2b_nohash_0.wav`, says of who speaks; empty where it is another kind of name."""
    speaker, mark, _ = file.rpartition("/")[2].partition("_nohash_")
    return speaker if mark else ""


def _present(name: str, words: tuple[str, ...], root: Path) -> tuple[tuple[str, ...], list[str]]:
    """The words of the version that `name` asks for, and notes about what is missing or left out."""
    base, _, version = name.partition(":")
    if version and version not in VERSIONS:
        raise UserError(f"{name}: no version {version!r} of Speech Commands{near(version, VERSIONS)}")
    lacking = [word for word in words if word in VERSIONS[version or "v0.02"]]
    for file in LISTS.values():
        if not (root / file).is_file():
            raise UserError(
                f"{shown(root / file)} is missing: {shown(root)} is not a whole Speech Commands folder, "
                f"which has word folders, {' and '.join(LISTS.values())}"
            )
    there = sorted(path.name for path in root.iterdir() if path.is_dir() and listing.is_data(path.name))
    # The ten digits are in both versions: the other words tell them apart, where there are any.
    newer = [word for word in VERSIONS["v0.01"] if word in there]
    others_there = set(there) & set(WORDS) - set(DIGITS)
    if version == "v0.01" and newer:
        raise UserError(
            f"{name}: {shown(root)} has the word{'s' * (len(newer) > 1)} {', '.join(newer)}, which v0.01 lacks; "
            "this is another version, leave out :v0.01"
        )
    if version != "v0.01" and others_there and not newer:
        raise UserError(
            f"{name}: {shown(root)} has no folder for the words {', '.join(VERSIONS['v0.01'])}; of the first version's "
            f"folder say {base}:v0.01, or name another folder"
        )
    missing = [word for word in words if word not in there and word not in lacking]
    if missing:
        first = set(missing) == set(VERSIONS["v0.01"])
        hint = f"of the first version's folder say {base}:v0.01" if first else "is the archive unpacked to its end?"
        raise UserError(
            f"{name}: {shown(root)} has no folder for the word{'s' * (len(missing) > 1)} {', '.join(missing)}; {hint}"
        )
    others = [word for word in there if word not in WORDS and word != NOISE]
    notes = [f"missing words: {', '.join(lacking)}"] if lacking else []
    if others:
        notes.append(f"left out, for they are none of the 35 words: {', '.join(others)}")
    return tuple(word for word in words if word not in lacking), notes


def _read_list(path: Path, words: tuple[str, ...]) -> set[str]:
    """The lines of a list that name files of `words`."""
    content = path.read_bytes()
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown(path)}, line {number}: not UTF-8 ({error.reason}); save the list as UTF-8") from None
    wanted = set(words)
    known: dict[str, bool] = {}
    for number, line in enumerate(lines, 1):
        word, _, file = line.partition("/")
        if word not in known:  # "Eight" is not another word, even where the disk does not tell it from "eight"
            others = word.lower() not in WORDS and listing.is_data(word) and (path.parent / word).is_dir()
            known[word] = word in WORDS or others
        if line and (not (word and file and known[word]) or "/" in file or "\\" in line):
            raise UserError(
                f"{shown(path)}, line {number}: {shown(line)!r} is no file of a word, such as eight/1a2b_nohash_0.wav; "
                "what it means would be trained on: correct it"
            )
    return {line for line in lines if line and line.split("/")[0] in wanted}


def _check_lists(root: Path, listed: dict[str, set[str]], files: set[str]) -> None:
    both = sorted(listed["valid"] & listed["test"])
    if both:
        raise UserError(
            f"{shown(root)}: {shown(both[0])} stands in both lists ({len(both):,} such); a file has one split"
        )
    for split, members in listed.items():
        absent = sorted(members - files)
        if absent:
            raise UserError(
                f"{shown(root / LISTS[split])} names {len(absent):,} files that do not exist, first "
                f"{shown(absent[0])}; is the archive unpacked to its end?"
            )
