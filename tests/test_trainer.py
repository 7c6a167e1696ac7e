"""One trial: what it learns, what it refuses, and that being killed changes nothing."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clar import losses, trainer
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.meter import Cost
from clar.result import EpochRecord
from clar.seeds import derive, generator

SMALL: dict[str, Any] = {
    "dataset": "tones", "epochs": 3, "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-3, "warmup_epochs": 0,
    "hop_ms": 16, "bins": 16, "encoder_width": 4, "encoder_blocks": (1, 1, 1, 1), "projection_hidden": 32,
    "projection_dim": 16, "augmentations": ("fade", "white_noise"),
}  # fmt: skip


def train_both(config: TrialConfig, store: ClipStore, folder: Path, **options: Any) -> trainer.TrialResult:
    """The trial to its end, after its pre-training where it has one."""
    pretrained = None
    if (pretraining := config.pretraining()) is not None:
        trainer.train(pretraining, store, checkpoint_dir=folder)
        (folder / trainer.CHECKPOINT).unlink(missing_ok=True)
        pretrained = folder / trainer.ENCODER
    result = trainer.train(config, store, pretrained=pretrained, **options)
    assert result is not None
    return result


@pytest.mark.parametrize("input_", ["spectrogram", "raw"])
@pytest.mark.parametrize("loss", ["supervised", "self_supervised", "clar"])
def test_every_loss_and_input_learns_the_tones(tone_store: ClipStore, loss: str, input_: str) -> None:
    epochs = 8 if input_ == "raw" else 4
    heard: list[list[EpochRecord]] = []
    config = TrialConfig(**{**SMALL, "loss": loss, "input": input_, "epochs": epochs})
    result = trainer.train(config, tone_store, on_epoch=lambda epochs: heard.append(list(epochs)))
    assert result.test_top1 >= 0.7
    assert result.test_top5 == 1.0  # there are four classes
    assert (result.head_test_top1 is None) == (loss == "self_supervised")
    records = list(result.epochs)
    assert heard == [records[: count + 1] for count in range(epochs)]
    assert [record.epoch for record in records] == list(range(1, epochs + 1))
    assert records[-1].train_loss < records[0].train_loss
    assert records[-1].valid_top1 == result.valid_top1
    assert result.train_seconds > 0
    assert result.gpu_seconds == 0
    assert result.cpu_seconds is not None
    assert result.cpu_seconds > 0


@pytest.mark.parametrize("loss", ["supervised", "self_supervised", "clar"])
@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_any_label_fraction(tone_store: ClipStore, tmp_path: Path, loss: str, fraction: float) -> None:
    # One clip a class in 128: most batches of 4 hold no label at all.
    config = TrialConfig(**{**SMALL, "loss": loss, "label_fraction": fraction, "batch_size": 4, "epochs": 1})
    result = train_both(config, tone_store, tmp_path)
    assert all(math.isfinite(record.train_loss) for record in result.epochs)
    assert 0 <= result.test_top1 <= 1


def test_the_same_seed_gives_the_same_result_and_another_does_not(tone_store: ClipStore) -> None:
    config = TrialConfig(**{**SMALL, "epochs": 1})
    first, again, other = (trainer.train(c, tone_store) for c in (config, config, config.but(seed=1)))
    assert first.same_as(again)
    assert not first.same_as(other)


def test_training_uses_no_global_random_state(tone_store: ClipStore) -> None:
    config = TrialConfig(**{**SMALL, "epochs": 1})
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the point of the test
    before = torch.random.get_rng_state()
    first = trainer.train(config, tone_store)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert trainer.train(config, tone_store).same_as(first)


def test_no_epochs_evaluates_the_untrained_encoder(tone_store: ClipStore) -> None:
    result = trainer.train(TrialConfig(**{**SMALL, "epochs": 0}), tone_store)
    assert result.epochs == ()
    assert 0 <= result.valid_top1 <= 1


def test_probe_every_leaves_epochs_without_a_probe_but_never_the_last(tone_store: ClipStore) -> None:
    every = trainer.train(TrialConfig(**SMALL), tone_store)
    result = trainer.train(TrialConfig(**{**SMALL, "probe_every": 2}), tone_store)
    assert [record.valid_top1 is None for record in result.epochs] == [True, False, False]
    assert result.test_top1 == every.test_top1


def test_mixed_precision_trains(tone_store: ClipStore) -> None:
    result = trainer.train(TrialConfig(**{**SMALL, "precision": "bf16", "loss": "clar"}), tone_store)
    assert result.test_top1 >= 0.7


@pytest.mark.parametrize(("optimizer", "rate"), [("lars", 1), ("lamb", 10), ("released", 3e-3)])
def test_other_optimizers_and_warm_up_train(tone_store: ClipStore, optimizer: str, rate: float) -> None:
    fields = {"optimizer": optimizer, "learning_rate": rate, "warmup_epochs": 1, "loss": "supervised", "epochs": 6}
    result = trainer.train(TrialConfig(**{**SMALL, **fields}), tone_store)
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.test_top1 >= 0.7


def test_labelled_subset_is_stratified_nested_and_keyed_by_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [1000, 100, 7])
    subsets = {fraction: trainer.labelled_subset(labels, fraction, seed=3) for fraction in (0.01, 0.1, 0.2, 1.0)}
    assert [int(subset.sum()) for subset in subsets.values()] == [10 + 1 + 1, 100 + 10 + 1, 200 + 20 + 1, 1107]
    assert not (subsets[0.01] & ~subsets[0.1]).any()
    assert not (subsets[0.1] & ~subsets[0.2]).any()
    assert (trainer.labelled_subset(labels, 0.1, seed=4) != subsets[0.1]).any()
    assert (trainer.labelled_subset(labels, 0.1, seed=3) == subsets[0.1]).all()


def test_joint_loss_is_the_sum_of_its_parts_over_both_views() -> None:
    config = TrialConfig(**{**SMALL, "loss": "clar", "temperature": 0.1})
    head = trainer.heads.Head("clar", 8, 6, 5, 3)
    outputs = head(torch.randn(8, 8))
    labels = torch.tensor([0, losses.UNLABELLED, 2, losses.UNLABELLED])
    expected = losses.nt_xent(outputs.projection_BD[:4], outputs.projection_BD[4:], 0.1)
    kept = torch.tensor([0, 2, 4, 6])
    supervised = torch.nn.functional.cross_entropy(outputs.logits_BC[kept], torch.tensor([0, 2, 0, 2]))
    torch.testing.assert_close(trainer.joint_loss(outputs, labels, config), expected + supervised)
    weighted = config.but(cross_entropy_weight=2)
    torch.testing.assert_close(trainer.joint_loss(outputs, labels, weighted), expected + 2 * supervised)
    alone = trainer.heads.Outputs(None, outputs.logits_BC)
    torch.testing.assert_close(trainer.joint_loss(alone, labels, weighted), supervised)
    unlabelled = torch.full((4,), losses.UNLABELLED)
    torch.testing.assert_close(
        trainer.joint_loss(outputs, unlabelled, config),
        losses.nt_xent(outputs.projection_BD[:4], outputs.projection_BD[4:], 0.1),
    )


def test_each_view_has_its_own_augmentations(tone_store: ClipStore) -> None:
    clips = torch.rand(3, 4000) + 0.1
    for first, second in ((("time_shift",), ()), ((), ("time_shift",)), (("time_shift",), ("fade", "time_shift"))):
        fields = {"augmentations": first, "second_view": second, "augmentation_probability": 1}
        run = trainer.Run(TrialConfig(**{**SMALL, **fields}), tone_store, torch.device("cpu"), None)
        views = run.views(clips, 0).split(3)
        for view, names in zip(views, (first, second), strict=True):
            assert torch.equal(view, clips) == (not names)
            total = view.sum(1) - clips.sum(1)  # a shift leaves the sum, a fade does not
            assert (total.abs() < 0.1).all() == ("fade" not in names)
    same = trainer.Run(TrialConfig(**SMALL), tone_store, torch.device("cpu"), None)
    expected = same.augment(clips.repeat(2, 1), generator(0, "augment", 0))
    assert torch.equal(same.views(clips, 0), expected)


def test_a_loss_that_is_not_finite_stops_the_trial_with_the_evidence(tone_store: ClipStore) -> None:
    config = TrialConfig(**{**SMALL, "loss": "supervised", "learning_rate": 1e30})
    with pytest.raises(trainer.NonFiniteLoss) as caught:
        trainer.train(config, tone_store)
    said = str(caught.value)
    assert "epoch 1, step 2 of 8" in said
    assert "learning rate" in said
    assert "last losses: 1." in said


# Changes that `canonical` says are none: what the trial is, and what is changed.
WITHOUT_INFLUENCE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "raw has no front end": (
        {"input": "raw"}, {"front_end": "released", "window_ms": 30, "hop_ms": 4, "bins": 32, "channels": ("mel",)},
    ),
    "a spectrogram has no 1-D encoder": ({}, {"encoder": "released"}),
    "supervised has no projection": ({"loss": "supervised"}, {"temperature": 0.1, "projection_dim": 8}),
    "one part of the loss": ({"loss": "supervised"}, {"cross_entropy_weight": 2}),
    "no second stage": ({}, {"finetune_epochs": 7, "finetune_learning_rate": 1.0}),
    "own window": ({}, {"window_ms": 16}),
    "own window, released": ({"front_end": "released"}, {"window_ms": 128}),
    "own hop": ({"hop_ms": None}, {"hop_ms": 8}),
    "no fade": ({"augmentations": ("white_noise",)}, {"fade_shapes": "released"}),
    "no augmentation": (
        {"augmentations": ()}, {"augmentation_probability": 0.9, "augmentation_strength": 2, "fade_shapes": "released"},
    ),
    "augmentations that never act": (
        {"augmentations": ("time_shift",)},
        {"augmentations": ("fade", "time_shift", "white_noise"), "augmentation_probability": (0, 0.5, 0.5),
         "augmentation_strength": (2, 1, 0), "fade_shapes": "released"},
    ),
    "a second view as the first": ({"augmentations": ("fade",)}, {"second_view": ("fade",)}),
    "two views that nothing changes": (
        {"augmentations": ()}, {"augmentations": ("fade",), "second_view": ("time_shift",), "augmentation_strength": 0},
    ),
    "probes after the last epoch": ({"probe_every": 2}, {"probe_every": 9}),
    "an untrained encoder": (
        {"epochs": 0},
        {"batch_size": 8, "optimizer": "lars", "learning_rate": 1, "weight_decay": 1, "warmup_epochs": 1,
         "temperature": 0.1, "cross_entropy_weight": 2, "probe_every": 2,
         "augmentations": ("time_shift", "fade", "fade"),
         "augmentation_probability": 0.1, "augmentation_strength": 0.1, "fade_shapes": "released"},
    ),
    "an untrained encoder's head": (
        {"epochs": 0, "loss": "self_supervised"}, {"head": "released", "projection_hidden": 8, "projection_dim": 8},
    ),
    "an untrained encoder, fine-tuned": (
        {"epochs": 0, "loss": "finetune"},
        {"learning_rate": 1, "warmup_epochs": 1, "temperature": 0.1, "projection_dim": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", WITHOUT_INFLUENCE)
def test_what_has_no_influence_changes_neither_identity_nor_result(
    tone_store: ClipStore, tmp_path: Path, rule: str
) -> None:
    fields, changes = WITHOUT_INFLUENCE[rule]
    config = TrialConfig(**{**SMALL, "epochs": 2, "finetune_epochs": 1, "finetune_learning_rate": 1e-3, **fields})
    changed = config.but(**changes)
    assert changed != config
    assert changed.identity() == config.identity()
    results = [train_both(one, tone_store, tmp_path) for one in (config, changed, config.canonical())]
    assert results[0].same_as(results[1])
    assert results[0].same_as(results[2])


def test_too_large_a_batch_is_named(tone_store: ClipStore) -> None:
    with pytest.raises(UserError, match="batch_size = 129 is more than the 128 training clips of tones"):
        trainer.train(TrialConfig(**{**SMALL, "batch_size": 129}), tone_store)


def test_a_checkpoint_of_another_trial_or_a_damaged_one_is_refused(tone_store: ClipStore, tmp_path: Path) -> None:
    config = TrialConfig(**{**SMALL, "epochs": 1})
    trainer.train(config, tone_store, checkpoint_dir=tmp_path)
    with pytest.raises(UserError, match="is of trial"):
        trainer.train(config.but(seed=5), tone_store, checkpoint_dir=tmp_path)
    path = tmp_path / trainer.CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        trainer.train(config, tone_store, checkpoint_dir=tmp_path)


def test_encoder_file_gives_the_trained_representation(tone_store: ClipStore, tmp_path: Path) -> None:
    config = TrialConfig(**{**SMALL, "epochs": 1})
    trainer.train(config, tone_store, checkpoint_dir=tmp_path)
    loaded = trainer.load_encoder(tmp_path / trainer.ENCODER)
    assert loaded.config == config
    assert (loaded.sample_rate, loaded.clip_samples) == (16_000, 4000)
    state = torch.load(tmp_path / trainer.CHECKPOINT, weights_only=True)["model"]
    for name, tensor in loaded.module[1].state_dict().items():
        assert torch.equal(tensor, state[f"encoder.{name}"])
    with torch.inference_mode():
        assert loaded.module(torch.zeros(2, 4000)).shape == (2, 32)
    with pytest.raises(UserError, match="no encoder at"):
        trainer.load_encoder(tmp_path / "absent")
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(UserError, match="is not an encoder written by clar"):
        trainer.load_encoder(tmp_path / "text")


@pytest.mark.parametrize("input_", ["spectrogram", "raw"])
def test_everything_as_released_trains_and_is_loaded_again(tone_store: ClipStore, tmp_path: Path, input_: str) -> None:
    variants = dict.fromkeys(("front_end", "encoder", "head", "fade_shapes", "mask", "coloured_noise"), "released")
    config = TrialConfig(**{
        **SMALL, **variants, "input": input_, "optimizer": "released", "stretch": "resampled", "epochs": 2,
        "augmentations": ("time_stretch", "mixed_noise"), "second_view": ("fade", "time_mask"),
        "channels": ("magnitude", "mel"), "cross_entropy_weight": 2,
    })  # fmt: skip
    result = trainer.train(config, tone_store, checkpoint_dir=tmp_path)
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    loaded = trainer.load_encoder(tmp_path / trainer.ENCODER)
    assert loaded.config == config
    assert loaded.module(torch.zeros(2, 4000)).shape == (2, 32)


def test_seeds_are_keyed_by_seed_and_purpose() -> None:
    keys = {derive(seed, *purpose) for seed in (0, 1) for purpose in (("a",), ("a", 0), ("a", 1), ("b",))}
    assert len(keys) == 8
    assert derive(0, "a", 1) == derive(0, "a", 1)
    assert torch.equal(torch.rand(3, generator=generator(0, "x")), torch.rand(3, generator=generator(0, "x")))


_TRAIN_IN_A_PROCESS = """
import dataclasses, json, sys, torch
from pathlib import Path
from clar import trainer
from clar.clips import ClipStore
from clar.config import TrialConfig
torch.set_num_threads(1)
config = TrialConfig(**json.loads(sys.argv[1]))
result = trainer.train(
    config, ClipStore.open(Path(sys.argv[2])), "cpu", Path(sys.argv[3]), max_lost=0,
    pretrained=Path(sys.argv[4]) if sys.argv[4] else None,
)
Path(sys.argv[3], "result.json").write_text(json.dumps(dataclasses.asdict(result)))
"""


def _train_in_a_process(
    config: TrialConfig, store: ClipStore, folder: Path, kill_after: int | None, pretrained: Path | None = None
) -> None:
    """Run the trial; with `kill_after`, SIGKILL it once its checkpoint has changed that often."""
    arguments = [config.model_dump_json(), str(store.path), str(folder), str(pretrained or "")]
    process = subprocess.Popen([sys.executable, "-c", _TRAIN_IN_A_PROCESS, *arguments])
    checkpoint, seen, last = folder / trainer.CHECKPOINT, 0, None
    while kill_after is not None and process.poll() is None and seen < kill_after:
        stamp = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        seen, last = seen + (stamp != last), stamp
        time.sleep(0.001)
    if kill_after is not None:
        assert process.poll() is None, "the trial ended before it was killed"
        os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == (0 if kill_after is None else -signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["clar", "self_supervised", "finetune"])
def test_killed_anywhere_and_started_again_gives_the_same_bits(
    tone_store: ClipStore, tmp_path: Path, loss: str
) -> None:
    """SIGKILL inside epochs and at their ends, with a checkpoint after every step; at last after all epochs."""
    config = TrialConfig(
        **{**SMALL, "loss": loss, "optimizer": "lars" if loss == "clar" else "adamw", "epochs": 4, "warmup_epochs": 1,
           "augmentations": ("pitch_shift", "mixed_noise"), "label_fraction": 1 if loss == "self_supervised" else 0.5,
           "augmentation_strength": (0.5, 1.5), "finetune_epochs": 4, "finetune_learning_rate": 1e-3}
    )  # fmt: skip
    pretrained = None
    if (pretraining := config.pretraining()) is not None:
        trainer.train(pretraining, tone_store, checkpoint_dir=tmp_path)
        pretrained = tmp_path / trainer.ENCODER
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    _train_in_a_process(config, tone_store, undisturbed, None, pretrained)
    for kill_after in (3, 8, 13):
        _train_in_a_process(config, tone_store, killed, kill_after, pretrained)
    _train_in_a_process(config, tone_store, killed, None, pretrained)
    # As if killed once more, between the last checkpoint and the result.
    for name in (trainer.ENCODER, "result.json"):
        (killed / name).unlink()
    _train_in_a_process(config, tone_store, killed, None, pretrained)
    results = [_read_result(folder) for folder in (undisturbed, killed)]
    assert results[0].same_as(results[1])
    encoders = [(folder / trainer.ENCODER).read_bytes() for folder in (undisturbed, killed)]
    assert encoders[0] == encoders[1]
    states = [torch.load(folder / trainer.CHECKPOINT, weights_only=True) for folder in (undisturbed, killed)]
    assert all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in states[0]["model"])
    moments = [state["optimizer"]["state"] for state in states]
    for index, values in moments[0].items():
        assert values.keys() == moments[1][index].keys()
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[1][index][name]))


@pytest.mark.slow
def test_a_killed_trial_s_cpu_seconds_are_those_of_all_its_parts(tone_store: ClipStore, tmp_path: Path) -> None:
    config = TrialConfig(**{**SMALL, "epochs": 4})
    _train_in_a_process(config, tone_store, tmp_path, 20)
    first = torch.load(tmp_path / trainer.CHECKPOINT, weights_only=True)
    began = time.process_time()
    result = trainer.train(config, tone_store, checkpoint_dir=tmp_path)
    second = time.process_time() - began
    assert result is not None
    assert result.cpu_seconds is not None
    assert first["cpu_seconds"] > 0.05
    # The second part's scores on test are not counted.
    assert 0.5 * second < result.cpu_seconds - first["cpu_seconds"] <= second


class CountedMeter:
    """Each reading costs 1 CPU second and 2 J."""

    def __init__(self, device: torch.device, gpu_share: float) -> None:
        pass

    def read(self) -> Cost:
        return Cost(1.0, 2.0)


@pytest.mark.parametrize("checkpoint", ["new", "old", "none"])
def test_costs_run_on_from_the_checkpoint(
    tone_store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str
) -> None:
    undisturbed = trainer.train(TrialConfig(**SMALL), tone_store)
    monkeypatch.setattr(trainer, "Meter", CountedMeter)
    folder = None if checkpoint == "none" else tmp_path
    if folder:
        assert trainer.train(TrialConfig(**SMALL), tone_store, checkpoint_dir=folder, until=1) is None
    if checkpoint == "old":
        path = tmp_path / trainer.CHECKPOINT
        content = torch.load(path, weights_only=True)
        del content["cpu_seconds"], content["energy_joules"]
        torch.save(content, path)
    result = trainer.train(TrialConfig(**SMALL), tone_store, checkpoint_dir=folder)
    assert result is not None
    # Read after each of three epochs and at the end; an old checkpoint does not say what the first epoch took.
    expected = {"new": (4.0, 8.0), "old": (3.0, None), "none": (4.0, 8.0)}
    assert (result.cpu_seconds, result.energy_joules) == expected[checkpoint]
    assert result.same_as(undisturbed)


def _read_result(folder: Path) -> trainer.TrialResult:
    import json

    content = json.loads((folder / "result.json").read_text())
    return trainer.TrialResult(**{**content, "epochs": tuple(EpochRecord(**record) for record in content["epochs"])})


def large(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Have every store count as larger than the memory; gives what is asked of the disk beforehand."""
    asked: list[np.ndarray] = []
    monkeypatch.setattr(trainer.local, "free_memory", lambda: 1000)
    monkeypatch.setattr(ClipStore, "will_need", lambda store, indices: asked.append(indices))
    return asked


