"""The embedded notes: the same bytes however they are made, instruments that stay apart, sound that obeys physics."""

import itertools
import os
import platform
import subprocess
import sys

import librosa
import numpy as np
import pytest
from numpy._core import _multiarray_umath as processor

from clar import building
from clar.clips import SPLITS
from clar.datasets import notes
from clar.datasets.notes import FAMILIES, FEWEST, LOWEST, PITCHES, SAMPLE_RATE, VELOCITIES, Score
from clar.errors import UserError

GOLDEN = "bcac765273f498a9c9fed27a9322b14d604a34d9d103248e3b1501f722edda6d"
RINGING = ("bass", "guitar", "keyboard", "mallet", "plucked")
SUSTAINED = ("bowed", "brass", "flute", "organ", "reed", "voice")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The smallest `notes`, synthesised once."""
    return building.build(tmp_path_factory.mktemp("notes") / "store", notes.source("family", FEWEST))


def played(family, instrument=0, midi=60, velocity=127):
    """A dry note at a power of 1, and its fundamental in hertz by the definition of the tempered scale."""
    score = Score(family, instrument, midi, velocity, 0)
    cents = notes._draw(score.file).uniform(-notes.DETUNE_CENTS, notes.DETUNE_CENTS)
    note = notes.play(score, notes._draw(score.file))
    return note / np.sqrt(np.mean(note**2)), 440 * 2 ** ((midi - 69) / 12 + cents / 1200)


def centroid(wave):
    """Mean frequency, weighted by power."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    return power @ np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE) / power.sum()


# The same bytes


