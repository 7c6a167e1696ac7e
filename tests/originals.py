"""Small folders of exactly the layout of the published data sets: their file names, lists and fields, with short tones.

Each function writes into `root`, which it makes, and returns it. Every class has a clip in every split or fold.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from clar.datasets import nsynth, speech_commands

ESC_CLASSES = (
    *("dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow"),
    *("rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds"),
    *("water_drops", "wind", "pouring_water", "toilet_flush", "thunderstorm"),
    *("crying_baby", "sneezing", "clapping", "breathing", "coughing"),
    *("footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping"),
    *("door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening"),
    *("washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking"),
    *("helicopter", "chainsaw", "siren", "car_horn", "engine"),
    *("train", "church_bells", "airplane", "fireworks", "hand_saw"),
)
ESC_10 = (0, 1, 10, 11, 12, 20, 21, 38, 40, 41)
"""Targets of ESC-10."""

SOURCES = ("acoustic", "electronic", "synthetic")
"""Of NSynth's instruments."""


def write_tone(path: Path, hertz: float, seconds: float = 0.05, rate: int = 16_000) -> None:
    """A tone as a 16-bit WAV file, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, tone, rate, "PCM_16", format="WAV")


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_speech_commands(root: Path, version: str = "v0.02", speakers: int = 3, seconds: float = 0.05) -> Path:
    """All words of the version; the first speaker trains, the second validates, the third tests, and again."""
    words = [word for word in speech_commands.WORDS if word not in speech_commands.VERSIONS[version]]
    lists: dict[str, list[str]] = {"valid": [], "test": []}
    for number, word in enumerate(words):
        for speaker in range(speakers):
            file = f"{word}/{speaker * 0x1234567:08x}_nohash_0.wav"
            write_tone(root / file, 200 + 50 * number + speaker, seconds)
            if speaker % 3:
                lists["valid" if speaker % 3 == 1 else "test"].append(file)
    write_tone(root / "_background_noise_" / "white_noise.wav", 100)
    (root / "README.md").write_text("## Speech Commands Data Set\n")
    (root / "LICENSE").write_text("Creative Commons BY 4.0\n")
    for split, name in speech_commands.LISTS.items():
        (root / name).write_text("".join(f"{file}\n" for file in sorted(lists[split])))
    return root


def nsynth_entry(note: int, family: str, source: str, instrument: int, pitch: int, velocity: int) -> dict[str, Any]:
    """A value of `examples.json`."""
    name = f"{family}_{source}_{instrument:03d}"
    return {
        "qualities": [0, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        "pitch": pitch,
        "note": note,
        "instrument_source_str": source,
        "velocity": velocity,
        "instrument_str": name,
        "instrument": instrument,
        "sample_rate": 16000,
        "qualities_str": ["dark", "reverb"],
        "instrument_source": SOURCES.index(source),
        "note_str": f"{name}-{pitch:03d}-{velocity:03d}",
        "instrument_family": nsynth.FAMILIES.index(family),
        "instrument_family_str": family,
    }


def write_nsynth(root: Path, pitches: Sequence[int] = (22, 60), seconds: float = 0.05) -> Path:
    """For each split and family an instrument of its own at these pitches; `synth_lead` trains only, as it does."""
    number = 0
    for split_number, (split, folder) in enumerate(nsynth.FOLDERS.items()):
        entries = {}
        for family_number, family in enumerate(nsynth.FAMILIES):
            if family == "synth_lead" and split != "train":
                continue
            for pitch in pitches:
                source = SOURCES[(family_number + 2) % 3]
                entry = nsynth_entry(number, family, source, 33 + 100 * split_number + family_number, pitch, 50)
                entries[entry["note_str"]] = entry
                hertz = 440 * 2 ** ((pitch - 69) / 12) + number / 10  # no two clips are the same
                write_tone(root / folder / "audio" / f"{entry['note_str']}.wav", hertz, seconds)
                number += 1
        (root / folder / "examples.json").write_text(json.dumps(entries, indent=4))
    return root


def write_esc(root: Path, seconds: float = 0.02, per_fold: int = 1) -> Path:
    """All 50 classes in all five folds, 44.1 kHz."""
    rows = []
    for fold in range(1, 6):
        for target, category in enumerate(ESC_CLASSES):
            for number in range(per_fold):
                origin = 100_000 + 1000 * fold + 10 * target + number
                file = f"{fold}-{origin}-A-{target}.wav"
                rows.append([file, fold, target, category, target in ESC_10, origin, "A"])
                write_tone(root / "audio" / file, 200 + 60 * target + fold, seconds, 44_100)
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_table(root / "meta" / "esc50.csv", header, sorted(rows))
    (root / "README.md").write_text("# ESC-50: Dataset for Environmental Sound Classification\n")
    return root


def write_folder(root: Path, classes: Sequence[str] = ("cat", "dog"), count: int = 10, seconds: float = 0.05) -> Path:
    """A sub-folder a class, every other file of which lies one folder deeper."""
    for number, label in enumerate(classes):
        for file in range(count):
            inner = root / label / "more" if file % 2 else root / label
            write_tone(inner / f"{label}_{file:03d}.wav", 200 + 100 * number + file, seconds)
    return root


def hear_metadata(mode: str = "trainvaltest", folds: int = 5, **changes: object) -> dict[str, Any]:
    """The content of `task_metadata.json`."""
    metadata: dict[str, Any] = {
        "task_name": "spoken_digit",
        "version": "v1.0.9-hear2021",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": mode,
        "sample_duration": 1.0,
        "evaluation": ["top1_acc"],
        "default_mode": "full",
        "max_task_duration_by_split": None,
        "mode": "full",
        "splits": ["train", "valid", "test"],
    }
    if mode != "trainvaltest":
        metadata |= {"nfolds": folds, "splits": [f"fold{number:02d}" for number in range(folds)]}
    return metadata | changes


def write_hear(
    root: Path, mode: str = "trainvaltest", folds: int = 5, rates: Sequence[int] = (48_000,), per_class: int = 2
) -> Path:
    """Three classes; numbers as labels, which stay numbers in the JSON."""
    root.mkdir(parents=True)
    metadata = hear_metadata(mode, folds)
    (root / "task_metadata.json").write_text(json.dumps(metadata, indent=1))
    write_table(root / "labelvocabulary.csv", ("idx", "label"), list(enumerate((0, 1, 2))))
    for part_number, part in enumerate(metadata["splits"]):
        labels = {}
        for label in range(3):
            for number in range(per_class):
                file = f"{label}_jackson_{10 * part_number + number}.wav"
                labels[file] = [label]
                for rate in rates:
                    write_tone(root / str(rate) / part / file, 300 + 200 * label + part_number, 0.05, rate)
        (root / f"{part}.json").write_text(json.dumps(labels, indent=1))
    return root
