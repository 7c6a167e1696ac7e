"""The contract that every data set keeps, decoding of audio files, the Speech Commands folder, and the command line."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clar import datasets
from clar.cli import configure
from clar.clips import SPLITS, ClipStore
from clar.datasets import notes, scenes, speech_commands
from clar.datasets.__main__ import export_folder
from clar.datasets.decode import Unusable, decode
from clar.errors import UserError
from tests import originals

RATE = SAMPLES = 16_000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLAR_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def digits_store(small_cache, monkeypatch):
    pytest.importorskip("espeakng_loader")
    monkeypatch.setenv("CLAR_CACHE", str(small_cache))
    return datasets.load("digits:120")


def tone(seconds=0.5, hertz=440.0, rate=RATE, level=0.3):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def make_folder(root: Path, words=speech_commands.DIGITS, speakers=6) -> Path:
    """A small Speech Commands folder: two files of each word in each split, and what must be left out."""
    split_of = dict(zip(range(speakers), itertools.cycle(["train", "valid", "test"])))
    lists = {"valid": [], "test": []}
    for number, word in enumerate(words):
        (root / word).mkdir(parents=True)
        for speaker in range(speakers):
            file = f"{word}/{speaker:08x}_nohash_0.wav"
            soundfile.write(root / file, tone(0.3 + 0.05 * speaker, 200 + 40 * number), RATE, "PCM_16")
            if split_of[speaker] != "train":
                lists[split_of[speaker]].append(file)
    (root / "_background_noise_").mkdir()
    soundfile.write(root / "_background_noise_" / "white.wav", tone(), RATE)
    (root / "README.md").write_text("about")
    for split, name in speech_commands.LISTS.items():
        (root / name).write_text("".join(f"{line}\n" for line in lists[split]) + "marvin/x.wav\n")
    return root


def rewrite(root: Path, split: str, change) -> None:
    path = root / speech_commands.LISTS[split]
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


# The contract


SMALL = {
    "digits": "digits:120",
    "notes": f"notes:{notes.FEWEST}",
    "notes_pitch": f"notes_pitch:{notes.FEWEST}",
    "scenes": f"scenes:{scenes.FEWEST}",
}
"""The smallest of each embedded data set that has every class in every split."""

WRITE = {
    "speech_commands": originals.write_speech_commands, "nsynth": originals.write_nsynth, "esc": originals.write_esc,
    "folder": originals.write_folder, "hear": originals.write_hear,
}  # fmt: skip

GROUP = {
    "digits": r"/(\w+?)_nohash", "speech_commands": r"/(\w+?)_nohash", "nsynth": r"(\w+_\d{3})-\d{3}-\d{3}",
    "notes": r"/(\w+_\d{3})-",
}  # fmt: skip
"""What must not be in two splits, the speaker or the instrument, as the file's name says it."""


@pytest.fixture(scope="session", params=datasets.names())
def contract_cache(request, small_cache, tmp_path_factory) -> tuple[str, Path]:
    """A data set's name, and a cache folder that holds it, made once a session."""
    if request.param in datasets.EMBEDDED:
        if request.param == "digits":
            pytest.importorskip("espeakng_loader")
        return SMALL[request.param], small_cache
    folder = tmp_path_factory.mktemp(request.param)
    known = datasets.FOLDERS.get(request.param)
    WRITE[known.collection if known else request.param](folder / "root")
    name = request.param if known else f"{request.param}:{folder / 'root'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAR_CACHE", str(folder / "cache"))
        datasets.load(name, folder / "root" if known else None)
    return name, folder / "cache"


@pytest.fixture
def store(contract_cache, monkeypatch) -> ClipStore:
    name, folder = contract_cache
    monkeypatch.setenv("CLAR_CACHE", str(folder))
    return datasets.load(name)


def test_contract_shapes_and_types(store):
    assert store.clips.dtype == np.int16
    assert store.clips.shape == (len(store), round(store.seconds * RATE))
    assert not store.clips.flags.writeable
    assert store.labels.dtype == np.int64
    assert store.labels.shape == (len(store),)
    assert store.sample_rate == RATE
    assert store.clips.any(1).all()


