"""The augmentations: a contract that all in the registry keep, and what each one is, against NumPy and librosa."""

from collections.abc import Callable, Iterator
from functools import partial

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio
from torch import Generator, Tensor

from clar import vocoder
from clar.augment import (
    COLOURS,
    FADE_SHAPES,
    REGISTRY,
    Compose,
    Fade,
    MixedNoise,
    TimeMask,
    TimeShift,
    compose,
    fade,
    mixed_noise,
    pitch_shift,
    time_mask,
    time_shift,
    time_stretch,
    white_noise,
)
from clar.config import AUGMENTATIONS, STRONGEST
from clar.errors import UserError

RATE = 16_000


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


RELEASED = {
    "fade": {"fade_shapes": "released"},
    "mixed_noise": {"coloured_noise": "released"},
    "time_mask": {"mask": "released"},
    "time_stretch": {"stretch": "resampled"},
}
"""The options of `compose` that make an augmentation the released code's."""


@pytest.fixture(params=[*REGISTRY, *(f"{name}, released" for name in RELEASED)])
def one(request: pytest.FixtureRequest) -> Callable[..., Compose]:
    """`compose` of one augmentation, which each test of the contract gets in each of its variants."""
    name, _, released = request.param.partition(", ")
    return partial(compose, [name], RATE, **(RELEASED[name] if released else {}))


def is_released_mask(augment: Compose) -> bool:
    """Whether half of the clips that are chosen stay as they are."""
    return getattr(augment.augmentations[0], "released", False)


@pytest.fixture(autouse=True)
def global_rng_untouched() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def seeded(seed: int = 0, device: torch.device | str = "cpu") -> Generator:
    return Generator(device).manual_seed(seed)


def noise(B: int, T: int, device: torch.device | str = "cpu", seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(B, T, generator=seeded(seed)).to(device)


def tone(hertz: float, T: int = RATE) -> Tensor:
    """(1, T), faded in and out over 50 ms, so that its spectrum is a line."""
    ramp = np.clip(np.minimum(np.arange(T), np.arange(T)[::-1]) / 800, 0, 1)
    return torch.from_numpy((0.5 * ramp * np.sin(2 * np.pi * hertz * np.arange(T) / RATE)).astype(np.float32))[None]


def speech_like(T: int = RATE) -> np.ndarray:
    """A gliding voice of 25 harmonics under two moving formants, in four syllables, and a hiss between them."""
    t = np.arange(T) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 1.5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros(T)
    for harmonic in range(1, 26):
        hertz = harmonic * pitch
        formants = (600 + 200 * np.sin(2 * np.pi * 2 * t), 1700 + 500 * np.cos(2 * np.pi * 3 * t))
        voice += sum(np.exp(-(((hertz - formant) / 150) ** 2)) for formant in formants) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 4 * t), 0, 1) ** 0.5
    hiss = 0.05 * np.random.default_rng(0).standard_normal(T) * np.clip(-np.sin(2 * np.pi * 4 * t), 0, 1)
    return (0.3 * (voice * syllables + hiss)).astype(np.float32)


def peak_hertz(clip_T: np.ndarray) -> float:
    size = 2**20
    return np.abs(np.fft.rfft(clip_T * np.hanning(len(clip_T)), size)).argmax() * RATE / size


def db(ratio: float) -> float:
    return 10 * np.log10(ratio)


def power(x: Tensor) -> float:
    return float(np.mean(np.square(x.cpu().numpy().astype(np.float64))))


# --- the contract -----------------------------------------------------------------------------------------------------


def test_registry_is_the_papers_list_in_its_order() -> None:
    assert tuple(REGISTRY) == AUGMENTATIONS


@pytest.mark.parametrize("strength", [0, 0.01, 0.5, 1, STRONGEST])
@pytest.mark.parametrize("T", [1, 2, 7, 100, 4001, RATE])
def test_shape_dtype_device_and_input_kept(
    one: Callable[..., Compose], T: int, strength: float, device: torch.device
) -> None:
    clips = noise(5, T, device)
    before = clips.clone()
    out = one(probability=1, strength=strength)(clips, seeded(0, device))
    assert (out.shape, out.dtype, out.device) == (clips.shape, clips.dtype, clips.device)
    assert out.isfinite().all()
    assert torch.equal(clips, before)
    assert out.data_ptr() != clips.data_ptr()


