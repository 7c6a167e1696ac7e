"""The embedded digits: the same bytes however they are made, nested sizes, speakers that stay apart."""

import hashlib
import itertools
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from clar import clips, datasets
from clar.clips import SPLITS
from clar.datasets import digits
from clar.errors import UserError

pytest.importorskip("espeakng_loader")

GOLDEN = "bfcdd2b5428fec5bed8277b41cea860d4c60a2ff97248700cdffdeb5b6239477"
GOLDEN_DRAWS = [902, 36, 828]


@pytest.fixture
def store(small_cache, monkeypatch):
    """The smallest `digits`, synthesised once a session."""
    monkeypatch.setenv("CLAR_CACHE", str(small_cache))
    return datasets.load("digits:120")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAR_CACHE", str(tmp_path))
    return tmp_path


def test_golden_fingerprint(store):
    """The same bytes on every x86-64 Linux. A change here must come with a new `digits.VERSION`."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert store.fingerprint == GOLDEN


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables")
def test_processor_without_fma_gives_the_same(store, cache):
    """glibc and NumPy choose code by the processor; here both are told that it is an old one."""
    old = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-AVX2_Usable,-FMA_Usable"}
    script = "from clar import datasets; print(datasets.load('digits:120').fingerprint)"
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | old, capture_output=True, text=True)
    assert run.stdout.strip() == store.fingerprint


def test_order_and_number_of_workers_change_nothing(store):
    source = digits.source(120)
    backwards = [source.decode(start, start + 10)[0] for start in range(110, -1, -10)][::-1]
    assert np.array_equal(np.concatenate(backwards), store.clips)


def test_smaller_set_is_the_beginning_of_a_larger_one():
    small, large = digits.source(400), digits.source(2000)
    assert small.files == large.files[:400]
    assert np.array_equal(small.labels, large.labels[:400])
    assert np.array_equal(small.splits, large.splits[:400])
    assert np.array_equal(small.decode(30, 40)[0], large.decode(30, 40)[0])


def test_second_take_differs_from_first():
    source = digits.source(2000)
    first, second = source.decode(0, 10)[0], source.decode(1000, 1010)[0]
    assert source.files[1000] == source.files[0].replace("_0.wav", "_1.wav")
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("n", [120, 200, 400, 1000, 2000, 2500])
def test_splits_are_balanced_and_speaker_disjoint(n):
    source = digits.source(n)
    assert len(source.files) == n
    speaker = np.array([file.split("/")[1].split("_")[0] for file in source.files])
    members = [set(speaker[source.splits == i]) for i in range(3)]
    assert not any(a & b for a, b in itertools.combinations(members, 2))
    assert min(map(len, members)) >= 2
    shares = np.bincount(source.splits) / n
    assert np.allclose(shares, [0.7, 0.15, 0.15], atol=0.06)
    for i in range(3):
        assert len(set(np.bincount(source.labels[source.splits == i]))) == 1


def test_two_thousand_clips_are_a_hundred_speakers():
    source = digits.source()
    assert np.bincount(source.splits).tolist() == [1400, 300, 300]
    assert len({speaker.name for speaker in digits.speakers()}) == 100
    assert len(set(source.files)) == 2000
    assert source.groups == [file.split("/")[1].split("_")[0] for file in source.files]


def test_no_voice_is_in_two_splits():
    everything = [variant for split in SPLITS for variant in digits.VARIANTS[split]]
    assert len(set(everything)) == len(everything)
    assert set(digits._TURNS) == set(SPLITS)


def test_every_word_is_whole_and_audible(store):
    """The dry word fits into the clip, and the clip is louder where the word is."""
    clip_NT = store.clips.astype(np.int64)
    power = np.square(clip_NT).mean(1)
    decibel = 10 * np.log10(power / 2**30)
    assert decibel.min() > digits.LEVEL_DBFS[0] - 1
    assert decibel.max() < digits.LEVEL_DBFS[1] + 1
    assert (np.abs(clip_NT) == 32767).mean() < 1e-3


def test_resampler_keeps_pitch_and_level():
    """Against the definition: a sine at 22,050 Hz is the same sine at 16,000 Hz."""
    old = np.rint(8000 * np.sin(2 * np.pi * 1000 * np.arange(11025) / 22050)).astype(np.int64)
    new = digits._resample(old)
    wanted = 8000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000)
    assert len(new) == 8000
    assert np.abs(new - wanted)[50:-50].max() < 16  # -54 dB
    high = np.rint(8000 * np.sin(2 * np.pi * 9500 * np.arange(11025) / 22050)).astype(np.int64)
    assert np.abs(digits._resample(high))[50:-50].max() < 80  # -40 dB: would alias to 6.5 kHz


def test_room_is_a_convolution():
    impulse = np.zeros(digits.SAMPLES, np.int64)
    impulse[100] = 1 << 14
    answer = digits._room(impulse, digits._draw("room"))
    assert answer[100] == 1 << 14
    assert not answer[:100].any()
    assert 10 < np.count_nonzero(answer) <= digits.ECHO_TAPS + 1


@pytest.mark.parametrize("decibel", [0, 10])
def test_noise_has_the_asked_power(monkeypatch, decibel):
    """Where the word is, power is (1 + SNR) times the power beside it, on average over clips."""
    monkeypatch.setattr(digits, "SNR_DB", (decibel, decibel))
    monkeypatch.setattr(digits, "ECHO_LEVEL", 0.0)
    monkeypatch.setattr(digits, "TILT", 0.0)
    word = np.rint(9000 * np.sin(np.arange(11025) / 3)).astype(np.int16)
    inside, outside = [], []
    for key in map(str, range(40)):
        clip = np.square(digits._record(word, digits._draw(key)).astype(float))
        onset = digits._draw(key).between(0, digits.SAMPLES - 8000)
        inside.append(clip[onset : onset + 8000].sum())
        outside.append(clip.sum() - inside[-1])
    # The noise fills 16,000 samples and has the energy that the word would have if it did so too.
    assert sum(inside) / sum(outside) == pytest.approx(1 + 10 ** (decibel / 10), rel=0.15)


def test_draws_are_fixed():
    """Golden: these numbers must never change, on any machine or NumPy."""
    draw = digits._draw("golden")
    assert [draw.between(0, 999) for _ in range(3)] == GOLDEN_DRAWS
    assert all(-5 <= digits._draw(str(i)).between(-5, 5) <= 5 for i in range(100))
    assert {int(v) for v in digits._draw("k").integers(200, 3)} == {0, 1, 2}


@pytest.mark.parametrize("name", ["digits:10", "digits:9999999999", "digits:x", "digits:-400", "digits:4e2"])
def test_impossible_sizes(cache, name):
    with pytest.raises(UserError, match="digits:"):
        datasets.load(name)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    digits._espeak.cache_clear()
    try:
        with pytest.raises(UserError, match=r"pip install 'clar\[demo\]'"):
            digits.source(120).decode(0, 10)
    finally:
        digits._espeak.cache_clear()


def test_unknown_voice_is_reported():
    with pytest.raises(UserError, match="no voice xx"):
        digits._speak("xx+nobody", [("one", 170, 50, 50)])


@pytest.mark.slow
def test_every_speaker_says_ten_different_words():
    slowest = digits.SPEAKER_RATE[0] - digits.TAKE_RATE
    for speaker in digits.speakers():
        words = digits._speak(f"{speaker.accent}+{speaker.variant}", [(w, slowest, 50, 50) for w in digits.WORDS])
        assert len({hashlib.sha256(word.tobytes()).hexdigest() for word in words}) == 10, speaker
        seconds = [len(digits._trim(word)) / 22050 for word in words]
        assert min(seconds) > 0.1, speaker
        assert max(seconds) < 1, speaker


def test_build_uses_every_core_and_one_gives_the_same(store, cache, monkeypatch):
    monkeypatch.setattr(clips, "cores", lambda: 1)
    alone = datasets.load("digits:120")
    assert alone.path != store.path
    assert alone.fingerprint == store.fingerprint


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("digits", "digits"),
        ("digits:", "digits"),
        ("digits:2000", "digits"),
        ("digits:2003", "digits"),
        ("digits:1995", "digits"),
        ("digits:2005", "digits:2010"),
        ("digits:404", "digits:400"),
        ("digits:0400", "digits:400"),
        ("speech_commands_10", "speech_commands_10"),
    ],
)
def test_one_store_has_one_name(name, wanted):
    assert datasets.canonical(name) == wanted
    assert datasets.canonical(wanted) == wanted
    if wanted.startswith("digits"):
        paths = {datasets._embedded_path("digits", spelled.partition(":")[2]) for spelled in (name, wanted)}
        assert len(paths) == 1


@pytest.mark.parametrize("name", ["digit", "speech_commands_10:5", "digits:10", "digits:x", ""])
def test_wrong_name_has_the_same_error_everywhere(cache, name):
    said = set()
    for function in (datasets.load, datasets.canonical, datasets.built):
        with pytest.raises(UserError) as error:
            function(name)
        said.add(str(error.value))
    assert len(said) == 1