def test_contract_labels(store):
    assert len(set(store.classes)) == len(store.classes)
    if store.name == "nsynth_pitch":  # 128 pitches, of which a few have clips
        assert set(store.labels.tolist()) < set(range(128))
        return
    assert set(store.labels.tolist()) == set(range(len(store.classes)))
    assert set(store.labels[store.split("train")].tolist()) == set(range(len(store.classes)))


def test_contract_splits_cover_and_are_disjoint(store):
    for fold in range(1, store.fold_count + 1) or [None]:
        parts = [store.split(name, fold) for name in SPLITS]
        assert all(len(part) and part.dtype == np.int64 for part in parts)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(store)))


def test_contract_every_fold_is_tested_once(contract_cache, store):
    assert store.fold_count == datasets.folds(contract_cache[0])
    tested = [store.split("test", fold) for fold in range(1, store.fold_count + 1)]
    assert not tested or np.array_equal(np.sort(np.concatenate(tested)), np.arange(len(store)))


def test_contract_speakers_and_instruments_are_disjoint(store):
    pattern = next((pattern for name, pattern in GROUP.items() if store.name.startswith(name)), None)
    if pattern is None:
        pytest.skip("the data set has folds, or no groups")
    groups = [{re.search(pattern, store.files[i])[1] for i in store.split(name)} for name in SPLITS]
    assert not any(a & b for a, b in itertools.combinations(groups, 2))


def test_contract_opens_again(contract_cache, store):
    again = datasets.load(contract_cache[0])
    assert again.path == store.path
    assert again.fingerprint == store.fingerprint
    assert int(again.fingerprint, 16) >= 0
    assert datasets.built(contract_cache[0])
    assert datasets.load(datasets.canonical(contract_cache[0])).fingerprint == store.fingerprint


def test_contract_info_has_a_picture(contract_cache, store, run_datasets, tmp_path):
    done = run_datasets("info", contract_cache[0], "--picture", tmp_path / "picture.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert store.fingerprint in done.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


# Decoding


def test_sixteen_bits_come_through_exactly(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, SAMPLES).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE, "PCM_16")
    assert np.array_equal(decode(tmp_path / "a.wav", RATE, SAMPLES), samples)
    soundfile.write(tmp_path / "a.flac", samples, RATE, "PCM_16")
    assert np.array_equal(decode(tmp_path / "a.flac", RATE, SAMPLES), samples)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_formats_and_channels(tmp_path, subtype, channels):
    """The mean of channels that lie 0.1 apart is the middle one, within the format's own error."""
    wave = tone(0.5, 300)
    sound = np.stack([wave + 0.1 * (c - (channels - 1) / 2) for c in range(channels)], 1)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype)
    clip = decode(tmp_path / "a.wav", RATE, SAMPLES)
    error = {"PCM_U8": 1 / 128, "ULAW": 0.03, "ALAW": 0.03}.get(
        subtype, 1.51 / 32768
    )  # half a step a channel, half a step here
    assert np.abs(clip[: len(wave)] / 32768 - wave).max() <= error
    assert not clip[len(wave) :].any()


@pytest.mark.parametrize("extension", ["flac", "ogg", "mp3", "aiff"])
def test_containers(tmp_path, extension):
    if extension.upper() not in soundfile.available_formats():
        pytest.skip(f"libsndfile without {extension}")
    soundfile.write(tmp_path / f"a.{extension}", tone(1.0, 1000), RATE)
    clip = decode(tmp_path / f"a.{extension}", RATE, SAMPLES) / 32768
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(SAMPLES)))
    assert abs(int(spectrum.argmax()) - 1000) <= 1
    assert np.sqrt(np.square(clip[4000:12000]).mean()) == pytest.approx(0.3 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 44099, 48000, 96000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(0.6, 1500, rate), rate, "FLOAT")
    clip = decode(tmp_path / "a.wav", RATE, SAMPLES) / 32768
    wanted = tone(0.6, 1500)
    assert np.abs(clip[200:9400] - wanted[200:9400]).max() < 1e-3
    assert not clip[9700:].any()