def test_strength_zero_is_the_identity_and_draws_nothing(one: Callable[..., Compose], device: torch.device) -> None:
    clips, generator = noise(8, RATE, device), seeded(0, device)
    before = generator.get_state()
    out = one(probability=1, strength=0)(clips, generator)
    assert torch.equal(out, clips)
    assert out.data_ptr() != clips.data_ptr()
    assert torch.equal(generator.get_state(), before)


def test_more_strength_changes_more(one: Callable[..., Compose]) -> None:
    clip = speech_like()
    distances = []
    for strength in (0.02, 0.2, 1):
        clips = torch.from_numpy(clip).repeat(24, 1)
        augment = one(probability=1, strength=strength)
        out = augment(clips, seeded()).numpy()
        # Seen as log-mel pictures, which a small shift in time changes little.
        distances.append(np.mean([np.abs(log_mel(changed) - log_mel(clip)).mean() for changed in out]))
    assert distances == sorted(distances)
    if not getattr(augment.augmentations[0], "clipped", False):  # which is as strong whatever the noise
        assert distances[0] < 0.5 * distances[2]


def test_each_augmentation_has_its_own_probability_and_strength() -> None:
    augment = compose(("fade", "time_mask", "fade"), RATE, (0.25, 1, 0), strength=(2, 0.5, 1))
    assert [one.probability for one in augment.augmentations] == [0.25, 1, 0]
    assert [one.strength for one in augment.augmentations] == [2, 0.5, 1]
    assert repr(augment).count("strength=") == 3
    clips = torch.ones(2000, 64)
    out = compose(("time_shift", "fade"), RATE, (0.9, 0.1))(clips, seeded())  # shifted ones are still ones
    assert (out != clips).any(1).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_an_augmentation_that_never_acts_is_as_if_it_were_not_there() -> None:
    clips = noise(8, 4000)
    expected = compose(("fade", "white_noise"), RATE)(clips, seeded())
    for probability, strength in (((0.5, 0, 0.5), 1), (0.5, (1, 0, 1))):
        augment = compose(("fade", "mixed_noise", "white_noise"), RATE, probability, strength=strength)
        assert torch.equal(augment(clips, seeded()), expected)


# What is drawn at a strength, over 4,000 clips of 800 samples: the column, and its smallest and largest value.
@pytest.mark.parametrize(
    ("name", "column", "half", "paper", "double"),
    [
        ("pitch_shift", 0, (-7.5, 7.5), (-15, 15), (-30, 30)),
        ("fade", 0, (0, 200), (0, 400), (0, 800)),
        ("fade", 1, (0, 200), (0, 400), (0, 800)),
        ("white_noise", 0, (6.02, 26.02), (0, 20), (-6.02, 13.98)),
        ("mixed_noise", 0, (6.02, 26.02), (0, 20), (-6.02, 13.98)),
        ("time_mask", 1, (1, 50), (1, 100), (1, 200)),
        ("time_shift", 0, (-200, 200), (-400, 400), (-800, 800)),
        ("time_stretch", 0, (0.75, 1.25), (0.5, 1.5), (0.25, 2)),
    ],
)
def test_ranges_at_a_strength(name: str, column: int, half: tuple, paper: tuple, double: tuple) -> None:
    for strength, (low, high) in ((0.5, half), (1, paper), (2, double)):
        (augmentation,) = compose([name], RATE, strength=strength).augmentations
        drawn = augmentation.draw(4000, 800, seeded(), torch.device("cpu"))[column].float()
        margin = 0.01 * (high - low)
        assert low - 0.01 <= drawn.min() <= low + margin
        assert high - margin <= drawn.max() <= high + 0.01
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))


