"""Audio files to 16-bit clips of one rate and length. Any rate, channels and format that libsndfile reads.

Plain 16-bit mono WAV files, which most of the field's data sets are, are read without libsndfile: four system calls, an
eighth of the time. Whatever is not exactly that, or not whole, goes to libsndfile.
"""

import math
import os
import re
import stat
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clar.clips import Decoded, fit

VERSION = "3"
"""Raised with every change that changes the clip of any file: stores of another version are then built again."""

MOST_CHANNELS = 64

LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000
"""Hertz, of the files that are read."""

_STREAMED = 0x7FFF_0000
"""A size in a WAV header from here on is a placeholder of a program that wrote to a pipe."""

_BLOCK_SAMPLES = 2**19
"""Of a file of several channels, so many of all channels are mixed down at a time."""

_MOST_BEHIND = 4096
"""Bytes behind the sound of a WAV file that may be anything. More must be chunks: else they are sound that the header,
which was never brought up to date, leaves out."""

_LOUDEST = 100.0
"""Of floats, whose full scale is 1. What is louder was meant on the scale of integers, and would be cut to a square."""

_UNKNOWN = 2**62
"""From so many frames on libsndfile does not know how many there are: a FLAC file that was written to a pipe."""


class Unusable(Exception):
    """Why a file cannot be a clip, in a few words."""


class Recording(NamedTuple):
    """The beginning of an audio file.

    Attributes:
        sound: (S,) int16, or float32 with full scale 1.
        sample_rate: hertz.
        frames: of the whole file; NaN: its header does not say.
    """

    sound: NDArray[Any]
    sample_rate: int
    frames: float


def decode_files(root: Path, files: Sequence[str], sample_rate: int, samples: int) -> Callable[[int, int], Decoded]:
    """`Source.decode` for files under `root`: of rows start to stop, clips (zeros where bad), reasons and lengths."""
    folder = os.fsencode(root) + b"/"

    def decode_rows(start: int, stop: int) -> Decoded:
        clips_NT = np.zeros((stop - start, samples), np.int16)
        reasons: list[str | None] = [None] * (stop - start)
        seconds_N = np.full(stop - start, np.nan, np.float32)
        for row, file in enumerate(files[start:stop]):
            try:
                seconds_N[row] = _decode(folder + os.fsencode(file), sample_rate, clips_NT[row])
            except Unusable as reason:
                reasons[row] = str(reason)
        # The largest sample is found five times faster than any sample that is not zero.
        for row in np.flatnonzero(clips_NT.max(1) == 0).tolist():
            if not clips_NT[row].any():
                reasons[row] = reasons[row] or _SILENT
        return Decoded(clips_NT, reasons, seconds_N)

    return decode_rows


def decode(path: Path, sample_rate: int, samples: int) -> NDArray[np.int16]:
    """The beginning of an audio file as (samples,) int16: mean of its channels, resampled, zero-padded on the right.

    A 16-bit mono file of that rate comes through bit by bit. Only as much of the file is read as the clip needs.

    Raises:
        Unusable: no regular file, not audio, truncated, longer than its header says, empty, silent, of a rate outside
            `LOWEST_RATE` to `HIGHEST_RATE`, or with samples that are not finite or far above full scale.
    """
    clip_T = np.zeros(samples, np.int16)
    _decode(os.fsencode(path), sample_rate, clip_T)
    if not clip_T.any():
        raise Unusable(_SILENT)
    return clip_T


_SILENT = "silent"


def _decode(path: bytes, sample_rate: int, clip_T: NDArray[np.int16]) -> float:
    """Put the beginning of a file into `clip_T`, which holds zeros; the length of the whole recording in seconds, NaN
    where that is not known."""
    samples = len(clip_T)
    try:
        recording = _read_plain(path, sample_rate, samples) or _read(path, sample_rate, samples)
    except OSError as error:
        raise Unusable(f"unreadable: {error.strerror or error}") from None
    sound = recording.sound
    if recording.sample_rate != sample_rate:
        sound = resample(sound, recording.sample_rate, sample_rate)
        if recording.sound.dtype == np.int16:
            sound *= np.float32(1 / 32768)
    fit(sound, samples, clip_T)
    return recording.frames / recording.sample_rate