def test_a_store_larger_than_memory_is_read_ahead_and_gives_the_same(
    tone_store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrialConfig(**{**SMALL, "loss": "clar"})
    said: list[str] = []
    mapped = trainer.train(config, tone_store, say=said.append)
    asked = large(monkeypatch)
    ahead = trainer.train(config, tone_store, say=said.append)
    assert mapped
    assert ahead
    assert mapped.test_top1 == ahead.test_top1
    assert [record.train_loss for record in mapped.epochs] == [record.train_loss for record in ahead.epochs]
    assert asked
    assert said[0].startswith("tones, 0.0015 GB: memory-mapped (")
    assert said[1:] == [
        "tones, 0.0015 GB: read ahead from the disk (1e-06 GB of memory free)",
    ]


def test_clips_are_those_that_are_asked_for_whatever_was_read_ahead(
    tone_store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = large(monkeypatch)
    clips = trainer.Clips(tone_store, torch.device("cpu"))
    rows = [np.array([1, 5, 9]), np.array([2, 4]), np.array([7])]

    def wanted(indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tone_store.clips[indices]).float() / 32768

    assert torch.equal(clips(rows[0], rows[1]), wanted(rows[0]))
    assert torch.equal(clips(rows[1], rows[2]), wanted(rows[1]))
    assert torch.equal(clips(rows[0]), wanted(rows[0]))  # not what was announced
    assert torch.equal(clips(rows[2]), wanted(rows[2]))
    assert [batch.tolist() for batch in asked] == [[1, 5, 9], [2, 4], [7], [1, 5, 9], [7]]


def test_the_system_hears_of_clips_before_they_are_read(tone_store: ClipStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where memory has room for all: page by page, the first epoch of a store on a disk would take for ever."""
    asked = large(monkeypatch)
    monkeypatch.setattr(trainer.local, "free_memory", lambda: 10**12)
    clips = trainer.Clips(tone_store, torch.device("cpu"))
    assert not clips.ahead
    rows = np.array([1, 5, 9]), np.array([2, 4])
    clips(*rows)
    assert [batch.tolist() for batch in asked] == [[1, 5, 9], [2, 4]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("room", [0.0, 1e12])
def test_on_a_gpu_the_store_moves_there_once_or_is_read_ahead(
    tone_store: ClipStore, monkeypatch: pytest.MonkeyPatch, room: float
) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(trainer, "_on_gpu", {})
    monkeypatch.setattr(trainer, "gpu_room", lambda device, share: room)
    clips, again = trainer.Clips(tone_store, device), trainer.Clips(tone_store, device)
    assert (clips.on_device is None) == (room == 0)
    assert clips.on_device is again.on_device
    assert ("on the GPU" if room else "pinned memory") in clips.placement
    rows = [np.arange(0, 64), np.arange(64, 128), np.arange(5)]
    for indices, following in zip(rows, [*rows[1:], None], strict=True):
        wanted = torch.from_numpy(tone_store.clips[indices]).float() / 32768
        assert torch.equal(clips(indices, following).cpu(), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("input_", ["spectrogram", "raw"])
def test_a_gpu_learns_the_tones_too(tone_store: ClipStore, tmp_path: Path, input_: str, precision: str) -> None:
    config = TrialConfig(**{**SMALL, "loss": "clar", "input": input_, "precision": precision, "epochs": 8})
    result = trainer.train(config, tone_store, "cuda", tmp_path)
    assert result.test_top1 >= 0.7
    assert result.gpu_seconds == result.train_seconds > 0
    assert result.energy_joules is not None
    assert result.energy_joules > 0