def test_seed_decides(one: Callable[..., Compose], device: torch.device) -> None:
    augment = one(probability=1)
    clips = noise(6, RATE, device)
    first, again, other = (augment(clips, seeded(seed, device)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    same = [torch.equal(a, b) for a, b in zip(first, other, strict=True)]
    assert not all(same) if is_released_mask(augment) else not any(same)


def test_two_draws_differ(one: Callable[..., Compose], device: torch.device) -> None:
    augment, generator = one(probability=1), seeded(0, device)
    clips = noise(6, RATE, device)
    assert not torch.equal(augment(clips, generator), augment(clips, generator))


def test_each_clip_has_its_own_parameters(one: Callable[..., Compose], device: torch.device) -> None:
    clips = noise(1, RATE, device).repeat(6, 1)
    augment = one(probability=1)
    out = augment(clips, seeded(0, device))
    assert len(torch.unique(out, dim=0)) == 6 or (is_released_mask(augment) and (out == clips).all(1).any())


def test_row_does_not_depend_on_the_rest_of_the_batch(one: Callable[..., Compose], device: torch.device) -> None:
    augment = one(probability=0.7)
    clips = noise(20, 4000, device)
    other = noise(20, 4000, device, seed=9) * 3
    same = [4, 7, 12, 19]
    other[same], other[11], other[2] = clips[same], 0, 0
    for seed in range(8):
        expected, out = (augment(batch, seeded(seed, device)) for batch in (clips, other))
        torch.testing.assert_close(out[same], expected[same], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [pitch_shift, time_stretch])
def test_alone_as_in_a_batch(function, device: torch.device) -> None:
    clips = noise(12, RATE, device)
    amounts = torch.linspace(-15, 15, 12) if function is pitch_shift else torch.linspace(0.5, 1.5, 12)
    together = function(clips, amounts.to(device), RATE)
    for row in range(12):
        alone = function(clips[row : row + 1], amounts[row : row + 1].to(device), RATE)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=2e-6)


def test_probability_zero_is_the_identity(one: Callable[..., Compose], device: torch.device) -> None:
    clips = noise(8, RATE, device)
    out = one(probability=0)(clips, seeded(0, device))
    assert torch.equal(out, clips)
    assert out.data_ptr() != clips.data_ptr()


def test_half_of_the_clips_are_touched(one: Callable[..., Compose], device: torch.device) -> None:
    clips = noise(400, 256, device)
    augment = one()
    touched = (augment(clips, seeded(0, device)) != clips).any(1).float().mean().item()
    share = 0.25 if is_released_mask(augment) else 0.5
    assert touched == pytest.approx(share, abs=0.1)  # four standard deviations


def test_silence_stays_silent(one: Callable[..., Compose], device: torch.device) -> None:
    out = one(probability=1)(torch.zeros(4, RATE, device=device), seeded(0, device))
    assert torch.equal(out, torch.zeros_like(out))


def test_silent_start_does_not_silence_the_rest(one: Callable[..., Compose]) -> None:
    clips = noise(6, RATE)
    clips[:, : RATE // 2] = 0
    out = one(probability=1)(clips, seeded())
    assert (out.square().mean(1) > 1e-5).all()


@pytest.mark.parametrize("B", [0, 1])
def test_empty_batch_and_batch_of_one(one: Callable[..., Compose], B: int, device: torch.device) -> None:
    assert one(probability=1)(noise(B, 1000, device), seeded(0, device)).shape == (B, 1000)


def test_strided_input_gives_the_same(one: Callable[..., Compose]) -> None:
    clips = noise(6, 3000)
    augment = one(probability=0.8)
    torch.testing.assert_close(augment(clips.T.contiguous().T, seeded()), augment(clips, seeded()))


def test_generator_on_the_cpu_drives_any_device(one: Callable[..., Compose], device: torch.device) -> None:
    assert one()(noise(4, 2000, device), seeded()).device.type == device.type


def test_repr_names_ranges(one: Callable[..., Compose]) -> None:
    augment = one()
    assert type(augment.augmentations[0]).__name__ in repr(augment)
    assert "probability=0.5" in repr(augment)


def test_composition_applies_in_order() -> None:
    clips, names = noise(8, RATE), ("fade", "time_shift")
    augment, generator = compose(names, RATE), seeded()
    expected = augment.augmentations[1](augment.augmentations[0](clips, generator), generator)
    assert torch.equal(augment(clips, seeded()), expected)
    assert repr(augment).index("Fade") < repr(augment).index("TimeShift")
    assert torch.equal(compose((), RATE)(clips, seeded()), clips)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="no augmentation 'time_streth'; did you mean time_stretch"):
        compose(["time_streth"], RATE)
    with pytest.raises(UserError, match=r"probability = 1\.5"):
        compose(["fade"], RATE, probability=1.5)
    with pytest.raises(UserError, match=r"strength = 2\.5: must lie between 0 and 2"):
        compose(["fade", "time_mask"], RATE, strength=(1, 2.5))
    with pytest.raises(UserError, match="strength: needs one number, or one for each of the 2; got 3"):
        compose(["fade", "time_mask"], RATE, strength=(1, 1, 1))
    for bad in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 0), torch.zeros(2, 5, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"clips must be \(B, T\) float32.*" + r"\(" + str(bad.shape[0])):
            compose(["fade"], RATE)(bad, seeded())
    with pytest.raises(ValueError, match=r"rates_B must be \(2,\).*got \(3,\)"):
        time_stretch(torch.zeros(2, 9), torch.ones(3))
    with pytest.raises(ValueError, match="positive"):
        time_stretch(torch.zeros(2, 9), torch.tensor([1.0, 0.0]))


