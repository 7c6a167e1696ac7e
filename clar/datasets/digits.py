"""`digits`: ten spoken digits by a hundred synthetic speakers, made on this machine, the same bytes on every machine.

espeak-ng (from the package `espeakng-loader`, GPL-3, loaded at run time only) speaks the words; this file puts each
into a room, adds noise and sets a level: hard enough that an untrained encoder does badly, and a trained one well but
not perfectly.

Why integers: NumPy's transcendental functions, BLAS and FFTs differ in the last bits between processors. So everything
that touches samples is int64 arithmetic, exact in any order; the few tables that need a sine or a power are rounded to
integers, far from their ties. For the same reason voices of espeak-ng that compute with exp and cos at run time (its
Klatt synthesiser, its breath noise) are not among the speakers.

Letters in names: T samples of a clip, K taps.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clar.clips import SPLITS, Source, fit
from clar.datasets.synthesis import Draw
from clar.errors import UserError

VERSION = 1
"""Raised with every change that changes a byte: stores of another version are then left alone and built anew."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLIPS = 2000
FEWEST, MOST = 120, 1_000_000
SAMPLE_RATE = 16_000
SAMPLES = 16_000

# How hard the task is: enough noise that the untrained ResNet of the demo's size reaches 0.39 to 0.43 on test under a
# linear probe and the same network trained with all labels 0.91. EXPERIMENTS.md has the settings that were tried.
SNR_DB = (0, 20)
"""Speech power (over the word) to noise power, drawn uniformly, in dB."""
ECHO_MS = (60, 400)
"""Time in which the room's echo falls by 60 dB, drawn uniformly."""
ECHO_TAPS = 64
"""Reflections of the room."""
ECHO_LEVEL = 0.3
"""Amplitude of the earliest reflections, relative to the direct sound."""
TILT = 0.3
"""Largest coefficient, either sign, of the microphone's two-tap filter x[n] + a x[n - 1]."""
LEVEL_DBFS = (-22, -18)
"""Power of the clip relative to full scale, drawn uniformly, in dB."""
SPEAKER_RATE = (140, 200)
"""A speaker's words per minute."""
SPEAKER_PITCH = (25, 75)
"""A speaker's pitch in espeak-ng's units, 0 to 99, around the voice's own."""
TAKE_RATE = 20
TAKE_PITCH = 10
"""How far a take goes from its speaker, either way."""

ACCENTS = (
    "en",
    "en-us",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-029",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-us-nyc",
)

# espeak-ng's voice variants. Left out: Klatt and breathy voices (see above), whispers, robots, heavy echoes, and voices
# so slow that a word does not fit into a second. Variants that are small edits of one another (iven, iven2, ...) stand
# in the same split, so that no voice is trained on and tested.
VARIANTS = {
    "train": (
        *("Alex", "iven", "linda", "m7", "Mr serious", "steph", "Andy", "m4", "Andrea", "Diogo", "boris", "zac"),
        *(
            "Jacky",
            "f4",
            "john",
            "m3",
            "kaukovalta",
            "anika",
            "gustave",
            "Nguyen",
            "belinda",
            "Lee",
            "pedro",
            "norbert",
        ),
        *("steph2", "Hugo", "m2", "max", "iven2", "aunty", "Denis", "Tweaky", "m8", "marcelo", "antonio"),
        *("steph3", "ian", "Mike", "iven3", "Henrique", "pablo", "michel", "iven4", "miguel"),
    ),
    "valid": ("Gene", "Annie", "m5", "Mario", "grandma", "travis", "paul", "Gene2", "croak", "Michael"),
    "test": ("rob", "f1", "m6", "ed", "shelby", "robert", "grandpa", "m1", "quincy", "fast"),
}

# The order in which speakers enter the set: any beginning of it holds about 70 / 15 / 15 %.
_TURNS = tuple({"t": "train", "v": "valid", "s": "test"}[letter] for letter in "tttvstttttvstttttvst")
SPEAKERS = 5 * len(_TURNS)


@dataclass(frozen=True)
class Speaker:
    """A voice variant with an accent, and its place in the data set."""

    variant: str
    accent: str
    split: str

    @property
    def name(self) -> str:
        """As it stands in file names: letters and digits only."""
        return "".join(c for c in f"{self.variant}{self.accent.removeprefix('en-')}".lower() if c.isalnum())


