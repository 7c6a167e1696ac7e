"""NSynth from its unpacked folders: 305,979 notes of 4 s, labelled with the instrument's family or with the pitch.

Splits are the data set's own, instrument-disjoint between train and the other two. The valid and test splits hold no
`synth_lead`, and some of the 128 MIDI pitches have no note at all. Data set: Engel et al. 2017, magenta's `NSynth`.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from clar.clips import SPLITS, Source
from clar.datasets import listing
from clar.datasets.listing import shown
from clar.errors import UserError, near

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal")
"""In the order of the data set's ids, 0 to 10."""

PITCHES = tuple(str(pitch) for pitch in range(128))
"""MIDI note numbers."""

CLASSES = {"family": FAMILIES, "pitch": PITCHES}
FOLDERS = {split: f"nsynth-{split}" for split in SPLITS}
NOTES = 305_979
"""Of the whole data set."""

SAMPLE_RATE = 16_000
SAMPLES = 64_000


class Note(NamedTuple):
    """What is kept of a note's entry in `examples.json`."""

    family: Any
    pitch: Any


def source(name: str, label: str, root: Path) -> Source:
    """The data set in the folder `root`: `nsynth-train`, `nsynth-valid` and `nsynth-test`, or a folder with these.

    Each holds `examples.json` and `audio/`. Files are in the order of their splits, then of their names, and are the
    same for both labels. Audio may be of any format in `listing.SUFFIXES`.

    Args:
        name: of the data set.
        label: "family", 11 classes; or "pitch", 128 classes.
        root: the folder.

    Raises:
        UserError: a folder or file is missing or cannot be read, the JSON is broken or has another form, a family or
            pitch is unknown, a note is there twice, or audio and JSON do not fit.
    """
    if label not in CLASSES:
        raise UserError(f"{name}: no label {label!r} of NSynth{near(label, CLASSES)}")
    with listing.reading(name, root):
        return _scan(name, label, listing.real_root(name, root, tuple(FOLDERS.values()), "NSynth"))


def _scan(name: str, label: str, root: Path) -> Source:
    files: list[str] = []
    stamps: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    instruments: list[str] = []
    split_of: dict[str, str] = {}
    for position, (split, folder) in enumerate(FOLDERS.items()):
        path = root / folder / "examples.json"
        if not (root / folder / "audio").is_dir():
            raise UserError(
                f"{name}: no folder {shown(root / folder / 'audio')}; unpack {folder}.jsonwav.tar.gz in {shown(root)}"
            )
        notes = _read_notes(path)
        found = _find(path, notes)
        for key in sorted(notes):
            other = split_of.setdefault(key, split)
            if other != split:
                raise UserError(f"{shown(path)}: the note {shown(key)} is in {other} too; a note has one split")
            file, stamp = found.get(key, (f"{key}.wav", listing.ABSENT))
            files.append(f"{folder}/audio/{file}")
            stamps.append(stamp)
            instruments.append(key.rsplit("-", 2)[0])  # bass_synthetic_033-022-050: of a pitch and a velocity
            labels.append(FAMILIES.index(notes[key].family) if label == "family" else notes[key].pitch)
        splits += [position] * len(notes)
    if label == "family":
        listing.check_training(name, FAMILIES, labels, splits)
    notes_ = [] if len(files) == NOTES else [f"{len(files):,} notes of the data set's {NOTES:,}"]
    return listing.listed_source(
        name=name,
        root=root,
        classes=CLASSES[label],
        files=files,
        stamps=stamps,
        labels=labels,
        splits=splits,
        groups=instruments,
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        notes=[*notes_, *listing.coverage(CLASSES[label], labels, splits)],
        vocabulary=label == "pitch",
        recordings="nsynth",
    )


def _find(path: Path, notes: dict[str, Note]) -> dict[str, tuple[str, str]]:
    """File name and stamp of the audio of each note beside `path` that has any."""
    folder = path.parent / "audio"
    audio = listing.scan(folder)
    listing.check_formats(folder, list(audio))
    found = {file.rpartition(".")[0]: (file, stamp) for file, stamp in audio.items()}
    listing.check_absent(path, len(notes), sorted(notes.keys() - found.keys()))
    listing.check_unlisted(path, folder, sorted(file for key, (file, _) in found.items() if key not in notes))
    return found


class _Object(list[tuple[str, Any]]):
    """A JSON object that is no note: the file as a whole, or a note that lacks a field."""


def _read_notes(path: Path) -> dict[str, Note]:
    """The notes of an `examples.json` by their names.

    Of each entry only two fields are kept, while the file is parsed: the train split's whole entries would take half a
    gigabyte.
    """
    content = listing.read_json(path, _keep)
    if not isinstance(content, _Object):
        raise UserError(f"{shown(path)}: a {type(content).__name__} and no object of notes; get the archive again")
    notes: dict[str, Note] = {}
    for key, note in content:
        listing.check_plain(path, "a note's name", key)
        if not isinstance(note, Note):
            raise UserError(f"{shown(path)}: {shown(key)} has no instrument_family_str or no pitch")
        if note.family not in FAMILIES:
            raise UserError(
                f"{shown(path)}: {shown(key)} is of the family {shown(note.family)!r}{near(note.family, FAMILIES)}"
            )
        if type(note.pitch) is not int or not 0 <= note.pitch < len(PITCHES):
            raise UserError(f"{shown(path)}: {shown(key)} has pitch {shown(note.pitch)}, not one of 0 to 127")
        if key in notes:
            raise UserError(f"{shown(path)} names {shown(key)} twice; get the archive again")
        notes[key] = note
    if not notes:
        raise UserError(f"{shown(path)} names no note; get the archive again")
    return notes


def _keep(pairs: list[tuple[str, Any]]) -> Any:
    fields = dict(pairs)
    family = fields.get("instrument_family_str")
    if family is None or "pitch" not in fields:
        return _Object(pairs)
    return Note(sys.intern(family) if isinstance(family, str) else family, fields["pitch"])