def test_resampling_removes_what_would_alias(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1, 10_000, 44_100) + tone(1, 500, 44_100, 0.1), 44_100, "FLOAT")
    spectrum = np.abs(np.fft.rfft(decode(tmp_path / "a.wav", RATE, SAMPLES) * np.hanning(SAMPLES)))
    assert spectrum[5500:6500].max() < spectrum[500] / 300


def test_resampling_agrees_with_soxr(tmp_path):
    soxr = pytest.importorskip("soxr")  # librosa's resampler, without the seconds of importing librosa
    noise = np.random.default_rng(0).normal(0, 0.1, 44_100)
    kernel = np.hanning(64) / np.hanning(64).sum()  # keeps to the band that both filters pass
    sound = np.convolve(noise, kernel, "same").astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 44_100, "FLOAT")
    wanted = soxr.resample(sound, 44_100, RATE, "VHQ")
    clip = decode(tmp_path / "a.wav", RATE, SAMPLES) / 32768
    assert np.abs(clip - wanted)[100:-100].max() < 2e-4


def test_long_file_is_clipped_and_resampled_as_a_whole_one(tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * 44_100)
    soundfile.write(tmp_path / "long.wav", sound, 44_100, "FLOAT")
    clip = decode(tmp_path / "long.wav", RATE, SAMPLES)
    assert np.abs(clip - decode(tmp_path / "long.wav", RATE, 3 * SAMPLES)[:SAMPLES]).max() <= 1


def bad_file(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_text("this is no audio")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0), RATE)
    elif kind == "silent":
        soundfile.write(path, np.zeros(8000), RATE)
    elif kind in ("NaN", "Inf"):
        soundfile.write(path, np.array([0.1, float(kind), 0.1]), RATE, "FLOAT")
    elif kind == "truncated":
        soundfile.write(path, tone(1.0), RATE, "PCM_16")
        path.write_bytes(path.read_bytes()[:16_000])
    elif kind == "header only":
        soundfile.write(path, tone(1.0), RATE, "PCM_16")
        path.write_bytes(path.read_bytes()[:30])


BAD = {
    "text": "unreadable",
    "nothing": "empty",
    "no samples": "empty",
    "silent": "silent",
    "NaN": "NaN or infinite",
    "Inf": "NaN or infinite",
    "truncated": "truncated: 15,956 of 32,000 bytes",
    "header only": "unreadable|empty|truncated",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_has_a_reason(tmp_path, kind):
    bad_file(tmp_path / "a.wav", kind)
    with pytest.raises(Unusable, match=BAD[kind]):
        decode(tmp_path / "a.wav", RATE, SAMPLES)


def test_truncated_flac_is_unusable(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, RATE), RATE)
    (tmp_path / "a.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:9000])
    with pytest.raises(Unusable):
        decode(tmp_path / "a.flac", RATE, SAMPLES)


def test_header_of_a_pipe_is_no_truncation(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE, "PCM_16")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # as ffmpeg leaves them where it cannot seek
    (tmp_path / "b.wav").write_bytes(content)
    assert np.array_equal(decode(tmp_path / "b.wav", RATE, SAMPLES), decode(tmp_path / "a.wav", RATE, SAMPLES))


# A folder of one's own


def test_what_a_folder_holds_besides_is_noted(cache, tmp_path):
    """Half of the recordings in a format that is not read is no detail; neither are those beside a split's classes."""
    for split, label, number in itertools.product(("train", "test"), ("cat", "dog"), range(4)):
        (tmp_path / "set" / split / label).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "set" / split / label / f"{number}.wav", tone(0.1, 300 + number), RATE)
    (tmp_path / "set" / "train" / "cat" / "more.m4a").write_bytes(b"ftyp")
    (tmp_path / "set" / "test" / "dog" / "about.txt").write_text("about")
    soundfile.write(tmp_path / "set" / "test" / "loose.wav", tone(), RATE)
    notes = datasets.load(f"folder:{tmp_path / 'set'}").notes
    assert notes[:2] == [
        "left out: 1 audio file in no class's folder, first test/loose.wav",
        "left out: 2 files not called as audio is, first test/dog/about.txt",
    ]


