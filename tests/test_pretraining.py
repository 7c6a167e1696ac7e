"""Trials that start from another's encoder, that pause or stop, and several processes at one storage."""

import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from clar import trainer
from clar.clips import ClipStore
from clar.config import RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.result import EpochRecord, SweepFolder, TrialFolder, TrialResult
from clar.train import Elsewhere, run

SMALL: dict[str, Any] = {
    "dataset": "tones", "epochs": 3, "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-3, "warmup_epochs": 0,
    "hop_ms": 16, "bins": 16, "encoder_width": 4, "encoder_blocks": (1, 1, 1, 1), "projection_hidden": 32,
    "projection_dim": 16, "augmentations": ("fade", "white_noise"), "loss": "self_supervised", "finetune_epochs": 3,
    "finetune_learning_rate": 3e-3,
}  # fmt: skip


def folder_of(storage: Path, store: ClipStore, **fields: Any) -> TrialFolder:
    return TrialFolder(storage, TrialConfig(**{**SMALL, **fields}), store.fingerprint)


def finished(folder: TrialFolder, store: ClipStore, **options: Any) -> TrialResult:
    result = run(folder, store, **options)
    assert result is not None
    return result


def weights(folder: TrialFolder) -> dict[str, torch.Tensor]:
    return trainer.load_encoder(folder.path / trainer.ENCODER).module[1].state_dict()


# --- self-supervised, with a share of the labels ----------------------------------------------------------------------


def test_label_fractions_share_one_pretraining_and_differ_in_the_probe(tone_store: ClipStore, tmp_path: Path) -> None:
    heard: list[EpochRecord] = []
    few = folder_of(tmp_path, tone_store, label_fraction=0.05)
    result = finished(few, tone_store, on_epoch=heard.append)
    assert heard == []
    assert result.epochs == ()
    whole = few.pretraining()
    assert whole is not None
    assert whole.identity == folder_of(tmp_path, tone_store).identity
    assert whole.pretraining() is None
    assert len(whole.epochs()) == 3
    token = whole.run_token()
    more = folder_of(tmp_path, tone_store, label_fraction=0.5)
    finished(more, tone_store)
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {few.identity, more.identity, whole.identity}
    assert whole.run_token() == token
    for folder in (few, more):
        assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(folder).items())
    # With one label a class the probe is another.
    assert result.probe_l2 != whole.result().probe_l2 or result.valid_top1 != whole.result().valid_top1


def test_probing_a_share_gives_what_training_it_whole_would_have(tone_store: ClipStore, tmp_path: Path) -> None:
    """The labels that training never saw cannot matter: train as if all were wanted, then probe with a share."""
    few = folder_of(tmp_path, tone_store, label_fraction=0.3)
    result = finished(few, tone_store)
    whole = TrialConfig(**SMALL)
    held = trainer.Run(whole, tone_store, torch.device("cpu"), None)
    while held.step < held.total_steps:
        held.train_step()
    seen = trainer.labelled_subset(tone_store.labels[tone_store.split("train")], 0.3, seed=0)
    held.train_labels[torch.from_numpy(~seen)] = trainer.losses.UNLABELLED
    assert held.finish(None).same_as(result)


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_finetuning_goes_on_from_the_pretrained_encoder(tone_store: ClipStore, tmp_path: Path) -> None:
    heard: list[EpochRecord] = []
    folder = folder_of(tmp_path, tone_store, loss="finetune", label_fraction=0.5)
    result = finished(folder, tone_store, on_epoch=heard.append)
    assert [record.epoch for record in heard] == [1, 2, 3]
    assert list(result.epochs) == heard == folder.epochs()
    assert result.head_test_top1 is not None
    assert result.test_top1 >= 0.7
    assert heard[0].learning_rate == pytest.approx(3e-3, rel=0.3)  # no warm-up
    assert heard[-1].learning_rate < 0.1 * heard[0].learning_rate
    # A learning rate that moves nothing leaves the encoder that it began with, up to batch norm's statistics.
    still = folder_of(tmp_path, tone_store, loss="finetune", finetune_learning_rate=1e-30, weight_decay=0)
    finished(still, tone_store)
    pretraining = still.pretraining()
    assert pretraining is not None
    before = weights(pretraining)
    parameters = {name for name in before if "running" not in name and "num_batches" not in name}
    assert all(torch.equal(before[name], weights(still)[name]) for name in parameters)
    assert any(not torch.equal(before[name], weights(folder)[name]) for name in parameters)


