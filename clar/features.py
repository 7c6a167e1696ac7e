"""The encoder's input: the waveform itself, or a 3 x F x T time-frequency picture of it (paper, section 3).

B clips, T samples, F frequency bins, T' frames.
"""

import math

import torch
import torchaudio
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

from clar.config import HOP_MS, WINDOW_MS, Input, Variant
from clar.errors import UserError

# Power below which a bin counts as silent. The released code's floor; the paper names none, and log 0 is -inf.
POWER_FLOOR = 1e-5**2


def make(
    input: Input,
    sample_rate: int,
    *,
    front_end: Variant = "paper",
    window_ms: float | None = None,
    hop_ms: float | None = None,
    bins: int = 128,
) -> nn.Module:
    """The front end, from clips (B, T) float32 to (B, 1, T) if raw, (B, 120) if statistics, else (B, 3, F, T').

    Args:
        input: `raw`, `spectrogram` or `statistics`, which knows no other option.
        sample_rate: hertz.
        front_end: `paper` (16 ms window, bins equally spaced in mel) or `released` (128 ms, log-spaced 40-8000 Hz).
        window_ms: length of the Hann window, milliseconds; None is the front end's own.
        hop_ms: its stride, milliseconds; None is the front end's own, 8.
        bins: F.

    Raises:
        UserError: window or hop are under one sample or too long, or the rate is too low for the bins.
    """
    if input == "raw":
        return Raw()
    if input == "statistics":
        return Statistics(sample_rate)
    return Spectrogram(sample_rate, front_end=front_end, window_ms=window_ms, hop_ms=hop_ms, bins=bins)


class Raw(nn.Module):
    """The waveform as it is."""

    channels, dimensions = 1, 1

    def forward(self, clips_BT: Tensor) -> Tensor:
        """(B, T) -> (B, 1, T)."""
        return clips_BT[:, None]


class Spectrogram(nn.Module):
    """Three pictures of one clip: log-power STFT magnitude, STFT phase, log-power mel spectrogram.

    The first two are read at F centre frequencies, the third sums power over F triangular bands at the same centres.
    The window is padded with zeros until neighbouring centres fall on different FFT bins; otherwise the lowest bands
    would be copies of each other (a 16 ms window alone has a bin every 62 Hz, and 128 mel bands start 14 Hz apart).

    Log power is in dB, f(S) = 10 log10 |S|^2, floored at -100 dB; the phase in radians; no further scaling.
    """

    channels, dimensions = 3, 2

    window: Tensor
    centre_bins: Tensor
    bands_KF: Tensor

    def __init__(
        self, sample_rate: int, *, front_end: Variant, window_ms: float | None, hop_ms: float | None, bins: int
    ) -> None:
        super().__init__()
        window_ms = window_ms or WINDOW_MS[front_end]
        hop_ms = hop_ms or HOP_MS
        self.window_length = round(sample_rate * window_ms / 1000)
        self.hop_length = round(sample_rate * hop_ms / 1000)
        if self.window_length < 4 or self.hop_length < 1:
            raise UserError(
                f"window_ms = {window_ms:g} and hop_ms = {hop_ms:g} are {self.window_length} and {self.hop_length} "
                f"samples at {sample_rate} Hz; the window needs 4 or more, the hop 1 or more"
            )
        nyquist = sample_rate / 2
        if front_end == "paper":
            low, high = 0.0, nyquist
            edges = _from_mel(torch.linspace(_to_mel(low), _to_mel(high), bins + 2, dtype=torch.float64))
        else:
            low, high = 40.0, min(8000.0, nyquist)
            edges = torch.logspace(math.log10(low), math.log10(high), bins, dtype=torch.float64)
            edges = torch.cat([edges[:1] ** 2 / edges[1:2], edges, edges[-1:] ** 2 / edges[-2:-1]])
        centres = edges[1:-1]
        spacing = float((centres[1:] - centres[:-1]).min())
        if front_end == "paper":
            self.fft_length = next_fast_len(max(self.window_length, math.ceil(sample_rate / spacing)), real=True)
        else:
            # The released code's FFT has 2048 points and so its lowest centres share bins: kept as they are.
            self.fft_length = max(2048, self.window_length)
        if self.fft_length > 2**16:
            raise UserError(
                f"bins = {bins} at window_ms = {window_ms:g} need an FFT of {self.fft_length}; lower one of them"
            )
        self.front_end, self.bins = front_end, bins
        centre_bins = (centres * self.fft_length / sample_rate).round().long().clamp(max=self.fft_length // 2)
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)
        self.register_buffer("centre_bins", centre_bins, persistent=False)
        bands_KF = torchaudio.functional.melscale_fbanks(
            self.fft_length // 2 + 1, low, high, bins, sample_rate, norm=None, mel_scale="htk"
        )
        self.register_buffer("bands_KF", bands_KF, persistent=False)

    def forward(self, clips_BT: Tensor) -> Tensor:
        """(B, T) -> (B, 3, F, T'), T' = 1 + T // hop. Float32 also under mixed precision: dB need the range."""
        with torch.autocast(clips_BT.device.type, enabled=False):
            margin = self.window_length // 2
            padded = F.pad(clips_BT.float(), (margin, self.window_length - margin))
            frames = padded.unfold(1, self.window_length, self.hop_length) * self.window
            # (B, T', K) throughout: frames-first is how the FFT reads and writes. torch.stft pads each window to the
            # FFT's length before it transforms and takes 1.6 times as long for the same numbers.
            spectrum = torch.fft.rfft(frames, self.fft_length)
            centres = spectrum[..., self.centre_bins]
            real, imaginary = centres.real.contiguous(), centres.imag.contiguous()
            power = spectrum.real.square() + spectrum.imag.square()
            pictures = (
                _decibel(real.square() + imaginary.square()),
                torch.atan2(imaginary, real),
                _decibel(power @ self.bands_KF),
            )
            return torch.stack(pictures, dim=1).transpose(2, 3)

    def extra_repr(self) -> str:
        """Sizes in samples, for `print(model)`."""
        return (
            f"{self.front_end}, window={self.window_length}, hop={self.hop_length}, fft={self.fft_length}, "
            f"bins={self.bins}"
        )


class Statistics(nn.Module):
    """What a log-mel spectrogram is on the average: the baseline that a learned representation is to beat.

    Of each of 40 bands, over time: mean, standard deviation, and mean absolute difference from frame to frame.
    """

    BANDS = 40
    out_features = 3 * BANDS

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(sample_rate, front_end="paper", window_ms=None, hop_ms=None, bins=self.BANDS)

    def forward(self, clips_BT: Tensor) -> Tensor:
        """(B, T) -> (B, 120), decibels."""
        mel_BFT = self.spectrogram(clips_BT)[:, 2]
        change_BF = mel_BFT.diff(dim=2).abs().sum(dim=2) / max(1, mel_BFT.shape[2] - 1)
        return torch.cat([mel_BFT.mean(dim=2), mel_BFT.std(dim=2, correction=0), change_BF], dim=1)


def _decibel(power: Tensor) -> Tensor:
    return 10 * power.clamp(min=POWER_FLOOR).log10()


def _to_mel(hertz: float) -> float:
    """HTK's mel scale."""
    return 2595 * math.log10(1 + hertz / 700)


def _from_mel(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
