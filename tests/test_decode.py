"""Decoding against libsndfile and soxr, and what it says of files that are no clips: every kind, and random bytes."""

import io
import os
import struct
import subprocess
import sys
import tracemalloc
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clar.datasets.decode import HIGHEST_RATE, LOWEST_RATE, Unusable, decode, decode_files, header_of, resample

RATE = SAMPLES = 16_000


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if length is None else length) + content + b"\0" * (len(content) % 2)


def wav(sound: bytes, rate=RATE, channels=1, bits=16, code=1, before=b"", data=None, riff=None) -> bytes:
    """A WAV file; `data` and `riff` are what its header says of its lengths, where that is a lie."""
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * align, align, bits)
    body = b"WAVE" + chunk(b"fmt ", form) + before + chunk(b"data", sound, data)
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


NOISE = np.random.default_rng(0).integers(-32768, 32768, 20_000).astype("<i2")


# Plain WAV files: the fast way gives what libsndfile gives


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 20_000),
    rate=st.sampled_from([4000, 8000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000]),
    extra=st.lists(st.tuples(st.sampled_from([b"LIST", b"junk", b"bext"]), st.binary(max_size=60)), max_size=3),
    behind=st.binary(max_size=20),
)
def test_plain_files_are_read_as_libsndfile_reads_them(tmp_path, frames, rate, extra, behind):
    path = tmp_path / "plain.wav"
    path.write_bytes(wav(NOISE[:frames].tobytes(), rate, before=b"".join(chunk(*one) for one in extra)) + behind)
    wanted, _ = soundfile.read(path, dtype="int16")
    fast = decode(path, rate, SAMPLES)
    assert np.array_equal(fast[: len(wanted)], wanted[:SAMPLES])
    assert not fast[len(wanted) :].any()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_header_is_never_read_otherwise_than_by_libsndfile(tmp_path, data):
    """Any four bytes of the header replaced: the clip is libsndfile's, or there is a reason."""
    content = bytearray(wav(NOISE[:400].tobytes(), before=chunk(b"LIST", b"about it")))
    place = data.draw(st.integers(0, 60))
    content[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    path = tmp_path / "changed.wav"
    path.write_bytes(content)
    try:
        clip = decode(path, RATE, SAMPLES)
    except Unusable:
        return
    wanted, rate = soundfile.read(path, dtype="int16", always_2d=True)
    if rate == RATE and wanted.shape[1] == 1:
        # Samples of other widths are rounded here and cut off by libsndfile.
        step = 0 if soundfile.info(path).subtype == "PCM_16" else 1
        differences = clip[: len(wanted)].astype(int) - wanted[:SAMPLES, 0]
        assert np.abs(differences).max() <= step


# Resampling


def noise(rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Two seconds of noise at a rate, without what the filter may change, and exactly the same noise at 16 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(rate).normal(0, 0.1, 2 * rate))
    spectrum[int(0.9 * min(rate, RATE)) :] = 0
    other = np.zeros(RATE + 1, complex)
    other[: min(len(spectrum), RATE + 1)] = spectrum[: RATE + 1]
    return np.fft.irfft(spectrum, 2 * rate), np.fft.irfft(other, 2 * RATE) * RATE / rate


def decibels(sound: np.ndarray, exact: np.ndarray) -> float:
    """Power of the difference over that of the sound; away from the ends, before and after which there is silence."""
    middle = slice(4000, -4000)
    error = sound[middle] - exact[middle]
    return float(10 * np.log10(np.square(error).mean() / np.square(exact[middle]).mean()))


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 16_001, 22_050, 22_051, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_resampling_is_exact_to_120_db(rate):
    sound, exact = noise(rate)
    resampled = resample(sound, rate, RATE)
    assert len(resampled) == 2 * RATE
    assert decibels(resampled, exact) < -120


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_resampling_agrees_with_soxr(rate):
    """Another's resampler finds the same; at 44.1 kHz its own error is what is left, 73 dB down."""
    soxr = pytest.importorskip("soxr")
    sound, _ = noise(rate)
    theirs = soxr.resample(sound, rate, RATE, quality="HQ")
    assert decibels(resample(sound, rate, RATE), theirs) < -70


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000, 192_000])
def test_nothing_above_the_new_nyquist_frequency_comes_through(rate):
    place = np.arange(rate) / rate
    for hertz in np.linspace(RATE / 2, 0.499 * rate, 25):
        alias = resample(np.sin(2 * np.pi * hertz * place), rate, RATE)[1000:-1000]
        assert 20 * np.log10(np.abs(alias).max()) < -118, hertz