def test_no_gradient_is_recorded(one: Callable[..., Compose]) -> None:
    clips = noise(3, 2000).requires_grad_()
    assert not one(probability=1)(clips, seeded()).requires_grad


# --- pitch shift ------------------------------------------------------------------------------------------------------


def test_tone_moves_by_the_semitones(device: torch.device) -> None:
    semitones = torch.tensor([*range(-15, 16), -7.5, 0.25, 11.9])
    clips = tone(440).repeat(len(semitones), 1).to(device)
    out = pitch_shift(clips, semitones.to(device), RATE).cpu().numpy()
    for clip, shift in zip(out, semitones.tolist(), strict=True):
        cents = 1200 * np.log2(peak_hertz(clip) / (440 * 2 ** (shift / 12)))
        assert abs(cents) < 5, (shift, cents)
        # Frames across the onset lose their phase relations when repeated (librosa's do too, see below).
        level = db(np.mean(clip[4000:12000] ** 2) / power(clips[0, 4000:12000]))
        assert -8 < level < 0.1, (shift, level)


@pytest.mark.parametrize(("hertz", "semitones"), [(7000, 12), (4200, 12), (7500, 3), (5200, 8.3), (3500, 15)])
def test_nothing_aliases(hertz: float, semitones: float) -> None:
    clip = tone(hertz)
    out = pitch_shift(clip, torch.tensor([float(semitones)]), RATE)
    assert db(power(out) / power(clip)) < -50


def test_no_image_of_a_tone_that_stays_in_the_band() -> None:
    out = pitch_shift(tone(3000).repeat(4, 1), torch.tensor([-12.0, -5, 7, 14]), RATE).numpy()
    for clip in out:
        spectrum = np.abs(np.fft.rfft(clip * scipy.signal.windows.blackmanharris(RATE))) ** 2
        peak = spectrum.argmax()
        away = np.abs(np.arange(len(spectrum)) - peak) > 100  # beyond the fade's and the frames' modulation
        assert db(spectrum[away].max() / spectrum[peak]) < -55


def test_no_shift_and_no_stretch_are_near_the_identity() -> None:
    clips = noise(3, RATE)
    assert db(power(clips) / power(pitch_shift(clips, torch.zeros(3), RATE) - clips)) > 80
    assert db(power(clips) / power(time_stretch(clips, torch.ones(3)) - clips)) > 110


# --- time stretch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 0.75, 1.25, 1.5])
def test_clicks_move_apart_by_the_rate(rate: float) -> None:
    # Clicks of 10 ms. A phase vocoder smears them over a frame, but the loudest place of each stays known.
    places = np.array([2000, 5000, 8000, 11000])
    clip = torch.zeros(1, RATE)
    for place in places:
        clip[0, place - 80 : place + 80] = noise(1, 160)[0]
    out = time_stretch(clip, torch.tensor([rate]))[0].numpy()
    expected = (places / rate)[places / rate < RATE - 1000]
    half = int(1500 / rate)
    for place in expected.astype(int):
        around = out[max(0, place - half) : place + half].astype(np.float64) ** 2
        centre = around @ np.arange(len(around)) / around.sum() + max(0, place - half)
        assert abs(centre - place) < 384  # 3/8 of a frame
    assert np.sum(out[: int(expected[0]) - 1024] ** 2) < 1e-3 * np.sum(out**2)


