"""The embedded scenes: the same bytes however they are made, disjoint folds, sounds as their classes sound."""

import itertools
import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy._core import _multiarray_umath as dispatch
from scipy import signal, stats

from clar import building
from clar.clips import SPLITS, fold_splits
from clar.datasets import scenes
from clar.errors import UserError

GOLDEN = "88b84214498349465adddcf3bccce52ef00ad0320c29436e60710dea225135f2"
RATE = scenes.SAMPLE_RATE


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The smallest `scenes`."""
    return building.build(tmp_path_factory.mktemp("scenes") / "store", scenes.source(scenes.FEWEST))


def test_golden_fingerprint(store):
    """The same bytes on every x86-64 Linux. A change here must come with a new `scenes.VERSION`."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert store.fingerprint == GOLDEN


# Prints a hash of two clips a class before they are rounded to 16 bits, which would hide what differs in the last bits.
UNROUNDED = """
import hashlib
from clar.datasets import scenes

scenes.levelled = lambda clip_T, dbfs: clip_T * scenes.gain(dbfs)
clips = [scenes.synthesise(scenes.Take(label, 1, recording, "A")) for label in range(10) for recording in range(2)]
print(hashlib.sha256(b"".join(clip_T.tobytes() for clip_T in clips)).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables")
def test_processor_without_fma_gives_the_same():
    """glibc and NumPy choose code by the processor; here both are told that it is an old one."""
    newer = [name for name in dispatch.__cpu_dispatch__ if dispatch.__cpu_features__.get(name)]
    old = {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-AVX2_Usable,-FMA_Usable",
        "NPY_DISABLE_CPU_FEATURES": " ".join(newer),
        "OPENBLAS_CORETYPE": "Nehalem",
    }
    check = (
        f"from numpy._core._multiarray_umath import __cpu_features__ as has; assert not any(map(has.get, {newer}))\n"
    )
    hashes = [
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | extra, capture_output=True, text=True, check=True
        ).stdout
        for script, extra in ((UNROUNDED, {}), (check + UNROUNDED, old))
    ]
    assert hashes[0] == hashes[1]


def test_order_and_number_of_workers_change_nothing(store):
    source = scenes.source(scenes.FEWEST)
    for clip in range(len(store) - 1, -1, -9):
        assert np.array_equal(source.decode(clip, clip + 1)[0][0], store.clips[clip])


def test_smaller_set_is_the_beginning_of_a_larger_one(store):
    small, large = scenes.source(100), scenes.source(2000)
    assert small.files == large.files[:100]
    assert np.array_equal(small.labels, large.labels[:100])
    assert np.array_equal(small.folds, large.folds[:100])
    assert np.array_equal(small.splits, large.splits[:100])
    assert np.array_equal(large.decode(40, 45)[0], store.clips[40:45])


@pytest.mark.parametrize(
    ("clips", "wanted"), [(100, 100), (124, 100), (125, 150), (399, 400), (400, 400), (2026, 2050)]
)
def test_sizes_are_whole_rounds(clips, wanted):
    assert scenes.whole(clips) == wanted
    assert len(scenes.source(clips).files) == wanted


@pytest.mark.parametrize("clips", [-1, 0, 99, 1_000_001])
def test_impossible_sizes(clips):
    with pytest.raises(UserError, match=f"scenes:{clips}: the number of clips must lie between 100 and 1,000,000"):
        scenes.source(clips)


@pytest.mark.parametrize("n", [100, 150, 400, 2000])
def test_folds_and_splits_are_balanced(n):
    source = scenes.source(n)
    cells = np.zeros((scenes.FOLDS, len(scenes.CLASSES)), int)
    np.add.at(cells, (source.folds - 1, source.labels), 1)
    assert (cells == n // scenes.ROUND).all()
    assert np.array_equal(source.splits, fold_splits(source.folds, 5))
    assert np.bincount(source.splits).tolist() == [n * 3 // 5, n // 5, n // 5]
    assert set(source.folds[source.splits == SPLITS.index("test")]) == {5}


def test_files_are_named_as_those_of_esc_50():
    source = scenes.source()
    assert source.files[0] == "clock/1-100000-A-0.wav"
    assert len(set(source.files)) == len(source.files) == 400
    fold_of, takes_of = {}, {}
    for file, label, fold in zip(source.files, source.labels, source.folds, strict=True):
        match = re.fullmatch(r"([a-z]+)/([1-5])-(\d{6})-([AB])-(\d)\.wav", file)
        name, in_fold, recording, take, number = match.groups()
        assert (name, int(number), int(in_fold)) == (scenes.CLASSES[label], label, fold)
        assert fold_of.setdefault(recording, fold) == fold
        takes_of.setdefault(recording, set()).add(take)
    assert len(takes_of) == 200
    assert source.groups == [file.split("-")[1] for file in source.files]
    assert all(takes == {"A", "B"} for takes in takes_of.values())


def test_largest_set_has_six_digits_for_each_recording():
    assert scenes.Take.at(scenes.MOST - 1).file == "wind/5-599999-B-9.wav"


def test_recordings_share_no_random_draw(monkeypatch):
    """What is drawn for one recording is drawn for no other, in its own fold or another."""
    keys: list[str] = []
    monkeypatch.setattr(scenes, "_draw", lambda key, draw=scenes._draw: keys.append(key) or draw(key))
    drawn = []
    for fold, recording in itertools.product((1, 5), (0, 1)):
        keys.clear()
        scenes.synthesise(scenes.Take(3, fold, recording, "A"))
        assert len(set(keys)) == len(keys)
        drawn.append(set(keys))
    assert not any(a & b for a, b in itertools.combinations(drawn, 2))


def test_takes_share_their_recording_and_nothing_else(monkeypatch):
    keys: list[set[str]] = []
    monkeypatch.setattr(scenes, "_draw", lambda key, draw=scenes._draw: keys[-1].add(key) or draw(key))
    for letter in "AB":
        keys.append(set())
        scenes.synthesise(scenes.Take(0, 1, 0, letter))
    assert keys[0] & keys[1] == {"clock/1/0", "clock/1/0/place"}


def test_no_two_clips_are_equal(store):
    assert len({clip.tobytes() for clip in store.clips}) == len(store)


def test_levels_say_nothing_about_the_class(store):
    """None is silent, next to nothing saturates, and every class has levels from the whole range."""
    clips_NT = store.clips.astype(np.int64)
    decibels = 10 * np.log10(np.square(clips_NT).mean(1) / 2**30)
    low, high = scenes.LEVEL_DBFS
    assert low - 0.5 < decibels.min() < low + 3
    assert high - 3 < decibels.max() < high + 0.5
    assert (np.abs(clips_NT) >= 32767).sum(1).max() < 40
    means = [decibels[store.labels == label].mean() for label in range(10)]
    assert np.ptp(means) < 2 * (high - low) / 3
    assert np.abs(clips_NT.mean(1)).max() < 20


@pytest.mark.parametrize("snr", [0.0, 10.0])
def test_noise_has_the_asked_power(monkeypatch, snr):
    """A siren's power lies at its harmonics: the rest of the spectrum is noise of the power asked for."""
    monkeypatch.setattr(scenes, "SNR_DB", (snr, snr))
    monkeypatch.setitem(scenes.MODELS, "siren", lambda *_: np.sin(np.arange(scenes.MADE) * (2 * np.pi / 16)))
    monkeypatch.setattr(scenes, "ECHOING", frozenset())
    spectrum = np.square(np.abs(np.fft.rfft(scenes.synthesise(scenes.Take(7, 1, 0, "A")))))
    tone = spectrum[4990:5011].sum()
    assert 10 * np.log10(tone / (spectrum.sum() - tone)) == pytest.approx(snr, abs=0.3)


