"""The paper's seven augmentations (its section on augmentations), on a batch, every clip with its own parameters.

    augment = compose(("fade", "time_mask"), sample_rate=16_000)
    view1_BT, view2_BT = augment(clips_BT, generator), augment(clips_BT, generator)

Each augmentation is a function with explicit parameters, one value a clip (`fade(clips_BT, ...)`), and a class that
holds the ranges, draws the parameters and flips one coin a clip (`Fade`). Nothing loops over clips in Python, work is
done only for clips whose coin says so, and randomness comes from the generator that is passed in, never from torch's
global one. The generator may live on another device than the clips; on the same one the noise needs no copy.

Results are not clipped to [-1, 1]: adding noise at 0 dB or adding up frames may pass 1, the features do not mind, and
clipping would be an eighth augmentation that nobody asked for. (`mixed_noise` can do what the released code does: it
clips coloured noise to [0, 1], which half-wave rectifies the audio.)

Silence stays silence, exactly: levels are relative to the clip's own power.

Shape letters: B clips of a batch, C clips of a chunk, T samples, W samples of a window, F frequencies.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, log, log10, pi
from typing import Any

import torch
from scipy.fft import next_fast_len
from torch import Generator, Tensor

from clar import vocoder
from clar.config import STRONGEST, Stretch, Variant
from clar.errors import UserError, near

SAMPLE_RATE = 16_000
"""Hertz: what the paper down-samples every clip to."""

# ---------------------------------------------------------------------------------------------------------------------
# Pitch and time
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pitch_shift(clips_BT: Tensor, semitones_B: Tensor, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Shift the pitch of each clip and keep its length.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        semitones_B: (B,), may be fractional; 12 doubles every frequency, and drops what would lie above half the
            sample rate.
        sample_rate: hertz; sets the length of the phase vocoder's frames (64 ms).

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check(clips_BT, semitones_B=semitones_B)
    return vocoder.pitch_shift(clips_BT, semitones_B, sample_rate)


@torch.no_grad()
def time_stretch(
    clips_BT: Tensor, rates_B: Tensor, sample_rate: int = SAMPLE_RATE, *, resampled: bool = False
) -> Tensor:
    """Change the speed of each clip and keep its pitch, then bring it to the old length.

    Cropping or zero-padding on the right does that, or resampling, as the paper's "down-sampled" reads and the released
    code does. Resampling undoes the change of speed and moves the pitch instead: at rate 2 a clip of half the length is
    read half as fast, and every frequency halves.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        rates_B: (B,), > 0; 2 is twice as fast, half as long.
        sample_rate: hertz; sets the length of the phase vocoder's frames (64 ms).
        resampled: bring it to the old length by resampling.

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: wrong shape or dtype, or a rate that is not positive.
    """
    _check(clips_BT, rates_B=rates_B)
    if resampled:
        return vocoder.pitch_shift(clips_BT, -12 * rates_B.double().log2(), sample_rate)
    return vocoder.time_stretch(clips_BT, rates_B, sample_rate)


@torch.no_grad()
def time_shift(clips_BT: Tensor, shifts_B: Tensor) -> Tensor:
    """Roll each clip; samples that leave at one end enter at the other.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        shifts_B: (B,) int64, in samples; positive is later, as in `numpy.roll`.

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check(clips_BT, shifts_B=shifts_B)
    B, T = clips_BT.shape
    out_BT = torch.empty_like(clips_BT)
    starts_B = -shifts_B.to(clips_BT.device) % T
    for rows in _chunks(B, T, clips_BT.device):
        starts_C = starts_B[rows]
        # Each clip twice in a row, and a view of every run of T samples as the rows of a matrix: copying one row a
        # clip runs at the speed of memory, where a gather with an index for every sample takes five times as long.
        twice_CT = clips_BT[rows].repeat(1, 2)
        first_C = torch.arange(len(starts_C), device=clips_BT.device) * (2 * T)
        torch.index_select(twice_CT.flatten().unfold(0, T, 1), 0, first_C + starts_C, out=out_BT[rows])
    return out_BT