@pytest.mark.parametrize("rate", [0.5, 0.7, 1.1, 1.5])
def test_stretching_keeps_the_pitch_and_crops_or_pads(rate: float) -> None:
    out = time_stretch(tone(440), torch.tensor([rate]))[0].numpy()
    end = round(RATE / rate)
    assert abs(1200 * np.log2(peak_hertz(out[: min(end, RATE)]) / 440)) < 5
    assert np.all(out[end:] == 0)
    assert np.abs(out[min(end, RATE) - 4000 : end]).max() > 0.3


@pytest.mark.parametrize("rate", [0.5, 0.8, 1.25, 1.5])
def test_a_stretch_that_is_resampled_divides_every_frequency_by_the_rate(rate: float) -> None:
    clip = tone(440)
    out = time_stretch(clip, torch.tensor([rate]), resampled=True)
    assert abs(1200 * np.log2(peak_hertz(out[0].numpy()) / (440 / rate))) < 5
    # Played twice as fast and then read half as fast, it lasts as long as before, and what stood where stands there.
    assert out[0, -2000:].abs().max() > 0.1
    clicks = torch.zeros(1, RATE)
    clicks[0, 5000:5160] = noise(1, 160)[0]
    energy = time_stretch(clicks, torch.tensor([rate]), resampled=True)[0].double().square()
    assert abs(float(energy @ torch.arange(RATE).double() / energy.sum()) - 5080) < 500


@pytest.mark.parametrize("rate", [0.5, 0.75, 1.25])
def test_a_stretch_that_is_resampled_is_librosas_stretch_resampled(rate: float) -> None:
    clip = speech_like()
    short = librosa.effects.time_stretch(clip, rate=rate, n_fft=1024)
    expected = librosa.util.fix_length(scipy.signal.resample(short, RATE), size=RATE)
    out = time_stretch(torch.from_numpy(clip)[None], torch.tensor([rate]), resampled=True)[0].numpy()
    assert correlation(out, expected) > 0.99
    assert db(np.sum(expected**2) / np.sum((out - expected) ** 2)) > 20


# --- both against librosa ---------------------------------------------------------------------------------------------


def log_mel(clip_T: np.ndarray) -> np.ndarray:
    return librosa.power_to_db(librosa.feature.melspectrogram(y=clip_T, sr=RATE, n_fft=1024, n_mels=64), top_db=60)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(log_mel(a).ravel(), log_mel(b).ravel())[0, 1])


@pytest.mark.parametrize("semitones", [-15, -7, -2.5, 0, 3, 7, 15])
def test_pitch_shift_is_librosas(semitones: float) -> None:
    clip = speech_like()
    expected = librosa.effects.pitch_shift(clip, sr=RATE, n_steps=semitones, n_fft=1024)
    out = pitch_shift(torch.from_numpy(clip)[None], torch.tensor([float(semitones)]), RATE)[0].numpy()
    assert correlation(out, expected) > 0.99
    assert db(np.sum(expected**2) / np.sum((out - expected) ** 2)) > 25


# Rates that float32 holds exactly: where rate * frame is whole, one rounding decides which frame's phase is taken.
@pytest.mark.parametrize("rate", [0.5, 0.5625, 0.9375, 1.1875, 1.40625])
def test_time_stretch_is_librosas(rate: float) -> None:
    clip = speech_like()
    expected = librosa.util.fix_length(librosa.effects.time_stretch(clip, rate=rate, n_fft=1024), size=RATE)
    out = time_stretch(torch.from_numpy(clip)[None], torch.tensor([rate]))[0].numpy()
    assert correlation(out, expected) > 0.999
    assert db(np.sum(expected**2) / np.sum((out - expected) ** 2)) > 25