@pytest.mark.parametrize("end", [slice(0, 3), slice(-3, None)])
def test_the_ends_of_a_clip_tell_no_class(store, end):
    """A clip is a moment out of a sound that was there before it: nothing starts with it, in any class."""
    for label, name in enumerate(scenes.CLASSES):
        clips_NT = store.clips[store.labels == label].astype(np.float64)
        ends_N3 = clips_NT[:, end] / np.sqrt(np.square(clips_NT).mean(1, keepdims=True))
        assert np.square(ends_N3).mean() < 4, name
        assert abs(np.sign(ends_N3).mean()) < 0.9, name


# What the models sound like, measured without noise and room


def dry(name, count=6):
    """Sounds of different recordings, each scaled to a power of 1."""
    for key in map(str, range(count)):
        sound_T = scenes.MODELS[name](scenes._draw(f"{name}/{key}"), scenes._draw(f"{name}/{key}/take"))
        assert sound_T.shape == (scenes.MADE,)
        assert np.isfinite(sound_T).all()
        sound_T = sound_T[-scenes.SAMPLES :]
        sound_T = sound_T - sound_T.mean()
        yield sound_T / sound_T.std()


def loudness(sound_T, seconds=0.01):
    """Mean power of frames of so many seconds."""
    return np.square(sound_T).reshape(-1, round(seconds * RATE)).mean(1)


