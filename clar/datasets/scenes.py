"""`scenes`: ten environmental sounds in five folds, made on this machine by procedure, the same bytes on every machine.

Shaped as ESC-10 is: clips of 5 s, forty a class, and folds that share no recording, so that a trial is tested on clocks
and engines that it has never heard. A recording is one draw of a model's parameters (this clock, that engine), its room
and its microphone; its takes are other moments of it.

The models are the textbook ones of procedural audio: impulses through the resonances of a body (clock, footsteps,
glass), noise through slow filters (wind, waves), many small random events (rain, fire), periodic pulses and tones
(engine, siren, insects).

Letters in names: T samples of a clip, or of a sound as it is made, with its lead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clar.clips import Source, fold_splits
from clar.datasets.synthesis import Draw, Wave, gain, levelled, lfilter, mixed, phase, power, room, rounded, sine
from clar.errors import UserError

VERSION = 2
"""Raised with every change that changes a byte: stores of another version are then left alone and built anew."""

CLASSES = ("clock", "engine", "fire", "footsteps", "glass", "insects", "rain", "siren", "waves", "wind")
CLIPS = 400
FEWEST, MOST = 100, 1_000_000
SAMPLE_RATE = 16_000
SECONDS = 5
SAMPLES = SECONDS * SAMPLE_RATE
LEAD_SECONDS = 0.25
"""Made before the clip and cut off: filters that start from silence would tell a class by its first samples."""
MADE_SECONDS = LEAD_SECONDS + SECONDS
MADE = round(MADE_SECONDS * SAMPLE_RATE)
FOLDS = 5
TEST_FOLD = 5
"""The fold that `Source.splits` tests on."""
ROUND = FOLDS * len(CLASSES)
"""Clips in which every class appears once in every fold."""
TAKES = "AB"
"""A recording's clips, by the letters of their file names; a larger set has more recordings, not more takes."""

# How hard the task is: the untrained ResNet of the demo's size reaches 0.54 to 0.59 on test under a linear probe,
# self-supervised training of ten epochs 0.54 to 0.66, supervised training of twenty 0.82. EXPERIMENTS.md has the
# settings that were tried.
SNR_DB = (0.0, 20.0)
"""Power of the sound, over the whole clip, to that of the background noise, drawn uniformly."""
COLOUR_HZ = (200.0, 4000.0)
"""Cut-off of a recording's background noise, from rumble to hiss, drawn log-uniformly."""
BANDWIDTH_HZ = (3000.0, 7500.0)
"""Cut-off of a recording as a whole: distance, air and microphone."""
SUBSONIC_HZ = 20.0
"""Below it microphones hear little, and pulses of one sign have most of their power."""
LEVEL_DBFS = (-36.0, -28.0)
"""Power of the clip relative to full scale, drawn uniformly: low enough that single clicks do not saturate."""
ECHO_SECONDS = (0.1, 0.7)
"""Time in which the echo of a recording falls by 60 dB."""
ECHO_LEVEL = (0.05, 0.4)
"""Amplitude of a recording's earliest reflections, relative to the direct sound."""
ECHO_TAPS = 24
"""Reflections of a room."""