def test_folds_of_ones_own(cache, tmp_path):
    """Known without building, and from the store where the table is gone."""
    rows = [(f"{label}{i}.wav", label, i % 5 + 1) for label in ("cat", "dog") for i in range(5)]
    for number, (file, _, _) in enumerate(rows):
        originals.write_tone(tmp_path / file, 300 + number)
    originals.write_table(tmp_path / "t.csv", ("path", "label", "fold"), rows)
    name = f"folder:{tmp_path / 't.csv'}"
    assert datasets.folds(name) == 5
    assert configure(name, None, [], gpu=False).fold == 5
    with pytest.raises(UserError, match=r"fold = 6: .* has folds 1 to 5"):
        configure(name, None, ["fold=6"], gpu=False)
    store = datasets.load(name)
    assert store.fold_count == 5
    (tmp_path / "t.csv").rename(tmp_path / "u.csv")
    assert datasets.folds(name) == 5
    originals.write_table(tmp_path / "u.csv", ("path", "label"), [row[:2] for row in rows])
    assert datasets.folds(f"folder:{tmp_path / 'u.csv'}") == 0
    drawn = f"folder:{tmp_path / 'u.csv'}#folds=3"
    assert datasets.canonical(drawn) == drawn
    assert (datasets.folds(drawn), datasets.load(drawn).fold_count) == (3, 3)
    with pytest.raises(UserError, match="nothing is at"):
        datasets.folds(f"folder:{tmp_path / 'gone.csv'}")


def test_notes_are_shown_when_a_set_is_built(cache, tmp_path, capsys, run_datasets):
    """Whoever starts a sweep on it sees them; `prepare` and `info` show them always, and once."""
    originals.write_folder(tmp_path / "set")
    name = f"folder:{tmp_path / 'set'}"
    store = datasets.load(name)
    said = capsys.readouterr().err
    assert len(store.notes) == 2
    assert all(f"{name}: {note}\n" in said for note in store.notes)
    datasets.load(name)
    assert capsys.readouterr().err == ""
    for arguments in (("prepare", f"{name}#seed=1"), ("info", f"{name}#seed=2"), ("info", name)):
        done = run_datasets(*arguments)
        assert (done.stdout + done.stderr).count("clips of 0.1 s, the") == 1


def test_one_class_is_no_task(cache, tmp_path):
    for number in range(5):
        (tmp_path / "set" / "cat").mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "set" / "cat" / f"{number}.wav", tone(0.1, 300 + number), RATE)
    with pytest.raises(UserError, match="cat is its only class; there must be two"):
        datasets.load(f"folder:{tmp_path / 'set'}")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_table_with_other_marks_than_commas(cache, tmp_path, mark):
    (tmp_path / "t.csv").write_text(f"path{mark}label\na.wav{mark}cat\n")
    with pytest.raises(UserError, match=r"no column path, label; .* with commas between them and not ") as error:
        datasets.load(f"folder:{tmp_path / 't.csv'}")
    assert "\n" not in str(error.value)


# Speech Commands


def test_bad_files_are_counted_named_and_limited(cache, tmp_path, capsys):
    root = make_folder(tmp_path / "root")
    for word, kind in zip(speech_commands.DIGITS, BAD, strict=False):
        bad_file(root / word / "00000000_nohash_0.wav", kind)
    with pytest.raises(UserError, match=r"8 of 60 files.*--allow-bad 8") as error:
        datasets.load("speech_commands_10", root)
    assert "three/00000000_nohash_0.wav: silent" in str(error.value)
    store = datasets.load("speech_commands_10", root, allow_bad=8)
    assert len(store) == 52
    assert len(store.left_out) == 8
    assert "8 of 60 files" in capsys.readouterr().err
    assert datasets.load("speech_commands_10").fingerprint == store.fingerprint


def test_entries_that_are_no_files_are_counted_and_named(cache, tmp_path):
    root = make_folder(tmp_path / "root")
    (root / "one" / "link.wav").symlink_to(tmp_path / "gone.wav")
    (root / "two" / "folder.WAV").mkdir()
    os.mkfifo(root / "three" / "pipe.wav")
    with pytest.raises(UserError, match="3 of 63 files") as error:
        datasets.load("speech_commands_10", root)
    assert "one/link.wav: unreadable: No such file or directory" in str(error.value)
    assert "two/folder.WAV: unreadable: a folder" in str(error.value)
    assert "three/pipe.wav: unreadable: no regular file" in str(error.value)
    assert len(datasets.load("speech_commands_10", root, allow_bad=3)) == 60
    soundfile.write(tmp_path / "gone.wav", tone(), RATE)
    assert len(datasets.load("speech_commands_10", root, allow_bad=3)) == 61