def test_golden_fingerprint(store):
    """The same bytes on every x86-64 Linux. A change here must come with a new `notes.VERSION`."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert store.fingerprint == GOLDEN


FINGERPRINT = """
import hashlib
from clar.datasets import notes
digest = hashlib.sha256()
for score in notes._block(0):
    digest.update(notes.record(score, notes._draw(score.file)).tobytes())
    digest.update(notes.synthesise(score).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables")
def test_processor_without_fma_gives_the_same():
    """glibc and NumPy choose code by the processor; here both are told that it is an old one.

    Compared to the last bit of the float64 before they are rounded, where a sine or a matrix product of NumPy would
    show: the rounding to 16 bits hides it from nearly every sample.
    """
    new = [name for name in processor.__cpu_dispatch__ if processor.__cpu_features__[name]]
    old = {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",
        "NPY_DISABLE_CPU_FEATURES": " ".join(new),
        "OPENBLAS_CORETYPE": "Nehalem",
    }
    check = f"from numpy._core._multiarray_umath import __cpu_features__ as has; assert not any(map(has.get, {new}))\n"
    runs = [
        subprocess.run([sys.executable, "-c", script], env=os.environ | extra, capture_output=True, text=True)
        for script, extra in ((FINGERPRINT, {}), (check + FINGERPRINT, old))
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    assert runs[0].stdout == runs[1].stdout


def test_order_and_number_of_workers_change_nothing(store):
    source = notes.source("family", FEWEST)
    backwards = [source.decode(i, i + 1)[0] for i in range(65, -1, -1)][::-1]
    assert np.array_equal(np.concatenate(backwards), store.clips[:66])


def test_smaller_set_is_the_beginning_of_a_larger_one():
    small, large = notes.source("family", 330), notes.source("family", 1848)
    assert small.files == large.files[:330]
    assert np.array_equal(small.labels, large.labels[:330])
    assert np.array_equal(small.splits, large.splits[:330])
    assert np.array_equal(small.decode(320, 330)[0], large.decode(320, 330)[0])


def test_both_labels_share_their_clips():
    """Then `notes` and `notes_pitch` can share a file."""
    family, pitch = notes.source("family", 330), notes.source("pitch", 330)
    assert (family.name, pitch.name) == ("notes", "notes_pitch")
    assert (family.files, family.stamps) == (pitch.files, pitch.stamps)
    assert np.array_equal(family.splits, pitch.splits)
    assert np.array_equal(family.decode(7, 9)[0], pitch.decode(7, 9)[0])


# The list of clips


def test_labels_are_those_of_the_file_names():
    family, pitch = notes.source("family"), notes.source("pitch")
    for file, name, note in zip(family.files, family.labels, pitch.labels, strict=True):
        assert file.startswith(f"{family.classes[name]}/{family.classes[name]}_")
        assert librosa.note_to_midi(pitch.classes[note]) == int(file.split("-")[1])


def test_default_size():
    family, pitch = notes.source("family"), notes.source("pitch")
    assert (len(family.files), len(family.classes), len(pitch.classes)) == (1848, 11, 24)
    assert sorted(family.classes) == list(family.classes)
    assert np.bincount(family.splits).tolist() == [1320, 264, 264]
    assert len(set(family.files)) == 1848
    assert family.groups == pitch.groups == [file.split("/")[1].split("-")[0] for file in family.files]


@pytest.mark.parametrize("n", [165, 330, 495, 990, 1848, 3000])
def test_splits_are_balanced_and_instrument_disjoint(n):
    family, pitch = notes.source("family", n), notes.source("pitch", n)
    instrument = np.array([file.split("-")[0] for file in family.files])
    members = [set(instrument[family.splits == i]) for i in range(3)]
    assert not any(a & b for a, b in itertools.combinations(members, 2))
    assert np.allclose(np.bincount(family.splits) / n, [0.7, 0.15, 0.15], atol=0.11)
    for i in range(3):
        held = family.splits == i
        assert len(set(np.bincount(family.labels[held]))) == 1
        assert np.bincount(pitch.labels[held], minlength=len(PITCHES)).min() > 0


def test_family_pitch_and_velocity_are_independent():
    """In the default size every family plays every pitch equally often in each split; velocities nearly so."""
    family, pitch = notes.source("family"), notes.source("pitch")
    velocity = np.array([int(file.split("-")[2].split("_")[0]) for file in family.files])
    for i, times in enumerate((5, 1, 1)):
        held = family.splits == i
        table = np.zeros((len(FAMILIES), len(PITCHES)), int)
        np.add.at(table, (family.labels[held], pitch.labels[held]), 1)
        assert (table == times).all()
        for labels in (family.labels, pitch.labels):
            counts = [
                [np.sum(velocity[held & (labels == label)] == v) for v in VELOCITIES] for label in np.unique(labels)
            ]
            assert np.ptp(counts, axis=1).max() <= 2


def test_every_instrument_plays_high_and_low():
    source = notes.source("family")
    played_by = {}
    for file in source.files:
        instrument, midi, _ = file.split("-")
        played_by.setdefault(instrument, []).append(int(midi) - LOWEST)
    assert len(played_by) == len(FAMILIES) * sum(len(notes.INSTRUMENTS[split]) for split in SPLITS)
    assert all(len(pitches) >= 6 and min(pitches) < 8 and max(pitches) >= 16 for pitches in played_by.values())


@pytest.mark.parametrize("n", [0, 100, 10**9, -33])
def test_impossible_sizes(n):
    with pytest.raises(UserError, match=f"notes:{n}: "):
        notes.source("family", n)


@pytest.mark.parametrize(("n", "wanted"), [(165, 165), (181, 165), (182, 198), (1848, 1848), (2000, 2013)])
def test_sizes_are_whole_blocks(n, wanted):
    assert notes.whole(n) == wanted
    assert len(notes.source("pitch", n).files) == wanted


# The sound


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("midi", [48, 59, 71])
def test_pitch(family, midi):
    """Against librosa's YIN where a note sustains, vibrato and all, and the spectrum's peak where it rings."""
    for instrument in (0, 7, 14, 19):
        note, hertz = played(family, instrument, midi)
        if family in SUSTAINED:
            found = np.median(librosa.yin(note[4000:16000], fmin=0.7 * hertz, fmax=1.5 * hertz, sr=SAMPLE_RATE))
        else:
            power = np.abs(np.fft.rfft(note * np.hanning(len(note)), 2**17))
            bins = np.fft.rfftfreq(2**17, 1 / SAMPLE_RATE)
            power[np.abs(bins / hertz - 1) > 0.06] = 0
            found = bins[power.argmax()]
        assert abs(1200 * np.log2(found / hertz)) < 20


@pytest.mark.parametrize("family", FAMILIES)
def test_harder_is_brighter(family):
    """All but an overdriven guitar, which saturates at any velocity."""
    ratios = []
    for instrument in range(0, 20, 3):
        soft, hard = (centroid(played(family, instrument, velocity=velocity)[0]) for velocity in (25, 127))
        ratios.append(hard / soft)
    assert np.mean(ratios) > 1.08
    assert min(ratios) > (0.7 if family == "guitar" else 1.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_strings_and_bars_ring_and_the_others_sustain(family):
    """The level over the second second, in dB, relative to that from 0.1 to 0.5 s."""
    for instrument in range(20):
        note, _ = played(family, instrument)
        fall = 10 * np.log10(np.mean(note[1600:8000] ** 2) / (np.mean(note[16000:] ** 2) + 1e-20))
        assert fall > 3 if family in RINGING else abs(fall) < 3


def test_instruments_of_a_family_differ():
    """More than the takes of one instrument do: mean distance of spectra in dB."""
    for family in FAMILIES:
        spectra = []
        for instrument in range(6):
            mel = librosa.feature.melspectrogram(y=played(family, instrument)[0], sr=SAMPLE_RATE, n_mels=40)
            spectra.append(librosa.power_to_db(mel.mean(1), amin=1e-6))
        distances = [np.abs(a - b).mean() for a, b in itertools.combinations(spectra, 2)]
        assert np.mean(distances) > 3


def test_string_partials_are_stretched_by_stiffness():
    note = notes.Note(200.0, 1.0, notes.SAMPLES, notes._draw("string"))
    pluck = notes._pluck(note, 0.11, 5000, 0.2)
    sharp = []
    for stiffness in (0.0, 0.4):
        wave = notes._string(pluck, 200.0, 4.0, 0.05, stiffness)
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**18))
        bins = np.fft.rfftfreq(2**18, 1 / SAMPLE_RATE)
        near = np.abs(bins - 2000) < 90
        sharp.append(1200 * np.log2(bins[near][spectrum[near].argmax()] / 2000))
    assert abs(sharp[0]) < 5
    assert 5 < sharp[1] < 80


def test_string_rings_as_long_as_asked():
    note = notes.Note(200.0, 1.0, notes.SAMPLES, notes._draw("string"))
    wave = notes._string(notes._pluck(note, 0.2, 2000, 0.0), 200.0, 2.0, 0.3, 0.1)
    tone = np.exp(-2j * np.pi * 200 * np.arange(1600) / SAMPLE_RATE)
    early, late = (np.abs(wave[start : start + 1600] @ tone) for start in (4000, 20000))
    assert 20 * np.log10(early / late) == pytest.approx(30, abs=1)  # a second is half of two


def test_series_is_the_sum_of_its_harmonics():
    cycles, roll = np.linspace(0, 7, 500), np.linspace(0.2, 0.9, 500)
    weights = [1.0, 0.0, 0.5, 0.25]
    wanted = sum(w * roll**k * np.sin(2 * np.pi * k * cycles) for k, w in enumerate(weights, 1))
    assert np.allclose(notes._series(cycles, weights, roll), wanted, atol=1e-12)


def test_modes_are_decaying_sines():
    note = notes.Note(0.0, 0.0, notes.SAMPLES, notes._draw("modes"))
    place = np.arange(notes.SAMPLES) / SAMPLE_RATE
    found = notes._modes(note, [(440.0, 0.5, 1.0), (1000.0, 0.25, 3.0)])
    first, second = (10 ** (-3 * place / seconds) * np.sin(2 * np.pi * hertz * place)
                     for hertz, seconds in ((440, 1.0), (1000, 3.0)))  # fmt: skip
    wanted = 0.5 * first + 0.25 * second
    assert np.allclose(found[:-1], wanted[1:], atol=2e-4)  # a mode ends 78 dB down


def test_level_of_the_clips(store):
    clip_NT = store.clips.astype(float)
    decibel = 10 * np.log10(np.square(clip_NT).mean(1) / 2**30)
    assert decibel.min() > notes.LEVEL_DBFS[0] + notes.SOFTEST_DB - 1
    assert decibel.max() < notes.LEVEL_DBFS[1] + 0.1
    assert (np.abs(clip_NT) >= 32767).mean() < 1e-5


def test_harder_is_louder(store):
    """On average over the levels that are drawn, by what the velocities are told to differ."""
    decibel = 10 * np.log10(np.square(store.clips.astype(float)).mean(1) / 2**30)
    velocity = np.array([int(file.split("-")[2].split("_")[0]) for file in store.files])
    found = [decibel[velocity == v].mean() for v in VELOCITIES]
    wanted = [np.mean(notes.LEVEL_DBFS) + Score("reed", 0, 60, v, 0).loudness for v in VELOCITIES]
    assert np.allclose(found, wanted, atol=1.2)
    assert np.all(np.diff(found) > 0.5)


def test_level_and_length_do_not_say_the_family(store):
    """Families' mean levels differ by no more than chance."""
    decibel = 10 * np.log10(np.square(store.clips.astype(float)).mean(1))
    means = [decibel[store.labels == label].mean() for label in range(len(FAMILIES))]
    error = decibel.std() / np.sqrt(FEWEST / len(FAMILIES))
    assert np.ptp(means) < 5 * error
