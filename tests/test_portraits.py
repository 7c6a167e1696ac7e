"""The portraits: what is heard and seen is what the augmentations do, made once, and the same again."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Generator, Tensor

from analysis import portraits
from clar import augment, building, encoders, trainer
from clar.cli import command
from clar.clips import ClipStore
from clar.config import AUGMENTATIONS, TrialConfig
from clar.errors import UserError
from tests.conftest import TONES, tones

SMALL = TrialConfig(encoder_width=2, encoder_blocks=(1, 1, 1, 1), bins=16)


@pytest.fixture(scope="module")
def trial(tone_store: ClipStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's folder with an encoder that has learnt nothing."""
    return untrained(tone_store, tmp_path_factory.mktemp("trial"))


@pytest.fixture(scope="module")
def made(tone_store: ClipStore, trial: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All portraits of the tones."""
    folder = tmp_path_factory.mktemp("portraits")
    assert portraits.make(tone_store, folder, AUGMENTATIONS, trial, "tones")
    return folder


def untrained(store: ClipStore, folder: Path) -> Path:
    torch.manual_seed(0)
    encoder = encoders.make(SMALL.input, SMALL.encoder_width, SMALL.encoder_blocks)
    trainer.save_encoder(folder / trainer.ENCODER, encoder, SMALL, store)
    return folder


def read(folder: Path) -> dict:
    return json.loads((folder / portraits.PORTRAITS).read_text())


def example(folder: Path, name: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """What is said of an example, and its two sounds as int16."""
    (about,) = (one for one in read(folder)["examples"] if one["name"] == name)
    before, after = (soundfile.read(folder / about[side], dtype="int16")[0] for side in ("before", "after"))
    return about, before, after


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["portraits", *map(str, arguments)])
    return command(portraits.app)


# --- examples ---------------------------------------------------------------------------------------------------------


def test_the_list_names_all_that_lies_there(made: Path) -> None:
    about = read(made)
    assert {*about["files"], portraits.PORTRAITS} == {path.name for path in made.iterdir()}
    assert [one["name"] for one in about["examples"]] == list(AUGMENTATIONS)
    for one in about["examples"]:
        assert re.fullmatch(r"[A-Z][^.]+\.", one["description"])
        assert one["text"] == f"{one['description']} Here: {one['parameters']}."
        for key, kind in (("before", "-before.wav"), ("after", "-after.wav"), ("picture", ".png"), ("vector", ".svg")):
            assert one[key] == f"example-{one['name']}{kind}"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_example_is_a_sound_of_the_clips_rate_and_length(name: str, made: Path, tone_store: ClipStore) -> None:
    about, before, after = example(made, name)
    for side in ("before", "after"):
        info = soundfile.info(made / about[side])
        assert (info.samplerate, info.frames, info.channels, info.subtype) == (16_000, 4000, 1, "PCM_16")
    assert after.any()
    assert not np.array_equal(before, after)
    # Nothing here passes full scale: what is heard before is a training clip, sample for sample.
    train = tone_store.split("train")
    assert (tone_store.clips[train] == before).all(axis=1).sum() == 1


def test_a_shift_is_a_roll_by_what_is_said(made: Path) -> None:
    about, before, after = example(made, "time_shift")
    shifts = [shift for shift in range(-2000, 2001) if np.array_equal(np.roll(before, shift), after)]
    (shift,) = shifts
    assert about["parameters"] == f"{abs(shift) / 16_000:.2f} s {'later' if shift > 0 else 'earlier'}"
    assert abs(shift) >= 1000


def test_noise_is_as_loud_as_is_said(made: Path) -> None:
    for name in ("white_noise", "mixed_noise"):
        about, before, after = (np.asarray(part, dtype=float) if i else part
                                for i, part in enumerate(example(made, name)))  # fmt: skip
        said = re.fullmatch(r"(?:(?:white|pink|brown) noise, )?SNR (\d+\.\d) dB", about["parameters"])
        assert said
        ratio = 10 * np.log10(np.mean(before**2) / np.mean((after - before) ** 2))
        assert float(said[1]) == pytest.approx(ratio, abs=0.06)
        assert 0 <= float(said[1]) <= 10


def test_a_mask_lies_where_is_said_and_nowhere_else(made: Path) -> None:
    about, before, after = example(made, "time_mask")
    said = re.fullmatch(r"(\d\.\d\d) s from (\d\.\d\d) s on, (zeros|noise 40 dB below the clip)", about["parameters"])
    assert said
    changed = np.flatnonzero(before != after)
    length = (changed[-1] - changed[0] + 1) / 16_000
    assert length == pytest.approx(float(said[1]), abs=0.006)
    assert changed[0] / 16_000 == pytest.approx(float(said[2]), abs=0.006)
    assert 1 / 16 - 0.002 < length / 0.25 <= 1 / 8
    assert np.std(after[changed]) < 0.02 * np.std(before[changed])


def test_a_pitch_moves_as_far_as_is_said(made: Path) -> None:
    about, before, after = example(made, "pitch_shift")
    said = re.fullmatch(r"([+−]\d+\.\d) semitones", about["parameters"])
    assert said
    semitones = float(said[1].replace("−", "-"))
    assert 7.5 <= abs(semitones) <= 15
    was, now = (float(np.abs(np.fft.rfft(sound * np.hanning(4000))).argmax()) for sound in (before, after))
    assert 12 * np.log2(now / was) == pytest.approx(semitones, abs=0.6)


def test_the_other_draws_lie_far_in_their_range(made: Path) -> None:
    rate = float(example(made, "time_stretch")[0]["parameters"].removesuffix(" times the speed"))
    assert 0.25 <= abs(rate - 1) <= 0.5
    said = re.fullmatch(
        r"fade-in (\d\.\d\d) s, fade-out (\d\.\d\d) s, (linear|logarithmic|exponential)",
        example(made, "fade")[0]["parameters"],
    )
    assert said
    assert all(0.09 <= float(side) <= 0.125 for side in said.groups()[:2])


def test_both_sounds_are_turned_down_alike_where_one_passes_full_scale(tmp_path: Path) -> None:
    store = building.build(tmp_path / "store", tones(24, 2000, noise=0.6))
    portraits.make(store, tmp_path / "out", ["white_noise"])
    _, before, after = example(tmp_path / "out", "white_noise")
    assert np.abs(after.astype(int)).max() >= 32767
    # The loudest sample of each clip is clipped noise: full scale before it was turned down.
    level = 32768 / np.abs(before.astype(int)).max()
    assert level > 1.2
    closest = min(np.abs(clip - level * before).max() for clip in store.clips[store.split("train")].astype(float))
    assert closest <= level


def test_the_clip_is_not_one_of_the_quiet_ones(tone_store: ClipStore, tmp_path: Path) -> None:
    source = tones()
    quiet = np.arange(192) < 80

    def decode(start: int, stop: int) -> tuple[np.ndarray, list[str | None]]:
        decoded, reasons = source.decode(start, stop)
        return np.where(quiet[start:stop, None], decoded // 100, decoded), reasons

    store = building.build(tmp_path / "store", replace(source, name="quiet", decode=decode))
    clip = portraits._clear_clip(store)
    (index,) = np.flatnonzero((store.clips == np.rint(clip * 32768)).all(axis=1))
    assert index >= 80
    assert index in store.split("train")


def test_an_augmentation_of_the_users_own_is_shown(
    tone_store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Halve(augment.Augmentation):
        """Half as loud.

        And more about it.
        """

        def draw(self, B: int, T: int, generator: Generator, device: torch.device) -> tuple[Tensor, ...]:
            return ()

        def apply(self, clips_BT: Tensor, generator: Generator, *parameters: Tensor) -> Tensor:
            return clips_BT / 2

    monkeypatch.setitem(augment.REGISTRY, "halve", Halve)
    portraits.make(tone_store, tmp_path, ["halve"])
    about, before, after = example(tmp_path, "halve")
    assert (about["description"], about["parameters"], about["text"]) == ("Half as loud.", "", "Half as loud.")
    assert np.abs(before - 2.0 * after).max() <= 1


def test_the_papers_augmentations_are_described() -> None:
    assert tuple(portraits.PORTRAITS_OF) == AUGMENTATIONS


# --- the map ----------------------------------------------------------------------------------------------------------


def test_the_map_holds_the_test_clips(made: Path, tone_store: ClipStore) -> None:
    about = read(made)["embedding_map"]
    assert about.pop("text").startswith("Each mark is a test clip, placed by t-SNE")
    assert about == {
        "title": "tones (32 clips, t-SNE)", "method": "t-SNE", "clips": 32,
        "csv": "embedding_map.csv", "picture": "embedding_map.png",
        "vector": "embedding_map.svg",
    }  # fmt: skip
    with open(made / "embedding_map.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["x", "y", "label"]
    labels = tone_store.labels[tone_store.split("test")]
    assert [row["label"] for row in rows] == [tone_store.classes[label] for label in labels]
    points = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    assert len(np.unique(points, axis=0)) == 32
    assert ">tones (32 clips, t-SNE)</text>" in (made / "embedding_map.svg").read_text()
    for name in TONES:
        assert f">{name}</text>" in (made / "embedding_map.svg").read_text()


def test_groups_far_apart_stay_apart_on_the_map() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(60) % 2
    representations = (rng.normal(size=(60, 8)) + 12 * group[:, None]).astype(np.float32)
    points, method = portraits.layout(representations)
    assert (points.shape, method) == ((60, 2), "t-SNE")
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (group[distance.argmin(axis=1)] == group).all()
    centres = np.array([points[group == one].mean(axis=0) for one in (0, 1)])
    spread = max(np.linalg.norm(points[group == one] - centres[one], axis=1).max() for one in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 1.2 * spread


def test_few_clips_are_laid_out_by_principal_components() -> None:
    rng = np.random.default_rng(1)
    representations = rng.normal(size=(9, 5)).astype(np.float32)
    points, method = portraits.layout(representations)
    assert (points.shape, method) == ((9, 2), "PCA")
    scaled = (representations - representations.mean(0)) / representations.std(0)
    variances = np.linalg.eigvalsh(np.cov(scaled.T))[::-1]
    assert points.var(axis=0, ddof=1) == pytest.approx(variances[:2], rel=1e-5)


@pytest.mark.parametrize(("clips_n", "dimensions"), [(1, 4), (40, 1), (2, 1)])
def test_what_has_no_plane_is_laid_out_on_a_line(clips_n: int, dimensions: int) -> None:
    representations = np.arange(clips_n * dimensions, dtype=np.float32).reshape(clips_n, dimensions)
    points, method = portraits.layout(representations)
    assert (points.shape, method) == ((clips_n, 2), "PCA")
    assert (points[:, 1] == 0).all()
    assert len(np.unique(points[:, 0].round(9))) == clips_n


def test_an_encoder_that_sees_no_difference_makes_one_point() -> None:
    points, method = portraits.layout(np.full((30, 4), 0.1, np.float32))
    assert method == "PCA"
    assert (points == 0).all()


def test_a_part_of_the_clips_has_the_same_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    index = np.random.default_rng(0).permutation(1000)[:900]
    index.sort()
    chosen = portraits._spread(index, labels, 90)
    assert len(np.unique(chosen)) == 90
    assert set(chosen) <= set(index)
    assert (np.diff(chosen) > 0).all()
    wanted = np.bincount(labels[index]) / 10
    assert np.abs(np.bincount(labels[chosen]) - wanted).max() <= 1
    assert np.array_equal(portraits._spread(index, labels, 1000), index)


# --- made once --------------------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes(made: Path, tone_store: ClipStore, trial: Path, tmp_path: Path) -> None:
    command_line = [sys.executable, "-m", "analysis.portraits", "--store", str(tone_store.path), "--out", str(tmp_path)]
    more = ["--trial", str(trial), "--title", "tones", "--augmentation", "all"]
    done = subprocess.run([*command_line, *more], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / portraits.PORTRAITS}: written\n"
    assert done.stderr == ""
    assert contents(tmp_path) == contents(made)


def test_what_is_made_is_not_made_again(
    made: Path, tone_store: ClipStore, trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert not portraits.make(tone_store, made, AUGMENTATIONS, trial, "tones")
    arguments = ["--store", tone_store.path, "--out", made, "--trial", trial, "--title", "tones"]
    assert run(monkeypatch, *arguments, *(word for name in AUGMENTATIONS for word in ("--augmentation", name))) == 0
    assert capsys.readouterr().out == f"{made / portraits.PORTRAITS}: nothing to do\n"
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before
    code = (
        "import sys; from pathlib import Path; from analysis import portraits; from clar.clips import ClipStore; "
        "store, out, trial = sys.argv[1:]; "
        "made = portraits.make(ClipStore.open(store), Path(out), portraits.AUGMENTATIONS, Path(trial), 'tones'); "
        "print(made, *sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tone_store.path), str(made), str(trial)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_other_inputs_and_lost_files_are_made_again(tone_store: ClipStore, trial: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "trial"
    shutil.copytree(trial, other)

    def make(names: list[str], encoder: Path | None = None) -> bool:
        return portraits.make(tone_store, folder, names, encoder)

    assert make(["fade"])
    assert not make(["fade", "fade"])
    (folder / "example-fade.svg").unlink()
    assert make(["fade"])
    assert (folder / "example-fade.svg").exists()
    (folder / portraits.PORTRAITS).write_text('{"inputs": ')
    assert make(["fade"])
    assert make([], other)
    assert not make([], other)
    torch.manual_seed(1)
    encoder = encoders.make(SMALL.input, SMALL.encoder_width, SMALL.encoder_blocks)
    trainer.save_encoder(other / trainer.ENCODER, encoder, SMALL, tone_store)
    assert make([], other)


def test_a_run_that_breaks_off_leaves_no_list(
    tone_store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert portraits.make(tone_store, tmp_path, ["fade"])

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(portraits, "_write_wav", interrupt)
    with pytest.raises(KeyboardInterrupt):
        portraits.make(tone_store, tmp_path, ["time_shift"])
    assert not (tmp_path / portraits.PORTRAITS).exists()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_mistake_is_said_in_one_line(
    tone_store: ClipStore, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    damaged = tmp_path / "damaged"
    shutil.copytree(tone_store.path, damaged)
    (damaged / "labels.npy").write_bytes(b"x" * (damaged / "labels.npy").stat().st_size)
    text = tmp_path / "text"
    text.mkdir()
    (text / trainer.ENCODER).write_text("no weights")
    shorter = building.build(tmp_path / "shorter", tones(24, 2000))
    silence = building.build(
        tmp_path / "silence", replace(tones(24, 2000), name="silence",
                                      decode=lambda start, stop: (np.zeros((stop - start, 2000), np.int16),
                                                                  [None] * (stop - start))),
    )  # fmt: skip
    (tmp_path / "file").write_text("")
    store = ["--store", tone_store.path, "--out", out]
    mistakes: list[tuple[list[object], str]] = [
        (["--store", tmp_path / "absent", "--out", out], "no clip store at"),
        (["--store", damaged, "--out", out], "is damaged"),
        (["--store", silence.path, "--out", out, "--augmentation", "fade"], "silent"),
        ([*store, "--trial", tmp_path / "absent"], "no encoder at"),
        ([*store, "--trial", tmp_path], "no encoder at"),
        ([*store, "--trial", text], "is not an encoder written by clar"),
        (["--store", shorter.path, "--out", out, "--trial", trial], "takes clips of 4,000 samples at 16,000 Hz"),
        ([*store, "--augmentation", "fadde"], "no augmentation 'fadde'; did you mean fade?"),
        (["--store", tone_store.path, "--out", tmp_path / "file", "--augmentation", "fade"], "name another folder"),
        (["--out", out], "Missing option '--store'"),
    ]
    for arguments, message in mistakes:
        assert run(monkeypatch, *arguments) == 2, arguments
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert not (out / portraits.PORTRAITS).exists()


def test_an_encoder_of_nan_is_a_mistake(tone_store: ClipStore, tmp_path: Path) -> None:
    encoder = encoders.make(SMALL.input, SMALL.encoder_width, SMALL.encoder_blocks)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(float("nan"))
    trainer.save_encoder(tmp_path / trainer.ENCODER, encoder, SMALL, tone_store)
    with pytest.raises(UserError, match="not finite"):
        portraits.make(tone_store, tmp_path / "out", [], tmp_path)


def test_the_encoders_file_is_found_where_the_trainer_puts_it(tmp_path: Path) -> None:
    assert portraits._encoder_file(tmp_path) == tmp_path / trainer.ENCODER
    assert portraits._encoder_file(tmp_path / "a") == tmp_path / "a"