def test_finetuning_is_supervised_training_but_for_where_it_starts(tone_store: ClipStore, tmp_path: Path) -> None:
    # From the untrained encoder, at the same learning rate, it is the same.
    tuned = folder_of(tmp_path, tone_store, loss="finetune", epochs=0, finetune_epochs=2, label_fraction=0.5)
    plain = folder_of(tmp_path, tone_store, loss="supervised", epochs=2, label_fraction=0.5)
    assert finished(tuned, tone_store).same_as(finished(plain, tone_store))


def test_finetuning_keeps_what_was_best_on_valid_of_several_rates(tone_store: ClipStore, tmp_path: Path) -> None:
    fields = {"loss": "finetune", "finetune_epochs": 2, "finetune_learning_rate": None, "learning_rate": 1e-3}
    several = folder_of(tmp_path, tone_store, **fields)
    result = finished(several, tone_store)
    alone = {
        rate: finished(folder_of(tmp_path, tone_store, **{**fields, "finetune_learning_rate": rate}), tone_store)
        for rate in several.config.rates
    }
    assert len(alone) == 3
    assert [record.epoch for record in result.epochs] == [1, 2, 3, 4, 5, 6]
    # Each rate begins from the pre-trained encoder, as if it were the only one.
    losses = [record.train_loss for record in result.epochs]
    assert losses == [record.train_loss for one in alone.values() for record in one.epochs]
    best = max(alone, key=lambda rate: (alone[rate].valid_top1, rate))
    assert result.finetune_rate == best
    for name in ("test_top1", "valid_top1", "head_test_top1", "knn_test_top1", "loss_left"):
        assert getattr(result, name) == getattr(alone[best], name), name
    # Stopped after any epoch, it goes on as if nothing had been.
    for until in (1, 2, 3, 4, 5):
        again = folder_of(tmp_path / str(until), tone_store, **fields)
        assert run(again, tone_store, until=until) is None
        assert finished(again, tone_store).same_as(result)


def test_a_rate_at_which_finetuning_diverges_is_left_out(
    tone_store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"loss": "finetune", "finetune_epochs": 2, "finetune_learning_rate": None, "learning_rate": 1e-3}
    folder = folder_of(tmp_path, tone_store, **fields)
    rates, begin, loss = folder.config.rates, trainer.Run.begin, trainer.joint_loss
    whole = finished(folder_of(tmp_path / "whole", tone_store, **fields), tone_store)
    finished(folder_of(tmp_path, tone_store, learning_rate=1e-3), tone_store)  # the pre-training, which may not diverge
    turn: list[float] = []

    def watched(run: trainer.Run) -> None:
        begin(run)
        turn[:] = [run.rate]

    def diverging(*arguments: Any) -> torch.Tensor:
        return loss(*arguments) * (float("nan") if turn == [rates[0]] else 1.0)

    monkeypatch.setattr(trainer.Run, "begin", watched)
    monkeypatch.setattr(trainer, "joint_loss", diverging)
    result = finished(folder, tone_store)
    assert [record.epoch for record in result.epochs] == [3, 4, 5, 6]
    assert [record.train_loss for record in result.epochs] == [record.train_loss for record in whole.epochs[2:]]
    assert result.finetune_rate in rates[1:]
    # With one rate there is nothing left.
    with pytest.raises(trainer.NonFiniteLoss):
        finished(folder_of(tmp_path, tone_store, **{**fields, "finetune_learning_rate": rates[0]}), tone_store)


def test_finetuning_with_the_paper_presets_optimizer_learns(tone_store: ClipStore, tmp_path: Path) -> None:
    """It did not: the layer-wise Adam that was called LARS moved a layer by 1e-4 of its norm a step."""
    paper = {"loss": "finetune", "learning_rate": 1.0, "weight_decay": 1e-6, "finetune_epochs": 6}
    before = folder_of(tmp_path, tone_store, **paper, optimizer="lamb", finetune_learning_rate=0.1)
    now = folder_of(tmp_path, tone_store, **paper, optimizer="lars", finetune_learning_rate=None)
    assert finished(before, tone_store).loss_left > 0.95
    assert finished(now, tone_store).loss_left < 0.5
    assert now.result().head_test_top1 > before.result().head_test_top1 + 0.3


