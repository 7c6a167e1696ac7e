"""`notes`: eleven families of synthetic instruments, made on this machine, the same bytes on every machine.

After NSynth (Engel et al. 2017), which the paper's families and pitches come from: single notes of many instruments,
and no instrument in two splits. Strings that ring are waveguides (Jaffe and Smith 1983), struck bars and strings are
sums of decaying modes, what is blown or bowed is a series of harmonics that grows brighter with its loudness, shaped
by resonances. An instrument is a set of fixed numbers, a note adds pitch, velocity and a few of its own; then it is
put into a room, with noise and at a level that say nothing about the family.

All arithmetic is that of `clar.datasets.synthesis`: sums, products, quotients and recursions of float64. A filter here
always has a recursive part, since `lfilter` without one is `np.convolve`, which is not the same on all processors.

Letters in names: T samples of a clip, K harmonics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clar.clips import SPLITS, Source
from clar.datasets.synthesis import (
    Draw,
    Wave,
    decay,
    gain,
    levelled,
    lfilter,
    mixed,
    phase,
    power,
    ratio,
    room,
    rounded,
    sine,
)
from clar.errors import UserError

VERSION = 1
"""Raised with every change that changes a byte: stores of another version are then left alone and built anew."""

CLIPS = 1848
FEWEST, MOST = 165, 1_000_000
SAMPLE_RATE = 16_000
SAMPLES = 32_000  # half of NSynth's four seconds: a laptop trains in half the time, and the notes are made to fit

# All families play the same two octaves, unlike in NSynth, so that the pitch does not give the family away.
LOWEST = 48
"""MIDI number of the lowest pitch, C3."""
_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
PITCHES = tuple(f"{_NAMES[midi % 12]}{midi // 12 - 1}" for midi in range(LOWEST, LOWEST + 24))
VELOCITIES = (25, 50, 75, 100, 127)
INSTRUMENTS = {"train": range(12), "valid": range(12, 16), "test": range(16, 20)}
"""Numbers of each family's instruments."""

# How hard the task is: the untrained ResNet of the demo's size reaches 0.41 to 0.47 of the families on test under a
# linear probe and the same network trained with all labels 0.66 after two epochs and 0.81 after ten. A first draft of
# the instruments at 0 to 20 dB gave 0.30, 0.45 and 0.68.
SNR_DB = (10.0, 35.0)
"""Power of the loudest velocity to that of the noise, both over the clip, drawn uniformly, in dB."""
SOFTEST_DB = -8.0
"""Loudness of the lowest velocity, relative to the highest."""
LEVEL_DBFS = (-30.0, -24.0)
"""Power of a clip of the highest velocity relative to full scale, drawn uniformly, in dB."""
ROOM_S = (0.1, 0.6)
"""Time in which the room's reflections fall by 60 dB, drawn uniformly."""
ROOM_LEVEL = 0.3
"""Amplitude of the earliest reflections, relative to the direct sound."""
ROOM_TAPS = 32
"""Reflections of the room."""
TILT = 0.4
"""Largest coefficient, either sign, of the microphone's two-tap filter x[n] + a x[n - 1]."""
HISS_HZ = (300.0, 5000.0)
"""Where the background noise begins to fall, at 6 dB an octave."""
ONSET_S = (0.0, 0.3)
"""When a note begins. Onset, hold and release together are never longer than the clip."""
HOLD_S = (0.5, 1.3)
"""How long a note is held; the families have one distribution, so that the length says nothing."""
RELEASE_S = (0.05, 0.4)
"""Time in which a note that is let go falls by 60 dB."""
DETUNE_CENTS = 5.0
"""How far a note is out of tune, either way."""


# The list of clips