def test_folder_may_hold_any_format(cache, tmp_path):
    root = make_folder(tmp_path / "root")
    wanted = datasets.load("speech_commands_10", root)
    suffixes = ("flac", "ogg", "opus", "mp3", "aiff", "aif", "au", "FLAC", "Wav")
    renamed = {}
    for word, suffix in zip(speech_commands.DIGITS, suffixes, strict=False):
        for old in sorted((root / word).iterdir()):
            sound, rate = soundfile.read(old)
            new = old.with_suffix(f".{suffix}")
            old.unlink()
            kind = {"opus": "OGG", "aif": "AIFF"}.get(suffix, suffix.upper())
            soundfile.write(new, sound, rate, "OPUS" if suffix == "opus" else None, format=kind)
            renamed[f"{word}/{old.name}"] = f"{word}/{new.name}"
    for split in ("valid", "test"):
        rewrite(root, split, lambda lines: [renamed.get(line, line) for line in lines])
    store = datasets.load("speech_commands_10", root)
    assert store.files == [renamed.get(file, file) for file in wanted.files]
    for split in SPLITS:
        assert np.array_equal(store.split(split), wanted.split(split))
    exact = [i for i, file in enumerate(store.files) if file.lower().endswith(("wav", "flac", "aiff", "aif", "au"))]
    assert np.array_equal(store.clips[exact], wanted.clips[exact])


def test_one_recording_in_two_formats_is_refused(cache, tmp_path):
    """The list names one of them; the other would be trained on."""
    root = make_folder(tmp_path / "root")
    sound, rate = soundfile.read(root / "one" / "00000001_nohash_0.wav")
    soundfile.write(root / "one" / "00000001_nohash_0.flac", sound, rate)
    with pytest.raises(UserError, match=r"twice, 00000001_nohash_0\.flac and 00000001_nohash_0\.wav"):
        datasets.load("speech_commands_10", root)


def test_changed_file_is_decoded_again_when_a_root_is_given(cache, tmp_path):
    root = make_folder(tmp_path / "root")
    first = datasets.load("speech_commands_10", root)
    assert datasets.load("speech_commands_10", root).fingerprint == first.fingerprint
    soundfile.write(root / "zero" / "00000000_nohash_0.wav", tone(0.2, 900), RATE, "PCM_16")
    assert datasets.load("speech_commands_10").fingerprint == first.fingerprint
    assert datasets.load("speech_commands_10", root).fingerprint != first.fingerprint


def test_two_roots_do_not_collide(cache, tmp_path):
    one = datasets.load("speech_commands_10", make_folder(tmp_path / "one"))
    two = datasets.load("speech_commands_10", make_folder(tmp_path / "two", speakers=9))
    assert one.path != two.path
    assert datasets.load("speech_commands_10").path == two.path
    assert ClipStore.open(one.path).fingerprint == one.fingerprint


def test_root_from_the_environment(cache, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="prepare speech_commands_10 --root DIR"):
        datasets.load("speech_commands_10")
    monkeypatch.setenv("CLAR_DATA", str(make_folder(tmp_path / "root")))
    assert len(datasets.load("speech_commands_10")) == 60


def test_damaged_store_is_built_again(cache, tmp_path, capsys):
    store = datasets.load("speech_commands_10", make_folder(tmp_path / "root"))
    os.truncate(store.path / "clips.int16", 1000)
    assert datasets.load("speech_commands_10").fingerprint == store.fingerprint
    assert "damaged: clips.int16 has 1,000 of" in capsys.readouterr().err


