"""Front end against librosa and against sine waves whose place in the picture is known."""

import librosa
import numpy as np
import pytest
import torch

from clar import features
from clar.errors import UserError

RATE = 16_000


def tone(hertz: float, amplitude: float = 0.5, samples: int = RATE) -> torch.Tensor:
    return (amplitude * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / RATE)).float()[None]


def test_raw_is_the_waveform() -> None:
    clips_BT = torch.randn(3, 100)
    assert torch.equal(features.make("raw", RATE)(clips_BT), clips_BT[:, None])


def test_statistics_are_mean_deviation_and_change_of_librosas_log_mel_bands() -> None:
    clip = np.random.default_rng(1).normal(size=RATE).astype(np.float32) * np.linspace(0, 0.2, RATE, dtype=np.float32)
    module = features.make("statistics", RATE)
    power = librosa.feature.melspectrogram(
        y=clip, sr=RATE, n_fft=module.spectrogram.fft_length, win_length=256, hop_length=128, center=True,
        pad_mode="constant", n_mels=40, htk=True, norm=None, power=2.0,
    )  # fmt: skip
    mel_FT = 10 * np.log10(np.maximum(power, features.POWER_FLOOR)).astype(np.float64)
    expected = np.concatenate([mel_FT.mean(1), mel_FT.std(1), np.abs(np.diff(mel_FT)).mean(1)])
    np.testing.assert_allclose(module(torch.from_numpy(clip)[None])[0].double().numpy(), expected, atol=2e-3)
    assert module(torch.zeros(2, RATE)).isfinite().all()


@pytest.mark.parametrize("fields", [{}, {"front_end": "released"}, {"bins": 64, "hop_ms": 16}, {"window_ms": 32}])
def test_shape_and_no_empty_or_doubled_bin(fields: dict) -> None:
    front_end = features.make("spectrogram", RATE, **fields)
    pictures = front_end(torch.randn(2, RATE) / 10)
    assert pictures.shape == (2, 3, fields.get("bins", 128), 1 + RATE // front_end.hop_length)
    assert (front_end.bands_KF.sum(dim=0) > 0).all()
    if fields.get("front_end") != "released":
        assert len(front_end.centre_bins.unique()) == front_end.bins


def test_mel_channel_equals_librosa() -> None:
    clip = np.random.default_rng(0).normal(size=RATE).astype(np.float32) / 10
    front_end = features.make("spectrogram", RATE)
    power = librosa.feature.melspectrogram(
        y=clip, sr=RATE, n_fft=front_end.fft_length, win_length=256, hop_length=128, center=True, pad_mode="constant",
        n_mels=128, htk=True, norm=None, power=2.0,
    )  # fmt: skip
    expected = 10 * np.log10(np.maximum(power, features.POWER_FLOOR))
    # librosa centres the padded FFT on the frame, this module the window: the same frames.
    actual = front_end(torch.from_numpy(clip)[None])[0, 2].numpy()
    np.testing.assert_allclose(actual, expected, atol=0.02)


def test_magnitude_and_phase_equal_a_float64_fourier_sum_at_the_centres() -> None:
    clip = np.random.default_rng(1).normal(size=4000) / 10
    front_end = features.make("spectrogram", RATE, bins=64)
    pictures = front_end(torch.from_numpy(clip).float()[None])[0].numpy()
    frame, start = 10, 10 * 128 - 128
    n = np.arange(256)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 256)
    for bin_ in (0, 1, 17, 63):
        cycles = int(front_end.centre_bins[bin_]) / front_end.fft_length
        value = np.sum(clip[start : start + 256] * window * np.exp(-2j * np.pi * cycles * n))
        assert pictures[0, bin_, frame] == pytest.approx(20 * np.log10(abs(value)), abs=1e-3)
        assert np.angle(np.exp(1j * (pictures[1, bin_, frame] - np.angle(value)))) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("hertz", [250.0, 1000.0, 4000.0])
def test_a_tone_peaks_at_its_own_bin(hertz: float) -> None:
    front_end = features.make("spectrogram", RATE)
    picture = front_end(tone(hertz))[0]
    centres = front_end.centre_bins * RATE / front_end.fft_length
    for channel in (0, 2):
        peak = centres[picture[channel, :, 60].argmax()]
        assert abs(float(peak) - hertz) < 0.06 * hertz


def test_silence_is_finite_and_log_power_is_floored() -> None:
    picture = features.make("spectrogram", RATE)(torch.zeros(1, RATE))
    assert picture.isfinite().all()
    assert picture[:, 0].max() == pytest.approx(-100)


@pytest.mark.parametrize("samples", [1, 100, 255, 16_001])
def test_any_length(samples: int) -> None:
    assert features.make("spectrogram", RATE)(torch.randn(1, samples)).isfinite().all()


def test_a_window_under_a_few_samples_is_named() -> None:
    with pytest.raises(UserError, match=r"window_ms = 0\.1"):
        features.make("spectrogram", RATE, window_ms=0.1)


def test_mixed_precision_leaves_the_picture_in_float32() -> None:
    front_end = features.make("spectrogram", RATE)
    with torch.autocast("cpu", torch.bfloat16):
        picture = front_end(tone(440))
    assert picture.dtype == torch.float32
    assert torch.equal(picture, front_end(tone(440)))
