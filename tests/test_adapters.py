"""The folders of published data sets and of one's own: classes, labels, splits, folds, order, and what is refused."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from clar import building
from clar.clips import SPLITS, Source, fold_splits
from clar.datasets import drawing, esc, folder, hear, listing, nsynth, speech_commands
from clar.datasets.drawing import Clip, drawn_folds, stratified
from clar.errors import UserError
from tests import originals

WRITERS = {
    "speech_commands": originals.write_speech_commands,
    "nsynth": originals.write_nsynth,
    "esc": originals.write_esc,
    "folder": originals.write_folder,
    "hear": originals.write_hear,
}
READERS = {
    "speech_commands": lambda root: speech_commands.source("speech_commands_35", speech_commands.WORDS, root),
    "nsynth": lambda root: nsynth.source("nsynth_family", "family", root),
    "esc": lambda root: esc.source("esc_50", root),
    "folder": lambda root: folder.source("folder:mine", root),
    "hear": lambda root: hear.source("hear:digit", root),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """One small original of each kind, only to be read."""
    return {kind: write(tmp_path_factory.mktemp(kind) / "root") for kind, write in WRITERS.items()}


@pytest.fixture
def copy(written, tmp_path):
    """A copy of an original, to be spoilt."""

    def copy_(kind: str) -> Path:
        return Path(shutil.copytree(written[kind], tmp_path / "root"))

    return copy_


def refused(read, *arguments, **named) -> str:
    """The message of a refusal, which is one line."""
    with pytest.raises(UserError) as error:
        read(*arguments, **named)
    message = str(error.value)
    assert "\n" not in message
    message.encode()
    return message


def split_of(source: Source) -> dict[str, str]:
    return {file: SPLITS[split] for file, split in zip(source.files, source.splits, strict=True)}


def label_of(source: Source) -> dict[str, str]:
    return {file: source.classes[label] for file, label in zip(source.files, source.labels, strict=True)}


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content, indent=1))


def change_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def table(root: Path, *rows, header=("path", "label"), suffix="csv") -> Path:
    """A table, and the files that it lists where their paths are plain."""
    for number, row in enumerate(rows):
        if row and row[0] and not (root / str(row[0])).exists() and "\0" not in str(row[0]):
            originals.write_tone(root / str(row[0]), 200 + 10 * number)
    path = root / f"list.{suffix}"
    if suffix == "csv":
        originals.write_table(path, header, rows)
    else:
        import pandas as pd

        pd.DataFrame([dict(zip(header, row, strict=True)) for row in rows]).to_parquet(path)
    return path


def ten_each(*columns) -> list[list[object]]:
    """Ten files of each of two classes, and more columns: functions of the file's number."""
    return [[f"{label}{i}.wav", label, *(column(i) for column in columns)] for label in "ab" for i in range(10)]


# What all adapters keep


@pytest.mark.parametrize("kind", READERS)
def test_source_is_whole_ordered_and_repeatable(written, kind):
    source, again = READERS[kind](written[kind]), READERS[kind](written[kind])
    assert len(source.files) == len(set(source.files)) == len(source.stamps) == len(source.labels)
    assert source.labels.dtype == np.int64
    assert source.splits.dtype == np.uint8
    assert set(source.labels.tolist()) == set(range(len(source.classes)))
    assert set(source.splits.tolist()) == {0, 1, 2}
    assert source.manifest == again.manifest
    assert all((written[kind] / file).is_file() for file in source.files)


@pytest.mark.parametrize("kind", READERS)
def test_order_of_the_listing_does_not_matter(written, kind, monkeypatch):
    wanted = READERS[kind](written[kind]).manifest
    real = os.scandir

    class Backwards:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert READERS[kind](written[kind]).manifest == wanted


@pytest.mark.parametrize("kind", READERS)
def test_changed_file_changes_the_manifest(copy, kind):
    root = copy(kind)
    first = READERS[kind](root)
    originals.write_tone(root / first.files[0], 999, 0.03)
    assert READERS[kind](root).manifest != first.manifest


@pytest.mark.parametrize("kind", READERS)
def test_stores_have_one_fingerprint_wherever_they_lie(written, copy, kind, tmp_path):
    one = building.build(tmp_path / "one", READERS[kind](written[kind]))
    two = building.build(tmp_path / "two", READERS[kind](copy(kind)))
    assert one.fingerprint == two.fingerprint
    assert len(one) == len(one.files)
    assert not one.left_out