def test_class_lists():
    assert len(speech_commands.WORDS) == 35
    assert list(speech_commands.WORDS) == sorted(speech_commands.WORDS)
    assert set(speech_commands.DIGITS) < set(speech_commands.WORDS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root.rename(root.with_name("gone")), "no folder"),
        (lambda root: (root / "testing_list.txt").unlink(), r"testing_list\.txt is missing"),
        (lambda root: (root / "seven").rename(root / "sevn"), "no folder for the word seven"),
        (
            lambda root: rewrite(root, "test", lambda lines: [*lines, "one/ffff_nohash_0.wav"]),
            "names 1 files that do not",
        ),
        (lambda root: rewrite(root, "test", lambda lines: [*lines, "one/00000001_nohash_0.wav"]), "in both lists"),
        (lambda root: rewrite(root, "valid", lambda lines: []), "the valid split has no file"),
    ],
)
def test_folder_that_does_not_fit(cache, tmp_path, spoil, message):
    root = make_folder(tmp_path / "root")
    spoil(root)
    with pytest.raises(UserError, match=message):
        datasets.load("speech_commands_10", root)


def test_names_and_options():
    with pytest.raises(UserError, match="did you mean digits"):
        datasets.load("digit")
    with pytest.raises(UserError, match=r"speech_commands_10 takes v0\.01 or v0\.02 after the colon"):
        datasets.load("speech_commands_10:5")
    with pytest.raises(UserError, match="esc_50 takes no option"):
        datasets.load("esc_50:2")
    with pytest.raises(UserError, match="write folder:PATH"):
        datasets.load("folder")
    with pytest.raises(UserError, match="nothing is at /nowhere/at/all"):
        datasets.load("folder:/nowhere/at/all")
    with pytest.raises(UserError, match="no setting 'second'; did you mean seconds"):
        datasets.load("folder:/nowhere#second=2")
    with pytest.raises(UserError, match="seconds=x is not a number"):
        datasets.load("folder:/nowhere#seconds=x")
    with pytest.raises(UserError, match="rate=1 must lie between 4000 and 48000"):
        datasets.load("folder:/nowhere#rate=1")
    with pytest.raises(UserError, match="hear takes no settings"):
        datasets.load("hear:/nowhere#seed=1")
    with pytest.raises(UserError, match="lies where its name says and takes no root"):
        datasets.load("folder:/nowhere", root="somewhere")
    with pytest.raises(UserError, match="takes no root"):
        datasets.load("digits", root="somewhere")


def test_exported_digits_are_the_same_clips(digits_store, tmp_path, monkeypatch):
    export_folder(digits_store, tmp_path / "folder")
    monkeypatch.setenv("CLAR_CACHE", str(tmp_path / "cache"))
    prepared = datasets.load("speech_commands_10", tmp_path / "folder")
    order = [prepared.files.index(file) for file in digits_store.files]
    assert len(prepared) == len(digits_store)
    assert prepared.classes == digits_store.classes
    assert np.array_equal(prepared.clips[order], digits_store.clips)
    assert np.array_equal(prepared.labels[order], digits_store.labels)
    for split in SPLITS:
        members = {prepared.files[i] for i in prepared.split(split)}
        assert members == {digits_store.files[i] for i in digits_store.split(split)}


# What the system has against it


def test_cache_that_cannot_be_written(run_datasets, cache, tmp_path, monkeypatch):
    root = make_folder(tmp_path / "root")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CLAR_CACHE", str(tmp_path / "file" / "cache"))
    done = run_datasets("prepare", "speech_commands_10", "--root", root)
    assert failed_in_one_line(done), done.stderr
    assert f"clips in {tmp_path / 'file' / 'cache'}: Not a directory" in done.stderr
    assert "set CLAR_CACHE" in done.stderr


def test_cache_that_cannot_be_read(run_datasets, cache, monkeypatch):
    def denied(path, *arguments, **named):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", denied)  # what a folder of another user's does; tests may run as root
    for arguments in (["list"], ["info", "digits:120"]):
        done = run_datasets(*arguments)
        assert failed_in_one_line(done), done.stderr
        assert "Permission denied; make room or get permission there, or set CLAR_CACHE" in done.stderr


def test_pointer_that_cannot_be_written(cache, tmp_path):
    root = make_folder(tmp_path / "root")
    (cache / "speech_commands_10.json").mkdir(parents=True)
    with pytest.raises(UserError, match="CLAR_CACHE"):
        datasets.load("speech_commands_10", root)


