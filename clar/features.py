"""The encoder's input: the waveform itself, or a 3 x F x T time-frequency picture of it (paper, section 3).

B clips, T samples, F frequency bins, T' frames.
"""

import math
from collections.abc import Sequence

import torch
import torchaudio
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

from clar.config import CHANNELS, HOP_MS, WINDOW_MS, Input, Scaling, Variant
from clar.errors import UserError

# Power below which a bin counts as silent. The released code's floor; the paper names none, and log 0 is -inf.
POWER_FLOOR = 1e-5**2

# The same of the released code's mel picture: -60 dB.
RELEASED_MEL_FLOOR = 1e-6


def make(
    input: Input,
    sample_rate: int,
    *,
    front_end: Variant = "paper",
    window_ms: float | None = None,
    hop_ms: float | None = None,
    bins: int = 128,
    channels: Sequence[str] = CHANNELS,
    scaling: Scaling = "none",
) -> nn.Module:
    """The front end, from clips (B, T) float32 to (B, 1, T) if raw, (B, 120) if statistics, else (B, C, F, T').

    Args:
        input: `raw`, `spectrogram` or `statistics`, which knows no other option.
        sample_rate: hertz.
        front_end: `paper` or `released`, see `Spectrogram`.
        window_ms: length of the Hann window, milliseconds; None is the front end's own.
        hop_ms: its stride, milliseconds; None is the front end's own, 8.
        bins: F.
        channels: some of CHANNELS, each once; the pictures come in this order.

    Raises:
        UserError: window or hop are under one sample or too long, or the rate is too low for the bins.
    """
    if input == "raw":
        return Raw()
    if input == "statistics":
        return Statistics(sample_rate)
    return Spectrogram(
        sample_rate,
        front_end=front_end,
        window_ms=window_ms,
        hop_ms=hop_ms,
        bins=bins,
        channels=channels,
        scaling=scaling,
    )


class Raw(nn.Module):
    """The waveform as it is."""

    def forward(self, clips_BT: Tensor) -> Tensor:
        """(B, T) -> (B, 1, T)."""
        return clips_BT[:, None]