def test_frame_length_follows_the_sample_rate() -> None:
    assert [vocoder.frame_samples(rate) for rate in (100, 8_000, 16_000, 44_100, 48_000)] == [16, 512, 1024, 2048, 4096]


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [None, *range(len(COLOURS))])
def test_signal_to_noise_ratio(colour: int | None, device: torch.device) -> None:
    clips = noise(9, RATE, device) * torch.logspace(-3, 1, 9, device=device)[:, None]
    snr_db = torch.linspace(0, 20, 9)
    generator = seeded(0, device)
    if colour is None:
        out = white_noise(clips, snr_db.to(device), generator)
    else:
        out = mixed_noise(clips, snr_db.to(device), torch.full((9,), colour, device=device), generator)
    for clip, noisy, expected in zip(clips, out, snr_db.tolist(), strict=True):
        assert db(power(clip) / power(noisy.double() - clip.double())) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("T", [RATE, 15_991])
def test_slopes_of_the_colours(T: int) -> None:
    clips = torch.ones(60, T)
    colours = torch.arange(3).repeat(20)
    added = (mixed_noise(clips, torch.zeros(60), colours, seeded()) - clips).double().numpy()
    hertz, density = scipy.signal.welch(added, fs=RATE, nperseg=2048)
    band = (hertz > 60) & (hertz < 6000)
    for colour in range(3):
        mean = density[colour::3].mean(0)
        octaves = np.polyfit(np.log2(hertz[band]), 10 * np.log10(mean[band]), 1)[0]
        assert octaves == pytest.approx(-10 * np.log10(2) * colour, abs=0.15)
    assert np.abs(added.mean(1)).max() < 1e-6
    assert added.min() < -1  # the released code would have clipped this at 0


def test_white_noise_is_normal_and_new_for_each_clip() -> None:
    clips = torch.ones(4, RATE)
    added = (white_noise(clips, torch.zeros(4), seeded()) - clips).numpy()
    assert scipy.stats.kurtosis(added, axis=1) == pytest.approx([0] * 4, abs=0.2)
    assert np.abs(np.corrcoef(added) - np.eye(4)).max() < 0.05


def test_every_colour_is_drawn() -> None:
    _, colours = MixedNoise().draw(900, RATE, seeded(), torch.device("cpu"))
    assert colours.bincount(minlength=3).tolist() == pytest.approx([300] * 3, abs=60)


def test_released_coloured_noise_is_clipped_to_0_and_1() -> None:
    clips, colours = noise(9, RATE) * 10, torch.arange(3).repeat(3)
    plain = mixed_noise(clips, torch.zeros(9), colours, seeded())
    clipped = mixed_noise(clips, torch.zeros(9), colours, seeded(), clipped=True)
    assert torch.equal(clipped[colours == 0], plain[colours == 0])
    assert torch.equal(clipped[colours > 0], plain[colours > 0].clamp(0, 1))
    assert not torch.equal(clipped, plain)


# --- fade, mask, shift ------------------------------------------------------------------------------------------------


def gain(shape: str, length: int) -> np.ndarray:
    x = np.arange(length) / max(1, length - 1)
    return {
        "linear": x,
        "logarithmic": np.minimum(1, np.log10(1 + 10 * x)),
        "exponential": x * 2 ** (x - 1),
        "quarter_sine": np.sin(x * np.pi / 2),
        "half_sine": 0.5 - 0.5 * np.cos(np.pi * x),
    }[shape]


@pytest.mark.parametrize("shape", FADE_SHAPES)
def test_fade_curve(shape: str, device: torch.device) -> None:
    T = 1000
    fade_in = torch.tensor([0, 1, 2, 500, 400, 333, T])
    fade_out = torch.tensor([500, 0, 1, 500, 7, T, 0])
    clips = noise(7, T, device)
    shapes = torch.full((7,), FADE_SHAPES.index(shape), device=device)
    out = fade(clips, fade_in.to(device), fade_out.to(device), shapes).cpu().numpy()
    for row, (begin, end) in enumerate(zip(fade_in.tolist(), fade_out.tolist(), strict=True)):
        expected = clips[row].cpu().numpy().astype(np.float64)
        expected[:begin] *= gain(shape, begin)
        expected[T - end :] *= gain(shape, end)[::-1]
        np.testing.assert_allclose(out[row], expected, atol=1e-6)
    assert torch.equal(torch.from_numpy(out[3, 500:500]), clips[3, 500:500].cpu())


