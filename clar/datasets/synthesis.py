"""What the synthesised data sets are made with: arithmetic that gives the same bytes on every processor.

NumPy's sines, powers, BLAS and some of its reductions differ in the last bits between processors, and so would the
clips. What is here uses only what IEEE 754 fixes to the bit: sums, products and quotients of float64, each rounded once
(NumPy fuses none), in an order that the code says. A recursion (`scipy.signal.lfilter`) has one order too.
Rounding to 16 bits then hides what another compiler might do to the last of 53. Numbers that come from a power or a
root are computed one at a time and rounded to 40 bits, far from where libraries disagree.

Not for samples: `np.sin`, `np.exp`, `**`, `@`, `np.dot`, `np.convolve`, `np.random`'s distributions.

Letters in names: T samples of a clip.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Wave = NDArray[np.float64]
"""(T,) float64."""

_GRID = 2.0**40


class Draw:
    """Random numbers keyed by a text, the same on any machine and with any NumPy.

    Reads the raw output of Philox, which NumPy guarantees; its distributions may change between versions.

    Args:
        key: what the numbers are for, with the name and version of the data set.
    """

    def __init__(self, key: str) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both possible."""
        return low + (int(self._bits.random_raw()) * (high - low + 1) >> 64)

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Integers (count,) from 0 to `below` - 1; `below` at most 2^31."""
        high = self._bits.random_raw(count) >> np.uint64(32)
        return (high * np.uint64(below) >> np.uint64(32)).astype(np.int64)

    def bells(self, count: int) -> NDArray[np.int64]:
        """Nearly normal integers (count,), mean 0: sums of four uniform ones of 16 bits."""
        quarters = self._bits.random_raw(count).astype("<u8").view("<u2").reshape(count, 4)
        return quarters.sum(1, dtype=np.int64) - 2 * 65535

    def uniform(self, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def uniforms(self, count: int, low: float = 0.0, high: float = 1.0) -> Wave:
        """Numbers (count,) from `low` to `high`."""
        unit = (self._bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit

    def normals(self, count: int) -> Wave:
        """Nearly normal numbers (count,), mean 0, standard deviation 1: white noise."""
        return self.bells(count) / _BELL


_BELL = math.sqrt(4 * (65536**2 - 1) / 12)


def rounded(number: float) -> float:
    """To a multiple of 2^-40: the same from any mathematics library. For numbers between 2^-20 and 2^12."""
    return round(number * _GRID) / _GRID


def gain(decibels: float) -> float:
    """10^(dB / 20)."""
    return rounded(10 ** (decibels / 20))


def ratio(semitones: float) -> float:
    """2^(semitones / 12)."""
    return rounded(2 ** (semitones / 12))


# The Taylor series of sin(2 pi x), good to 1e-15 for |x| <= 1/4.
_SINE = tuple(rounded(1.0) * (-1) ** k * (2 * math.pi) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(11))


def sine(cycles_T: Wave) -> Wave:
    """sin(2 pi x), for x in cycles and not in radians."""
    turn_T = cycles_T - np.rint(cycles_T)
    # Folded to a quarter: sin(2 pi (1/2 - x)) is the same.
    turn_T = np.where(turn_T > 0.25, 0.5 - turn_T, np.where(turn_T < -0.25, -0.5 - turn_T, turn_T))
    square_T = turn_T * turn_T
    sum_T = np.full_like(turn_T, _SINE[-1])
    for coefficient in _SINE[-2::-1]:
        sum_T = sum_T * square_T + coefficient
    return sum_T * turn_T


def phase(hertz_T: Wave, sample_rate: int) -> Wave:
    """The cycles run through by a tone of these frequencies, for `sine`."""
    return np.cumsum(hertz_T) / sample_rate


def decay(samples: int, sample_rate: int, seconds: float) -> Wave:
    """An envelope (samples,) that starts at 1 and falls by 60 dB in so many seconds."""
    fall_T = np.full(samples, rounded(10 ** (-3 / (seconds * sample_rate))))
    fall_T[:1] = 1.0
    return np.cumprod(fall_T)


def lfilter(numerator: Sequence[float], denominator: Sequence[float], wave_T: Wave) -> Wave:
    """`scipy.signal.lfilter`, of filters with a recursive part: without one it is `np.convolve`.

    SciPy is loaded where a clip is made: a command that looks up a name should not wait for it.
    """
    from scipy import signal

    if len(denominator) < 2:
        raise ValueError("a filter without a recursive part is not the same on all processors")
    return np.asarray(signal.lfilter(numerator, denominator, wave_T))


def power(clip_T: Wave) -> float:
    """Mean of the squares."""
    return float(np.cumsum(clip_T * clip_T)[-1]) / len(clip_T)


def mixed(clip_T: Wave, noise_T: Wave, snr_db: float) -> Wave:
    """A clip with noise, the clip's power over the noise's being `snr_db`."""
    scale = math.sqrt(power(clip_T) / max(power(noise_T), 1e-30))
    return clip_T + noise_T * (scale * gain(-snr_db))


def levelled(clip_T: Wave, dbfs: float) -> NDArray[np.int16]:
    """A clip as int16 at so many dB of power below full scale; what exceeds full scale saturates."""
    scale = 32768 * gain(dbfs) / math.sqrt(max(power(clip_T), 1e-30))
    return np.clip(np.rint(clip_T * scale), -32768, 32767).astype(np.int16)


def room(dry_T: Wave, draw: Draw, sample_rate: int, seconds: float, level: float, taps: int = 64) -> Wave:
    """A clip with reflections of random delay and sign that fall by 60 dB over so many seconds.

    Args:
        dry_T: the direct sound.
        draw: of delays and signs.
        sample_rate: hertz.
        seconds: until the reflections are 60 dB down.
        level: amplitude of the earliest, relative to the direct sound.
        taps: how many.
    """
    span = max(1, round(seconds * sample_rate))
    fall = decay(span + 1, sample_rate, seconds)
    wet_T = dry_T.copy()
    signs = draw.integers(taps, 2) * 2.0 - 1.0
    for delay, sign in zip((1 + draw.integers(taps, span)).tolist(), signs.tolist(), strict=True):
        if delay < len(wet_T):
            wet_T[delay:] += sign * level * float(fall[delay]) * dry_T[:-delay]
    return wet_T
