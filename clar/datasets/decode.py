"""Audio files to 16-bit clips of one rate and length. Any rate, channels and format that libsndfile reads."""

import math
import re
import stat
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clar.clips import fit

_STREAMED = 0x7FFF_0000
"""A size in a WAV header from here on is a placeholder of a program that wrote to a pipe."""


class Unusable(Exception):
    """Why a file cannot be a clip, in a few words."""


def decode_files(
    root: Path, files: Sequence[str], sample_rate: int, samples: int
) -> Callable[[int, int], tuple[NDArray[np.int16], list[str | None]]]:
    """`Source.decode` for files under `root`: of rows start to stop, clips (zeros where bad) and reasons."""

    def decode_rows(start: int, stop: int) -> tuple[NDArray[np.int16], list[str | None]]:
        clips_NT = np.zeros((stop - start, samples), np.int16)
        reasons: list[str | None] = [None] * (stop - start)
        for row, file in enumerate(files[start:stop]):
            try:
                clips_NT[row] = decode(root / file, sample_rate, samples)
            except Unusable as reason:
                reasons[row] = str(reason)
        return clips_NT, reasons

    return decode_rows


def decode(path: Path, sample_rate: int, samples: int) -> NDArray[np.int16]:
    """The beginning of an audio file as (samples,) int16: mean of its channels, resampled, zero-padded on the right.

    A 16-bit mono file of that rate comes through bit by bit. Only as much of the file is read as the clip needs.

    Raises:
        Unusable: no regular file, not audio, truncated, empty, silent, or with samples that are not finite.
    """
    import soundfile

    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # and not tried: to open a named pipe would wait for a writer
            raise Unusable(f"unreadable: {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
        with soundfile.SoundFile(path) as file:
            clip = _read(file, sample_rate, samples)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: a raw file without a header
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        raise Unusable(f"unreadable: {str(reason).strip().rstrip('.')}") from None
    fitted = fit(clip, samples)
    if not fitted.any():
        raise Unusable("silent")
    return fitted


def _read(file: Any, sample_rate: int, samples: int) -> NDArray[Any]:
    if file.frames == 0:
        raise Unusable("empty")
    claimed = re.search(r"^\s*data\s*:\s*(\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if claimed and int(claimed[2]) < int(claimed[1]) < _STREAMED:
        raise Unusable(f"truncated: {int(claimed[2]):,} of {int(claimed[1]):,} bytes of sound")
    same_rate = file.samplerate == sample_rate
    # Resampling looks a few milliseconds ahead; a tenth of a second more gives the same clip as the whole file.
    wanted = samples if same_rate else samples * file.samplerate // sample_rate + file.samplerate // 10 + 1
    exact = same_rate and file.channels == 1 and file.subtype == "PCM_16"
    sound = file.read(wanted, dtype="int16" if exact else "float32", always_2d=True)
    if len(sound) < min(wanted, file.frames):
        raise Unusable(f"truncated: {len(sound):,} of {file.frames:,} samples")
    if exact:
        return sound[:, 0]
    if not np.isfinite(sound).all():
        raise Unusable("has samples that are NaN or infinite")
    mono = sound.mean(1, dtype=np.float64)
    return mono if same_rate else _resample(mono, file.samplerate, sample_rate)


def _resample(sound: NDArray[np.float64], old: int, new: int) -> NDArray[np.float64]:
    # SciPy and not torchaudio: it needs no import of torch, whose seconds would come on top of every start, and has no
    # threads of its own to get in the way of ours; see `python -m benchmarks data`.
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    return resample_poly(sound, new // common, old // common, window=_low_pass(old // common, new // common))


@lru_cache(maxsize=16)
def _low_pass(old: int, new: int) -> NDArray[np.float64]:
    """A windowed sinc, 32 zero crossings each side, 80 dB down from 1.08 times the lower Nyquist frequency on."""
    from scipy.signal import firwin

    longer = max(old, new)
    return firwin(2 * 32 * longer + 1, 1 / longer, window=("kaiser", 8.0))