def whole(clips: int) -> int:
    """`clips` rounded to whole rounds of ten classes in five folds.

    Raises:
        UserError: `clips` is out of range.
    """
    if not FEWEST <= clips <= MOST:
        raise UserError(f"scenes:{clips}: the number of clips must lie between {FEWEST} and {MOST:,}")
    return (clips + ROUND // 2) // ROUND * ROUND


@dataclass(frozen=True)
class Take:
    """A clip's place in the data set: the same in every size of it."""

    label: int
    fold: int
    recording: int
    letter: str

    @classmethod
    def at(cls, clip: int) -> "Take":
        """What clip number `clip` is."""
        lap, place = divmod(clip, ROUND)
        fold, label = divmod(place, len(CLASSES))
        recording, take = divmod(lap, len(TAKES))
        return cls(label, fold + 1, recording, TAKES[take])

    @property
    def number(self) -> int:
        """Of its recording, in the whole data set."""
        return 100_000 + self.recording * ROUND + (self.fold - 1) * len(CLASSES) + self.label

    @property
    def file(self) -> str:
        """Named as ESC-50 names its clips, `fold-recording-take-label.wav`, in the folder of its class."""
        return f"{CLASSES[self.label]}/{self.fold}-{self.number}-{self.letter}-{self.label}.wav"


def source(clips: int = CLIPS) -> Source:
    """The data set of `clips` clips, rounded to whole rounds, for `clar.building.build`.

    Clip i is the same in every size: `scenes:200` is the beginning of `scenes`.

    Raises:
        UserError: `clips` is out of range.
    """
    takes = [Take.at(clip) for clip in range(whole(clips))]
    folds = np.array([take.fold for take in takes], np.uint8)
    return Source(
        name="scenes",
        classes=CLASSES,
        sample_rate=SAMPLE_RATE,
        samples=SAMPLES,
        files=[take.file for take in takes],
        stamps=[f"v{VERSION}"] * len(takes),
        labels=np.array([take.label for take in takes], np.int64),
        splits=fold_splits(folds, TEST_FOLD),
        folds=folds,
        groups=[str(take.number) for take in takes],
        decode=_decode,
        shard=ROUND,
    )


def _decode(start: int, stop: int) -> tuple[NDArray[np.int16], list[str | None]]:
    clips = [synthesise(Take.at(clip)) for clip in range(start, stop)]
    return np.stack(clips), [None] * len(clips)


def synthesise(take: Take) -> NDArray[np.int16]:
    """The clip (SAMPLES,) int16: the sound, in its room, as far away as it is, with noise, at a level."""
    name = CLASSES[take.label]
    recording = f"{name}/{take.fold}/{take.recording}"
    place, moment = _draw(f"{recording}/place"), _draw(f"{recording}/{take.letter}/moment")
    clip_T = MODELS[name](_draw(recording), _draw(f"{recording}/{take.letter}"))
    if name in ECHOING:
        clip_T = room(clip_T, place, SAMPLE_RATE, place.uniform(*ECHO_SECONDS), place.uniform(*ECHO_LEVEL), ECHO_TAPS)
    clip_T = _high_pass(_low_pass(clip_T, _log_uniform(place, *BANDWIDTH_HZ)), SUBSONIC_HZ)
    noise_T = _high_pass(_low_pass(_noise(moment), _log_uniform(place, *COLOUR_HZ)), SUBSONIC_HZ)
    whole_T = mixed(clip_T[-SAMPLES:], noise_T[-SAMPLES:], moment.uniform(*SNR_DB))
    return levelled(whole_T, moment.uniform(*LEVEL_DBFS))


def _draw(key: str) -> Draw:
    return Draw(f"clar scenes {VERSION}/{key}")


# What the models are made of. Every `lfilter` here is a recursion: one without would go through np.convolve.


def _log_uniform(draw: Draw, low: float, high: float) -> float:
    """A number from `low` to `high` whose logarithm is uniform."""
    return low * rounded((high / low) ** draw.uniform(0, 1))


def _noise(draw: Draw) -> Wave:
    """White noise (MADE,) from -1 to 1. Uniform: any filter makes it nearly normal, and it costs a third."""
    return draw.uniforms(MADE, -1, 1)


def _low_pass(clip_T: Wave, hertz: float) -> Wave:
    """Falls by 6 dB an octave above `hertz`."""
    pole = rounded(math.exp(-2 * math.pi * hertz / SAMPLE_RATE))
    return lfilter([1 - pole], [1.0, -pole], clip_T)


def _high_pass(clip_T: Wave, hertz: float) -> Wave:
    """Falls by 6 dB an octave below `hertz`."""
    return clip_T - _low_pass(clip_T, hertz)


def _resonance(drive_T: Wave, hertz: float, seconds: float) -> Wave:
    """A mode of a body: an impulse makes it ring at `hertz` with amplitude 1 and fall by 60 dB in so many seconds."""
    radius, angle = 10 ** (-3 / (seconds * SAMPLE_RATE)), 2 * math.pi * hertz / SAMPLE_RATE
    feedback = [1.0, -rounded(2 * radius * math.cos(angle)), rounded(radius * radius)]
    # The offset, far below the last bit, keeps a silent tail out of the subnormal numbers, which are slow.
    return lfilter([rounded(math.sin(angle))], feedback, drive_T + 1e-12)


def _unit(clip_T: Wave) -> Wave:
    """With a mean power of 1."""
    return clip_T / math.sqrt(max(power(clip_T), 1e-30))


@dataclass(frozen=True)
class Body:
    """The modes of something that is struck: frequencies in hertz, times to fall by 60 dB in seconds, amplitudes."""

    modes: tuple[tuple[float, float, float], ...]

    @classmethod
    def drawn(cls, draw: Draw, count: int, hertz: tuple[float, float], seconds: tuple[float, float]) -> "Body":
        """`count` modes anywhere in these ranges: inharmonic, as those of plates and boxes are."""
        each = ((_log_uniform(draw, *hertz), _log_uniform(draw, *seconds), draw.uniform(0.3, 1)) for _ in range(count))
        return cls(tuple(each))

    def struck(self, drive_T: Wave) -> Wave:
        """Its sound when it is driven so."""
        sound_T = np.zeros(MADE)
        for hertz, seconds, amplitude in self.modes:
            sound_T += amplitude * _resonance(drive_T, hertz, seconds)
        return sound_T

    def showered(self, draw: Draw, a_second: float) -> Wave:
        """Its sound under so many small impacts a second at random times, each of which makes one mode ring."""
        sound_T = np.zeros(MADE)
        for hertz, seconds, amplitude in self.modes:
            sound_T += amplitude * _resonance(_shower(draw, a_second / len(self.modes)), hertz, seconds)
        return sound_T


def _impulses(seconds: Wave, amplitudes: Wave) -> Wave:
    """(MADE,) with an impulse at each of these times; what falls outside the clip is left out."""
    index = np.rint(seconds * SAMPLE_RATE).astype(np.int64)
    inside = (index >= 0) & (index < MADE)
    drive_T = np.zeros(MADE)
    np.add.at(drive_T, index[inside], amplitudes[inside])
    return drive_T


def _beats(draw: Draw, period: float, jitter: float) -> Wave:
    """Times in seconds, `period` apart, through the whole clip and a little before; `jitter` is relative to it."""
    count = 3 + math.ceil(MADE_SECONDS / period)
    return period * (np.arange(count) - 1 + draw.uniform(0, 1) + jitter * draw.normals(count))


def _shower(draw: Draw, a_second: float) -> Wave:
    """Impulses at random times, so many a second, from -1 to 1; most are small: cubes of uniform numbers."""
    count = round(MADE_SECONDS * a_second)
    sizes = draw.uniforms(count, -1, 1)
    return _impulses(draw.uniforms(count, 0, MADE_SECONDS), sizes * sizes * sizes)


def _fading(drive_T: Wave, seconds: float) -> Wave:
    """An envelope that every impulse lifts by its size and that falls by 60 dB in so many seconds."""
    return lfilter([1.0], [1.0, -rounded(10 ** (-3 / (seconds * SAMPLE_RATE)))], drive_T)


def _drift(draw: Draw, hertz: float) -> Wave:
    """A curve (MADE,) from 0 to 1, smooth, with `hertz` random turning points a second."""
    step = round(SAMPLE_RATE / hertz)
    points = draw.uniforms(MADE // step + 3)
    k, part = np.divmod(np.arange(MADE) + draw.between(0, step - 1), step)
    ramp = part / step
    ramp = ramp * ramp * (3 - 2 * ramp)
    return points[k] + (points[k + 1] - points[k]) * ramp


def _swell(draw: Draw, hertz: float, pause: float) -> Wave:
    """Half waves from 0 to 1, `hertz` a second, silent for the share `pause` of each period."""
    cycles_T = draw.uniform(0, 1) + np.arange(MADE) * (hertz / SAMPLE_RATE)
    part_T = (cycles_T - np.floor(cycles_T)) / (1 - pause)
    return np.maximum(4 * part_T * (1 - part_T), 0)


def _surge(cycles_T: Wave, peak: float) -> Wave:
    """Of every cycle an envelope from 0 to 1 that grows with the square until `peak` and then falls off likewise."""
    part_T = cycles_T - np.floor(cycles_T)
    side_T = np.where(part_T < peak, part_T / peak, (1 - part_T) / (1 - peak))
    return side_T * side_T


# The models. Each makes a sound (MADE,) of any level: `recording` draws what its takes share, `take` the rest.
# Their ranges of rates and frequencies overlap. Statistics of the whole spectrum still tell wind from waves; what they
# confuse is insects with sirens, and clock, glass and footsteps with each other.


def _clock(recording: Draw, take: Draw) -> Wave:
    """Tick and tock: an escapement's three clicks each, through the modes of two parts of one case."""
    period = 1 / _log_uniform(recording, 1, 6)
    late = recording.uniform(0, 0.15) * period
    gap = recording.uniform(0.004, 0.015)
    case = (1000, 7000), (0.008, 0.08)
    tick, tock = (Body.drawn(recording, recording.between(3, 5), *case) for _ in range(2))
    tock_level = gain(recording.uniform(-9, 0))
    times = _beats(take, period, 0.003)
    sizes = take.uniforms(len(times), 0.8, 1.2)
    first = take.between(0, 1)
    sound_T = np.zeros(MADE)
    for body, level, delay, turn in ((tick, 1.0, late, first), (tock, tock_level, 0.0, 1 - first)):
        own, size = times[turn::2] + delay, level * sizes[turn::2]
        clicks_T = _impulses(own, 0.4 * size) + _impulses(own + gap, size) + _impulses(own + 1.7 * gap, -0.3 * size)
        sound_T += body.struck(clicks_T)
    return sound_T


def _engine(recording: Draw, take: Draw) -> Wave:
    """Firing pulses of unequal cylinders at a wandering rate, with the noise of the intake, through a muffler."""
    cylinders = recording.between(1, 4) * 2
    unequal = recording.uniforms(cylinders, 0.5, 1)
    muffler = Body.drawn(recording, 3, (70, 900), (0.01, 0.06))
    breath = _log_uniform(recording, 0.02, 0.4)
    firing = _log_uniform(recording, 18, 90) * take.uniform(0.85, 1.15)
    revving = recording.uniform(0.02, 0.4)
    # From a moment between two strokes: a clip that began with one would be told by its first sample.
    cycles_T = take.uniform(0, cylinders) + phase(
        firing * (1 + revving * _drift(take, 1.0) + 0.03 * _drift(take, 12.0)), SAMPLE_RATE
    )
    stroke = np.floor(cycles_T)
    rest_T = 1 - (cycles_T - stroke)
    pulse_T = rest_T * rest_T
    pulse_T = pulse_T * pulse_T * pulse_T * unequal[stroke.astype(np.int64) % cylinders]
    pulse_T = pulse_T * (1 + breath * _noise(take))
    return _unit(muffler.struck(pulse_T)) + 0.5 * _unit(_high_pass(pulse_T, 300))


def _fire(recording: Draw, take: Draw) -> Wave:
    """Crackles over the roar of the flames and some hiss."""
    wood = Body.drawn(recording, 5, (700, 6000), (0.002, 0.012))
    crackles_T = wood.showered(take, _log_uniform(recording, 8, 60))
    roar_T = _low_pass(_low_pass(_noise(take), recording.uniform(60, 250)), 400) * (0.3 + _drift(take, 4.0))
    hiss_T = _high_pass(_noise(take), 2500) * (0.3 + _drift(take, 2.0))
    roar, hiss = gain(recording.uniform(-12, 3)), gain(recording.uniform(-20, -6))
    return _unit(crackles_T) + roar * _unit(roar_T) + hiss * _unit(hiss_T)


def _footsteps(recording: Draw, take: Draw) -> Wave:
    """Heel and toe of a walker on a floor that rings (wood, tiles) or grinds (gravel, leaves)."""
    period = recording.uniform(0.3, 0.8)
    toe = recording.uniform(0.06, 0.16)
    floor = Body.drawn(recording, 4, (100, 4000), (0.01, 0.08))
    gravel = recording.between(0, 1) * recording.uniform(0.5, 3)
    times = _beats(take, period, 0.03)
    sizes = take.uniforms(len(times), 0.5, 1)
    steps_T = _impulses(times, sizes) + _impulses(times + toe, sizes * take.uniforms(len(times), 0.3, 0.8))
    ring_T = _unit(floor.struck(steps_T))
    # What grinds does so while the foot settles, and not at once.
    weight_T = _low_pass(_fading(steps_T, 0.3), 60)
    grains_T = _high_pass(_noise(take) + 6 * _shower(take, 300), recording.uniform(500, 2500)) * weight_T
    return ring_T + (0.1 + gravel) * _unit(grains_T)


def _glass(recording: Draw, take: Draw) -> Wave:
    """A pane that breaks: one or two crashes through many modes, and shards that fall and ring for a second or two."""
    pane = Body.drawn(recording, 12, (900, 7000), (0.05, 0.6))
    shards = Body.drawn(recording, 8, (2500, 7500), (0.03, 0.3))
    falling, many = recording.uniform(0.5, 2), recording.between(3, 12)
    crashes = LEAD_SECONDS + take.uniforms(take.between(1, 2), 0, 4)
    blows_T = _impulses(crashes, np.ones(len(crashes)))
    # Not one blow but six within a few hundredths of a second: the pane gives way piece by piece.
    cracks = np.repeat(crashes, 6) + take.uniforms(6 * len(crashes), 0, 0.03)
    crash_T = pane.struck(_impulses(cracks, take.uniforms(len(cracks))))
    splash_T = _high_pass(_noise(take), 1500) * _fading(blows_T, 0.3)
    debris_T = np.zeros(MADE)
    for mode in shards.modes:
        late = take.uniforms(many)
        landings = _impulses(crashes[0] + 0.05 + falling * late * late, (1 - late) * take.uniforms(many))
        debris_T += Body((mode,)).struck(landings)
    splash, debris = gain(recording.uniform(-14, -2)), gain(recording.uniform(-10, 0))
    return _unit(crash_T) + splash * _unit(splash_T) + debris * _unit(debris_T)


def _insects(recording: Draw, take: Draw) -> Wave:
    """A few singers: pulses of a high tone, in chirps as crickets make, or without a pause as cicadas do."""
    sound_T = np.zeros(MADE)
    pulses = _log_uniform(recording, 15, 120)
    chirps = recording.uniform(0.8, 4)
    pause = recording.between(0, 2) * 0.3
    carrier = _log_uniform(recording, 2300, 6800)
    rough = recording.uniform(0, 0.02)
    for singer in range(recording.between(1, 2)):
        hertz = carrier * take.uniform(0.94, 1.06)
        tone_T = sine(take.uniform(0, 1) + phase(hertz * (1 + rough * _drift(take, 200.0)), SAMPLE_RATE))
        pulse_T = _swell(take, pulses, 0.25)
        chirp_T = _swell(take, chirps * take.uniform(0.9, 1.1), pause)
        sound_T += tone_T * pulse_T * chirp_T * (1 if singer == 0 else gain(-6))
    return sound_T


def _rain(recording: Draw, take: Draw) -> Wave:
    """Drops without number: the near ones single, on a surface that rings a little, the far ones a hiss."""
    surface = Body.drawn(recording, 6, (500, 6500), (0.002, 0.015))
    drops_T = surface.showered(take, _log_uniform(recording, 40, 600))
    low, high = _log_uniform(recording, 200, 2500), _log_uniform(recording, 2500, 7000)
    hiss_T = _low_pass(_high_pass(_noise(take), low), high) * (1 + 0.3 * _drift(take, 1.0))
    return _unit(drops_T) + gain(recording.uniform(-9, 6)) * _unit(hiss_T)


def _siren(recording: Draw, take: Draw) -> Wave:
    """A tone that wails, yelps or takes turns between two notes, through a horn, near or passing by."""
    kind, *seconds = (("wail", 2.5, 7.0), ("yelp", 0.2, 0.4), ("two-tone", 0.8, 1.6))[recording.between(0, 2)]
    low = _log_uniform(recording, 350, 1100)
    span = low * recording.uniform(0.3, 1.2)
    turn_T = _swell(take, 1 / recording.uniform(*seconds), 0)
    if kind == "two-tone":
        turn_T = np.clip(0.5 + 20 * (turn_T - 0.75), 0, 1)
    turn_T = turn_T * turn_T * (3 - 2 * turn_T)
    tone_T = sine(take.uniform(0, 1) + phase(low + span * turn_T, SAMPLE_RATE))
    # Overdriven as a horn is: odd harmonics.
    tone_T = np.clip(recording.uniform(1, 4) * tone_T, -1, 1)
    horn_T = _resonance(tone_T, recording.uniform(700, 1600), 0.004)
    return horn_T * (0.3 + _drift(take, 0.4))


def _waves(recording: Draw, take: Draw) -> Wave:
    """Waves that rise, break into a roar and run out in a hiss."""
    period = recording.uniform(2.5, 6)
    cycles_T = take.uniform(0, 1) + np.arange(MADE) / (period * SAMPLE_RATE) + 0.3 * _drift(take, 0.4)
    rise_T, fall_T = _surge(cycles_T, recording.uniform(0.3, 0.6)), _surge(cycles_T - 0.12, 0.3)
    roar_T = _low_pass(_low_pass(_noise(take), _log_uniform(recording, 150, 900)), 1500)
    hiss_T = _high_pass(_noise(take), _log_uniform(recording, 800, 3000))
    floor = recording.uniform(0.05, 0.25)
    return _unit(roar_T) * (floor + rise_T) + gain(recording.uniform(-14, 0)) * _unit(hiss_T) * (floor + fall_T)


def _wind(recording: Draw, take: Draw) -> Wave:
    """Gusts: noise through a resonance that moves as the gust grows, over the rumble of the microphone."""
    low = _log_uniform(recording, 120, 700)
    ringing = _log_uniform(recording, 0.004, 0.02)
    gust_T = 0.7 * _drift(take, recording.uniform(0.4, 1.5)) + 0.3 * _drift(take, 4.0)
    bands = 6
    noise_T = _noise(take)
    whistle_T = np.zeros(MADE)
    # A filter that moves, as a cross-fade along a row of filters that stand still.
    for band in range(bands):
        weight_T = np.maximum(1 - np.abs(gust_T * (bands - 1) - band), 0)
        whistle_T += weight_T * _unit(_resonance(noise_T, low * rounded(1.25**band), ringing))
    rumble_T = _low_pass(_low_pass(_noise(take), 80), recording.uniform(100, 400))
    strength_T = 0.15 + gust_T * gust_T
    return (_unit(whistle_T) + gain(recording.uniform(-12, 3)) * _unit(rumble_T)) * strength_T


MODELS: dict[str, Callable[[Draw, Draw], Wave]] = {
    "clock": _clock,
    "engine": _engine,
    "fire": _fire,
    "footsteps": _footsteps,
    "glass": _glass,
    "insects": _insects,
    "rain": _rain,
    "siren": _siren,
    "waves": _waves,
    "wind": _wind,
}
"""Of each class."""

ECHOING = frozenset({"clock", "engine", "footsteps", "glass", "siren"})
"""Sounds with a room or a street around them; of steady noise an echo changes nothing that could be heard."""