def regularity(sound_T, slowest=2.1):
    """Largest autocorrelation of the loudness (0 to 1) at lags from 0.15 s, and that lag in seconds."""
    frames = np.sqrt(loudness(sound_T))
    frames = frames - frames.mean()
    lags = np.arange(15, round(slowest * 100))
    # Each lag is scored over what overlaps, over neighbouring frames: beats fall between two.
    frames = np.convolve(frames, [0.5, 1, 0.5], "same")
    scores = [np.corrcoef(frames[:-lag], frames[lag:])[0, 1] for lag in lags]
    return max(scores), lags[np.argmax(scores)] / 100


def share_above(sound_T, hertz):
    """Share of the power above a frequency."""
    spectrum = np.square(np.abs(np.fft.rfft(sound_T)))
    return spectrum[round(hertz * len(sound_T) / RATE) :].sum() / spectrum.sum()


def test_clock_ticks_regularly():
    for sound_T in dry("clock"):
        score, lag = regularity(sound_T)
        assert score > 0.8
        assert 2 / 6 * 0.95 < lag < 2.1
        assert share_above(sound_T, 800) > 0.9
        assert stats.kurtosis(sound_T) > 20


def test_footsteps_are_regular_but_less_than_a_clock():
    scores = []
    for sound_T in dry("footsteps"):
        score, _ = regularity(sound_T)
        scores.append(score)
        assert score > 0.3
        assert stats.kurtosis(sound_T) > 5
    assert np.mean(scores) < np.mean([regularity(sound_T)[0] for sound_T in dry("clock")])


@pytest.mark.parametrize("name", ["rain", "fire"])
def test_rain_and_fire_have_no_beat(name):
    assert all(regularity(sound_T)[0] < 0.4 for sound_T in dry(name))