def test_the_probe_of_all_labels_takes_the_encoder_of_the_trial_that_saw_some(
    tone_store: ClipStore, tmp_path: Path
) -> None:
    for loss in ("clar", "finetune"):
        every = folder_of(tmp_path, tone_store, loss=loss, label_fraction=0.1, probe_labels="all")
        result = finished(every, tone_store)
        some = every.pretraining()
        assert some is not None
        assert some.result() is not None
        assert all(torch.equal(tensor, weights(some)[name]) for name, tensor in weights(every).items())
        assert result.epochs == ()
        for name in ("head_test_top1", "loss_left", "finetune_rate"):
            assert getattr(result, name) == getattr(some.result(), name), name
        # The same encoder, and a probe of all training clips.
        encoder = trainer.load_encoder(some.path / trainer.ENCODER).module
        parts = []
        for split in ("train", "valid", "test"):
            indices = tone_store.split(split)
            with torch.no_grad():
                clips_BT = torch.from_numpy(tone_store.clips[indices]).float() / 32768
                parts.append((encoder(clips_BT), torch.from_numpy(tone_store.labels[indices])))
        expected = trainer.probe.linear(*parts, len(tone_store.classes))
        assert result.test_top1 == expected.top1
        assert result.valid_top1 == expected.valid_top1
        assert result.labelled_clips == some.result().labelled_clips < len(parts[0][1])


def test_the_answers_to_the_test_clips_are_kept(tone_store: ClipStore, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tone_store)
    result = finished(folder, tone_store)
    answers = pd.read_csv(folder.path / trainer.ANSWERS, keep_default_na=False)
    test_N = tone_store.split("test")
    assert answers["clip"].tolist() == test_N.tolist()
    assert answers["file"].tolist() == [tone_store.files[clip] for clip in test_N]
    assert answers["group"].tolist() == [tone_store.groups[clip] for clip in test_N]
    assert answers["label"].tolist() == [tone_store.classes[tone_store.labels[clip]] for clip in test_N]
    assert (answers["right"] == (answers["label"] == answers["answer"])).all()
    assert answers["right"].mean() == result.test_top1


def test_a_result_says_how_much_of_chances_loss_is_left(tone_store: ClipStore, tmp_path: Path) -> None:
    still = folder_of(tmp_path, tone_store, loss="supervised", learning_rate=1e-9)
    learnt = folder_of(tmp_path, tone_store, loss="supervised", epochs=8)
    assert finished(still, tone_store).loss_left > 0.9
    assert finished(learnt, tone_store).loss_left < 0.5
    assert finished(folder_of(tmp_path, tone_store), tone_store).loss_left is None


def test_a_pretrained_encoder_that_is_missing_or_not_wanted_is_refused(tone_store: ClipStore, tmp_path: Path) -> None:
    config = TrialConfig(**{**SMALL, "loss": "finetune", "epochs": 1})
    pretraining = config.pretraining()
    assert pretraining is not None
    with pytest.raises(UserError, match=f"trial {pretraining.identity(tone_store.fingerprint)}"):
        trainer.train(config, tone_store)
    with pytest.raises(UserError, match="no encoder at"):
        trainer.train(config, tone_store, pretrained=tmp_path / "absent")
    trainer.train(pretraining.but(seed=1), tone_store, checkpoint_dir=tmp_path)
    with pytest.raises(UserError, match="is the encoder of another trial"):
        trainer.train(config, tone_store, pretrained=tmp_path / trainer.ENCODER)
    with pytest.raises(UserError, match="starts from random weights"):
        trainer.train(pretraining, tone_store, pretrained=tmp_path / trainer.ENCODER)