@pytest.mark.parametrize("rate", [4000, 8000, 22_050, 44_100, 192_000])
def test_what_passes_passes_unchanged(rate):
    place, lower = np.arange(rate) / rate, min(rate, RATE) / 2
    for hertz in np.linspace(50, 0.91 * lower, 15):
        passed = resample(np.sin(2 * np.pi * hertz * place), rate, RATE)
        wanted = np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)
        assert np.abs(passed - wanted)[1500:-1500].max() < 1e-5, hertz


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 100_000), rate=st.sampled_from([8000, 22_050, 44_100, 48_000]))
def test_a_beginning_is_resampled_like_the_whole(length, rate):
    """Blocks join without a seam, wherever the recording ends: in an ideal sinc's place stands the same filter."""
    sound = np.random.default_rng(length).integers(-3000, 3000, 100_000).astype(np.int16)
    whole, part = resample(sound, rate, RATE), resample(sound[:length], rate, RATE)
    same = max(0, len(part) - 250 * RATE // min(rate, RATE) - 250)
    assert np.allclose(part[:same], whole[:same], atol=0.02)


# What is no clip


BAD = {
    "empty file": (b"", "empty"),
    "no samples": (wav(b""), "empty"),
    "text": (b"hello, this is no sound at all" * 9, "unreadable"),
    "silence": (wav(bytes(4000)), "silent"),
    "cut off": (wav(NOISE.tobytes())[:9000], "truncated"),
    "header cut off": (wav(NOISE.tobytes())[:30], "unreadable"),
    "header that says more": (wav(NOISE.tobytes(), data=90_000), "truncated"),
    "header that says less": (wav(NOISE.tobytes(), data=2000), "says 2,000 bytes of sound, which 38,000 bytes follow"),
    "header never brought up to date": (wav(NOISE.tobytes(), data=2000, riff=2036), "says 2,000 bytes of sound"),
    "header that says nothing is there": (wav(NOISE.tobytes(), data=0), "says 0 bytes of sound, which 40,000"),
    "header that says less, in stereo": (wav(NOISE.tobytes(), channels=2, data=2000), "says 2,000 bytes of sound"),
    "sound in two parts": (wav(NOISE.tobytes()) + chunk(b"data", NOISE.tobytes()), "unreadable"),
    "NaN": (wav(np.full(900, np.nan, "<f4").tobytes(), bits=32, code=3), "NaN or infinite"),
    "infinity": (wav(np.array([0.1, np.inf] * 400, "<f4").tobytes(), bits=32, code=3), "NaN or infinite"),
    "both infinities": (
        wav(np.array([0.1, 0.1, np.inf, -np.inf] * 99, "<f4").tobytes(), channels=2, bits=32, code=3),
        "NaN or infinite",
    ),
    "floats near the end of their range": (
        wav(np.array([3e38, -3e38] * 400, "<f4").tobytes(), bits=32, code=3),
        "floats up to 3e\\+38, where",
    ),
    "floats on the scale of integers": (
        wav(NOISE.astype("<f4").tobytes(), bits=32, code=3),
        "floats up to 32,7.., where full scale is 1",
    ),
    "a rate of 100 Hz": (wav(NOISE.tobytes(), rate=100), r"a rate of 100 Hz; from 4,000 to 192,000 Hz"),
    "a rate of 1 MHz": (wav(NOISE.tobytes(), rate=10**6), r"a rate of 1,000,000 Hz"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_has_its_reason(tmp_path, kind):
    content, reason = BAD[kind]
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(Unusable, match=reason) as caught:
        decode(tmp_path / "bad.wav", RATE, SAMPLES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["au", "snd", "vox", "gsm", "raw", "mp3", "wav"])
def test_a_name_alone_makes_no_sound(tmp_path, suffix):
    """By the name alone libsndfile takes any bytes for raw sound: an error page would be a clip of noise."""
    (tmp_path / f"page.{suffix}").write_bytes(b"<html><body>404 Not Found</body></html>" * 50)
    with pytest.raises(Unusable, match="unreadable") as caught:
        decode(tmp_path / f"page.{suffix}", RATE, SAMPLES)
    assert "does not exist" not in str(caught.value)


def encoded(form: str, subtype: str | None = None, frames: int = 20_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE[:frames] // 4, RATE, subtype, format=form)
    return buffer.getvalue()


CUT = ["WAV", "AIFF", "AU", "W64", "RF64", "FLAC", "OGG/VORBIS", "OGG/OPUS", "MP3", "CAF"]


@pytest.mark.parametrize("share", [0.4, 0.95])
@pytest.mark.parametrize("form", CUT)
def test_any_format_cut_off_has_its_reason(tmp_path, form, share):
    """Also where what is left would be enough for the clip."""
    content = encoded(*form.split("/"))
    (tmp_path / "whole").write_bytes(content)
    assert decode(tmp_path / "whole", RATE, SAMPLES).any()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    with pytest.raises(Unusable, match=r"truncated|cut off|malformed|lost sync"):
        decode(tmp_path / "cut", RATE, SAMPLES)


def flac(frames: int, claimed: int) -> bytes:
    """A FLAC file whose header says another length."""
    content = bytearray(encoded("FLAC", frames=frames))
    content[21] &= 0xF0
    content[22:26] = struct.pack(">I", claimed)
    return bytes(content)


def test_flac_that_says_more_than_it_has(tmp_path):
    (tmp_path / "a.flac").write_bytes(flac(20_000, 10**7))
    with pytest.raises(Unusable, match="truncated: it ends before the last of 10,000,000 samples"):
        decode(tmp_path / "a.flac", RATE, SAMPLES)


def test_flac_that_does_not_say_how_long_it_is(tmp_path):
    """As a program leaves it that writes to a pipe: a long one is read, as one of unknown length."""
    (tmp_path / "long.flac").write_bytes(flac(20_000, 0))
    (tmp_path / "short.flac").write_bytes(flac(7000, 0))
    rows = decode_files(tmp_path, ["long.flac", "short.flac"], RATE, SAMPLES)(0, 2)
    assert rows.reasons == [None, "unreadable: its header does not say how long it is, or not rightly"]
    assert np.isnan(rows.seconds_N).all()
    assert np.array_equal(rows.clips_NT[0], NOISE[:SAMPLES] // 4)


def test_mp3_with_a_damaged_frame(tmp_path):
    """Behind the clip: of one libsndfile's count ends beyond the file's end, which soundfile has no words for."""
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(6 * RATE) / RATE)).astype("<i2")
    buffer = io.BytesIO()
    soundfile.write(buffer, tone, RATE, format="MP3")
    for place in range(6400, 6500):
        content = bytearray(buffer.getvalue())
        content[place] = 0
        (tmp_path / "damaged.mp3").write_bytes(content)
        answered(tmp_path / "damaged.mp3")


def test_lengths_by_the_header(tmp_path):
    """As it says, from whatever is called audio; a pipe is not waited for."""
    contents = {
        "plain.wav": wav(NOISE.tobytes(), 8000),
        "with.wav": wav(NOISE.tobytes(), before=chunk(b"LIST", bytes(1000))),
        "a.flac": encoded("FLAC"),
        "piped.flac": flac(7000, 0),
        "page.au": b"<html>" * 300,
        "page.wav": b"<html>" * 300,
        "none.wav": wav(b""),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.wav")
    names = [*contents, "pipe.wav", "absent.wav", "."]
    assert [header_of(os.fsencode(tmp_path / name)) for name in names] == [
        (2.5, 8000), (1.25, RATE), (1.25, RATE), (np.inf, RATE), *[(0, 0)] * 6
    ]  # fmt: skip


def test_flac_behind_an_id3_tag_is_whole(tmp_path):
    """Taggers put one there; libsndfile reads the file, but does not find its end."""
    tag = b"ID3\x03\0\0\0\0\x07\x76" + bytes(1014)
    (tmp_path / "a.flac").write_bytes(tag + encoded("FLAC"))
    assert np.array_equal(decode(tmp_path / "a.flac", RATE, SAMPLES), NOISE[:SAMPLES] // 4)


def test_chunks_behind_the_sound_are_no_fault(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(NOISE.tobytes()) + chunk(b"LIST", b"INFO" + bytes(90_000)))
    assert np.array_equal(decode(tmp_path / "a.wav", RATE, SAMPLES), NOISE[:SAMPLES])


def test_a_wrong_extension_is_no_fault(tmp_path):
    """libsndfile looks at the content; who calls a FLAC file .wav still gets its sound."""
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, RATE, format="FLAC")
    (tmp_path / "really-flac.wav").write_bytes(buffer.getvalue())
    assert np.array_equal(decode(tmp_path / "really-flac.wav", RATE, SAMPLES), NOISE[:SAMPLES])


@pytest.mark.parametrize("rate", [LOWEST_RATE, 8000, 22_050, 44_100, 96_000, HIGHEST_RATE])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_width_rate_and_number_of_channels(tmp_path, subtype, channels, rate):
    tone = 0.4 * np.sin(2 * np.pi * 500 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "tone.wav", np.tile(tone[:, None], channels), rate, subtype)
    clip = decode(tmp_path / "tone.wav", RATE, SAMPLES) / 32768
    wanted = 0.4 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)
    assert np.abs(clip - wanted)[400:-400].max() < (0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_compressed_formats(tmp_path, form, subtype):
    if form not in soundfile.available_formats() or (subtype and subtype not in soundfile.available_subtypes(form)):
        pytest.skip(f"this libsndfile has no {subtype or form}")
    rate = 48_000 if subtype == "OPUS" else 44_100
    tone = 0.4 * np.sin(2 * np.pi * 500 * np.arange(2 * rate) / rate)
    soundfile.write(tmp_path / "tone", tone, rate, subtype, format=form)
    clip = decode(tmp_path / "tone", RATE, SAMPLES) / 32768
    spectrum = np.abs(np.fft.rfft(clip[2000:14_000]))
    assert abs(np.argmax(spectrum) * RATE / 12_000 - 500) < 3
    assert 0.35 < np.abs(clip[2000:14_000]).max() < 0.45


def test_an_hour_long_file_is_read_as_far_as_it_is_needed(tmp_path):
    """Sparse, so that it takes no disk: 8 channels of float, 1.8 GB."""
    length = 3600 * RATE * 32
    tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(2 * RATE) / RATE)
    with open(tmp_path / "hour.wav", "wb") as file:
        file.write(
            wav(np.tile(tone[:, None], 8).astype("<f4").tobytes(), RATE, 8, 32, 3, data=length, riff=length + 36)
        )
        file.truncate(44 + length)
    tracemalloc.start()
    rows = decode_files(tmp_path, ["hour.wav"], RATE, SAMPLES)(0, 1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.reasons == [None]
    assert rows.seconds_N.tolist() == [3600.0]
    assert np.abs(rows.clips_NT[0] / 32768 - tone[:SAMPLES]).max() < 1e-4
    assert most < 5_000_000


def test_an_hour_of_plain_sound_becomes_its_beginning(tmp_path):
    frames = 3600 * 44_100
    with open(tmp_path / "hour.wav", "wb") as file:
        file.write(wav(NOISE.tobytes(), 44_100, data=2 * frames, riff=2 * frames + 36))
        file.truncate(44 + 2 * frames)
    rows = decode_files(tmp_path, ["hour.wav"], RATE, SAMPLES)(0, 1)
    assert rows.reasons == [None]
    assert rows.seconds_N.tolist() == [3600.0]


def test_what_is_no_regular_file(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "dangling.wav").symlink_to("nowhere")
    names = ["folder.wav", "pipe.wav", "loop.wav", "dangling.wav", "absent.wav"]
    reasons = decode_files(tmp_path, names, RATE, SAMPLES)(0, 5).reasons
    for reason, part in zip(
        reasons, ["a folder", "no regular file", "symbolic links", "No such", "No such"], strict=True
    ):
        assert part in reason
    with pytest.raises(Unusable, match="no regular file"):
        decode(Path("/dev/zero"), RATE, SAMPLES)


NOBODY = """
import os, sys
from clar.datasets.decode import Unusable, decode_files
from pathlib import Path
folder = os.open(sys.argv[1], os.O_RDONLY)
os.fchdir(folder)
if os.getuid() == 0:  # who reads everything
    os.setuid(65534)
print(decode_files(Path("."), ["secret.wav"], 16_000, 16_000)(0, 1).reasons)
"""


def test_without_permission(tmp_path):
    path = tmp_path / "secret.wav"
    path.write_bytes(wav(NOISE.tobytes()))
    path.chmod(0)
    tmp_path.chmod(0o755)
    said = subprocess.run([sys.executable, "-c", NOBODY, tmp_path], capture_output=True, text=True)
    assert said.stdout == "['unreadable: Permission denied']\n", said.stderr


def test_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"m\xfcller.flac")
    soundfile.write(os.fsencode(tmp_path / name), NOISE, RATE, format="FLAC")
    assert np.array_equal(decode(tmp_path / name, RATE, SAMPLES), NOISE[:SAMPLES])


# Random bytes


@lru_cache
def real_files() -> list[bytes]:
    kinds = ["WAV", "WAV/PCM_24", "FLAC", "OGG/VORBIS", "OGG/OPUS", "AIFF", "AU", "MP3", "RF64", "W64"]
    return [encoded(*kind.split("/"), frames=3000) for kind in kinds]


def answered(path: Path) -> None:
    """A clip or a reason in one line, and nothing else."""
    try:
        clip = decode(path, RATE, SAMPLES)
    except Unusable as error:
        reason = str(error)
        if not reason or "\n" in reason:
            pytest.fail(f"no line: {reason!r}")
    else:
        assert clip.dtype == np.int16
        assert clip.shape == (SAMPLES,)
        assert clip.any()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=400),
    start=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"FORM", b"ID3", b"RF64", b"\xff\xfb", b".snd"]),
    suffix=st.sampled_from(["", ".wav", ".mp3", ".au", ".gsm", ".raw"]),
)
def test_random_bytes(tmp_path, content, start, suffix):
    """By some names libsndfile takes what has no header for sound."""
    (tmp_path / f"random{suffix}").write_bytes(start + content)
    answered(tmp_path / f"random{suffix}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_real_files_with_random_bytes_in_them(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(real_files())))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 3000) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(piece)] = piece
    del content[data.draw(st.integers(1, len(content))) :]
    (tmp_path / "spoilt").write_bytes(content)
    answered(tmp_path / "spoilt")