def test_list_that_is_not_utf8_names_the_line(cache, tmp_path):
    root = make_folder(tmp_path / "root")
    path = root / "validation_list.txt"
    path.write_bytes(path.read_bytes() + "other/müller.wav\n".encode("latin-1"))
    number = len(path.read_bytes().splitlines())
    with pytest.raises(UserError, match=rf"validation_list\.txt, line {number}: not UTF-8"):
        datasets.load("speech_commands_10", root)


def test_list_with_a_byte_order_mark_keeps_its_first_line(cache, tmp_path):
    root = make_folder(tmp_path / "root")
    first = datasets.load("speech_commands_10", root).fingerprint
    path = root / "validation_list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert datasets.load("speech_commands_10", root).fingerprint == first


def test_word_folder_that_cannot_be_read(cache, tmp_path, monkeypatch):
    root, real = make_folder(tmp_path / "root"), os.scandir

    def scandir(path):
        if Path(path).name == "seven":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # no permission bits: tests may run as root
    with pytest.raises(UserError, match=r"cannot read .*/seven: Permission denied"):
        datasets.load("speech_commands_10", root)


def test_export_where_nothing_can_be_written(run_datasets, digits_store, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = run_datasets("export", "digits:120", tmp_path / "file" / "folder")
    assert failed_in_one_line(done), done.stderr
    assert "cannot write" in done.stderr
    assert "Not a directory" in done.stderr


def test_export_to_a_full_disk_leaves_nothing(digits_store, tmp_path, monkeypatch):
    def full(*arguments):
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*folder"):
        export_folder(digits_store, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


# Command line


def failed_in_one_line(done: subprocess.CompletedProcess) -> bool:
    return done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_command_in_a_process_of_its_own(cache):
    arguments = [sys.executable, "-m", "clar.datasets", "info", "speech_commands_10"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert failed_in_one_line(done), done.stderr
    assert "--root DIR" in done.stderr


def test_command_line(run_datasets, cache, tmp_path):
    root = make_folder(tmp_path / "root")
    assert "no" in run_datasets("list").stdout
    done = run_datasets("prepare", "speech_commands_10", "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "60 clips" in done.stdout
    done = run_datasets("info", "speech_commands_10")
    assert done.returncode == 0
    assert datasets.load("speech_commands_10").fingerprint in done.stdout
    assert "0 files left out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "speech_commands_1"], "did you mean"),
        (["info", "speech_commands_10"], "--root DIR"),
        (["prepare", "digits", "--clips", "5"], "must lie between"),
        (["prepare", "speech_commands_10", "--clips", "500"], "only embedded data sets"),
        (["prepare", "notes", "--url", "http://127.0.0.1/"], "nothing is fetched for it; leave out --url"),
        (["prepare", "notes", "--archive", "x.zip"], "it is synthesised; leave out --archive"),
        (["prepare", "esc_50", "--archive", "x.zip"], "say with --root DIR"),
        (["prepare", "esc_50", "--root", "d", "--checksum", "none"], "name that too"),
        (["prepare", "esc_50", "--root", "d", "--archive", "/nowhere/x.zip"], "--archive /nowhere/x.zip: no such file"),
        (["prepare", "digits:400", "--clips", "300"], "--clips 300 and digits:400 name two sizes; give one"),
        (["export", "speech_commands_10", "somewhere"], "only digits"),
        (["prepare"], "NAME|name"),
    ],
)
def test_command_line_mistakes(run_datasets, cache, arguments, message):
    done = run_datasets(*arguments)
    assert failed_in_one_line(done), done.stderr
    assert re.search(message, done.stderr)


def test_export_replaces_only_exports(run_datasets, digits_store, tmp_path):
    folder = tmp_path / "folder"
    assert run_datasets("export", "digits", folder, "--clips", "120").returncode == 0
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.wav"))
    assert len(files) == 120
    assert failed_in_one_line(run_datasets("export", "digits:120", folder))
    assert run_datasets("export", "digits:120", folder, "--force").returncode == 0
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.wav")) == files
    (folder / "thesis.txt").write_text("years of work")
    done = run_datasets("export", "digits:120", folder, "--force")
    assert failed_in_one_line(done)
    assert "thesis.txt" in done.stderr
    assert (folder / "thesis.txt").exists()