@cache
def speakers() -> tuple[Speaker, ...]:
    """The hundred speakers, in the order in which they enter the set."""
    found = []
    count = dict.fromkeys(SPLITS, 0)
    for split in _TURNS * (SPEAKERS // len(_TURNS)):
        lap, turn = divmod(count[split], len(VARIANTS[split]))
        # A variant's second speaker has another accent: 44 and 10 variants are no multiple of 8 accents less one.
        accent = ACCENTS[(count[split] + lap) % len(ACCENTS)]
        found.append(Speaker(VARIANTS[split][turn], accent, split))
        count[split] += 1
    return tuple(found)


def whole(clips: int) -> int:
    """`clips` rounded to whole takes of ten words.

    Raises:
        UserError: `clips` is out of range.
    """
    if not FEWEST <= clips <= MOST:
        raise UserError(f"digits:{clips}: the number of clips must lie between {FEWEST} and {MOST:,}")
    return (clips + len(WORDS) // 2) // len(WORDS) * len(WORDS)


def source(clips: int = CLIPS) -> Source:
    """The data set of `clips` clips, rounded to whole takes of ten words, for `clar.building.build`.

    Clip i is the same in every size: `digits:400` is the beginning of `digits`. A take is one speaker saying the ten
    words once; all speakers say their first take before any says a second.

    Raises:
        UserError: `clips` is out of range.
    """
    takes = [divmod(i, SPEAKERS) for i in range(whole(clips) // len(WORDS))]
    who = [speakers()[speaker] for _, speaker in takes]
    return Source(
        name="digits",
        classes=WORDS,
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        files=[f"{word}/{w.name}_nohash_{take}.wav" for w, (take, _) in zip(who, takes, strict=True) for word in WORDS],
        stamps=[f"v{VERSION}"] * (len(takes) * len(WORDS)),
        labels=np.tile(np.arange(len(WORDS)), len(takes)),
        splits=np.repeat(np.array([SPLITS.index(w.split) for w in who], np.uint8), len(WORDS)),
        groups=[speaker.name for speaker in who for _ in WORDS],
        decode=_decode,
        shard=4 * len(WORDS),
    )


def _decode(start: int, stop: int) -> tuple[NDArray[np.int16], list[str | None]]:
    clips = [
        clip
        for take, speaker in (divmod(i, SPEAKERS) for i in range(start // len(WORDS), stop // len(WORDS)))
        for clip in synthesise(speakers()[speaker], take)
    ]
    return np.stack(clips), [None] * len(clips)


def synthesise(speaker: Speaker, take: int) -> list[NDArray[np.int16]]:
    """The ten words of one take, each (SAMPLES,) int16.

    Raises:
        UserError: espeakng-loader is not installed, or its espeak-ng does not work here.
    """
    base = _draw(speaker.name)
    rate, pitch = base.between(*SPEAKER_RATE), base.between(*SPEAKER_PITCH)
    draws = [_draw(f"{speaker.name}/{word}/{take}") for word in WORDS]
    manner = [
        (
            word,
            rate + draw.between(-TAKE_RATE, TAKE_RATE),
            min(max(pitch + draw.between(-TAKE_PITCH, TAKE_PITCH), 0), 99),
            draw.between(20, 80),
        )
        for word, draw in zip(WORDS, draws, strict=True)
    ]
    spoken = _speak(f"{speaker.accent}+{speaker.variant}", manner)
    return [_record(word_K, draw) for word_K, draw in zip(spoken, draws, strict=True)]


def _draw(key: str) -> Draw:
    return Draw(f"clar digits {VERSION}/{key}")


def _speak(voice: str, words: list[tuple[str, int, int, int]]) -> list[NDArray[np.int16]]:
    """Each (word, words per minute, pitch, pitch range) as espeak-ng says it, int16 at 22,050 Hz, any length."""
    library, data = _espeak()
    order = {"library": library, "data": data, "voice": voice, "words": words}
    child = subprocess.run(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("espeak_child.py"))],
        input=json.dumps(order).encode(),
        capture_output=True,
    )
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"espeak-ng failed with {voice} (exit code {child.returncode}): {lines[-1] if lines else ''}")
    spoken, rest = [], memoryview(child.stdout)
    for _ in words:
        end = 4 + 2 * int.from_bytes(rest[:4], "little")
        spoken.append(np.frombuffer(rest[4:end], "<i2"))
        rest = rest[end:]
    return spoken


@cache
def _espeak() -> tuple[str, str]:
    """The paths of the espeak-ng library and of the folder that holds its data."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError("the data set digits needs espeak-ng; install it with `pip install 'clar[demo]'`") from None
    return espeakng_loader.get_library_path(), str(Path(espeakng_loader.get_data_path()).parent)


# From the spoken word to the clip, in integers


def _record(spoken_K: NDArray[np.int16], draw: Draw) -> NDArray[np.int16]:
    """A spoken word at 22,050 Hz as a clip: resampled, at a random place, in a room, with noise, at a level."""
    word = _resample(_trim(spoken_K))[:SAMPLES]
    onset = draw.between(0, SAMPLES - len(word))
    dry_T = np.zeros(SAMPLES, np.int64)
    dry_T[onset : onset + len(word)] = word
    clip_T = _tilt(_room(dry_T, draw), draw)
    speech = int(np.square(clip_T).sum()) * SAMPLES // max(len(word), 1)  # as if the word filled the clip
    noise_T = _noise(draw)
    # noise * gain has the energy speech / 10^(dB / 10); gains are in units of 2^-20.
    ratio = _power(-draw.between(*SNR_DB))
    gain = math.isqrt((speech * ratio << 20) // max(int(np.square(noise_T).sum()), 1))
    clip_T = clip_T + (noise_T * gain >> 20)
    target = (SAMPLES << 30) * _power(draw.between(*LEVEL_DBFS)) >> 20
    gain = math.isqrt((target << 40) // max(int(np.square(clip_T).sum()), 1))
    clip_T = clip_T * gain + (1 << 19) >> 20
    return fit(np.clip(clip_T, -32768, 32767).astype(np.int16), SAMPLES)


def _trim(spoken_K: NDArray[np.int16]) -> NDArray[np.int64]:
    """Without the near-silence at both ends, below a fiftieth of the peak."""
    samples = spoken_K.astype(np.int64)
    loud = np.flatnonzero(50 * np.abs(samples) > np.abs(samples).max(initial=0))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


_UP, _DOWN = 320, 441  # 16,000 / 22,050
_TAPS = 48


@cache
def _resampler() -> NDArray[np.int64]:
    """Coefficients (_UP phases, _TAPS) in units of 2^-15 of a Hann-windowed sinc that passes up to 7.4 kHz."""
    cutoff = 0.67  # of the input's 11,025 Hz
    rows = []
    for phase in range(_UP):
        row = []
        for tap in range(_TAPS):
            t = tap - (_TAPS // 2 - 1) - phase / _UP
            sinc = math.sin(math.pi * cutoff * t) / (math.pi * t) if t else cutoff
            row.append(round(sinc * math.cos(math.pi * t / _TAPS) ** 2 * 2**15))
        rows.append(row)
    return np.array(rows, np.int64)


def _resample(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """From 22,050 to 16,000 Hz."""
    padded = np.pad(samples, (_TAPS // 2 - 1, _TAPS))
    position = np.arange(len(samples) * _UP // _DOWN) * _DOWN
    windows = np.lib.stride_tricks.sliding_window_view(padded, _TAPS)[position // _UP]
    return (windows * _resampler()[position % _UP]).sum(1) + (1 << 14) >> 15


def _room(dry_T: NDArray[np.int64], draw: Draw) -> NDArray[np.int64]:
    """The direct sound and ECHO_TAPS reflections of random delay and sign that fall by 60 dB over a random time."""
    span = draw.between(*ECHO_MS) * SAMPLE_RATE // 1000
    delays = 1 + draw.integers(ECHO_TAPS, span)
    level = round(ECHO_LEVEL * 2**12)
    taps = level * _decay()[delays * 64 // (span + 1)] >> 12
    taps = np.where(draw.integers(ECHO_TAPS, 2) == 0, taps, -taps)
    wet_T = dry_T << 12
    for delay, tap in zip(delays.tolist(), taps.tolist(), strict=True):
        wet_T[delay:] += tap * dry_T[:-delay]
    return wet_T >> 12


@cache
def _decay() -> NDArray[np.int64]:
    """Amplitudes (64,) in units of 2^-12 over the time in which an echo falls by 60 dB."""
    return np.array([round(4096 * 10 ** (-3 * i / 64)) for i in range(64)], np.int64)


def _tilt(clip_T: NDArray[np.int64], draw: Draw) -> NDArray[np.int64]:
    """A microphone that lifts or damps the high frequencies."""
    most = round(TILT * 2**12)
    tilted_T = clip_T << 12
    tilted_T[1:] += draw.between(-most, most) * clip_T[:-1]
    return tilted_T >> 12


def _noise(draw: Draw) -> NDArray[np.int64]:
    """Rumble: values held over 1, 2, 4, ... 512 samples and summed, the slower ones stronger, as in brown noise."""
    held = [np.repeat(draw.bells(-(-SAMPLES // 2**k)), 2**k)[:SAMPLES] << k // 2 for k in range(10)]
    return np.stack(held).sum(0) >> 2


def _power(decibels: int) -> int:
    """10^(dB / 10) in units of 2^-20."""
    return round(10 ** (decibels / 10) * 2**20)
