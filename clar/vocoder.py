"""Time stretch and pitch shift of many clips at once, each by its own amount: a phase vocoder and an interpolator.

Method, for one clip (Flanagan and Golden 1966; Laroche and Dolson 1999, without phase locking):

1. STFT. Of every frame keep the magnitude, and the *turn*: the unit phasor by which the phase advances until the next.
2. The output has a frame at every hop too. Output frame t reads the input at frame `rate * t`: magnitudes are
   interpolated between the two neighbours, the phase is the running product of the turns passed on the way. Products
   of unit phasors need neither atan2 nor sine, and float32 drifts by about 1e-6 in 100 frames: no renormalisation.
3. Inverse STFT with overlap and add. That is the time stretch, by 1 / rate.
4. Pitch shift by a factor p is a stretch to p times the length (rate 1 / p), read p times as fast by a windowed sinc.

With the same frames the results are librosa's, up to interpolation (`tests/test_augment.py`), and so are the flaws of a
vocoder without phase locking: an onset is smeared over a frame, a tone that begins within the clip loses up to 7 dB at
+15 semitones.

Two things make step 4 cheap. Reading p > 1 times as fast needs a low-pass: it is done by not computing the bins above
the new Nyquist frequency, so work stays the same for every shift. And the inverse FFT is longer than the kept spectrum,
which gives a signal oversampled by 1.5, of which a sinc of 16 taps suffices: one table look-up, whatever the shift.

Why not a library: torchaudio, torch-audiomentations and librosa shift one clip, or all clips by one amount; per-clip
amounts cost a Python loop (`python -m benchmarks augment` measures them).

Shape letters: B clips of a batch, C clips of a chunk, T samples, F input frames, O output frames, K frequency bins,
N samples of a frame, M samples of a synthesised (oversampled) frame, L samples of a synthesised signal, S taps.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from math import ceil, isfinite, log2

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

_FRAME_SECONDS = 0.064
"""Two periods of the lowest voices (40 Hz) fit; 1,024 samples at 16 kHz. Longer frames smear onsets."""

_OVERLAP = 4
"""Frames over each sample. Squared Hann windows add up to a constant from 3 on; 4 divides powers of two."""

_OVERLAP_GAIN = 1.5
"""What squared Hann windows at a quarter frame's distance add up to."""

_SILENCE = 1e-10
"""Added to every bin so that silence has a phase (0, not NaN); magnitudes of this size become 0 again."""

_MAIN_LOBE = 2
"""Bins from the peak of a Hann window's main lobe to its first zero: this far below the cut-off, a tone above it is
out of reach."""

_LADDER = ((2.0, 3 / 4), (3 / 2, 1.0), (6 / 5, 5 / 4), (0.0, 3 / 2))
"""From this pitch factor on, synthesised frames are this many times as long: 1.5 / factor, rounded up to lengths which
FFTs like. A clip's length depends on its own factor only, so its result does not depend on the clips beside it."""

_TAPS = 16
"""Of the interpolating sinc. The signal is oversampled by 1.5 or more: it ends at 1/3 of the sampling rate, its images
begin at 2/3, and between them 16 taps fall by 80 dB (Kaiser's formula, hence also the next constant)."""

_KAISER_BETA = 7.86

_PHASE_BITS = 12
"""The sinc is tabulated at 2**12 places between two samples; taking the nearest errs by -77 dB at the band's edge."""

_POSITION_BITS = 32
"""Read positions count in units of 2**-32 samples, int64: float32 would lose the fraction after a second of audio."""

_CHUNK_SAMPLES = {"cpu": 1 << 16, "cuda": 1 << 23}
"""Samples of the clips that are worked on at a time. CPU: four clips of 1 s at 16 kHz, whose buffers (1 MB each) stay
in the cache; 2 to 4 clips were the fastest of 1 to 32. CUDA: a few GB of buffers, and few launches."""