@pytest.mark.parametrize("shape", FADE_SHAPES)
def test_fade_agrees_with_torchaudio(shape: str) -> None:
    clips = noise(3, 1000)
    expected = torchaudio.transforms.Fade(300, 450, fade_shape=shape)(clips)
    shapes = torch.full((3,), FADE_SHAPES.index(shape))
    torch.testing.assert_close(fade(clips, torch.full((3,), 300), torch.full((3,), 450), shapes), expected)


def test_fade_ranges() -> None:
    fade_in, fade_out, shapes = Fade().draw(3000, RATE, seeded(), torch.device("cpu"))
    for side in (fade_in, fade_out):
        assert 0 <= side.min() < 100
        assert RATE // 2 - 100 < side.max() <= RATE // 2
    assert shapes.bincount().tolist() == pytest.approx([1000] * 3, abs=120)
    released = compose(["fade"], RATE, fade_shapes="released").augmentations[0]
    assert released.draw(3000, RATE, seeded(), torch.device("cpu"))[2].max() == 4


def test_mask_is_one_segment_of_noise_or_zeros(device: torch.device) -> None:
    T = RATE
    clips = noise(200, T, device) + 1  # never 0, so that what changed is what was masked
    out = TimeMask(probability=1)(clips, seeded(0, device))
    zeros = 0
    for clip, masked in zip(clips.cpu(), out.cpu(), strict=True):
        changed = (clip != masked).nonzero().squeeze(1)
        assert 1 <= len(changed) <= T // 8
        assert changed[-1] - changed[0] + 1 == len(changed)
        fill = masked[changed]
        zeros += bool((fill == 0).all())
        assert db(power(fill) / power(clip) + 1e-9) < -35 or len(changed) < 30
    assert zeros == pytest.approx(100, abs=30)


def test_released_mask_is_an_eighth_of_every_second_clip() -> None:
    clips = noise(400, 800) + 1
    masked = (compose(["time_mask"], RATE, probability=1, mask="released")(clips, seeded()) != clips).sum(1)
    assert set(masked.tolist()) == {0, 100}
    assert (masked > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    start, length, level = TimeMask(released=True).draw(4000, 80, seeded(), torch.device("cpu"))
    assert set(length.tolist()) == {0, 10}
    assert set(start[length > 0].tolist()) == set(range(71))
    assert level.isinf().float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_mask_of_given_place(device: torch.device) -> None:
    clips = noise(4, 800, device)
    start, length = torch.tensor([0, 790, 300, 5]), torch.tensor([10, 10, 100, 0])
    level = torch.tensor([-torch.inf, -torch.inf, -40, -40])
    out = time_mask(clips, start, length, level, seeded(0, device)).cpu().numpy()
    expected = clips.cpu().numpy().copy()
    expected[0, :10] = expected[1, 790:] = 0
    expected[2, 300:400] = out[2, 300:400]
    np.testing.assert_array_equal(out, expected)
    assert db(np.mean(out[2, 300:400] ** 2) / power(clips[2])) == pytest.approx(-40, abs=1.5)


def test_masks_reach_every_place() -> None:
    start, length, _ = TimeMask().draw(4000, 80, seeded(), torch.device("cpu"))
    assert set(length.tolist()) == set(range(1, 11))
    assert start.min() == 0
    assert (start + length).max() == 80


def test_time_shift_is_numpy_roll(device: torch.device) -> None:
    clips = noise(7, 1001, device)
    shifts = torch.tensor([0, 1, -1, 500, -500, 1001, -3000])
    out = time_shift(clips, shifts.to(device)).cpu().numpy()
    for row, shift in enumerate(shifts.tolist()):
        np.testing.assert_array_equal(out[row], np.roll(clips[row].cpu().numpy(), shift))


def test_time_shift_range() -> None:
    (shifts,) = TimeShift().draw(5000, 100, seeded(), torch.device("cpu"))
    assert (shifts.min(), shifts.max()) == (-50, 50)