# --- batches of labelled clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "batch_size"), [(0.05, 16), (0.3, 16), (1.0, 48)])
def test_a_supervised_epoch_is_as_long_as_ever_and_holds_labelled_clips_only(
    tone_store: ClipStore, fraction: float, batch_size: int
) -> None:
    config = TrialConfig(**{**SMALL, "loss": "supervised", "label_fraction": fraction, "batch_size": batch_size})
    held = trainer.Run(config, tone_store, torch.device("cpu"), None)
    assert held.steps_per_epoch == 128 // batch_size
    labelled = int((held.train_labels != trainer.losses.UNLABELLED).sum())
    orders = [held.order(epoch)[: held.steps_per_epoch * batch_size] for epoch in (0, 1, 0)]
    for order in orders:
        assert len(order) == held.steps_per_epoch * batch_size
        assert (held.train_labels[order] != trainer.losses.UNLABELLED).all()
        counts = Counter(order.tolist())
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == min(labelled, len(order))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


def test_the_joint_loss_still_takes_every_clip(tone_store: ClipStore) -> None:
    config = TrialConfig(**{**SMALL, "loss": "clar", "label_fraction": 0.05})
    held = trainer.Run(config, tone_store, torch.device("cpu"), None)
    assert sorted(held.order(0).tolist()) == list(range(128))


# --- pause and stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["clar", "finetune"])
def test_a_trial_in_pieces_is_the_trial_in_one(tone_store: ClipStore, tmp_path: Path, loss: str) -> None:
    whole, pieces = (folder_of(tmp_path / name, tone_store, loss=loss) for name in ("whole", "pieces"))
    expected = finished(whole, tone_store)
    for until in (1, 1, 2):
        assert run(pieces, tone_store, until=until) is None
        assert len(pieces.epochs()) == until
        assert (pieces.path / trainer.CHECKPOINT).exists()
        assert pieces.result() is None
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps > 3

    with pytest.raises(trainer.Stopped, match="stopped after 19 of 24 steps"):
        run(pieces, tone_store, stop=stop)
    assert pieces.last_log_lines(1).endswith("stopped")
    token = pieces.run_token()
    # As many epochs as there are means to the end.
    assert finished(pieces, tone_store, until=3).same_as(expected)
    assert pieces.run_token() == token
    assert not (pieces.path / trainer.CHECKPOINT).exists()
    assert (pieces.path / trainer.ENCODER).read_bytes() == (whole.path / trainer.ENCODER).read_bytes()


def test_stopping_falls_into_the_pretraining_too(tone_store: ClipStore, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tone_store, label_fraction=0.5)
    asked = iter([False] * 5 + [True])
    with pytest.raises(trainer.Stopped, match="after 5 of 24 steps"):
        run(folder, tone_store, stop=lambda: next(asked))
    assert folder.run_token() == ""
    finished(folder, tone_store)


# --- several processes ------------------------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from filelock import FileLock
Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

_RUN = """
import json, sys, torch
from pathlib import Path
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.result import TrialFolder
from clar.train import run
torch.set_num_threads(1)
store = ClipStore.open(Path(sys.argv[2]))
folder = TrialFolder(Path(sys.argv[1]), TrialConfig(**json.loads(sys.argv[3])), store.fingerprint)
run(folder, store, on_start=lambda: print("started", flush=True))
"""