def clips_per_chunk(samples: int, device: torch.device) -> int:
    """How many clips of this many samples to work on at a time, at least 1."""
    return max(1, _CHUNK_SAMPLES.get(device.type, _CHUNK_SAMPLES["cpu"]) // max(1, samples))


def frame_samples(sample_rate: int) -> int:
    """Length of an STFT frame: the power of two nearest to 64 ms, at least 16."""
    return 1 << max(4, round(log2(_FRAME_SECONDS * sample_rate)))


@torch.no_grad()
def time_stretch(clips_BT: Tensor, rates_B: Tensor, sample_rate: int = 16_000) -> Tensor:
    """Change the speed of each clip, keep its pitch; crop or zero-pad on the right to the old length.

    Args:
        clips_BT: (B, T) float32.
        rates_B: (B,) > 0; 2 is twice as fast, half as long.
        sample_rate: hertz; sets the length of the frames.

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: an amount that is not finite, or a rate that is not positive.
    """
    frame = frame_samples(sample_rate)
    T = clips_BT.shape[1]
    out_BT = torch.zeros_like(clips_BT)
    place_T = torch.arange(T, device=clips_BT.device)
    rates_B, order_B = rates_B.to(clips_BT.device, torch.float64).sort()
    for chunk, (slowest, fastest) in _chunks(rates_B, max(T, frame), clips_BT.device, edges=()):
        index_C, rates_C = order_B[chunk], rates_B[chunk]
        kept = min(T, ceil(T / slowest))
        long_CL = _synthesise(
            clips_BT.index_select(0, index_C),
            rates_C,
            fastest=fastest,
            frame=frame,
            size=frame,
            bins=frame // 2 + 1,
            frames=ceil((kept + frame / 2) / (frame // _OVERLAP)),
        )
        result_CL = long_CL[:, frame // 2 : frame // 2 + kept]
        lengths_C1 = (T / rates_C).round()[:, None]
        out_BT[index_C, :kept] = result_CL * (place_T[:kept] < lengths_C1)
    return out_BT


@torch.no_grad()
def pitch_shift(clips_BT: Tensor, semitones_B: Tensor, sample_rate: int = 16_000) -> Tensor:
    """Shift the pitch of each clip, keep its length.

    What a shift up moves beyond half the sampling rate is dropped, not aliased.

    Args:
        clips_BT: (B, T) float32.
        semitones_B: (B,), may be fractional; 12 doubles every frequency.
        sample_rate: hertz; sets the length of the frames.

    Returns:
        (B, T), a new tensor.

    Raises:
        ValueError: an amount that is not finite, or a rate that is not positive.
    """
    frame = frame_samples(sample_rate)
    T = clips_BT.shape[1]
    out_BT = torch.empty_like(clips_BT)
    factors_B, order_B = torch.exp2(semitones_B.to(clips_BT.device, torch.float64) / 12).sort()
    edges = sorted(edge for edge, _ in _LADDER if edge)
    for chunk, (lowest, highest) in _chunks(factors_B, max(T, frame), clips_BT.device, edges):
        index_C, factors_C = order_B[chunk], factors_B[chunk]
        oversampling = next(ratio for edge, ratio in _LADDER if lowest >= edge)
        size = round(frame * oversampling)
        long_CL = _synthesise(
            clips_BT.index_select(0, index_C),
            1 / factors_C,
            fastest=1 / lowest,
            frame=frame,
            size=size,
            bins=_highest_bin(lowest, frame) + 1,
            frames=ceil((T * highest + _TAPS + frame / 2) / (frame // _OVERLAP)),
            cutoff_C=torch.where(factors_C > 1, frame / 2 / factors_C - _MAIN_LOBE, frame / 2),
        )
        out_BT[index_C] = _read(long_CL, factors_C * oversampling, start=size // 2, length=T)
    return out_BT


def _highest_bin(factor: float, frame: int) -> int:
    """The last bin below the Nyquist frequency of a signal read `factor` times as fast."""
    return frame // 2 if factor <= 1 else max(0, int(frame / 2 / factor - _MAIN_LOBE))


def _chunks(
    sorted_B: Tensor, samples: int, device: torch.device, edges: tuple[float, ...] | list[float]
) -> Iterator[tuple[slice, tuple[float, float]]]:
    """Slices of a sorted batch with their least and greatest value; none crosses an edge, so all share one FFT length.

    Sorted clips need nearly equal numbers of frames: little is computed for padding.
    """
    values = sorted_B.tolist()
    if values and not (values[0] > 0 and isfinite(values[-1])):
        raise ValueError(f"rates and pitch factors must be positive and finite, got {values[0]} to {values[-1]}")
    limit = clips_per_chunk(samples, device)
    marks = torch.searchsorted(sorted_B, sorted_B.new_tensor(edges)).tolist()
    for begin, end in pairwise([0, *marks, len(values)]):
        if begin == end:
            continue
        step = ceil((end - begin) / ceil((end - begin) / limit))
        for first in range(begin, end, step):
            last = min(first + step, end)
            yield slice(first, last), (values[first], values[last - 1])


@lru_cache(maxsize=16)
def _windows(frame: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Analysis window (N,), synthesis window (4, M / 4), and (M,) what makes up for the frames missing on the left."""
    analysis_N = torch.hann_window(frame, device=device)
    synthesis_M = torch.hann_window(size, device=device)
    square_QH = synthesis_M.square().view(_OVERLAP, -1)
    # Quarter q of the signal is covered by quarters 0..q of frames. The first sample of all is covered by nothing.
    missing_M = _OVERLAP_GAIN / square_QH.cumsum(0).flatten().clamp_min(1e-3)
    # The inverse FFT divides by M where the spectrum, of N samples, asks for N.
    return analysis_N, synthesis_M.view(_OVERLAP, -1) * (size / frame / _OVERLAP_GAIN), missing_M


def _synthesise(
    clips_CT: Tensor,
    rates_C: Tensor,
    *,
    fastest: float,
    frame: int,
    size: int,
    bins: int,
    frames: int,
    cutoff_C: Tensor | None = None,
) -> Tensor:
    """Phase vocoder: (C, L), each clip at its own rate, sampled size / frame times as densely.

    Args:
        fastest: greatest of rates_C; bounds the part of the input that is read.
        bins: how many are synthesised, from 0 Hz; beyond cutoff_C, in bins, they are set to zero.
        frames: how many are synthesised. The clip's first sample comes out at sample `size // 2`.
    """
    C, T = clips_CT.shape
    hop = frame // _OVERLAP
    window_N, synthesis_QH, missing_M = _windows(frame, size, clips_CT.device)

    # The last two frames lie behind the clip: who reads on reads silence.
    inputs = min(ceil((T + frame / 2) / hop) + 2, int((frames - 1) * fastest) + 3)
    padded_CT = clips_CT.new_zeros(C, (inputs - 1) * hop + frame)
    read = min(T, padded_CT.shape[1] - frame // 2)
    padded_CT[:, frame // 2 : frame // 2 + read] = clips_CT[:, :read]
    spectrum_CFK = torch.fft.rfft(padded_CT.unfold(1, frame, hop) * window_N)[..., :bins]

    # Real and imaginary parts apart: torch's complex abs, sgn and angle take 5 to 15 times as long.
    re_CFK = spectrum_CFK.real + _SILENCE
    im_CFK = spectrum_CFK.imag.contiguous()
    power_CFK = (re_CFK * re_CFK).addcmul_(im_CFK, im_CFK).clamp_min_(1e-30)
    inverse_CFK = power_CFK.rsqrt()
    magnitude_CFK = hardshrink(power_CFK.mul_(inverse_CFK), 2 * _SILENCE)
    re_CFK *= inverse_CFK
    im_CFK *= inverse_CFK
    turn_CFK = torch.complex(
        (re_CFK[:, 1:] * re_CFK[:, :-1]).addcmul_(im_CFK[:, 1:], im_CFK[:, :-1]),
        (im_CFK[:, 1:] * re_CFK[:, :-1]).addcmul_(re_CFK[:, 1:], im_CFK[:, :-1], value=-1),
    )
    if cutoff_C is not None:
        magnitude_CFK *= (torch.arange(bins, device=clips_CT.device) <= cutoff_C[:, None])[:, None]
    if size > frame and bins == frame // 2 + 1:
        magnitude_CFK[..., -1] *= 0.5  # the Nyquist bin, alone in a frame of N, has a mirror image in one of M

    place_OC = torch.arange(frames, device=clips_CT.device)[:, None] * rates_C
    left_OC = place_OC.long().clamp_max_(inputs - 2)
    weight_OC1 = (place_OC - left_OC).clamp_(0, 1)[..., None].float()
    clip_C = torch.arange(C, device=clips_CT.device)

    # Time first from here on, so that the product over time runs over contiguous (C, K) blocks.
    out_OCK = turn_CFK.new_empty(frames, C, bins)
    out_OCK[0] = torch.complex(re_CFK[:, 0], im_CFK[:, 0])
    row = (left_OC[:-1] + clip_C * (inputs - 1)).flatten()
    torch.index_select(turn_CFK.flatten(0, 1), 0, row, out=out_OCK[1:].view(-1, bins))
    for before_CK, phase_CK in pairwise(out_OCK.unbind()):
        phase_CK *= before_CK

    row = (left_OC + clip_C * inputs).flatten()
    rows = magnitude_CFK.flatten(0, 1)
    left_OCK = rows.index_select(0, row).view(frames, C, bins)
    right_OCK = rows.index_select(0, row + 1).view(frames, C, bins)
    out_OCK *= left_OCK.lerp_(right_OCK, weight_OC1)

    frames_OCQH = torch.fft.irfft(out_OCK, n=size).view(frames, C, _OVERLAP, -1)
    long_OCH = clips_CT.new_zeros(frames + _OVERLAP - 1, C, size // _OVERLAP)
    for quarter, window_H in enumerate(synthesis_QH):
        long_OCH[quarter : quarter + frames].addcmul_(frames_OCQH[:, :, quarter], window_H)
    long_CL = long_OCH.transpose(0, 1).reshape(C, -1)
    long_CL[:, :size] *= missing_M
    return long_CL


@lru_cache(maxsize=4)
def _sinc_table(device: torch.device) -> Tensor:
    """(2**12, S): row r weighs the samples around a place r / 2**12 of the way between the middle two."""
    fraction = torch.arange(1 << _PHASE_BITS, dtype=torch.float64) / (1 << _PHASE_BITS)
    distance = torch.arange(_TAPS) - (_TAPS // 2 - 1) - fraction[:, None]
    arch = (1 - (distance / (_TAPS // 2)).square()).clamp_min(0).sqrt()
    weights = torch.sinc(distance) * torch.special.i0(_KAISER_BETA * arch)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def _read(long_CL: Tensor, steps_C: Tensor, *, start: int, length: int) -> Tensor:
    """(C, length): each signal at start, start + step, start + 2 step ..., by windowed-sinc interpolation.

    Two gathers of rows (samples, weights), a product, a matrix-vector product: they cost the same for all steps.
    """
    C, L = long_CL.shape
    step_C1 = (steps_C * (1 << _POSITION_BITS)).round().long()[:, None]
    drop = _POSITION_BITS - _PHASE_BITS
    place_CT = torch.arange(length, device=long_CL.device) * step_C1
    place_CT = (place_CT + (1 << (drop - 1))) >> drop
    weight_row = (place_CT & ((1 << _PHASE_BITS) - 1)).flatten()
    first_C1 = torch.arange(C, device=long_CL.device)[:, None] * L + (start - _TAPS // 2 + 1)
    sample_row = ((place_CT >> _PHASE_BITS) + first_C1).flatten()
    # A view of every run of S samples, as the rows of a matrix; index_select copies the wanted ones.
    product = long_CL.flatten().unfold(0, _TAPS, 1).index_select(0, sample_row)
    product *= _sinc_table(long_CL.device).index_select(0, weight_row)
    return product.mv(product.new_ones(_TAPS)).view(C, length)