# ---------------------------------------------------------------------------------------------------------------------
# Level and gaps
# ---------------------------------------------------------------------------------------------------------------------

_FADE_CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x.clamp_max_(1),
    "logarithmic": lambda x: x.mul_(10).log1p_().mul_(1 / log(10)).clamp_max_(1),
    "exponential": lambda x: torch.exp2(x).mul_(x).mul_(0.5).clamp_max_(1),
    "quarter_sine": lambda x: x.clamp_max_(1).mul_(pi / 2).sin_(),
    "half_sine": lambda x: x.clamp_max_(1).mul_(pi).cos_().mul_(-0.5).add_(0.5),
}
"""Gain at x of the way through a fade; 1 beyond. May overwrite x. These are `torchaudio.transforms.Fade`'s formulas,
its log10(0.1 + x) + 1 as log10(1 + 10 x), which is faster and exact at 0."""

FADE_SHAPES = tuple(_FADE_CURVES)
"""What `fade` takes indices into. The first three are the paper's, all five the released code's."""

_PAPER_FADE_SHAPES = 3


@torch.no_grad()
def fade(clips_BT: Tensor, fade_in_B: Tensor, fade_out_B: Tensor, shape_B: Tensor) -> Tensor:
    """Fade each clip in and out.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        fade_in_B: (B,) int64, in samples, 0 to T: the first sample gets gain 0, the last of them gain 1; 0 is no fade.
        fade_out_B: (B,) int64, in samples, the same from the end.
        shape_B: (B,) int64, indices into FADE_SHAPES; one shape for both ends.

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check(clips_BT, fade_in_B=fade_in_B, fade_out_B=fade_out_B, shape_B=shape_B)
    out_BT = clips_BT.clone()
    _fade_end_(out_BT, fade_in_B.to(clips_BT.device), shape_B.to(clips_BT.device), at_start=True)
    _fade_end_(out_BT, fade_out_B.to(clips_BT.device), shape_B.to(clips_BT.device), at_start=False)
    return out_BT


def _fade_end_(clips_BT: Tensor, lengths_B: Tensor, shape_B: Tensor, *, at_start: bool) -> None:
    """Fade one end, in place. Clips go by shape, then length: each needs its own curve only, and few idle samples."""
    _B, T = clips_BT.shape
    device = clips_BT.device
    key_B, order_B = (shape_B * (T + 1) + lengths_B).sort()
    lengths_B = lengths_B[order_B]
    widths = lengths_B.tolist()
    slope_B1 = 1 / (lengths_B - 1).clamp_min(1)[:, None].float()
    ramp_T = torch.arange(max(widths, default=0), dtype=torch.float32, device=device)
    if not at_start:
        ramp_T = ramp_T.flip(0)
    # Where each shape begins, after its clips of length 0, and ends.
    first_key = torch.arange(len(FADE_SHAPES), device=device) * (T + 1)
    marks = torch.searchsorted(key_B, torch.stack([first_key + 1, first_key + T + 1], 1)).tolist()
    for curve, (begin, end) in zip(_FADE_CURVES.values(), marks, strict=True):
        for rows in _chunks(end - begin, T // 4, device, first=begin):
            width = widths[rows.stop - 1]
            edge = slice(0, width) if at_start else slice(-width, None)
            index_C, edge_BW = order_B[rows], clips_BT[:, edge]
            gain_CW = curve(ramp_T[edge] * slope_B1[rows])
            edge_BW.index_copy_(0, index_C, edge_BW.index_select(0, index_C).mul_(gain_CW))


@torch.no_grad()
def time_mask(clips_BT: Tensor, start_B: Tensor, length_B: Tensor, noise_db_B: Tensor, generator: Generator) -> Tensor:
    """Replace one segment of each clip by normal noise or by zeros.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        start_B: (B,) int64, first sample of the segment.
        length_B: (B,) int64, in samples; start + length <= T.
        noise_db_B: (B,) power of the noise, dB relative to the clip's own; -inf for zeros.
        generator: draws the noise.

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check(clips_BT, start_B=start_B, length_B=length_B, noise_db_B=noise_db_B)
    B, T = clips_BT.shape
    device = clips_BT.device
    out_BT = clips_BT.clone(memory_format=torch.contiguous_format)
    std_B = _power(clips_BT).sqrt() * torch.pow(10, noise_db_B.to(device) / 20)
    # Zeros before noise, which is drawn only where wanted; then by length, so that windows of W samples, as long as the
    # longest segment of their chunk, hold little else.
    noisy_B = noise_db_B.to(device) > -inf  # not by what the clips hold: silence must not shift its neighbours' noise
    order_B = (noisy_B * (T + 1) + length_B.to(device)).argsort()
    start_B, length_B, std_B = start_B.to(device)[order_B], length_B.to(device)[order_B], std_B[order_B]
    widths = length_B.tolist()
    zeros = B - int(noisy_B.sum())
    ramp_T = torch.arange(T, dtype=torch.int32, device=device)
    for rows in (*_chunks(zeros, T // 8, device), *_chunks(B - zeros, T // 8, device, first=zeros)):
        width = widths[rows.stop - 1]
        if not width:
            continue
        # No window reaches beyond its clip: it may begin before its segment.
        first_C = start_B[rows].clamp_max(T - width)
        begin_C1 = (start_B[rows] - first_C)[:, None].int()
        end_C1 = begin_C1 + length_B[rows, None].int()
        place_W = ramp_T[:width]
        keep_CW = (place_W < begin_C1) | (place_W >= end_C1)
        place_C = order_B[rows] * T + first_C
        runs = out_BT.view(-1).unfold(0, width, 1)  # a view of every run of W samples, see time_shift
        window_CW = runs.index_select(0, place_C)
        if rows.start < zeros:
            window_CW *= keep_CW
        else:
            fill_CW = _randn(len(place_C), width, generator, device).mul_(std_B[rows, None])
            window_CW = torch.where(keep_CW, window_CW, fill_CW)
        place_CW = place_C[:, None] + place_W.long()
        out_BT.view(1, -1).scatter_(1, place_CW.view(1, -1), window_CW.view(1, -1))  # put_ takes three times as long
    return out_BT


# ---------------------------------------------------------------------------------------------------------------------
# Noise
# ---------------------------------------------------------------------------------------------------------------------

COLOURS = ("white", "pink", "brown")
"""What `mixed_noise` takes indices into: power falls as 1, 1/f, 1/f^2, that is by 0, 3 and 6 dB an octave."""


@torch.no_grad()
def white_noise(clips_BT: Tensor, snr_db_B: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian white noise. A silent clip stays silent: it has no power to be relative to.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        snr_db_B: (B,) dB; mean square of the clip over mean square of this very noise.
        generator: draws the noise.

    Returns:
        (B, T), a new tensor; not clipped to [-1, 1].

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check(clips_BT, snr_db_B=snr_db_B)
    return _add_noise(clips_BT, snr_db_B, lambda rows, C, T: _randn(C, T, generator, clips_BT.device))


@torch.no_grad()
def mixed_noise(
    clips_BT: Tensor, snr_db_B: Tensor, colour_B: Tensor, generator: Generator, *, clipped: bool = False
) -> Tensor:
    """Add white, pink or brown noise of zero mean. A silent clip stays silent.

    The noise is drawn as a spectrum, shaped there, and transformed once: the density follows the power law from one
    cycle a clip up to half the sample rate.

    Args:
        clips_BT: (B, T) float32 in [-1, 1].
        snr_db_B: (B,) dB; mean square of the clip over mean square of this very noise.
        colour_B: (B,) int64, indices into COLOURS.
        generator: draws the noise.
        clipped: clip the noisy clips to [0, 1] where the noise is pink or brown, as the released code does.

    Returns:
        (B, T), a new tensor; not clipped to [-1, 1].

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check(clips_BT, snr_db_B=snr_db_B, colour_B=colour_B)
    device = clips_BT.device
    colour_B = colour_B.to(device)
    size = next_fast_len(clips_BT.shape[1], real=True)  # an FFT of a prime length takes ten times as long
    density_3F = _densities(size, device)

    def draw(rows: slice, C: int, T: int) -> Tensor:
        noise_CF2 = _randn(C, 2 * density_3F.shape[1], generator, device).view(C, -1, 2)
        spectrum_CF = torch.view_as_complex(noise_CF2) * density_3F.index_select(0, colour_B[rows])
        noise_CT = torch.fft.irfft(spectrum_CF, n=size)[:, :T]
        return noise_CT if size == T else noise_CT - noise_CT.mean(1, keepdim=True)

    out_BT = _add_noise(clips_BT, snr_db_B, draw)
    if clipped:
        coloured_B1 = (colour_B > 0)[:, None]
        out_BT = torch.where(coloured_B1, out_BT.clamp(0, 1), out_BT)
    return out_BT


def _add_noise(clips_BT: Tensor, snr_db_B: Tensor, draw: Callable[[slice, int, int], Tensor]) -> Tensor:
    """Clips plus `draw(rows, C, T)`, scaled to the signal-to-noise ratio; in chunks that stay in cache."""
    B, T = clips_BT.shape
    out_BT = torch.empty_like(clips_BT)
    ratio_B = torch.pow(10, snr_db_B.to(clips_BT) / 10)
    for rows in _chunks(B, T, clips_BT.device):
        clips_CT = clips_BT[rows]
        noise_CT = draw(rows, len(clips_CT), T)
        # A noise of one sample and zero mean has no power; the floor makes that 0 / tiny, not 0 / 0.
        gain_C = (_power(clips_CT) / (_power(noise_CT) * ratio_B[rows]).clamp_min(1e-30)).sqrt()
        torch.addcmul(clips_CT, noise_CT, gain_C[:, None], out=out_BT[rows])
    return out_BT


@lru_cache(maxsize=8)
def _densities(size: int, device: torch.device) -> Tensor:
    """(3, F): amplitude of each colour at every frequency of a real FFT, 0 at 0 Hz."""
    cycles_F = torch.arange(size // 2 + 1, dtype=torch.float32, device=device)
    density_3F = torch.stack([cycles_F.clamp_min(1) ** (-exponent / 2) for exponent in range(len(COLOURS))])
    density_3F[:, 0] = 0
    return density_3F


# ---------------------------------------------------------------------------------------------------------------------
# Ranges, coins, composition
# ---------------------------------------------------------------------------------------------------------------------

Parameters = tuple[Tensor, ...]
"""What an augmentation draws: (B,) tensors."""


@dataclass(frozen=True)
class Augmentation(ABC):
    """One augmentation with its ranges. Called on a batch, it changes each clip with its probability.

    A new augmentation is a subclass with `draw` and `apply`, in REGISTRY; the contract tests then cover it.
    """

    probability: float = 0.5
    strength: float = 1.0
    """Share of its range that each parameter is drawn from, counted from where it changes nothing; 1 is the paper's
    range. At 0 nothing is changed, and nothing drawn."""

    @abstractmethod
    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Parameters for B clips of T samples, on `device`."""

    @abstractmethod
    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """Every clip changed by its parameters; a new tensor."""

    @torch.no_grad()
    def __call__(self, clips_BT: Tensor, generator: Generator) -> Tensor:
        """(B, T) float32 in, a new (B, T) out. Clips that the coin leaves out come back bit for bit.

        Raises:
            ValueError: wrong shape or dtype.
        """
        _check(clips_BT)
        if not (self.probability and self.strength):
            return clips_BT.clone()
        B, T = clips_BT.shape
        chosen_B = _rand(B, generator, clips_BT.device) < self.probability
        index = chosen_B.nonzero().squeeze(1)
        parameters = self.draw(len(index), T, generator, clips_BT.device)
        if len(index) == B:
            return self.apply(clips_BT, generator, *parameters)
        out_BT = clips_BT.clone()
        if len(index):
            out_BT[index] = self.apply(clips_BT.index_select(0, index), generator, *parameters)
        return out_BT


@dataclass(frozen=True)
class PitchShift(Augmentation):
    """Pitch up or down by a uniform number of semitones."""

    semitones: tuple[float, float] = (-15, 15)
    sample_rate: int = SAMPLE_RATE

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Semitones."""
        low, high = (self.strength * semitones for semitones in self.semitones)
        return (_uniform(B, low, high, generator, device),)

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See pitch_shift."""
        (semitones_B,) = parameters
        return pitch_shift(clips_BT, semitones_B, self.sample_rate)


@dataclass(frozen=True)
class Fade(Augmentation):
    """Fade in and fade out, each over its own uniform number of samples, in one of the first `shapes` FADE_SHAPES."""

    longest: float = 0.5
    """Of each side, as a share of the clip."""
    shapes: int = _PAPER_FADE_SHAPES

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Samples of the fade-in, of the fade-out, index of the shape."""
        longest = min(T, int(self.strength * self.longest * T))
        sides = (_integers(B, 0, longest, generator, device) for _ in range(2))
        return (*sides, _integers(B, 0, self.shapes - 1, generator, device))

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See fade."""
        fade_in_B, fade_out_B, shape_B = parameters
        return fade(clips_BT, fade_in_B, fade_out_B, shape_B)


@dataclass(frozen=True)
class WhiteNoise(Augmentation):
    """White noise at a uniform signal-to-noise ratio in dB. Strength scales the noise's amplitude."""

    snr_db: tuple[float, float] = (0, 20)

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Signal-to-noise ratio, dB."""
        return (_snr_db(B, self.snr_db, self.strength, generator, device),)

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See white_noise."""
        (snr_db_B,) = parameters
        return white_noise(clips_BT, snr_db_B, generator)


@dataclass(frozen=True)
class MixedNoise(Augmentation):
    """White, pink or brown noise, each as often, at a uniform SNR in dB. Strength scales the noise's amplitude."""

    snr_db: tuple[float, float] = (0, 20)
    colours: tuple[str, ...] = COLOURS
    clipped: bool = False
    """To [0, 1] where the noise is pink or brown, as in the released code."""

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Signal-to-noise ratio in dB, index of the colour."""
        known = torch.tensor([COLOURS.index(colour) for colour in self.colours], device=device)
        snr_db_B = _snr_db(B, self.snr_db, self.strength, generator, device)
        return snr_db_B, known[_integers(B, 0, len(known) - 1, generator, device)]

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See mixed_noise."""
        snr_db_B, colour_B = parameters
        return mixed_noise(clips_BT, snr_db_B, colour_B, generator, clipped=self.clipped)


@dataclass(frozen=True)
class TimeMask(Augmentation):
    """One segment, of random place and size, becomes low-level noise or zeros, each as often."""

    longest: float = 1 / 8
    """Share of the clip. Clips too short for one sample are left as they are."""
    noise_db: float = -40
    """Relative to the clip's own power: audible in a gap, far below speech. The paper gives no number."""
    released: bool = False
    """Every segment has the full length, and a second coin leaves half of the clips as they are."""

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Start and length in samples, level of the noise in dB or -inf."""
        longest = min(T, int(self.strength * self.longest * T))
        if self.released:
            length_B = longest * (_rand(B, generator, device) < 0.5).long()
        else:
            length_B = _integers(B, min(1, longest), longest, generator, device)
        start_B = (_rand(B, generator, device).double() * (T - length_B + 1)).long()
        noisy_B = _rand(B, generator, device) < 0.5
        return start_B, length_B, torch.where(noisy_B, self.noise_db, -inf)

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See time_mask."""
        start_B, length_B, noise_db_B = parameters
        return time_mask(clips_BT, start_B, length_B, noise_db_B, generator)


@dataclass(frozen=True)
class TimeShift(Augmentation):
    """Roll by a uniform number of samples, either way. At strength 1 every place is as likely; more adds nothing."""

    furthest: float = 0.5
    """Share of the clip."""

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Samples; positive is later."""
        furthest = int(self.strength * self.furthest * T)
        return (_integers(B, -furthest, furthest, generator, device),)

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See time_shift."""
        (shifts_B,) = parameters
        return time_shift(clips_BT, shifts_B)


SLOWEST = 0.25
"""Rate below which no strength stretches: strength 2 would begin at 0, at which a clip never ends."""


@dataclass(frozen=True)
class TimeStretch(Augmentation):
    """Play at a uniform rate (2 is twice as fast) without changing the pitch; or resample that to the old length."""

    rate: tuple[float, float] = (0.5, 1.5)
    sample_rate: int = SAMPLE_RATE
    resampled: bool = False

    def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> Parameters:
        """Rate."""
        low, high = (max(SLOWEST, 1 + self.strength * (rate - 1)) for rate in self.rate)
        return (_uniform(B, low, high, generator, device),)

    def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
        """See time_stretch."""
        (rates_B,) = parameters
        return time_stretch(clips_BT, rates_B, self.sample_rate, resampled=self.resampled)


REGISTRY: dict[str, type[Augmentation]] = {
    "pitch_shift": PitchShift,
    "fade": Fade,
    "white_noise": WhiteNoise,
    "mixed_noise": MixedNoise,
    "time_mask": TimeMask,
    "time_shift": TimeShift,
    "time_stretch": TimeStretch,
}
"""By short name, in the order of `clar.config.AUGMENTATIONS`."""


@dataclass(frozen=True)
class Compose:
    """Augmentations one after the other."""

    augmentations: tuple[Augmentation, ...]

    def __call__(self, clips_BT: Tensor, generator: Generator) -> Tensor:
        """(B, T) float32 in, a new (B, T) out.

        Raises:
            ValueError: wrong shape or dtype.
        """
        _check(clips_BT)
        out_BT = clips_BT if self.augmentations else clips_BT.clone()
        for augmentation in self.augmentations:
            out_BT = augmentation(out_BT, generator)
        return out_BT

    def __repr__(self) -> str:
        return f"Compose({' > '.join(map(repr, self.augmentations)) or 'nothing'})"


def compose(
    names: Sequence[str],
    sample_rate: int,
    probability: float | Sequence[float] = 0.5,
    strength: float | Sequence[float] = 1.0,
    *,
    fade_shapes: Variant = "paper",
    stretch: Stretch = "cropped",
    mask: Variant = "paper",
    coloured_noise: Variant = "paper",
) -> Compose:
    """The augmentations of these short names, applied in this order.

    Args:
        names: of REGISTRY.
        sample_rate: hertz.
        probability: of each augmentation, for each clip: one number for all, or one for each.
        strength: of each augmentation, 0 to STRONGEST: one number for all, or one for each. See `Augmentation`.
        fade_shapes: `released` fades in five shapes instead of three.
        stretch: how `time_stretch` comes to the old length.
        mask: `released` masks an eighth of the clip, on a second coin of 1/2, instead of up to an eighth.
        coloured_noise: `released` clips to [0, 1] where `mixed_noise` has added pink or brown noise.

    Raises:
        UserError: an unknown name, a probability or strength out of range, or not one number for each augmentation.
    """
    probabilities = _one_each("probability", probability, len(names), 1)
    strengths = _one_each("strength", strength, len(names), STRONGEST)
    options: dict[str, dict[str, Any]] = {
        "pitch_shift": {"sample_rate": sample_rate},
        "fade": {"shapes": len(FADE_SHAPES) if fade_shapes == "released" else _PAPER_FADE_SHAPES},
        "mixed_noise": {"clipped": coloured_noise == "released"},
        "time_mask": {"released": mask == "released"},
        "time_stretch": {"sample_rate": sample_rate, "resampled": stretch == "resampled"},
    }
    augmentations = []
    for name, coin, amount in zip(names, probabilities, strengths, strict=True):
        if name not in REGISTRY:
            raise UserError(f"no augmentation {name!r}{near(name, REGISTRY)}")
        augmentations.append(REGISTRY[name](probability=coin, strength=amount, **options.get(name, {})))
    return Compose(tuple(augmentations))


# ---------------------------------------------------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------------------------------------------------


def _one_each(what: str, numbers: float | Sequence[float], count: int, largest: float) -> list[float]:
    """One number for each of `count` augmentations."""
    given = list(numbers) if isinstance(numbers, Sequence) else [numbers]
    for number in given:
        if not 0 <= number <= largest:
            raise UserError(f"augmentation {what} = {number}: must lie between 0 and {largest:g}")
    if len(given) == 1:
        return given * count
    if len(given) != count:
        raise UserError(f"augmentation {what}: needs one number, or one for each of the {count}; got {len(given)}")
    return given


def _check(clips_BT: Tensor, **parameters: Tensor) -> None:
    """Shapes and dtype only: looking for NaN would read the whole batch, and on CUDA wait for it."""
    if clips_BT.ndim != 2 or clips_BT.shape[1] == 0 or clips_BT.dtype != torch.float32:
        raise ValueError(f"clips must be (B, T) float32 with T > 0, got {tuple(clips_BT.shape)} {clips_BT.dtype}")
    for name, value in parameters.items():
        if value.shape != clips_BT.shape[:1]:
            raise ValueError(f"{name} must be ({len(clips_BT)},), one value a clip, got {tuple(value.shape)}")


def _chunks(B: int, T: int, device: torch.device, first: int = 0) -> Iterator[slice]:
    """Slices that cover rows first ... first + B, each small enough for the cache."""
    step = vocoder.clips_per_chunk(T, device)
    for begin in range(first, first + B, step):
        yield slice(begin, min(begin + step, first + B))


def _power(signals_BT: Tensor) -> Tensor:
    """(B,): mean square. By the norm, which needs no squared copy."""
    return torch.linalg.vector_norm(signals_BT, dim=1).square() / signals_BT.shape[1]


def _rand(B: int, generator: Generator, device: torch.device) -> Tensor:
    return torch.rand(B, generator=generator, device=generator.device).to(device)


def _randn(B: int, T: int, generator: Generator, device: torch.device) -> Tensor:
    return torch.randn(B, T, generator=generator, device=generator.device).to(device)


def _uniform(B: int, low: float, high: float, generator: Generator, device: torch.device) -> Tensor:
    return low + (high - low) * _rand(B, generator, device)


def _integers(B: int, low: int, high: int, generator: Generator, device: torch.device) -> Tensor:
    """Uniform over low ... high, both included."""
    return torch.randint(low, high + 1, (B,), generator=generator, device=generator.device).to(device)


def _snr_db(
    B: int, range_db: tuple[float, float], strength: float, generator: Generator, device: torch.device
) -> Tensor:
    """Uniform signal-to-noise ratios, moved so that the noise's amplitude is `strength` times what it would be."""
    low, high = (snr_db - 20 * log10(strength) for snr_db in range_db)
    return _uniform(B, low, high, generator, device)