def whole(clips: int) -> int:
    """`clips` rounded to whole blocks of 33, three notes of each family.

    Raises:
        UserError: `clips` is out of range.
    """
    if not FEWEST <= clips <= MOST:
        raise UserError(f"notes:{clips}: the number of clips must lie between {FEWEST} and {MOST:,}")
    return (clips + _BLOCK // 2) // _BLOCK * _BLOCK


def source(label: Literal["family", "pitch"] = "family", clips: int = CLIPS) -> Source:
    """The data set of `clips` clips, rounded to whole blocks, for `clar.building.build`.

    Clip i is the same in every size and for both labels. Eight blocks of one split hold every pitch of every family
    once; so pitch and family are independent, exactly so in the default size.

    Args:
        label: `"family"`, eleven classes, or `"pitch"`, 24 classes.
        clips: how many.

    Raises:
        UserError: `clips` is out of range.
    """
    blocks = range(whole(clips) // _BLOCK)
    scores = [score for block in blocks for score in _block(block)]
    families = tuple(FAMILIES)
    by_family = label == "family"
    return Source(
        name="notes" if by_family else "notes_pitch",
        classes=families if by_family else PITCHES,
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        files=[score.file for score in scores],
        stamps=[f"v{VERSION}"] * len(scores),
        labels=np.array([families.index(s.family) if by_family else s.midi - LOWEST for s in scores], np.int64),
        splits=np.repeat(np.array([_split(block)[0] for block in blocks], np.uint8), _BLOCK),
        groups=[score.player for score in scores],
        decode=_decode,
        shard=_BLOCK,
        recordings="notes",
    )


@dataclass(frozen=True)
class Score:
    """What one clip holds: who plays which note, and in which round of all pitches."""

    family: str
    instrument: int
    midi: int
    velocity: int
    take: int

    @property
    def force(self) -> float:
        """0 for the lowest velocity to 1 for the highest."""
        return (self.velocity - VELOCITIES[0]) / (VELOCITIES[-1] - VELOCITIES[0])

    @property
    def loudness(self) -> float:
        """In dB, relative to the highest velocity."""
        return SOFTEST_DB * (1 - self.force)

    @property
    def player(self) -> str:
        """The instrument as it stands in file names: `reed_003`."""
        return f"{self.family}_{self.instrument:03d}"

    @property
    def file(self) -> str:
        """As in NSynth, with the take: `reed/reed_003-060-100_0.wav`."""
        return f"{self.family}/{self.player}-{self.midi:03d}-{self.velocity:03d}_{self.take}.wav"


# The order in which blocks go to the splits: any beginning of it holds about 70 / 15 / 15 %.
_TURNS = "tttvstt"
_STRIDE = len(PITCHES) // 3


def _split(block: int) -> tuple[int, int]:
    """The split of a block, as a position in `SPLITS`, and the number of the split's blocks before it."""
    lap, turn = divmod(block, len(_TURNS))
    letter = _TURNS[turn]
    return "tvs".index(letter), lap * _TURNS.count(letter) + _TURNS[:turn].count(letter)


def _block(block: int) -> list[Score]:
    """Three notes of each family, a third of the range apart, all of one split.

    From block to block a family moves on by one pitch, one instrument and three velocities; other families are
    elsewhere, so that a block holds every pitch.
    """
    split, before = _split(block)
    players = INSTRUMENTS[SPLITS[split]]
    take = before // _STRIDE
    return [
        Score(
            family=family,
            instrument=players[(before + third + take) % len(players)],
            midi=LOWEST + _STRIDE * third + (before + 3 * position) % _STRIDE,
            velocity=VELOCITIES[(3 * before + third + 3 * position) % len(VELOCITIES)],
            take=take,
        )
        for third in range(3)
        for position, family in enumerate(FAMILIES)
    ]


def _decode(start: int, stop: int) -> tuple[NDArray[np.int16], list[str | None]]:
    clips = [synthesise(_block(i // _BLOCK)[i % _BLOCK]) for i in range(start, stop)]
    return np.stack(clips), [None] * len(clips)


# From the score to the clip


@dataclass(frozen=True)
class Note:
    """What an instrument is asked to play.

    Attributes:
        hertz: the fundamental.
        force: 0 for the lowest velocity to 1 for the highest.
        samples: how long it sounds.
        draw: of what differs from note to note.
    """

    hertz: float
    force: float
    samples: int
    draw: Draw


def synthesise(score: Score) -> NDArray[np.int16]:
    """The clip (SAMPLES,) of one score."""
    draw = _draw(score.file)
    clip_T = record(score, draw)
    return levelled(clip_T, draw.uniform(*LEVEL_DBFS) + score.loudness)


def record(score: Score, draw: Draw) -> Wave:
    """The clip before it gets its level: a note begun somewhere and let go after a while, in a room, with noise."""
    onset, hold, release = (round(draw.uniform(*span) * SAMPLE_RATE) for span in (ONSET_S, HOLD_S, RELEASE_S))
    note_T = play(score, draw, hold + release)
    note_T[hold:] *= decay(release, SAMPLE_RATE, release / SAMPLE_RATE)
    dry_T = np.zeros(SAMPLES)
    dry_T[onset : onset + len(note_T)] = note_T
    wet_T = room(dry_T, draw, SAMPLE_RATE, draw.uniform(*ROOM_S), ROOM_LEVEL, ROOM_TAPS)
    wet_T[1:] += draw.uniform(-TILT, TILT) * wet_T[:-1]
    hiss_T = _lowpass(draw.uniforms(SAMPLES, -1, 1), _log_uniform(draw, *HISS_HZ))
    return mixed(wet_T, hiss_T, draw.uniform(*SNR_DB) + score.loudness)


def play(score: Score, draw: Draw, samples: int = SAMPLES) -> Wave:
    """The dry note (samples,), begun at once and never let go, of any level."""
    hertz = rounded(440 * 2 ** ((score.midi - 69 + draw.uniform(-DETUNE_CENTS, DETUNE_CENTS) / 100) / 12))
    return FAMILIES[score.family](_draw(score.player), Note(hertz, score.force, samples, draw))


def _draw(key: str) -> Draw:
    return Draw(f"clar notes {VERSION}/{key}")


# The families. Each draws an instrument's numbers from `own` first, always the same, and then plays a note with it.


def _bass(own: Draw, note: Note) -> Wave:
    """A thick string, plucked with a finger, soon dull."""
    pick, ring, damping = own.uniform(0.1, 0.25), own.uniform(0.8, 3), own.uniform(0.3, 0.5)
    stiffness, cutoff, noise = own.uniform(0.3, 0.6), _log_uniform(own, 200, 600), own.uniform(0, 0.5)
    body = _some_bands(own, 2, (50, 250), (2, 6), (0.5, 3))
    pluck_T = _pluck(note, pick, cutoff * (1 + 2 * note.force), noise)
    string_T = _string(pluck_T, note.hertz, ring, damping, stiffness)
    return _resonant(string_T, body)


def _bowed(own: Draw, note: Note) -> Wave:
    """A string that the bow catches once a period, on a body with many resonances."""
    place, bright, vibrato = own.uniform(0.06, 0.2), own.uniform(0.86, 0.95), own.uniform(8, 25)
    attack, noise, rate = own.uniform(0.06, 0.35), own.uniform(0.04, 0.15), own.uniform(4.5, 6.5)
    body = _some_bands(own, 5, (250, 3500), (3, 10), (0.5, 3))
    weights = [abs(_sin(k * place / 2)) / k for k in _harmonics(note)]
    swell_T = _swell(note, attack)
    tone_T = _series(_pitch(note, vibrato, rate), weights, (bright + 0.04 * note.force) * _soft(swell_T, 0.9))
    bow_T = noise * _lowpass(_white(note), 3000)
    return _resonant((_unit(tone_T) + bow_T) * swell_T, body)


def _brass(own: Draw, note: Note) -> Wave:
    """Lips in a mouthpiece: overtones follow the loudness, and arrive one after another."""
    bright, attack, vibrato = own.uniform(0.55, 0.85), own.uniform(0.06, 0.3), own.uniform(0, 12)
    formant, scoop, rate = _log_uniform(own, 500, 1500), own.uniform(15, 80), own.uniform(4.5, 6)
    body = [(formant, own.uniform(0.8, 4), own.uniform(0.5, 4))]
    swell_T = _swell(note, attack)
    bend_T = -scoop * decay(note.samples, SAMPLE_RATE, 2 * attack)
    roll_T = (bright + 0.13 * note.force) * _soft(swell_T, 0.35)
    tone_T = _series(_pitch(note, vibrato, rate, bend_T), [1.0] * len(_harmonics(note)), roll_T)
    return _resonant(tone_T * swell_T, body)


def _flute(own: Draw, note: Note) -> Wave:
    """A jet across an edge: few harmonics, and breath that the pipe tunes."""
    bright, second, breath = own.uniform(0.2, 0.5), own.uniform(0.2, 1.5), own.uniform(0.08, 0.35)
    attack, vibrato, tremolo = own.uniform(0.04, 0.25), own.uniform(0, 20), own.uniform(0, 0.3)
    rate, chiff = own.uniform(4, 6), own.uniform(0, 1.5)
    weights = [1.0, second, *[1.0] * (len(_harmonics(note)) - 2)]
    swell_T = _swell(note, attack)
    tone_T = _unit(_series(_pitch(note, vibrato, rate), weights, (bright + 0.2 * note.force) * _soft(swell_T, 0.7)))
    tone_T *= 1 + tremolo * _wobble(note, rate)
    air_T = _lowpass(_white(note), 4000)
    air_T = 0.3 * air_T + _band(air_T, note.hertz, 4) + _band(air_T, 2 * note.hertz, 6)
    return (tone_T + breath * air_T) * swell_T + breath * chiff * air_T * decay(note.samples, SAMPLE_RATE, 0.1)


def _guitar(own: Draw, note: Note) -> Wave:
    """A string of nylon or steel on a box, or under a pickup that an amplifier overdrives."""
    pick, ring, damping = own.uniform(0.06, 0.2), own.uniform(1.5, 5), own.uniform(0.03, 0.25)
    stiffness, cutoff, noise = own.uniform(0, 0.2), _log_uniform(own, 1500, 6000), own.uniform(0, 0.4)
    drive = own.uniform(1, 12) * own.between(0, 1)  # half of them are acoustic
    # The air in the box, its top plate, and whatever else.
    body = [
        *_some_bands(own, 1, (95, 125), (6, 12), (0.5, 3)),
        *_some_bands(own, 1, (180, 240), (6, 12), (0.5, 3)),
        *_some_bands(own, 1, (350, 1500), (3, 10), (0.5, 2)),
    ]
    pluck_T = _pluck(note, pick, cutoff * (0.3 + 1.2 * note.force), noise)
    string_T = _resonant(_string(pluck_T, note.hertz, ring, damping, stiffness), body)
    return _overdriven(string_T, drive * (0.3 + note.force)) if drive else string_T


def _keyboard(own: Draw, note: Note) -> Wave:
    """Pairs of stiff strings, struck by a hammer: partials a little sharp, that beat and fall at two rates."""
    stiffness, strike, ring = _log_uniform(own, 5e-5, 1.5e-3), own.uniform(0.05, 0.2), own.uniform(1, 6)
    cutoff, beat, thump = _log_uniform(own, 400, 2500), own.uniform(0.5, 4), own.uniform(0, 0.6)
    damping = own.uniform(0.02, 0.25)
    hardness = cutoff * (0.6 + 1.4 * note.force)
    modes = []
    for k in _harmonics(note)[:24]:
        hertz = k * note.hertz * math.sqrt((1 + stiffness * k * k) / (1 + stiffness))
        level = abs(_sin(k * strike / 2)) / (1 + (hertz / hardness) ** 2)
        seconds = ring / (1 + damping * k)
        modes += [(hertz, level, seconds / 3), (hertz * ratio(beat / 100), 0.4 * level, seconds)]
    hammer_T = _lowpass(_white(note), hardness) * decay(note.samples, SAMPLE_RATE, 0.08)
    return _unit(_modes(note, modes)) + thump * hammer_T


def _mallet(own: Draw, note: Note) -> Wave:
    """A bar of wood or metal: few partials, out of the harmonic series, that die the sooner the higher they are."""
    partials = (1.0, own.uniform(2.6, 4.1), own.uniform(5, 10), own.uniform(9, 14), own.uniform(14, 20))
    ring, damping, click = _log_uniform(own, 0.3, 4), own.uniform(0.2, 1), own.uniform(0, 0.5)
    cutoff, tremolo, rate = _log_uniform(own, 500, 3000), own.uniform(0, 0.5) * own.between(0, 1), own.uniform(3, 7)
    hardness = cutoff * (0.4 + 1.6 * note.force)
    modes = []
    for partial in partials:
        hertz, struck = partial * note.hertz, note.draw.uniform(0.8, 1.2)  # never at the same place of the bar
        modes.append((hertz, struck / (1 + (hertz / hardness) ** 2), ring / (1 + damping * (partial - 1))))
    click_T = _lowpass(_white(note), hardness) * decay(note.samples, SAMPLE_RATE, 0.04)
    return _unit(_modes(note, modes)) * (1 + tremolo * _wobble(note, rate)) + click * click_T


def _organ(own: Draw, note: Note) -> Wave:
    """Ranks of pipes or tone wheels at fixed multiples of half the pitch, behind a swell box, with a tremulant."""
    stops = {multiple: gain(own.uniform(-30, 0)) for multiple in (1, 3, 4, 6, 8, 10, 12, 16)}
    rank, celeste, tremulant = own.uniform(0.3, 0.75), own.uniform(0, 10), own.uniform(0, 0.4) * own.between(0, 1)
    attack, rate, click = own.uniform(0.005, 0.12), own.uniform(4, 7), own.uniform(0, 0.4)
    # The pipes of a rank have overtones of their own, so a stop sounds at its multiples too.
    halves = range(1, min(_PARTIALS, 2 * len(_harmonics(note))) + 1)
    weights = [sum(level * rank ** (k // m - 1) for m, level in stops.items() if k % m == 0) for k in halves]
    weights[1] += 1.0
    cycles_T = _pitch(note, 20 * tremulant, rate) / 2
    tone_T = _unit(_series(cycles_T, [rounded(w) for w in weights], np.ones(note.samples)))
    tone_T += _unit(sine(2 * ratio(celeste / 100) * cycles_T)) * 0.3
    tone_T *= 1 + tremulant * _wobble(note, rate)
    clack_T = click * _white(note) * decay(note.samples, SAMPLE_RATE, 0.03)
    return _lowpass(tone_T * _swell(note, attack) + clack_T, 1500 + 4500 * note.force)


def _plucked(own: Draw, note: Note) -> Wave:
    """Harps, lutes and zithers: a light string, plucked near its middle, on a shallow board."""
    pick, ring, damping = own.uniform(0.3, 0.5), own.uniform(0.5, 2.5), own.uniform(0.05, 0.3)
    cutoff, noise = _log_uniform(own, 1200, 5000), own.uniform(0, 0.4)
    body = _some_bands(own, 3, (500, 3000), (2, 8), (0.5, 3))
    pluck_T = _pluck(note, pick, cutoff * (0.5 + note.force), noise)
    return _resonant(_string(pluck_T, note.hertz, ring, damping, 0.05), body)


def _reed(own: Draw, note: Note) -> Wave:
    """A reed on a tube: weak even harmonics on a cylinder, all of them on a cone, and a formant or two."""
    even, bright, vibrato = own.uniform(0.05, 0.7), own.uniform(0.72, 0.88), own.uniform(0, 8)
    attack, noise, rate = own.uniform(0.02, 0.08), own.uniform(0.005, 0.05), own.uniform(4, 6)
    body = _some_bands(own, 2, (900, 3500), (2, 6), (1, 4))
    weights = [1.0 if k % 2 else even for k in _harmonics(note)]
    swell_T = _swell(note, attack)
    roll_T = (bright + 0.07 * note.force) * _soft(swell_T, 0.8)
    tone_T = _unit(_series(_pitch(note, vibrato, rate), weights, roll_T))
    return _resonant((tone_T + noise * _white(note)) * swell_T, body)


# Formants of the sung vowels a e i o u in hertz, of a man; other singers have shorter or longer tracts.
_VOWELS = ((650, 1080, 2650), (400, 1700, 2600), (290, 1870, 2800), (400, 800, 2600), (350, 600, 2700))


def _voice(own: Draw, note: Note) -> Wave:
    """The vocal folds' pulse through a throat."""
    vowel, other, between = _VOWELS[own.between(0, 4)], _VOWELS[own.between(0, 4)], own.uniform(0, 0.5)
    tract, bright, vibrato = own.uniform(0.9, 1.25), own.uniform(0.82, 0.93), own.uniform(25, 60)
    attack, breath, rate = own.uniform(0.05, 0.3), own.uniform(0.01, 0.15), own.uniform(4.5, 7)
    ring, sharpness = own.uniform(0, 0.5), own.uniform(0.7, 1.4)
    formants = [tract * (a + between * (b - a)) for a, b in zip(vowel, other, strict=True)]
    throat = list(zip(formants, (6 * sharpness, 9 * sharpness, 12), (1, 0.6, ring), strict=True))
    swell_T = _swell(note, attack)
    roll_T = (bright + 0.06 * note.force) * _soft(swell_T, 0.85)
    folds_T = _unit(_series(_pitch(note, vibrato, rate), [1.0] * len(_harmonics(note)), roll_T))
    return _resonant((folds_T + breath * _white(note)) * swell_T, throat, direct=0.03)


FAMILIES: dict[str, Callable[[Draw, Note], Wave]] = {
    "bass": _bass,
    "bowed": _bowed,
    "brass": _brass,
    "flute": _flute,
    "guitar": _guitar,
    "keyboard": _keyboard,
    "mallet": _mallet,
    "organ": _organ,
    "plucked": _plucked,
    "reed": _reed,
    "voice": _voice,
}
"""Every family, in the order of the classes, and what plays it."""

_BLOCK = 3 * len(FAMILIES)


# What they are built from

_HIGHEST = 7600.0
"""Hertz. No partial lies above, so that none folds back at 8 kHz."""
_PARTIALS = 40
"""Harmonics of a series at most."""

Band = tuple[float, float, float]
"""A resonance: hertz, quality factor, gain."""


def _log_uniform(draw: Draw, low: float, high: float) -> float:
    """From `low` to `high`, every octave as likely."""
    return rounded(low * (high / low) ** draw.uniform(0, 1))


def _some_bands(
    draw: Draw, count: int, hertz: tuple[float, float], quality: tuple[float, float], level: tuple[float, float]
) -> list[Band]:
    return [(_log_uniform(draw, *hertz), draw.uniform(*quality), draw.uniform(*level)) for _ in range(count)]


def _sin(cycles: float) -> float:
    """sin(2 pi x), one number."""
    return rounded(math.sin(2 * math.pi * cycles))


def _cos(cycles: float) -> float:
    return rounded(math.cos(2 * math.pi * cycles))


def _unit(wave_T: Wave) -> Wave:
    """At a power of 1."""
    return wave_T / math.sqrt(max(power(wave_T), 1e-30))


def _overdriven(wave_T: Wave, drive: float) -> Wave:
    """Through an amplifier that saturates: x / (1 + |x|), of a wave of so much amplitude."""
    driven_T = drive * _unit(wave_T)
    return driven_T / (1 + np.abs(driven_T))


def _swell(note: Note, seconds: float) -> Wave:
    """From 0 to 1, all but a thousandth of it in so many seconds."""
    return 1 - decay(note.samples, SAMPLE_RATE, seconds)


def _soft(swell_T: Wave, least: float) -> Wave:
    """Brightness that grows with loudness, from `least` to 1."""
    return least + (1 - least) * swell_T


def _white(note: Note) -> Wave:
    """White noise from -1 to 1, for breath and blows."""
    return note.draw.uniforms(note.samples, -1, 1)


def _wobble(note: Note, rate: float) -> Wave:
    """A sine of about `rate` hertz."""
    start, rate = note.draw.uniform(0, 1), rate * note.draw.uniform(0.95, 1.05)
    return sine(start + phase(np.full(note.samples, rate), SAMPLE_RATE))


def _pitch(note: Note, vibrato: float, rate: float, bend_T: Wave | float = 0.0) -> Wave:
    """The phase of a note in cycles, with a vibrato that comes late.

    Args:
        note: the note.
        vibrato: in cents, either way.
        rate: of the vibrato, in hertz.
        bend_T: cents to go up by.
    """
    depth, late = vibrato * note.draw.uniform(0.6, 1.2), note.draw.uniform(0.3, 0.9)
    shift_T = (depth * _wobble(note, rate) * _swell(note, late) + bend_T) * (rounded(math.log(2)) / 1200)
    # The first terms of 2^(cents / 1200): two hundredths of a cent off at 80 cents.
    return phase(note.hertz * (1 + shift_T + shift_T * shift_T / 2), SAMPLE_RATE)


def _harmonics(note: Note) -> range:
    """The numbers of a note's harmonics."""
    return range(1, min(_PARTIALS, int(_HIGHEST / note.hertz)) + 1)


def _series(cycles_T: Wave, weights_K: Sequence[float], roll_T: Wave) -> Wave:
    """Harmonics of a phase: the sum over k of weight k times roll^k times sin(2 pi k x), after Clenshaw."""
    sine_T, cosine_T = sine(cycles_T), sine(cycles_T + 0.25)
    twice_T, square_T = 2 * roll_T * cosine_T, roll_T * roll_T
    last_T, sum_T, next_T = np.zeros((3, len(cycles_T)))
    for weight in reversed(weights_K):
        # next = twice * sum - square * last + weight, in place: a new array costs more than a product.
        np.multiply(twice_T, sum_T, out=next_T)
        last_T *= square_T
        next_T -= last_T
        next_T += weight
        last_T, sum_T, next_T = sum_T, next_T, last_T
    return sum_T * roll_T * sine_T


def _modes(note: Note, modes: Sequence[Band]) -> Wave:
    """Sines that start together and decay: each (hertz, amplitude, seconds until 60 dB down); none above `_HIGHEST`."""
    sum_T = np.zeros(note.samples)
    for hertz, level, seconds in modes:
        if hertz > _HIGHEST:
            continue
        samples = min(note.samples, round(1.3 * seconds * SAMPLE_RATE))  # until 78 dB down
        radius = rounded(10 ** (-3 / (seconds * SAMPLE_RATE)))
        turn = hertz / SAMPLE_RATE
        impulse_T = np.zeros(samples)
        impulse_T[0] = rounded(level) * radius * _sin(turn)
        sum_T[:samples] += lfilter([1.0], [1.0, -2 * radius * _cos(turn), radius * radius], impulse_T)
    return sum_T


def _lowpass(wave_T: Wave, hertz: float) -> Wave:
    """Falls by 6 dB an octave from `hertz` on."""
    pole = rounded(math.exp(-2 * math.pi * hertz / SAMPLE_RATE))
    return lfilter([1 - pole], [1.0, -pole], wave_T)


def _band(wave_T: Wave, hertz: float, quality: float) -> Wave:
    """What a resonance lets pass, at its peak all."""
    turn = min(hertz, _HIGHEST) / SAMPLE_RATE
    alpha = rounded(_sin(turn) / (2 * quality))
    scale = 1 + alpha
    return lfilter([alpha / scale, 0.0, -alpha / scale], [1.0, -2 * _cos(turn) / scale, (1 - alpha) / scale], wave_T)


def _resonant(wave_T: Wave, bands: Sequence[Band], direct: float = 1.0) -> Wave:
    """A wave, and what each resonance makes of it."""
    sum_T = direct * wave_T
    for hertz, quality, level in bands:
        sum_T += level * _band(wave_T, hertz, quality)
    return sum_T


def _pluck(note: Note, place: float, cutoff: float, noise: float) -> Wave:
    """What a pluck sends into a string: a pulse and noise of a period, and their reflection from the bridge.

    Args:
        note: the note.
        place: of the plectrum, as a share of the string; the reflection cancels harmonics with a node there.
        cutoff: hertz; a hard plectrum is brighter.
        noise: its share.
    """
    period = SAMPLE_RATE / note.hertz
    pulse_T = np.zeros(note.samples)
    pulse_T[: round(period)] = noise * note.draw.uniforms(round(period), -1, 1)
    pulse_T[0] += math.sqrt(period)
    late = max(1, round(place * note.draw.uniform(0.95, 1.05) * period))
    pulse_T[late:] -= pulse_T[:-late].copy()
    return _lowpass(pulse_T, min(cutoff, _HIGHEST))


def _string(pluck_T: Wave, hertz: float, seconds: float, damping: float, stiffness: float) -> Wave:
    """A string: a delay of one period that loses a little and feeds back, as one recursion.

    Args:
        pluck_T: what is sent into it.
        hertz: of the fundamental.
        seconds: in which the fundamental falls by 60 dB.
        damping: coefficient of the loss filter 1 - a + a / z, to 0.5; higher harmonics die sooner.
        stiffness: coefficient of two all-passes that make the partials sharp, below 1.
    """
    turn = hertz / SAMPLE_RATE
    loss = [1 - damping, damping]
    magnitude = math.hypot(1 - damping + damping * _cos(turn), damping * _sin(turn))
    lost = math.atan2(damping * _sin(turn), 1 - damping + damping * _cos(turn)) / (2 * math.pi * turn)
    delay = 1 / turn - lost - 2 * _allpass_delay(-stiffness, turn)
    samples = int(delay - 0.5)
    part = delay - samples  # from 0.5 to 1.5: there an all-pass is the best fraction of a delay
    tuning = rounded(math.sin((1 - part) * math.pi * turn) / math.sin((1 + part) * math.pi * turn))
    feedback = rounded(min(0.9999, 10 ** (-3 / (seconds * hertz)) / magnitude))
    # 1 - feedback loss allpass / z^samples, over the all-passes' common denominator, which is their numerator reversed.
    below = _product(_product([1.0, tuning], [1.0, -stiffness]), [1.0, -stiffness])
    round_trip = _product(loss, below[::-1])
    recursion = [*below, *[0.0] * (samples + len(round_trip) - len(below))]
    for k, coefficient in enumerate(round_trip):
        recursion[samples + k] -= feedback * coefficient
    return lfilter(below, recursion, pluck_T)


def _allpass_delay(coefficient: float, turn: float) -> float:
    """Phase delay in samples of (c + 1/z) / (1 + c/z) at a frequency in cycles a sample."""
    angle = math.atan2(coefficient * math.sin(2 * math.pi * turn), 1 + coefficient * math.cos(2 * math.pi * turn))
    return 1 - 2 * angle / (2 * math.pi * turn)


def _product(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Of two polynomials."""
    product = [0.0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            product[i + j] += a * b
    return product