def _hold(folder: TrialFolder) -> "subprocess.Popen[str]":
    """Another process that holds the trial's lock until its input is closed."""
    command = [sys.executable, "-c", _HOLD, str(folder.lock)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_trial_that_another_process_is_at_work_on(tone_store: ClipStore, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tone_store, label_fraction=0.5, epochs=1)
    pretraining = folder.pretraining()
    assert pretraining is not None
    holder = _hold(pretraining)
    began = time.monotonic()
    with pytest.raises(Elsewhere, match=f"at work on trial {pretraining.identity}"):
        run(folder, tone_store, wait=False)
    assert time.monotonic() - began < 1
    with pytest.raises(trainer.Stopped, match="while another process was at work"):
        run(folder, tone_store, stop=lambda: True)
    with pytest.raises(UserError, match="is being trained by another process"):
        pretraining.archive()
    assert pretraining.run_token() == ""
    holder.communicate()
    finished(folder, tone_store, wait=False)


@pytest.mark.slow
def test_two_processes_train_a_trial_and_its_pretraining_once(tone_store: ClipStore, tmp_path: Path) -> None:
    fields = {"loss": "finetune", "epochs": 1, "finetune_epochs": 1}
    folder = folder_of(tmp_path, tone_store, **fields)
    command = [sys.executable, "-c", _RUN, str(tmp_path), str(tone_store.path), folder.config.model_dump_json()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "started\n" in said
    for one in (folder, folder.pretraining()):
        assert one is not None
        assert one.log.read_text().count("epoch 1/1") == 1
        assert one.log.read_text().count("done: ") == 1
        assert one.result() is not None


# --- what goes wrong --------------------------------------------------------------------------------------------------

_ON_A_FULL_DISK = """
import json, resource, sys, torch
from pathlib import Path
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.result import TrialFolder
from clar.train import run
torch.set_num_threads(1)
store = ClipStore.open(Path(sys.argv[2]))
folder = TrialFolder(Path(sys.argv[1]), TrialConfig(**json.loads(sys.argv[3])), store.fingerprint)
limit = int(sys.argv[4])
if len(sys.argv) > 5:
    folder.begin("")
    folder.log.write_text("x" * limit)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    run(folder, store)
except OSError as error:
    print(error.filename, error.errno)
"""


@pytest.mark.slow
@pytest.mark.parametrize("full_log", [False, True])
def test_a_full_disk_is_said_with_the_file_and_loses_nothing(
    tone_store: ClipStore, tmp_path: Path, full_log: bool
) -> None:
    folder = folder_of(tmp_path, tone_store, epochs=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    arguments = [str(tmp_path), str(tone_store.path), folder.config.model_dump_json(), "20000", *["log"] * full_log]
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, *arguments], capture_output=True, text=True, check=True
    )
    # The first file over the limit is the checkpoint, which torch writes.
    filename, errno = done.stdout.split()
    assert Path(filename) == folder.path / trainer.CHECKPOINT
    assert os.strerror(int(errno)) == "File too large"
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
    assert not list(folder.path.glob(".*.partial"))
    if not full_log:
        assert "File too large" in folder.log.read_text()
    finished(folder, tone_store)


def test_what_fails_is_in_the_log_and_a_next_run_begins_again(tone_store: ClipStore, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tone_store, loss="supervised", learning_rate=1e30)
    with pytest.raises(trainer.NonFiniteLoss):
        run(folder, tone_store, version="0.9")
    assert "NonFiniteLoss" in folder.last_log_lines()
    content = json.loads((folder.path / "config.json").read_text())
    assert (content["code_version"], content["results_version"]) == ("0.9", RESULTS_VERSION)


@pytest.mark.slow
def test_the_command_shows_the_pretraining_and_trains_again_when_asked(tmp_path: Path, small_cache: Path) -> None:
    command = [
        sys.executable, "-m", "clar.train", "--dataset", "digits:200", "--preset", "demo", "--storage", str(tmp_path),
        "--set", "loss=finetune", "--set", "epochs=1", "--set", "finetune_epochs=2", "--set", "encoder_width=4",
        "--set", "finetune_learning_rate=1e-3", "--gpus-per-trial", "0", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db",
    ]  # fmt: skip
    environment = {**os.environ, "CLAR_CACHE": str(small_cache)}
    first, again, fresh = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True, env=environment).stdout
        for more in ([], [], ["--fresh"])
    )
    assert first.index("pre-training, trial") < first.index("epoch 1/1") < first.index("epoch 1/2")
    assert "done before" not in first
    assert "done before" in again
    assert "epoch" not in again
    # The pre-training is a trial of its own, and is not trained again.
    assert "epoch 1/1" not in fresh
    assert "epoch 2/2" in fresh
    assert len(list((tmp_path / "replaced").iterdir())) == 1
    (sweep,) = SweepFolder.all(tmp_path)
    about = sweep.read()
    assert about is not None
    assert (sweep.name, about["trials"], about["state"]) == ("train", [sweep.key], "done")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        runs = database.execute("select name, status from runs").fetchall()
    assert len(runs) == 3
    assert {status for _, status in runs} == {"FINISHED"}
    numbers = [text[text.index("  test_top1") : text.index("  train_seconds")] for text in (first, again, fresh)]
    assert numbers[0] == numbers[1] == numbers[2]