def test_engine_is_harmonic():
    """Within a quarter of a second, in which the rate stays, it repeats itself at its firing rate or a cycle of it."""
    for sound_T in dry("engine"):
        best = []
        for part in sound_T.reshape(20, -1)[2:18]:
            repeats = signal.correlate(part, part)[len(part) - 1 :]
            best.append((repeats / np.arange(len(part), 0, -1))[RATE // 150 : RATE // 8].max() / np.square(part).mean())
        assert np.median(best) > 0.6
        assert share_above(sound_T, 2000) < 0.2


def test_siren_glides_or_jumps():
    for sound_T in dry("siren", 9):
        hertz, _, power_FT = signal.spectrogram(sound_T, RATE, nperseg=1024)
        tone = hertz[power_FT.argmax(0)]
        assert np.percentile(tone, 10) > 300
        assert np.percentile(tone, 90) < 2200
        assert np.percentile(tone, 95) / np.percentile(tone, 5) > 1.2


def test_insects_sing_high_in_pulses():
    for sound_T in dry("insects"):
        assert share_above(sound_T, 2000) > 0.98
        frames = loudness(sound_T, 0.002)
        assert frames.std() > 0.5 * frames.mean()


def test_glass_bursts_and_dies_away():
    for sound_T in dry("glass"):
        frames = loudness(sound_T, 0.05)
        assert frames.max() / np.median(frames) > 100
        assert 10 * np.log10(frames.max() / frames[-2:].mean()) > 20
        assert share_above(sound_T, 800) > 0.8


def test_rain_is_dense_and_steady():
    for sound_T in dry("rain"):
        halves = 10 * np.log10(loudness(sound_T, 0.5))
        assert np.ptp(halves) < 6
        assert np.percentile(loudness(sound_T), 5) > 0.02


def test_fire_crackles_over_a_rumble():
    for sound_T in dry("fire"):
        high_T = signal.sosfilt(signal.butter(4, 600, "high", fs=RATE, output="sos"), sound_T)
        assert stats.kurtosis(high_T) > 5
        assert share_above(sound_T, 300) < 0.97


@pytest.mark.parametrize("name", ["waves", "wind"])
def test_waves_and_wind_swell_slowly(name):
    """The loudness of a fifth of a second says that of the next, and goes up and down a lot."""
    for sound_T in dry(name):
        frames = 10 * np.log10(loudness(sound_T, 0.2))
        assert np.corrcoef(frames[:-1], frames[1:])[0, 1] > 0.5
        assert np.ptp(frames) > 6


def test_wind_is_low_and_waves_reach_higher():
    wind = [share_above(sound_T, 2000) for sound_T in dry("wind")]
    waves = [share_above(sound_T, 2000) for sound_T in dry("waves")]
    assert max(wind) < 0.1
    assert np.mean(waves) > 2 * np.mean(wind)


# What the models are made of


def test_resonance_rings_as_it_says():
    ring_T = scenes._resonance(scenes._impulses(np.array([0.0]), np.array([1.0])), 1000.0, 0.5)
    wanted_T = 10 ** (-3 * np.arange(8000) / 8000) * np.sin(2 * np.pi * 1000 * (np.arange(8000) + 1) / RATE)
    assert np.abs(ring_T[:8000] - wanted_T).max() < 1e-3


@pytest.mark.parametrize("hertz", [100.0, 400.0])
def test_filters_are_three_db_down_at_their_frequency(hertz):
    noise_T = scenes._noise(scenes._draw("filter"))
    for filtered_T in (scenes._low_pass(noise_T, hertz), scenes._high_pass(noise_T, hertz)):
        frequencies, cross = signal.csd(noise_T, filtered_T, RATE, nperseg=4096)
        _, own = signal.welch(noise_T, RATE, nperseg=4096)
        answer = np.abs(cross / own)[np.argmin(np.abs(frequencies - hertz))]
        assert answer == pytest.approx(10 ** (-3 / 20), rel=0.15)


def test_impulses_outside_the_clip_are_left_out():
    drive_T = scenes._impulses(
        np.array([-0.1, 0.0, 1.0, 1.0, scenes.MADE_SECONDS]), np.array([9.0, 1.0, 2.0, 3.0, 9.0])
    )
    assert drive_T[0] == 1
    assert drive_T[RATE] == 5
    assert np.count_nonzero(drive_T) == 2


@pytest.mark.parametrize("hertz", [0.4, 1.0, 30.0])
def test_drift_stays_in_range_and_moves_slowly(hertz):
    curve_T = scenes._drift(scenes._draw("drift"), hertz)
    assert curve_T.shape == (scenes.MADE,)
    assert curve_T.min() >= 0
    assert curve_T.max() <= 1
    assert np.abs(np.diff(curve_T)).max() <= 1.5 * hertz / RATE * 1.01
    assert np.ptp(curve_T) > 0.2