GROUPS = {
    "speech_commands": ("eight/01234567_nohash_0.wav", "01234567"),
    "nsynth": ("nsynth-train/audio/bass_synthetic_033-022-050.wav", "bass_synthetic_033"),
    "esc": ("audio/1-101000-A-0.wav", "101000"),
    "folder": ("cat/cat_000.wav", ""),
    "hear": ("48000/train/0_jackson_0.wav", ""),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_stores_know_their_groups(written, kind, tmp_path):
    file, group = GROUPS[kind]
    store = building.build(tmp_path / "store", READERS[kind](written[kind]))
    assert len(store.groups) == len(store)
    assert store.groups[store.files.index(file)] == group
    assert all(store.groups) == bool(group)


@pytest.mark.parametrize("kind", ["speech_commands", "nsynth", "esc", "hear"])
def test_root_may_hold_the_real_root(written, kind, tmp_path):
    wanted = READERS[kind](written[kind])
    outer = tmp_path / "hear-2021.0.6" / "tasks" if kind == "hear" else tmp_path
    outer.mkdir(exist_ok=True, parents=True)
    (outer / "inner").symlink_to(written[kind])
    (outer / "archive.tar.gz").write_text("what it was unpacked from")
    (outer / "__MACOSX").mkdir()
    source = READERS[kind](tmp_path)
    assert (source.files, source.manifest) == (wanted.files, wanted.manifest)
    clips_NT, reasons, *_ = source.decode(0, 2)
    assert clips_NT.any()
    assert reasons == [None, None]


@pytest.mark.parametrize("kind", ["speech_commands", "nsynth", "esc", "hear"])
def test_root_may_hold_other_folders_beside_the_real_root(written, kind, tmp_path):
    (tmp_path / "inner").symlink_to(written[kind])
    (tmp_path / "mine").mkdir()
    assert READERS[kind](tmp_path).files == READERS[kind](written[kind]).files
    (tmp_path / "second").symlink_to(written[kind])
    assert "holds the data set twice, in inner, second; name one" in refused(READERS[kind], tmp_path)


@pytest.mark.parametrize("kind", READERS)
def test_folder_without_permission(written, kind, monkeypatch):
    last = READERS[kind](written[kind]).files[-1]
    closed, real = (written[kind] / last).parent, os.scandir

    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # no permission bits: tests may run as root
    assert f"cannot read {closed}: Permission denied" in refused(READERS[kind], written[kind])


@pytest.mark.parametrize("kind", ["nsynth", "esc", "hear", "speech_commands", "folder"])
def test_missing_and_empty_roots(kind, tmp_path):
    assert "no folder" in refused(READERS[kind], tmp_path / "gone")
    assert str(tmp_path) in refused(READERS[kind], tmp_path)


@pytest.mark.parametrize("kind", ["nsynth", "esc", "hear"])
def test_one_absent_file_of_many_is_bad_and_more_are_an_error(copy, kind, monkeypatch):
    root = copy(kind)
    _, _, _, gone, *more = READERS[kind](root).files[:6]
    for file in (gone, *more):
        (root / file).unlink()
    message = refused(READERS[kind], root)
    assert "do not exist, first" in message
    assert "unpacked to its end?" in message
    monkeypatch.setattr(listing, "BAD_SHARE", 0.5)
    source = READERS[kind](root)
    assert source.files[3] == gone
    _, reasons, *_ = source.decode(3, 4)
    assert reasons == ["unreadable: No such file or directory"]


@pytest.mark.parametrize("kind", READERS)
def test_folder_called_like_audio_is_a_bad_file(copy, kind):
    root = copy(kind)
    first = READERS[kind](root).files[0]
    (root / first).unlink()
    (root / first).mkdir()
    source = READERS[kind](root)
    _, reasons, *_ = source.decode(source.files.index(first), source.files.index(first) + 1)
    assert reasons == ["unreadable: a folder"]


def test_hidden_files_are_no_data(copy):
    root = copy("esc")
    (root / "audio" / "._1-101000-A-0.wav").write_bytes(b"what macOS leaves on other disks")
    assert len(READERS["esc"](root).files) == 250


NAME = os.fsdecode("müller".encode("latin-1")) + "\n.wav"


def test_any_file_name_works(copy, tmp_path):
    """Names that are not UTF-8 or hold a line break: lists show them escaped."""
    root = copy("folder")
    try:
        originals.write_tone(tmp_path / "a.wav", 500)
        (tmp_path / "a.wav").rename(root / "cat" / NAME)
    except OSError:
        pytest.skip("this file system knows UTF-8 names only")
    source = READERS["folder"](root)
    assert "cat/m\\udcfcller\\n.wav" in source.files
    store = building.build(tmp_path / "store", source)
    assert "cat/m\\udcfcller\\n.wav" in store.files
    assert not store.left_out


def test_messages_stay_short():
    assert listing.shown(Path("a\r\nb")) == "a\\r\\nb"
    assert len(listing.shown("0" * 10_000)) < 300


# Speech Commands


def test_first_version_lacks_five_words(tmp_path):
    root = originals.write_speech_commands(tmp_path / "root", "v0.01")
    source = speech_commands.source("speech_commands_35:v0.01", speech_commands.WORDS, root)
    assert len(source.classes) == 30
    assert source.name == "speech_commands_35:v0.01"
    assert source.notes == ["missing words: backward, follow, forward, learn, visual"]
    assert Counter(label_of(source).values()) == dict.fromkeys(source.classes, 3)
    ten = speech_commands.source("speech_commands_10:v0.01", speech_commands.DIGITS, root)
    assert tuple(ten.classes) == speech_commands.DIGITS
    assert not ten.notes
    message = refused(READERS["speech_commands"], root)
    assert "no folder for the words backward, follow, forward, learn, visual; " in message
    assert "say speech_commands_35:v0.01" in message


def test_second_version_is_not_taken_for_the_first(written):
    root = written["speech_commands"]
    message = refused(speech_commands.source, "speech_commands_35:v0.01", speech_commands.WORDS, root)
    assert "has the words backward, follow, forward, learn, visual, which v0.01 lacks" in message
    message = refused(speech_commands.source, "speech_commands_35:v1", speech_commands.WORDS, root)
    assert "no version 'v1'" in message
    same = speech_commands.source("speech_commands_35:v0.02", speech_commands.WORDS, root)
    assert same.files == READERS["speech_commands"](root).files


def test_other_words_are_noted(copy):
    root = copy("speech_commands")
    originals.write_tone(root / "hello" / "0_nohash_0.wav", 300)
    assert READERS["speech_commands"](root).notes == ["left out, for they are none of the 35 words: hello"]
    assert not READERS["speech_commands"](root).files.count("hello/0_nohash_0.wav")


# NSynth


def test_nsynth_families_and_pitches(written):
    family, pitch = (nsynth.source(f"nsynth_{label}", label, written["nsynth"]) for label in ("family", "pitch"))
    assert list(family.files) == list(pitch.files)
    assert list(family.stamps) == list(pitch.stamps)
    assert family.recordings == pitch.recordings != ""
    assert family.recordings_key == pitch.recordings_key
    assert family.manifest != pitch.manifest
    assert (family.samples, family.sample_rate) == (64_000, 16_000)
    assert len(family.classes), len(pitch.classes) == (11, 128)
    assert (family.vocabulary, pitch.vocabulary) == (False, True)
    assert "nsynth-train/audio/bass_synthetic_033-022-050.wav" in family.files
    for file, label in label_of(family).items():
        assert file.split("/")[2].startswith(f"{label}_")
        assert label_of(pitch)[file] == str(int(file.split("-")[2]))
        assert split_of(family)[file] == file.split("/")[0].removeprefix("nsynth-")
    assert "no test clip of the class synth_lead" in family.notes
    assert "62 notes of the data set's 305,979" in family.notes


def test_nsynth_stores_share_their_clips(written, tmp_path):
    stores = [
        building.build(tmp_path / label, nsynth.source(f"nsynth_{label}", label, written["nsynth"]))
        for label in ("family", "pitch")
    ]
    assert len({(store.path / "clips.int16").stat().st_ino for store in stores}) == 1


TRAIN, VALID = "nsynth-train/examples.json", "nsynth-valid/examples.json"
NOTE = "bass_synthetic_033-022-050"


def set_note(field, value):
    return lambda root: change_json(root / TRAIN, lambda notes: notes[NOTE].__setitem__(field, value))


def move_to_valid(root):
    entry = json.loads((root / TRAIN).read_text())[NOTE]
    change_json(root / VALID, lambda notes: notes.__setitem__(NOTE, entry))
    shutil.copy(root / f"nsynth-train/audio/{NOTE}.wav", root / "nsynth-valid/audio")


NSYNTH = {
    "no split": (lambda root: shutil.rmtree(root / "nsynth-valid"), r"no folder .*nsynth-valid/audio; unpack nsynth-v"),
    "no audio folder": (lambda root: shutil.rmtree(root / "nsynth-test/audio"), r"no folder .*nsynth-test/audio"),
    "no JSON": (lambda root: (root / TRAIN).unlink(), r"nsynth-train/examples\.json is missing"),
    "cut off": (lambda root: os.truncate(root / TRAIN, 5000), r"examples\.json, line \d+: broken JSON \("),
    "empty": (lambda root: (root / TRAIN).write_text(""), r"examples\.json is empty"),
    "nested": (lambda root: (root / TRAIN).write_text("[" * 10**5), r"examples\.json.*: broken JSON"),
    "latin-1": (lambda root: (root / TRAIN).write_bytes(b'{\n"\xfc": 1}'), r"examples\.json, line 2: not UTF-8"),
    "a list": (lambda root: (root / TRAIN).write_text("[1]"), "a list and no object of notes"),
    "no note": (lambda root: (root / TRAIN).write_text("{}"), "names no note"),
    "no field": (lambda root: change_text(root / TRAIN, '"pitch"', '"pitches"'), f"{NOTE} has no .* or no pitch"),
    "family": (set_note("instrument_family_str", "bas"), f"{NOTE} is of the family 'bas'; did you mean bass"),
    "family a list": (set_note("instrument_family_str", ["bass"]), "is of the family .*bass"),
    "pitch": (set_note("pitch", 128), f"{NOTE} has pitch 128, not one of 0 to 127"),
    "pitch a fraction": (set_note("pitch", 60.5), "has pitch 60.5"),
    "pitch a truth": (set_note("pitch", True), "has pitch True"),
    "twice": (
        lambda root: change_text(root / TRAIN, '"bass_synthetic_033-060-050"', f'"{NOTE}"'),
        f"names {NOTE} twice",
    ),
    "two splits": (move_to_valid, rf"nsynth-valid/examples\.json: the note {NOTE} is in train too"),
    "outside": (lambda root: change_text(root / TRAIN, f'"{NOTE}"', '"../../bass"'), "is not the plain name of a file"),
    "unlisted": (
        lambda root: originals.write_tone(root / "nsynth-test/audio/bass_x-001-050.wav", 100),
        r"test/audio holds 1 audio files that examples\.json does not name, first bass_x",
    ),
    "two formats": (
        lambda root: shutil.copy(root / f"nsynth-train/audio/{NOTE}.wav", root / f"nsynth-train/audio/{NOTE}.flac"),
        f"one recording twice, {NOTE}.flac and {NOTE}.wav",
    ),
    "class not trained": (
        lambda root: [
            change_json(root / TRAIN, lambda notes: {k: v for k, v in notes.items() if not k.startswith("reed")}),
            *(path.unlink() for path in (root / "nsynth-train/audio").glob("reed*")),
        ],
        "no training file for the class reed",
    ),
}


@pytest.mark.parametrize("kind", NSYNTH)
def test_nsynth_that_does_not_fit(copy, kind):
    spoil, message = NSYNTH[kind]
    root = copy("nsynth")
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        READERS["nsynth"](root)
    assert "\n" not in str(error.value)


def test_nsynth_label_that_does_not_exist(written):
    assert "no label 'pich' of NSynth; did you mean pitch" in refused(nsynth.source, "n", "pich", written["nsynth"])


# ESC


def test_esc_classes_and_folds(written):
    fifty, ten = esc.source("esc_50", written["esc"]), esc.source("esc_10", written["esc"])
    assert tuple(fifty.classes) == originals.ESC_CLASSES
    assert tuple(ten.classes) == tuple(originals.ESC_CLASSES[target] for target in originals.ESC_10)
    assert (fifty.samples, fifty.sample_rate) == (80_000, 16_000)
    for source in (fifty, ten):
        assert np.array_equal(source.splits, fold_splits(source.folds, 5))
        for file, fold, label in zip(source.files, source.folds, source.labels, strict=True):
            name = file.removeprefix("audio/").removesuffix(".wav")
            assert int(name.split("-")[0]) == fold
            assert originals.ESC_CLASSES[int(name.split("-")[3])] == source.classes[label]
    assert (len(fifty.files), len(ten.files)) == (250, 50)
    assert ten.notes == ["50 clips of the data set's 400"]
    assert not esc.source("esc_50", written["esc"]).vocabulary


CSV = "meta/esc50.csv"
DOG = "1-101000-A-0.wav,1,0,dog,True,101000,A\n"


def in_csv(old, new):
    return lambda root: change_text(root / CSV, old, new)


ESC = {
    "no CSV": (lambda root: (root / CSV).unlink(), r"esc50\.csv is missing"),
    "no audio": (lambda root: shutil.rmtree(root / "audio"), "no folder .*audio"),
    "empty": (lambda root: (root / CSV).write_text("\n"), r"esc50\.csv is empty"),
    "no rows": (lambda root: (root / CSV).write_text(",".join(esc.COLUMNS)), "has a header and no rows"),
    "latin-1": (lambda root: (root / CSV).write_bytes(b"filename\n\xfc"), r"esc50\.csv, line 2: not UTF-8"),
    "no column": (in_csv("fold", "folds"), "no column fold; it has filename, folds, target"),
    "column twice": (in_csv("take", "fold"), "no column take"),
    "short row": (in_csv(DOG, "1-101000-A-0.wav,1,0\n"), r"esc50\.csv, line 2: 3 cells where the header has 7"),
    "quote": (in_csv(DOG, f'"{DOG}'), r"esc50\.csv, line \d+: broken CSV"),
    "fold": (in_csv(DOG, DOG.replace(",1,", ",6,")), "line 2: fold is '6', not one of 1 to 5"),
    "fold with spaces": (in_csv(DOG, DOG.replace(",1,", ",one,")), "line 2: fold is 'one'"),
    "target": (in_csv(DOG, DOG.replace(",0,", ",50,")), "line 2: target is '50', not one of 0 to 49"),
    "no category": (in_csv(DOG, DOG.replace("dog", "")), "line 2: category is empty"),
    "esc10": (in_csv(DOG, DOG.replace("True", "yes")), "line 2: esc10 is 'yes', not True or False"),
    "twice": (in_csv(DOG, DOG + DOG), r"line 3: 1-101000-A-0\.wav is there twice"),
    "outside": (in_csv("1-101000-A-0.wav", "../1-101000-A-0.wav"), "is not the plain name of a file"),
    "source in two folds": (in_csv(",102000,", ",101000,"), "the source '101000' are in the folds 1 and 2"),
    "ambiguous": (in_csv(",0,dog", ",0,hound"), "the target 0 is ambiguous: 0 = dog, 0 = hound"),
    "category twice": (
        lambda root: [in_csv(",rooster,", ",dog,")(root) for _ in range(5)],
        "category dog is ambiguous",
    ),
    "unlisted": (in_csv(DOG, ""), r"holds 1 audio files that esc50\.csv does not name, first 1-101000-A-0\.wav"),
    "class gone": (
        lambda root: [
            (root / CSV).write_text("".join(x for x in (root / CSV).open() if ",siren," not in x)),
            *(path.unlink() for path in (root / "audio").glob("*-42.wav")),
        ],
        "has 49 classes, not 50",
    ),
    "fold gone": (
        lambda root: [
            (root / CSV).write_text("".join(x for x in (root / CSV).open() if not x.startswith("4-"))),
            *(path.unlink() for path in (root / "audio").glob("4-*.wav")),
        ],
        "has no clip in fold 4 of 1 to 5",
    ),
}


@pytest.mark.parametrize("kind", ESC)
def test_esc_that_does_not_fit(copy, kind):
    spoil, message = ESC[kind]
    root = copy("esc")
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        READERS["esc"](root)
    assert "\n" not in str(error.value)


# HEAR


def test_hear_splits(written):
    source = READERS["hear"](written["hear"])
    assert source.classes == ["0", "1", "2"]
    assert (source.samples, source.sample_rate, source.folds) == (16_000, 16_000, None)
    for file, split in split_of(source).items():
        assert file.split("/")[:2] == ["48000", split]
        assert label_of(source)[file] == file.split("/")[2][0]
    assert source.notes == ["HEAR task spoken_digit v1.0.9-hear2021"]


@pytest.mark.parametrize("mode", hear.KFOLD)
def test_hear_folds(tmp_path, mode):
    source = hear.source("hear:x", originals.write_hear(tmp_path / "root", mode, 4))
    assert [f"fold{fold - 1:02d}" for fold in source.folds] == [file.split("/")[1] for file in source.files]
    assert np.array_equal(source.splits, fold_splits(source.folds, 4))
    assert hear.folds(tmp_path) == 4


def test_hear_task_without_folds(written, tmp_path):
    assert hear.folds(written["hear"]) == 0
    assert "no folder" in refused(hear.folds, tmp_path / "gone")
    assert "task_metadata.json is missing" in refused(hear.folds, tmp_path)


def test_hear_rates(tmp_path):
    root = originals.write_hear(tmp_path / "root", rates=(22_050, 48_000, 32_000))
    assert READERS["hear"](root).files[0].startswith("48000/")
    (root / "22050").rename(root / "16000")
    assert READERS["hear"](root).files[0].startswith("16000/")


def test_hear_without_a_duration_takes_the_longest_file(copy):
    root = copy("hear")
    change_json(root / "task_metadata.json", lambda content: content | {"sample_duration": None})
    originals.write_tone(root / "48000/train/0_jackson_0.wav", 300, 0.31, 48_000)
    source = READERS["hear"](root)
    assert source.samples == 0.4 * 16_000
    assert "clips of 0.4 s, the longest file's length up to 5 s: the task names none" in source.notes


def test_hear_class_without_training_clip_is_noted(copy):
    root = copy("hear")
    (root / "labelvocabulary.csv").write_text("idx,label\n1,1\n0,0\n2,2\n3,never\n")
    source = READERS["hear"](root)
    assert source.classes == ["0", "1", "2", "never"]
    assert source.vocabulary
    assert "no train clip of the class never" in source.notes


def meta(**changes):
    return lambda root: change_json(root / "task_metadata.json", lambda content: content | changes)


def in_train(old, new):
    return lambda root: change_text(root / "train.json", old, new)


HEAR = {
    "no metadata": (lambda root: (root / "task_metadata.json").unlink(), r"task_metadata\.json is missing"),
    "a list": (lambda root: (root / "task_metadata.json").write_text("[]"), "a list and no object"),
    "events": (meta(embedding_type="event", prediction_type="multilabel"), "event and prediction_type multilabel; sup"),
    "multilabel": (
        meta(prediction_type="multilabel"),
        "supported are tasks with one label a clip, scene and multiclas",
    ),
    "mode": (meta(split_mode="leave_one_out"), "split_mode leave_one_out; known: trainvaltest, presplit_kfold, new"),
    "folds": (meta(split_mode="new_split_kfold", nfolds=2), "nfolds is 2, not a number of folds from 3"),
    "no folds": (meta(split_mode="new_split_kfold", nfolds=5), r"fold00\.json is missing"),
    "duration": (meta(sample_duration=-1), "sample_duration is -1, not seconds"),
    "no vocabulary": (lambda root: (root / "labelvocabulary.csv").unlink(), r"labelvocabulary\.csv is missing"),
    "indices": (
        lambda root: change_text(root / "labelvocabulary.csv", "2,2", "3,2"),
        "line 4: idx is '3'; each of 0 to 2 must be there once",
    ),
    "label twice": (lambda root: change_text(root / "labelvocabulary.csv", "2,2", "2,1"), "label '1' is empty or th"),
    "no split": (lambda root: (root / "valid.json").unlink(), r"valid\.json is missing"),
    "no audio": (lambda root: shutil.rmtree(root / "48000"), "has no folder of audio, such as 16000"),
    "no audio of a split": (lambda root: shutil.rmtree(root / "48000/test"), "48000/test is missing"),
    "cut off": (lambda root: os.truncate(root / "train.json", 50), r"train\.json, line \d: broken JSON"),
    "not an object": (lambda root: (root / "train.json").write_text('["a.wav"]'), "no object of files and labels"),
    "no file": (lambda root: (root / "train.json").write_text("{}"), "names no file"),
    "two labels": (in_train("[\n  0\n ]", "[0, 1]"), r"0_jackson_0\.wav has labels \[0, 1\], not a list of one"),
    "no label": (in_train("[\n  0\n ]", "[]"), r"has labels \[\], not a list of one"),
    "unknown label": (in_train("[\n  0\n ]", "[null]"), "has the label 'None', which labelvocabulary.csv lacks"),
    "twice": (in_train("0_jackson_1", "0_jackson_0"), r"train\.json names 0_jackson_0\.wav twice"),
    "outside": (in_train("0_jackson_0", "../test/0_jackson_0"), "is not the plain name of a file"),
    "unlisted": (
        lambda root: originals.write_tone(root / "48000/test/new.wav", 100),
        r"holds 1 audio files that test\.json does not name, first new\.wav",
    ),
    "two splits": (
        lambda root: [
            change_text(root / "valid.json", "0_jackson_10", "0_jackson_0"),
            (root / "48000/valid/0_jackson_10.wav").rename(root / "48000/valid/0_jackson_0.wav"),
        ],
        r"valid\.json: 0_jackson_0\.wav is in train too; a clip has one split",
    ),
}


@pytest.mark.parametrize("kind", HEAR)
def test_hear_that_does_not_fit(copy, kind):
    spoil, message = HEAR[kind]
    root = copy("hear")
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        READERS["hear"](root)
    assert "\n" not in str(error.value)


# Folders


def test_folder_classes_and_splits(written):
    source = READERS["folder"](written["folder"])
    assert source.classes == ["cat", "dog"]
    assert Counter(zip(source.labels.tolist(), source.splits.tolist(), strict=True)) == {
        (label, split): count for label in (0, 1) for split, count in ((0, 6), (1, 2), (2, 2))
    }
    assert "cat/more/cat_001.wav" in source.files
    assert source.notes[0] == "splits: drawn by seed 0, stratified by class"
    assert folder.source("folder:mine", written["folder"], seed=1).manifest != source.manifest


def test_splits_are_those_of_any_machine(written):
    held = {file: split for file, split in split_of(READERS["folder"](written["folder"])).items() if split != "train"}
    assert held == {
        "cat/cat_000.wav": "test",
        "cat/cat_008.wav": "valid",
        "cat/more/cat_003.wav": "test",
        "cat/more/cat_007.wav": "valid",
        "dog/dog_002.wav": "test",
        "dog/dog_004.wav": "valid",
        "dog/more/dog_001.wav": "valid",
        "dog/more/dog_007.wav": "test",
    }


def test_folders_of_splits_and_others(tmp_path):
    for name in ("train", "test", "docs"):
        originals.write_folder(tmp_path / name)
    assert "has folders of splits, such as train, and docs, which is none" in refused(READERS["folder"], tmp_path)
    shutil.rmtree(tmp_path / "test")
    assert READERS["folder"](tmp_path).classes == ["docs", "train"]  # ESC-50 has a class of trains


def test_folders_of_splits(tmp_path):
    for split in ("train", "val", "test"):
        originals.write_folder(tmp_path / split, ("b", "a"), 3)
    source = READERS["folder"](tmp_path)
    assert source.classes == ["a", "b"]
    assert {file.split("/")[0].replace("val", "valid"): split for file, split in split_of(source).items()} == {
        split: split for split in SPLITS
    }
    shutil.rmtree(tmp_path / "test")
    assert "the test split has no file" in refused(READERS["folder"], tmp_path)
    (tmp_path / "test").mkdir()
    assert "test, by its name a split, has no sub-folder; make one a class" in refused(READERS["folder"], tmp_path)


@pytest.mark.parametrize(
    ("lengths", "seconds", "said"),
    [
        ([0.05], 0.1, "median 0.05 s, longest 0.05 s"),
        ([0.4] * 19 + [6.0], 0.4, "median 0.4 s, longest 6 s"),
        ([0.4] * 17 + [0.634] * 2 + [6.0], 0.64, "median 0.4 s, longest 6 s"),
        ([0.4] * 11 + [2.31] * 9, 2.4, "median 0.4 s, longest 2.31 s"),
        ([6.0], 5.0, "median 6 s, longest 6 s), at most 5 s"),
    ],
)
def test_length_of_a_clip_is_a_quantile_of_the_recordings(tmp_path, lengths, seconds, said):
    rows = [[f"{label}{i}.wav", label] for label in "ab" for i in range(10)]
    for number, (file, _) in enumerate(rows):
        originals.write_tone(tmp_path / file, 200 + number, lengths[number % len(lengths)], 4000)
    rows += [[f"{kind}{i}.wav", "a"] for kind in ("bad", "pipe") for i in range(2)]
    for i in range(2):
        (tmp_path / f"bad{i}.wav").write_text("no audio")
        os.mkfifo(tmp_path / f"pipe{i}.wav")
    source = folder.source("f", table(tmp_path, *rows))
    assert source.samples == round(seconds * 4000)
    assert any(
        note.startswith(f"clips of {seconds:g} s, the 95 % quantile of the recordings' lengths ({said}")
        and note.endswith("; #seconds=S and #rate=R say others")
        for note in source.notes
    )


@pytest.mark.parametrize(
    ("rates", "rate", "said"),
    [
        ([8000], 8000, "at 8,000 Hz, the files' rate"),
        ([44_100], 16_000, "at 16,000 Hz, the most for files of 44,100 Hz"),
        ([8000, 22_050, 8000], 8000, "at 8,000 Hz, the rate of 13 of 20 files"),
        ([8000, 11_025], 11_025, "at 11,025 Hz, the rate of 10 of 20 files"),
        ([2000], 16_000, "at 16,000 Hz, for no file has a rate that can be read"),
    ],
)
def test_rate_of_a_folder_is_that_of_its_files(tmp_path, rates, rate, said):
    rows = ten_each()
    for number, (file, _) in enumerate(rows):
        originals.write_tone(tmp_path / str(file), 200 + number, 0.2, rates[number % len(rates)])
    source = folder.source("f", table(tmp_path, *rows), seconds=0.25)
    assert (source.sample_rate, source.samples) == (rate, -(-rate // 4))
    assert f"clips {said}; #rate=R says another" in source.notes
    source = folder.source("f", tmp_path / "list.csv", rate=12_000)
    assert (source.sample_rate, source.samples) == (12_000, 2400)
    assert any(note.endswith("longest 0.2 s); #seconds=S says another") for note in source.notes)
    said = folder.source("f", tmp_path / "list.csv", seconds=0.25, rate=8000).notes
    assert not any("clips" in note for note in said)


def test_lengths_that_cannot_be(written):
    for seconds in (0, -1, float("nan"), 1e9):
        assert "choose a length" in refused(folder.source, "f", written["folder"], seconds=seconds)


FOLDER = {
    "no sub-folder": (
        lambda root: [shutil.rmtree(root / label) for label in ("cat", "dog")],
        "has no sub-folders; make",
    ),
    "empty class": (lambda root: (root / "bird").mkdir(), "bird holds no audio file; remove it"),
    "loop": (
        lambda root: (root / "cat" / "more" / "loop").symlink_to(root / "cat"),
        "loop is the same folder as .*cat,",
    ),
    "link to itself": (
        lambda root: (root / "cat" / "self").symlink_to("self"),
        "cannot read .*cat/self: Too many levels of symbolic links",
    ),
    "linked folder": (lambda root: (root / "puss").symlink_to(root / "cat"), "is the same folder as .*, by a link"),
    "linked file": (
        lambda root: (root / "dog" / "x.wav").symlink_to(root / "cat" / "cat_000.wav"),
        r"dog/x\.wav is the same file as .*cat/cat_000\.wav, by a link; remove one",
    ),
    "hard link": (lambda root: os.link(root / "cat/cat_000.wav", root / "cat/x.wav"), r"x\.wav is the same file as"),
    "two formats": (
        lambda root: soundfile.write(root / "cat" / "cat_000.flac", np.ones(99) / 9, 16_000),
        r"one recording twice, cat/cat_000\.flac and cat/cat_000\.wav",
    ),
    "small class": (
        lambda root: originals.write_folder(root, ("bird", "cow"), 2),
        r"the class bird has 2 files, and needs 3, .*\(and 1 other classes are too small\); add some",
    ),
    "all bad": (lambda root: [path.write_text("") for path in root.rglob("*.wav")], "none of 20 audio files can be r"),
}


@pytest.mark.parametrize("kind", FOLDER)
def test_folder_that_does_not_fit(copy, kind):
    spoil, message = FOLDER[kind]
    root = copy("folder")
    spoil(root)
    with pytest.raises(UserError, match=message) as error:
        READERS["folder"](root)
    assert "\n" not in str(error.value)


def test_files_of_no_class_are_noted_and_hidden_folders_left_out(copy):
    root = copy("folder")
    originals.write_tone(root / "loose.wav", 100)
    originals.write_tone(root / ".cache" / "x.wav", 100)
    (root / "cat" / "broken.wav").symlink_to(root / "gone.wav")
    source = READERS["folder"](root)
    assert len(source.files) == 21
    assert source.notes[0] == "left out: 1 audio file in no class's folder, first loose.wav"
    row = source.files.index("cat/broken.wav")
    assert source.decode(row, row + 1)[1] == ["unreadable: No such file or directory"]


# Tables


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_with_splits_and_groups(tmp_path, suffix):
    words = ("train", "Training", "valid", "validation", "val", "dev", "test", "testing", "TEST", "train")
    rows = ten_each(lambda i: words[i], lambda i: f"speaker {i}")
    source = folder.source(
        "folder:t", table(tmp_path, *rows, header=("path", "label", "split", "group"), suffix=suffix)
    )
    wanted = {str(row[0]): folder.SPLIT_OF[str(row[2]).lower()] for row in rows}
    assert split_of(source) == wanted
    assert label_of(source) == {str(row[0]): str(row[1]) for row in rows}
    assert source.decode(0, 20)[1] == [None] * 20


def test_table_with_other_columns_spaces_and_a_byte_order_mark(tmp_path):
    path = table(tmp_path, *ten_each())
    text = path.read_text().replace("path,label", " Label ,note,PATH")
    lines = [text.splitlines()[0], *(f"{b}, x ,{a} " for a, b in (line.split(",") for line in text.splitlines()[1:]))]
    path.write_text("\ufeff" + "\n".join(lines) + "\n\n")
    assert len(folder.source("t", path).files) == 20


def test_paths_of_a_table(tmp_path):
    """Absolute, and out of the table's folder: it is the user's own list."""
    table(tmp_path / "audio", *ten_each())
    rows = [[tmp_path / "audio" / f"{label}{i}.wav", label] for label in "ab" for i in range(5)]
    rows += [[f"../audio/./{label}{i}.wav", label] for label in "ab" for i in range(5, 10)]
    source = folder.source("t", table(tmp_path / "lists", *rows))
    assert "../audio/a5.wav" in source.files
    assert str(tmp_path / "audio" / "a0.wav") in source.files
    assert source.decode(0, 20)[1] == [None] * 20


def test_numbers_as_labels(tmp_path):
    import pandas as pd

    rows = [[f"{label}_{i}.wav", label] for label in (10, 9, 1) for i in range(3)]
    assert folder.source("t", table(tmp_path, *rows)).classes == ["1", "9", "10"]
    assert folder.source("t", table(tmp_path, *rows, *ten_each())).classes == ["1", "10", "9", "a", "b"]
    frame = pd.DataFrame(rows, columns=["path", "label"])
    frame.astype({"label": "float64"}).to_parquet(tmp_path / "float.parquet")
    assert folder.source("t", tmp_path / "float.parquet").classes == ["1", "9", "10"]
    frame.astype({"label": "category"}).to_parquet(tmp_path / "category.parquet")
    assert folder.source("t", tmp_path / "category.parquet").classes == ["1", "9", "10"]


def test_valid_is_taken_out_of_train(tmp_path):
    rows = [[f"{label}{i}.wav", label, "test" if i < 5 else "train", i // 2] for label in "ab" for i in range(25)]
    path = table(tmp_path, *[row[:3] for row in rows], header=("path", "label", "split"))
    source = folder.source("t", path)
    assert Counter(split_of(source).values()) == {"train": 32, "valid": 8, "test": 10}
    assert source.notes[0] == "valid split: 18 % of the training clips, drawn by seed 0, stratified by class"
    rows = [row for row in rows if row[0][1:] != "4.wav"]  # whose group would be in train too
    path = table(tmp_path, *rows, header=("path", "label", "split", "group"))
    source = folder.source("t", path)
    groups = {str(row[0]): row[3] for row in rows}
    splits_of_group = {}
    for file, split in split_of(source).items():
        splits_of_group.setdefault(groups[file], set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of_group.values())
    assert Counter(split_of(source).values())["valid"] in range(4, 9)
    assert "groups kept whole" in source.notes[0]


def test_class_of_one_training_clip_stays_in_train(tmp_path):
    rows = [*ten_each(lambda i: "train" if i else "test"), ["c0.wav", "c", "train"], ["c1.wav", "c", "test"]]
    source = folder.source("t", table(tmp_path, *rows, header=("path", "label", "split")))
    assert split_of(source)["c0.wav"] == "train"
    assert "no valid clip of the class c" in source.notes


def test_few_absent_files_of_a_table_are_bad(tmp_path):
    rows = [[f"{label}{i}.wav", label] for label in "ab" for i in range(60)]
    path = table(tmp_path, *rows)
    (tmp_path / "a7.wav").unlink()
    source = folder.source("t", path)
    row = source.files.index("a7.wav")
    assert source.decode(row, row + 1)[1] == ["unreadable: No such file or directory"]
    (tmp_path / "a8.wav").unlink()
    (tmp_path / "a8.wav").symlink_to("a8.wav")
    assert "names 120 files, of which 2 do not exist, first a7.wav" in refused(folder.source, "t", path)


HEADER = ("path", "label", "split", "group")
FOLDED = ("path", "label", "fold")
TABLE = {
    "no column": ([["a.wav", "a"]], ("path", "class"), "no column label; it has path, class, and needs path, label"),
    "column twice": ([["a.wav", "a", "b"]], ("path", "label", "Label"), "the column label is there twice"),
    "no rows": ([], ("path", "label"), "has a header and no rows"),
    "short": ([*ten_each(), ["c.wav"]], ("path", "label"), "line 22: 1 cells where the header has 2"),
    "no label": ([*ten_each(), ["c.wav", " "]], ("path", "label"), r"line 22: c\.wav has the label ''; give it one"),
    "NaN": ([*ten_each(), ["c.wav", "NaN"]], ("path", "label"), r"line 22: c\.wav has the label 'NaN'"),
    "no path": ([*ten_each(), ["", "a"]], ("path", "label"), "line 22: the path '' is empty"),
    "zero byte": ([*ten_each(), ["a\0.wav", "a"]], ("path", "label"), "line 22: the path .* has a zero byte"),
    "twice": ([*ten_each(), ["./a0.wav", "a"]], ("path", "label"), r"line 22: a0\.wav stands in line 2 too"),
    "unknown split": (
        ten_each(lambda i: "trian"),
        HEADER[:3],
        r"line 2: a0\.wav has the split 'trian'; did you mean t",
    ),
    "no split": (ten_each(lambda i: "train" if i else ""), HEADER[:3], r"line 2: a0\.wav has the split ''; known: tr"),
    "group in two splits": (
        ten_each(lambda i: SPLITS[i % 3], lambda i: "x"),
        HEADER,
        r"the group x is in train \(line 2\) and in valid \(line 3\); a group has one split",
    ),
    "no test": (ten_each(lambda i: "valid" if i == 0 else "train"), HEADER[:3], "the test split has no file"),
    "not trained": (
        [*ten_each(lambda i: SPLITS[i % 3]), ["c.wav", "c", "test"]],
        HEADER[:3],
        "no training file for the class c; add some, or remove",
    ),
    "fold": (ten_each(lambda i: "one"), FOLDED, r"line 2: a0\.wav has the fold 'one'; folds are numbers from 1 to 99"),
    "fold 0": (ten_each(lambda i: i % 5), FOLDED, r"line 2: a0\.wav has the fold '0'; folds are numbers from 1"),
    "no fold": (ten_each(lambda i: i % 5 + 1 if i else ""), FOLDED, r"line 2: a0\.wav has the fold ''"),
    "fold gone": (ten_each(lambda i: (1, 2, 4)[i % 3]), FOLDED, r"list\.csv has no clip in fold 3 of 1 to 4"),
    "a class in two folds of four": (
        [*ten_each(lambda i: i % 4 + 1), ["c.wav", "c", 1], ["d.wav", "c", 2]],
        FOLDED,
        "tested on fold 1: no training file for the class c; add some",
    ),
    "two folds": (ten_each(lambda i: i % 2 + 1), FOLDED, r"list\.csv has 2 folds, and needs 3"),
    "group in two folds": (
        ten_each(lambda i: i % 3 + 1, lambda i: "x"),
        ("path", "label", "fold", "group"),
        r"the group x is in fold 1 \(line 2\) and in fold 2 \(line 3\); a group has one fold",
    ),
    "few groups": (
        ten_each(lambda i: f"speaker {i % 2}"),
        ("path", "label", "group"),
        "the class a has 2 groups, and needs 3, one for each of train, valid and test",
    ),
}


@pytest.mark.parametrize("kind", TABLE)
def test_table_that_does_not_fit(tmp_path, kind):
    rows, header, message = TABLE[kind]
    path = table(tmp_path, *rows, header=header)
    with pytest.raises(UserError, match=message) as error:
        folder.source("t", path)
    assert "\n" not in str(error.value)


def test_one_file_under_two_paths_of_a_table(tmp_path):
    path = table(tmp_path, *ten_each(), ["link.wav", "b"])
    (tmp_path / "link.wav").unlink()
    (tmp_path / "link.wav").symlink_to(tmp_path / "a0.wav")
    assert "link.wav is the same file as" in refused(folder.source, "t", path)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "list.txt").write_text("a.wav a")
    assert "neither a folder nor a table" in refused(folder.source, "t", tmp_path / "list.txt")
    for name in ("list.csv", "list.parquet"):
        assert "no folder and no file" in refused(folder.source, "t", tmp_path / name)
    (tmp_path / "list.csv").write_text("")
    assert "list.csv is empty" in refused(folder.source, "t", tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes("path,label\na.wav,b\nü.wav,b\n".encode("latin-1"))
    assert "list.csv, line 3: not UTF-8" in refused(folder.source, "t", tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text('path,label\n"a.wav,b\n')
    assert "broken CSV (unexpected end of data)" in refused(folder.source, "t", tmp_path / "list.csv")
    for content in (b"", b"PAR1 no it is not", b"PAR1" + b"\xff" * 100 + b"PAR1"):
        (tmp_path / "list.parquet").write_bytes(content)
        assert "broken Parquet" in refused(folder.source, "t", tmp_path / "list.parquet")


def test_parquet_that_does_not_fit(tmp_path):
    path = table(tmp_path, ["a.wav", "a"], header=("file", "label"), suffix="parquet")
    assert "no column path; it has file, label" in refused(folder.source, "t", path)
    path = table(tmp_path, *ten_each(), ["c.wav", None], suffix="parquet")
    assert "row 21: c.wav has the label ''" in refused(folder.source, "t", path)


# Folds


def fold_of(source: Source) -> dict[str, int]:
    return dict(zip(source.files, source.folds.tolist(), strict=True))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_with_folds(tmp_path, suffix):
    rows = ten_each(lambda i: i % 5 + 1, lambda i: f"speaker {i}")
    path = table(tmp_path, *rows, header=("path", "label", "fold", "group"), suffix=suffix)
    source = folder.source("t", path)
    assert fold_of(source) == {str(row[0]): row[2] for row in rows}
    assert np.array_equal(source.splits, fold_splits(source.folds, 5))
    assert folder.folds(path) == 5
    assert "leave out #folds=4" in refused(folder.source, "t", path, folds=4)
    few = "few groups: 2 in each fold; where a fold has under five"
    assert any(note.startswith(few) and "--folds" in note for note in source.notes)
    assert not any("drawn" in note for note in source.notes)


def test_folds_come_before_splits(tmp_path):
    rows = ten_each(lambda i: SPLITS[i % 3], lambda i: i % 5 + 1)
    source = folder.source("t", table(tmp_path, *rows, header=("path", "label", "split", "fold")))
    assert np.array_equal(source.splits, fold_splits(source.folds, 5))
    assert "the splits that are given do not count: the folds say what is tested" in source.notes
    path = table(tmp_path, *[row[:3] for row in rows], header=HEADER[:3])
    assert folder.folds(path) == 0
    drawn = folder.source("t", path, folds=3)
    assert "the splits that are given do not count: the folds say what is tested" in drawn.notes
    assert "folds: 3, drawn by seed 0, stratified by class" in drawn.notes
    assert set(drawn.folds.tolist()) == {1, 2, 3}


def test_folds_are_drawn_by_group(tmp_path):
    """Six speakers of two words in six folds: each is tested once."""
    rows = [[f"{label}{i}.wav", label, f"speaker {i % 6}"] for label in "ab" for i in range(18)]
    path = table(tmp_path, *rows, header=("path", "label", "group"))
    source = folder.source("t", path, folds=6)
    assert len(set(zip(source.folds.tolist(), source.groups, strict=True))) == 6
    assert np.bincount(source.folds).tolist() == [0, *[6] * 6]
    assert "folds: 6, drawn by seed 0, stratified by class, groups kept whole" in source.notes
    assert not np.array_equal(folder.source("t", path, seed=1, folds=6).folds, source.folds)
    message = refused(folder.source, "t", path, folds=7)
    assert "t: there are 6 groups, and each of 7 folds needs one; choose 3 to 6" in message
    plain = folder.source("t", path)
    few = "few groups: 4 in train, 1 in valid, 1 in test; where a split has under five"
    assert any(note.startswith(few) and note.endswith("with #folds=6 and --folds") for note in plain.notes)


def test_enough_groups_are_not_noted(tmp_path):
    rows = [[f"{label}{i}.wav", label, i] for label in "ab" for i in range(40)]
    for path in (table(tmp_path, *rows, header=("path", "label", "group")), table(tmp_path / "plain", *ten_each())):
        assert not any("few groups" in note for note in folder.source("t", path).notes)


def test_folds_of_a_folder(written):
    source = folder.source("t", written["folder"], folds=5)
    assert Counter(zip(source.labels.tolist(), source.folds.tolist(), strict=True)) == {
        (label, fold): 2 for label in (0, 1) for fold in range(1, 6)
    }
    assert folder.folds(written["folder"]) == 0


# The drawing of splits


def clips_of(labels, groups=None):
    return [Clip(f"{i}.wav", str(label), group=groups[i] if groups else "") for i, label in enumerate(labels)]


@st.composite
def labelled(draw):
    """Labels of clips, each class at least three times."""
    counts = draw(st.lists(st.integers(3, 40), min_size=1, max_size=5))
    return draw(st.permutations([label for label, count in enumerate(counts) for _ in range(count)]))


@settings(max_examples=40, deadline=None)
@given(labelled(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_drawn_splits_are_stratified_and_independent_of_order(labels, seed, random):
    items = clips_of(labels)
    splits = stratified(items, labels, seed)
    for label, count in Counter(labels).items():
        held = [sum(x == label and s == split for x, s in zip(labels, splits, strict=True)) for split in range(3)]
        assert min(held) >= 1
        assert sum(held) == count
        for got, weight in zip(held, drawing.WEIGHTS, strict=True):
            # A class of three has to give one clip to each split.
            assert abs(got - count * weight / 100) <= (1 if count > 3 else 1.1)
    order = list(range(len(items)))
    random.shuffle(order)
    shuffled = stratified([items[i] for i in order], [labels[i] for i in order], seed)
    assert np.array_equal(shuffled, splits[order])


@settings(max_examples=40, deadline=None)
@given(labelled(), st.integers(0, 1000))
def test_a_file_more_moves_few_others(labels, number):
    items = clips_of(labels)
    before = stratified(items, labels, 0)
    after = stratified([*items, Clip(f"new {number}.wav", str(labels[0]))], [*labels, labels[0]], 0)
    assert (before != after[:-1]).sum() <= 3
    others = [i for i, label in enumerate(labels) if label != labels[0]]
    assert np.array_equal(before[others], after[others])


@st.composite
def grouped(draw):
    """Labels and groups of clips: each group has clips of any classes."""
    classes, groups = draw(st.integers(1, 4)), draw(st.integers(3, 25))
    sizes = draw(st.lists(st.integers(1, 8), min_size=groups, max_size=groups))
    rows = [(draw(st.integers(0, classes - 1)), f"g{group}") for group, size in enumerate(sizes) for _ in range(size)]
    return [label for label, _ in rows], [group for _, group in rows]


@settings(max_examples=50, deadline=None)
@given(grouped(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_drawn_splits_keep_groups_whole(rows, seed, random):
    labels, groups = rows
    items = clips_of(labels, groups)
    splits = stratified(items, labels, seed)
    assert len(set(zip(groups, splits.tolist(), strict=True))) == len(set(groups))
    assert set(labels) == {label for label, split in zip(labels, splits, strict=True) if split == 0}
    order = list(range(len(items)))
    random.shuffle(order)
    shuffled = stratified([items[i] for i in order], [labels[i] for i in order], seed)
    assert np.array_equal(shuffled, splits[order])


@settings(max_examples=50, deadline=None)
@given(grouped(), st.integers(0, 3), st.integers(3, 6), st.randoms(use_true_random=False))
def test_drawn_folds_keep_groups_whole(rows, seed, count, random):
    labels, groups = rows
    items = clips_of(labels, groups)
    folds = drawn_folds(items, labels, seed, count)
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))
    assert len(set(folds.tolist())) == min(count, len(set(groups)))
    order = list(range(len(items)))
    random.shuffle(order)
    shuffled = drawn_folds([items[i] for i in order], [labels[i] for i in order], seed, count)
    assert np.array_equal(shuffled, folds[order])


@settings(max_examples=40, deadline=None)
@given(labelled(), st.integers(3, 6))
def test_drawn_folds_are_stratified(labels, count):
    folds = drawn_folds(clips_of(labels), labels, 0, count)
    assert set(folds.tolist()) <= set(range(1, count + 1))
    for label in set(labels):
        sizes = np.bincount(folds[np.array(labels) == label], minlength=count + 1)[1:]
        assert sizes.max() - sizes.min() <= 1
    sizes = np.bincount(folds, minlength=count + 1)[1:]
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("nested", [True, False])
def test_shares_with_groups_are_near(nested):
    """60 speakers of 5 to 20 clips, of one class each or of all five."""
    random = np.random.default_rng(0)
    rows = [
        (speaker % 5 if nested else int(random.integers(5)), f"speaker {speaker}")
        for speaker in range(60)
        for _ in range(random.integers(5, 21))
    ]
    labels = np.array([label for label, _ in rows])
    splits = stratified(clips_of(labels.tolist(), [group for _, group in rows]), labels.tolist(), 0)
    for label in range(5):
        shares = np.bincount(splits[labels == label], minlength=3) / (labels == label).sum()
        assert np.abs(shares - np.array(drawing.WEIGHTS) / 100).max() < 0.08


def test_class_has_all_splits_where_its_groups_allow_it():
    labels = [0] * 100 + [1, 1, 1]
    groups = [f"g{i // 10}" for i in range(100)] + ["a", "b", "c"]
    splits = stratified(clips_of(labels, groups), labels, 0)
    assert set(splits[100:].tolist()) == {0, 1, 2}
    assert set(splits[:100].tolist()) == {0, 1, 2}


def test_labels_of_a_parquet_are_texts(tmp_path):
    """Texts that a writer stored as bytes are read as such; lists are no labels."""
    root = originals.write_folder(tmp_path / "clips")
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.wav"))
    labels = [path.partition("/")[0] for path in paths]
    table = pd.DataFrame({"path": paths, "label": [label.encode() for label in labels]})
    table.to_parquet(root / "bytes.parquet")
    assert folder.source("t", root / "bytes.parquet").classes == ["cat", "dog"]
    pd.DataFrame({"path": paths, "label": [[label] for label in labels]}).to_parquet(root / "lists.parquet")
    assert "the column label holds lists or records" in refused(folder.source, "t", root / "lists.parquet")
