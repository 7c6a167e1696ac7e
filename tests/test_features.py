"""Front end against librosa and against sine waves whose place in the picture is known."""

import librosa
import numpy as np
import pytest
import torch

from clar import features
from clar.config import CHANNELS
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


def test_fixed_scaling_brings_decibels_around_zero_and_leaves_the_phase() -> None:
    clips_BT = torch.randn(2, RATE) / 10
    plain, scaled = (features.make("spectrogram", RATE, scaling=scaling)(clips_BT) for scaling in ("none", "fixed"))
    assert torch.equal(scaled[:, 1], plain[:, 1])
    torch.testing.assert_close(scaled[:, ::2], (plain[:, ::2] + 40) / 20)


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


def noisy(samples: int = RATE) -> np.ndarray:
    return np.random.default_rng(2).normal(size=samples).astype(np.float32) / 10


PAPER_SUMS = [-11863.817, 134.778, 13024.886]
"""Of `noisy(4001)`, over each channel, as version 2 of the results computed them."""


def test_papers_picture_stays_as_it_is() -> None:
    clips_BT = torch.from_numpy(noisy(4001))[None]
    sums = features.make("spectrogram", RATE)(clips_BT).double().sum(dim=(0, 2, 3))
    assert sums.tolist() == pytest.approx(PAPER_SUMS, rel=1e-6, abs=0.05)


@pytest.mark.parametrize(("rate", "bins", "samples"), [(RATE, 128, 5000), (RATE, 32, 700), (8_000, 64, 4000)])
def test_released_magnitude_and_phase_are_exact_fourier_sums(rate: int, bins: int, samples: int) -> None:
    clip = noisy(samples)
    picture = features.make("spectrogram", rate, front_end="released", bins=bins)(torch.from_numpy(clip)[None])[0]
    size, hop = round(0.128 * rate), round(0.008 * rate)
    assert picture.shape == (3, bins, 1 + samples // hop)
    n = np.arange(size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / size)
    padded = np.pad(clip.astype(np.float64), size // 2, mode="reflect")
    top = min(200, rate / 2 / 40)
    for k in (0, 1, 2, bins // 2, bins - 1):
        for frame in (0, 3, samples // hop):
            wave = np.exp(-2j * np.pi * 40 * top ** (k / bins) / rate * n)
            value = np.sum(padded[frame * hop : frame * hop + size] * window * wave)
            assert picture[0, k, frame].item() == pytest.approx(20 * np.log10(abs(value)), abs=0.01)
            turn = picture[1, k, frame].item() - np.angle(value)
            assert np.angle(np.exp(1j * turn)) == pytest.approx(0, abs=2e-3)


def test_released_mel_is_librosas_slaney_with_its_floor() -> None:
    clip = noisy()
    clip[6000:12000] = 0
    clip[12000:] *= 1e-2
    power = np.abs(librosa.stft(clip, n_fft=2048, hop_length=128, pad_mode="reflect")) ** 2
    bands = librosa.filters.mel(sr=RATE, n_fft=2048, n_mels=128, fmin=40, fmax=8000, htk=False, norm="slaney")
    expected = np.maximum(-60, 10 * np.log10(np.maximum(1e-30, bands @ power)))
    actual = features.make("spectrogram", RATE, front_end="released")(torch.from_numpy(clip)[None])[0, 2].numpy()
    np.testing.assert_allclose(actual, expected, atol=0.01)
    assert actual.min() == -60
    silent = features.make("spectrogram", RATE, front_end="released")(torch.zeros(1, RATE))[0]
    assert (silent[0].max(), silent[2].max()) == (-100, -60)


def test_released_tone_is_loudest_at_its_own_frequency_among_the_lowest() -> None:
    # 40 * 200^(k/128) for k = 0, 1, 2 ... lie 1.7 Hz apart: an FFT of 2048 has a bin every 7.8 Hz.
    for k in (5, 20, 60, 127):
        picture = features.make("spectrogram", RATE, front_end="released")(tone(40 * 200 ** (k / 128)))
        assert abs(picture[0, 0, :, 60].argmax().item() - k) <= (1 if k < 20 else 0)


@pytest.mark.parametrize("samples", [1, 2, 100, 1024, 1025, 3000])
def test_released_clips_are_reflected_as_numpy_does_however_short(samples: int) -> None:
    clip = noisy(samples)
    front_end = features.make("spectrogram", RATE, front_end="released")
    padded = front_end._padded(torch.from_numpy(clip)[None])[0].numpy()
    np.testing.assert_array_equal(padded, np.pad(clip, 1024, mode="reflect"))
    assert front_end(torch.from_numpy(clip)[None]).isfinite().all()


@pytest.mark.parametrize("front_end", ["paper", "released"])
@pytest.mark.parametrize("channels", [("mel",), ("phase",), ("magnitude", "mel"), CHANNELS])
def test_some_of_the_channels_are_those_of_all(
    channels: tuple[str, ...], front_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips_BT = torch.from_numpy(noisy(4000)).repeat(2, 1)
    every = features.make("spectrogram", RATE, front_end=front_end, bins=64)(clips_BT)
    for function, channel in (("atan2", "phase"), ("fft.rfft", "mel")):
        needed = channel in channels or (function == "fft.rfft" and front_end == "paper")
        if not needed:
            monkeypatch.setattr(f"torch.{function}", None)
    some = features.make("spectrogram", RATE, front_end=front_end, bins=64, channels=channels)(clips_BT)
    assert torch.equal(some, every[:, [CHANNELS.index(channel) for channel in channels]])


def test_mixed_precision_leaves_the_picture_in_float32() -> None:
    front_end = features.make("spectrogram", RATE)
    with torch.autocast("cpu", torch.bfloat16):
        picture = front_end(tone(440))
    assert picture.dtype == torch.float32
    assert torch.equal(picture, front_end(tone(440)))