class Spectrogram(nn.Module):
    """Three pictures of one clip, or some of them: log-power STFT magnitude, STFT phase, log-power mel spectrogram.

    `paper`: a 16 ms window; the first two are read at F centre frequencies, the third sums power over F triangular
    bands at the same centres, equally spaced in mel. The window is padded with zeros until neighbouring centres fall on
    different FFT bins; otherwise the lowest bands would be copies of each other (a 16 ms window alone has a bin every
    62 Hz, and 128 mel bands start 14 Hz apart). Beyond its ends the clip is silent.

    `released`: a 128 ms window; the first two are Fourier sums at exactly the F frequencies 40 * 200^(k/F) Hz (up to
    half the sample rate where that is below 8000 Hz), the third has F bands on Slaney's mel scale over the same range,
    each of the same area, and is floored at -60 dB. Beyond its ends the clip is reflected, as often as it takes.

    Log power is in dB, f(S) = 10 log10 |S|^2, floored at -100 dB; the phase in radians. With `fixed` scaling dB become
    (dB + 40) / 20: numbers around 0 of a size around 1, so that the encoder's padding with zeros is a quiet surround
    and not the loudest part of the picture.
    """

    window: Tensor
    centre_bins: Tensor
    """(F,): the FFT bin of each centre frequency, of the paper's front end."""
    waves_W2F: Tensor
    """Cosines, then negated sines, of the released front end's frequencies."""
    bands_KF: Tensor

    def __init__(
        self,
        sample_rate: int,
        *,
        front_end: Variant,
        window_ms: float | None,
        hop_ms: float | None,
        bins: int,
        channels: Sequence[str] = CHANNELS,
        scaling: Scaling = "none",
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
        self.front_end, self.bins, self.channels, self.scaling = front_end, bins, tuple(channels), scaling
        nyquist = sample_rate / 2
        if front_end == "paper":
            low, high = 0.0, nyquist
            centres = _from_mel(torch.linspace(_to_mel(low), _to_mel(high), bins + 2, dtype=torch.float64))[1:-1]
            spacing = float((centres[1:] - centres[:-1]).min())
            self.fft_length = next_fast_len(max(self.window_length, math.ceil(sample_rate / spacing)), real=True)
        else:
            low, high = 40.0, min(8000.0, nyquist)
            self.fft_length = max(2048, self.window_length)
        if self.fft_length > 2**16:
            raise UserError(
                f"bins = {bins} at window_ms = {window_ms:g} need an FFT of {self.fft_length}; lower one of them"
            )
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)
        if front_end == "paper":
            centre_bins = (centres * self.fft_length / sample_rate).round().long().clamp(max=self.fft_length // 2)
            self.register_buffer("centre_bins", centre_bins, persistent=False)
        else:
            cycles_F = low * (high / low) ** (torch.arange(bins, dtype=torch.float64) / bins) / sample_rate
            angles_WF = 2 * math.pi * torch.arange(self.window_length, dtype=torch.float64)[:, None] * cycles_F
            waves_W2F = torch.cat([angles_WF.cos(), -angles_WF.sin()], dim=1).float()
            self.register_buffer("waves_W2F", waves_W2F, persistent=False)
        norm, scale = (None, "htk") if front_end == "paper" else ("slaney", "slaney")
        bands_KF = torchaudio.functional.melscale_fbanks(
            self.fft_length // 2 + 1, low, high, bins, sample_rate, norm=norm, mel_scale=scale
        )
        self.register_buffer("bands_KF", bands_KF, persistent=False)

    def forward(self, clips_BT: Tensor) -> Tensor:
        """(B, T) -> (B, channels, F, T'), T' = 1 + T // hop. Float32 also under mixed precision: dB need the range."""
        with torch.autocast(clips_BT.device.type, enabled=False):
            frames = self._padded(clips_BT.float()).unfold(1, self.window_length, self.hop_length) * self.window
            pictures = {}
            # (B, T', K) throughout: frames-first is how the FFT reads and writes. torch.stft pads each window to the
            # FFT's length before it transforms and takes 1.6 times as long for the same numbers.
            if self.front_end == "paper" or "mel" in self.channels:
                spectrum = torch.fft.rfft(frames, self.fft_length)
            if self.channels != ("mel",):
                if self.front_end == "paper":
                    centres = spectrum[..., self.centre_bins]
                    real, imaginary = centres.real.contiguous(), centres.imag.contiguous()
                else:
                    real, imaginary = (frames @ self.waves_W2F).chunk(2, dim=-1)
                if "magnitude" in self.channels:
                    pictures["magnitude"] = _decibel(real.square() + imaginary.square())
                if "phase" in self.channels:
                    pictures["phase"] = torch.atan2(imaginary, real)
            if "mel" in self.channels:
                power = spectrum.real.square() + spectrum.imag.square()
                floor = POWER_FLOOR if self.front_end == "paper" else RELEASED_MEL_FLOOR
                pictures["mel"] = _decibel(power @ self.bands_KF, floor)
            if self.scaling == "fixed":
                pictures |= {name: (dB + 40) / 20 for name, dB in pictures.items() if name != "phase"}
            return torch.stack([pictures[channel] for channel in self.channels], dim=1).transpose(2, 3)

    def _padded(self, clips_BT: Tensor) -> Tensor:
        """Clips with half a window more at each end: silence, or the clip reflected (shorter clips several times)."""
        before, T = self.window_length // 2, clips_BT.shape[1]
        after = self.window_length - before
        if self.front_end == "paper":
            return F.pad(clips_BT, (before, after))
        period = max(1, 2 * (T - 1))
        place = torch.arange(-before, T + after, device=clips_BT.device) % period
        return clips_BT[:, torch.minimum(place, period - place)]

    def extra_repr(self) -> str:
        """Sizes in samples, for `print(model)`."""
        return (
            f"{self.front_end}, window={self.window_length}, hop={self.hop_length}, fft={self.fft_length}, "
            f"bins={self.bins}, channels={','.join(self.channels)}, scaling={self.scaling}"
        )


class Statistics(nn.Module):
    """What a log-mel spectrogram is on the average: the baseline that a learned representation is to beat.

    Of each of 40 bands, over time: mean, standard deviation, and mean absolute difference from frame to frame.
    """

    BANDS = 40
    out_features = 3 * BANDS

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(
            sample_rate, front_end="paper", window_ms=None, hop_ms=None, bins=self.BANDS, channels=("mel",)
        )

    def forward(self, clips_BT: Tensor) -> Tensor:
        """(B, T) -> (B, 120), decibels."""
        mel_BFT = self.spectrogram(clips_BT)[:, 0]
        change_BF = mel_BFT.diff(dim=2).abs().sum(dim=2) / max(1, mel_BFT.shape[2] - 1)
        return torch.cat([mel_BFT.mean(dim=2), mel_BFT.std(dim=2, correction=0), change_BF], dim=1)


def _decibel(power: Tensor, floor: float = POWER_FLOOR) -> Tensor:
    return 10 * power.clamp(min=floor).log10()


def _to_mel(hertz: float) -> float:
    """HTK's mel scale."""
    return 2595 * math.log10(1 + hertz / 700)


def _from_mel(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