def _needed(rate: int, sample_rate: int, samples: int) -> int:
    """Frames of a file of this rate that a clip needs."""
    if rate == sample_rate:
        return samples
    # Resampling looks a few milliseconds ahead; a tenth of a second more gives the same clip as the whole file.
    return samples * rate // sample_rate + rate // 10 + 1


# Plain WAV

_local = threading.local()
"""What a thread keeps from one file to the next."""

_RIFF = struct.Struct("<4sI4s")
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
_USUAL = struct.Struct("<4sI16sI12xI")
_USUAL_START = b"WAVEfmt " + struct.pack("<IHH", 16, 1, 1)
_USUAL_END = struct.pack("<HH4s", 2, 16, b"data")
"""Of nearly all files: 16-bit mono, and nothing but format and sound. Their header is taken apart in one go."""
_SKIPPED = (b"LIST", b"JUNK", b"junk", b"bext")
"""Chunks that say nothing about the sound. What libsndfile makes of any other is libsndfile's to say."""


def _read_plain(path: bytes, sample_rate: int, samples: int) -> Recording | None:
    """The beginning of a whole 16-bit mono WAV file; None for any other file that there is.

    Raises:
        OSError: there is none, or it cannot be read.
        Unusable: it is no regular file.
    """
    # Not blocking: to open a named pipe would wait for a writer.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable(f"unreadable: {'a folder' if stat.S_ISDIR(status.st_mode) else 'no regular file'}")
        if not status.st_size:
            raise Unusable("empty")
        # As much as the last file took: those of a data set are alike, and one call is enough.
        head = os.read(file, getattr(_local, "bytes", 2 * samples) + 128)
        found = _plain_header(head, status.st_size)
        if found is None:
            return None
        rate, offset, frames = found
        wanted = _needed(rate, sample_rate, samples)
        _local.bytes = 2 * wanted
        end = offset + 2 * min(frames, wanted)
        content = head if len(head) >= end else head + os.pread(file, end - len(head), len(head))
        if len(content) < end:  # shorter than it said a moment ago
            return None
        return Recording(np.frombuffer(content, "<i2", (end - offset) // 2, offset), rate, frames)
    finally:
        os.close(file)


def _plain_header(head: bytes, size: int) -> tuple[int, int, int] | None:
    """Rate, offset of the sound and frames of a whole 16-bit mono WAV file of `size` bytes; None for any other."""
    if len(head) < 44 or head[:4] != b"RIFF":
        return None
    _, riff, wave, rate, length = _USUAL.unpack_from(head)
    if wave == _USUAL_START and head[32:40] == _USUAL_END and LOWEST_RATE <= rate <= HIGHEST_RATE:
        if length and length % 2 == 0 and 0 <= size - 44 - length <= _MOST_BEHIND and riff + 8 <= size:
            return rate, 44, length // 2
        return None
    _, riff, wave = _RIFF.unpack_from(head)
    if wave != b"WAVE" or riff + 8 > size:
        return None
    rate, position = 0, 12
    while position + 8 <= len(head):
        name, length = _CHUNK.unpack_from(head, position)
        position += 8
        if name == b"data":
            whole = rate and length and length % 2 == 0 and 0 <= size - position - length <= _MOST_BEHIND
            return (rate, position, length // 2) if whole else None
        if name == b"fmt ":
            if rate or length != 16 or position + 16 > len(head):
                return None
            code, channels, rate, _, align, bits = _FORMAT.unpack_from(head, position)
            if (code, channels, align, bits) != (1, 1, 2, 16) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
                return None
        elif name not in _SKIPPED:
            return None
        position += length + length % 2
    return None


def header_of(path: bytes) -> tuple[float, int]:
    """The seconds and the rate of a recording by its header: infinite seconds where that does not say, zeros where it
    cannot be read.

    For plain WAV files in a fifth of libsndfile's time.
    """
    import soundfile

    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):  # to open a named pipe would wait for a writer
                return 0, 0
            found = _plain_header(os.read(file, 256), status.st_size)
        finally:
            os.close(file)
        if found is not None:
            return found[2] / found[0], found[0]
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):  # named when it is decoded
        return 0, 0
    if info.format == "RAW" or not info.frames:
        return 0, 0
    return (math.inf if info.frames >= _UNKNOWN else info.frames / info.samplerate), info.samplerate


# Everything else


def _read(path: bytes, sample_rate: int, samples: int) -> Recording:
    """The beginning of a file by libsndfile."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            _check_header(file)
            sound = _mono(file, _needed(file.samplerate, sample_rate, samples))
            return Recording(sound, file.samplerate, file.frames if file.frames < _UNKNOWN else math.nan)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:  # TypeError: a raw file without a header
        reason = str(getattr(error, "error_string", None) or error).strip().rstrip(".")
        if reason.startswith("File does not exist"):  # what libsndfile says of a .mp3 without any MP3 in it
            reason = "Format not recognised"
        elif "psf_fseek" in reason:  # and of FLAC whose end is not where its header says, or whose header says nothing
            reason = "its header does not say how long it is, or not rightly"
        raise Unusable(f"unreadable: {reason}") from None


_CLAIMED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
"""What libsndfile notes of a length beyond the file's end: the sound's of WAV, AIFF and AU, all of W64 and RF64."""

_BEHIND = re.compile(r"^Length : (\d+)$.*^data\s*: (\d+).*Unknown chunk marker \(\w+\) at position (\d+)", re.M | re.S)
"""And of what follows the sound of a WAV file, where that is no chunk."""


def _check_header(file: Any) -> None:
    """Raise `Unusable` where an open file's header rules it out, or says what the file belies."""
    if file.format == "RAW":  # by its name alone, .au, .snd, .vox or .gsm, libsndfile takes any bytes for sound
        raise Unusable("unreadable: it has no header of an audio file")
    if behind := _BEHIND.search(file.extra_info):
        length, sound, position = map(int, behind.groups())
        if length - position > _MOST_BEHIND:
            raise Unusable(
                f"its header says {sound:,} bytes of sound, which {length - position:,} bytes follow that are no chunk"
            )
    if file.frames <= 0:
        raise Unusable("empty, or cut off" if file.format == "OGG" else "empty")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise Unusable(f"a rate of {file.samplerate:,} Hz; from {LOWEST_RATE:,} to {HIGHEST_RATE:,} Hz can be read")
    if file.channels > MOST_CHANNELS:
        raise Unusable(f"{file.channels:,} channels; up to {MOST_CHANNELS} can be read")
    claimed = _CLAIMED.search(file.extra_info)
    if claimed and int(claimed[2]) < int(claimed[1]) < _STREAMED:
        raise Unusable(f"truncated: {int(claimed[2]):,} of {int(claimed[1]):,} bytes of sound")


def _mono(file: Any, wanted: int) -> NDArray[Any]:
    """The first `wanted` frames, the mean of the channels."""
    wanted = min(wanted, file.frames)
    if file.channels == 1 and file.subtype == "PCM_16":
        sound = file.read(wanted, dtype="int16")
    else:
        sound = np.empty(wanted, np.float32)
        done = 0
        while done < wanted:
            block = file.read(
                min(max(1, _BLOCK_SAMPLES // file.channels), wanted - done), dtype="float32", always_2d=True
            )
            if not len(block):
                break
            with np.errstate(invalid="ignore"):  # the mean of two infinities: said below, and not by NumPy
                sound[done : done + len(block)] = block.mean(1, dtype=np.float64)
            done += len(block)
        sound = sound[:done]
        if not np.isfinite(sound).all():
            raise Unusable("has samples that are NaN or infinite")
        if (peak := max(sound.max(initial=0), -sound.min(initial=0))) > _LOUDEST:
            raise Unusable(f"floats up to {peak:,.5g}, where full scale is 1; save it again, divided by its full scale")
    if len(sound) < wanted:
        raise Unusable(f"truncated: {len(sound):,} of {file.frames:,} samples")
    if wanted < file.frames < _UNKNOWN and file.format in ("FLAC", "MP3"):
        _check_end(file)
    if file.format == "OGG":
        _check_last_page(file.name)
    return sound


def _check_end(file: Any) -> None:
    """Raise `Unusable` where the last sample is not there. Of other formats the header was compared with the file."""
    import soundfile

    lost = (soundfile.LibsndfileError, ValueError)  # ValueError: lost count, and is behind the end
    with suppress(*lost):
        file.seek(file.frames - 1)
        if len(file.read(1)):
            return
    # Behind an ID3 tag libsndfile misses the end of a whole FLAC file: read it through.
    done = 0
    with suppress(*lost), soundfile.SoundFile(file.name) as again:
        while block := len(again.read(_BLOCK_SAMPLES // again.channels, dtype="int16")):
            done += block
    if done < file.frames:
        raise Unusable(f"truncated: it ends before the last of {file.frames:,} samples")


_LONGEST_PAGE = 27 + 255 + 255 * 255
"""Bytes of a page of an OGG file: head, table of segments, segments."""


def _check_last_page(path: bytes) -> None:
    """Raise `Unusable` where the last page of an OGG file is cut off: libsndfile then takes the one before for last."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * _LONGEST_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        raise Unusable("truncated: its last page is cut off")


# Resampling
#
# By FFT in overlapping blocks: a block's spectrum, times that of a low-pass filter, cut off or padded with zeros to the
# new rate. SciPy's FFT and not a polyphase filter (five times slower at this length of filter) nor torchaudio's
# (imports torch, whose seconds would come on top of every start). `python -m benchmarks data` has the figures.

PASSBAND = 0.913
"""Share of the lower Nyquist frequency that passes unchanged; nothing of 1.0 and above comes through. soxr's HQ."""

_ATTENUATION_DB = 120.0
_BLOCK = 2048
"""Least samples of a block at the lower of the two rates."""


class _Plan(NamedTuple):
    """How one rate becomes another: lengths of a block and of its overlap, before and after, and the filter."""

    block_in: int
    block_out: int
    overlap_in: int
    overlap_out: int
    response: NDArray[np.float32]


def resample(sound: NDArray[Any], old: int, new: int) -> NDArray[np.float32]:
    """A recording (S,) at another rate, (ceil(S new / old),) float32, in the unit that it came in.

    A linear-phase low-pass filter, 120 dB down from the lower Nyquist frequency on. Before its beginning and after its
    end the recording counts as silence.

    Args:
        sound: int16 or floats.
        old: its rate in hertz.
        new: the rate wanted.
    """
    from scipy.fft import fft, ifft

    plan = _plan(old, new)
    result = np.empty(-(-len(sound) * new // old), np.float32)
    step_in, step_out = plan.block_in - 2 * plan.overlap_in, plan.block_out - 2 * plan.overlap_out
    # Two blocks at a time, one in the real and one in the imaginary part: the filter is real, so they stay apart. Four
    # such pairs at a time, since SciPy's FFT computes four rows as fast as one.
    work = _workspace(plan, sound.dtype)
    half = len(plan.response) - 1
    for start in range(0, len(result), 2 * _PAIRS * step_out):
        first = start // step_out * step_in - plan.overlap_in
        before = max(-first, 0)
        part = sound[max(first, 0) : first + len(work.padded)]
        work.padded[:before] = 0
        work.padded[before : before + len(part)] = part
        work.padded[before + len(part) :] = 0
        work.pairs[..., 0], work.pairs[..., 1] = work.blocks[:_PAIRS], work.blocks[_PAIRS:]
        spectrum = fft(work.packed, overwrite_x=True)
        np.multiply(spectrum[:, : half + 1], plan.response, work.filtered[:, : half + 1])
        np.multiply(spectrum[:, -half:], plan.response[:0:-1], work.filtered[:, -half:])
        work.filtered[:, half + 1 : -half] = 0
        kept = ifft(work.filtered, overwrite_x=True)[:, plan.overlap_out : plan.overlap_out + step_out]
        rest = result[start : start + 2 * _PAIRS * step_out]
        for block in range(-(-len(rest) // step_out)):
            piece = rest[block * step_out : (block + 1) * step_out]
            piece[:] = (kept.imag if block // _PAIRS else kept.real)[block % _PAIRS, : len(piece)]
    return result


_PAIRS = 4


class _Workspace(NamedTuple):
    """A thread's arrays for a plan. New ones for each call would cost a third of its time."""

    plan: _Plan
    padded: NDArray[Any]
    """The sound, with what comes before and after it."""
    blocks: NDArray[Any]
    """Its overlapping blocks; a view."""
    packed: NDArray[np.complex64]
    pairs: NDArray[np.float32]
    """Real and imaginary parts of the packed; a view."""
    filtered: NDArray[np.complex64]


def _workspace(plan: _Plan, dtype: np.dtype[Any]) -> _Workspace:
    known: _Workspace | None = getattr(_local, "workspace", None)
    if known is not None and known.plan is plan and known.padded.dtype == dtype:
        return known
    step = plan.block_in - 2 * plan.overlap_in
    padded = np.empty(2 * _PAIRS * step + 2 * plan.overlap_in, dtype)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, plan.block_in)[::step]
    packed = np.empty((_PAIRS, plan.block_in), np.complex64)
    pairs = packed.view(np.float32).reshape(_PAIRS, plan.block_in, 2)
    _local.workspace = _Workspace(plan, padded, blocks, packed, pairs, np.empty((_PAIRS, plan.block_out), np.complex64))
    return _local.workspace


@lru_cache(maxsize=16)
def _plan(old: int, new: int) -> _Plan:
    """The plan from one rate to another; overlaps and blocks are whole periods of both."""
    from scipy.signal import firwin, kaiser_atten, kaiser_beta

    common = math.gcd(old, new)
    period_in, period_out = old // common, new // common
    lower = min(old, new)
    # Kaiser's formula for the length of the filter, in samples of the old rate; odd.
    width = (1 - PASSBAND) * lower / 2
    half = math.ceil((_ATTENUATION_DB - 7.95) / (2.285 * 2 * math.pi * width / old) / 2)
    taps = firwin(2 * half + 1, (1 + PASSBAND) / 2 * lower / 2, window=("kaiser", kaiser_beta(_ATTENUATION_DB)), fs=old)
    assert kaiser_atten(2 * half + 1, width / (old / 2)) >= _ATTENUATION_DB - 1
    overlap = -(-half // period_in)
    periods = 1
    while min(period_in, period_out) * periods < _BLOCK or periods < 4 * overlap:
        periods *= 2
    block_in, block_out = period_in * periods, period_out * periods
    kernel = np.zeros(block_in)
    kernel[: half + 1] = taps[half:]
    kernel[-half:] = taps[:half]
    bins = (min(block_in, block_out) - 1) // 2  # below the lower Nyquist frequency
    response = np.fft.rfft(kernel).real[: bins + 1] * (block_out / block_in)
    return _Plan(block_in, block_out, overlap * period_in, overlap * period_out, response.astype(np.float32))
