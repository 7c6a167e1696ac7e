"""One trial, from its configuration to its result. Pure torch: no Ray, no MLflow.

Reads from top to bottom as the paper's method: two views of each clip, features, encoder, head, loss; after the epochs
a linear probe of the frozen encoder. Exact resume: a trial killed at any point and started again gives the result that
it would have given undisturbed, on CPU bit for bit with the same number of threads.

B clips, T samples, N clips of a split, H dimensions of the representation.
"""

import csv
import io
import json
import math
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from clar import augment, encoders, features, files, heads, local, losses, optim, probe
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.files import Pace, write_atomically
from clar.meter import Cost, Meter
from clar.result import EpochRecord, TrialResult
from clar.seeds import generator

CHECKPOINT, ENCODER, ANSWERS = "checkpoint.pt", "encoder.safetensors", "answers.csv"

TRAFFIC = 0.01
"""Share of a trial's time that its checkpoints may take; as much again may go into the records of its epochs."""

EVALUATION_BATCH = 256
_METADATA = "clar"


class Probed(NamedTuple):
    """The frozen encoder's representations of the labelled training clips, and the probe fitted on them."""

    train: probe.Split
    fitted: probe.Probe


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the weights were not touched by it."""


class Stopped(Exception):
    """The trial was asked to stop, and did so with a checkpoint."""


class Model(nn.Module):
    """Front end, encoder and head of one trial."""

    def __init__(self, config: TrialConfig, sample_rate: int, classes: int) -> None:
        super().__init__()
        self.features = front_end(config, sample_rate)
        self.encoder = encoder(config)
        self.head = heads.Head(
            "supervised" if config.loss == "finetune" else config.loss,
            self.encoder.out_features,
            config.projection_hidden,
            config.projection_dim,
            classes,
            config.head,
        )

    def forward(self, clips_BT: Tensor) -> heads.Outputs:
        """(B, T) -> projection and logits."""
        return self.head(self.encoder(self.features(clips_BT)))


def front_end(config: TrialConfig, sample_rate: int) -> nn.Module:
    """The features of one trial's configuration."""
    return features.make(
        config.input,
        sample_rate,
        front_end=config.front_end,
        window_ms=config.window_ms,
        hop_ms=config.hop_ms,
        bins=config.bins,
        channels=config.channels,
        scaling=config.scaling,
    )


def encoder(config: TrialConfig) -> encoders.ResNet | encoders.Passing:
    """The encoder of one trial's configuration, with new weights."""
    return encoders.make(
        config.input,
        config.encoder_width,
        config.encoder_blocks,
        in_channels=len(config.channels),
        variant=config.encoder,
        pooling=config.pooling,
        bins=config.bins,
    )


def composition(config: TrialConfig, names: Sequence[str], sample_rate: int) -> augment.Compose:
    """Augmentations of these names, as one trial's configuration has them."""
    return augment.compose(
        names,
        sample_rate,
        config.augmentation_probability,
        config.augmentation_strength,
        fade_shapes=config.fade_shapes,
        stretch=config.stretch,
        mask=config.mask,
        coloured_noise=config.coloured_noise,
    )


def joint_loss(outputs: heads.Outputs, labels_B: Tensor, config: TrialConfig) -> Tensor:
    """The trial's loss over the 2B views of B clips, first views first: contrastive, supervised, or their sum.

    `cross_entropy_weight` is that of the supervised part in the sum, not alone.
    """
    total = torch.zeros((), device=labels_B.device)
    if outputs.projection_BD is not None:
        first, second = outputs.projection_BD.chunk(2)
        total = total + losses.nt_xent(first, second, config.temperature)
    if outputs.logits_BC is not None:
        weight = config.cross_entropy_weight if outputs.projection_BD is not None else 1.0
        total = total + weight * losses.cross_entropy(outputs.logits_BC, labels_B.repeat(2))
    return total


def labelled_subset(labels_N: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which clips' labels may be seen: (N,) bool, stratified and nested.

    Each class gives its share, at least one clip; for one seed the subset of a smaller fraction lies inside that of a
    larger one.
    """
    seen = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        order = torch.randperm(len(members), generator=generator(seed, "labels", int(label))).numpy()
        seen[members[order[: max(1, round(fraction * len(members)))]]] = True
    return seen


def chance(train_N: np.ndarray, test_N: np.ndarray, top: int = 1) -> float:
    """Accuracy on test of whoever always names the `top` classes that train has most of, drawn among equals."""
    counts_C = np.bincount(train_N, minlength=int(test_N.max()) + 1)
    least = np.sort(counts_C)[::-1][min(top, len(counts_C)) - 1]
    above = (counts_C > least).sum()
    named_C = np.where(counts_C > least, 1.0, (counts_C == least) * (top - above) / (counts_C == least).sum())
    return float(np.minimum(named_C, 1.0)[test_N].mean())


def train(
    config: TrialConfig,
    store: ClipStore,
    device: torch.device | str = "cpu",
    checkpoint_dir: Path | str | None = None,
    on_epoch: Callable[[Sequence[EpochRecord]], None] | None = None,
    max_lost: float = 300.0,
    *,
    pretrained: Path | None = None,
    until: int | None = None,
    stop: Callable[[], bool] | None = None,
    gpu_share: float = 1.0,
    say: Callable[[str], None] | None = None,
) -> TrialResult | None:
    """Run one trial, or go on with it from its checkpoint.

    Some trials start from the encoder of another, see `TrialConfig.pretraining`. Fine-tuning trains it on, under a
    fresh supervised head and a fresh optimizer, at a learning rate that falls to 0; with several `rates`, at each of
    them in turn, from the same start, and what was best on valid is kept. Others train nothing and probe it.

    Supervised training and fine-tuning with a share of the labels take their batches from the labelled clips only,
    repeated to as many steps an epoch as all clips make. Drawn from all clips, a batch at 1 % of the labels would hold
    a clip or two that count, and the joint loss, which learns from every clip, would be compared with a strawman.

    Args:
        config: the trial.
        store: the decoded data set that `config.dataset` names.
        device: where to compute.
        checkpoint_dir: keeps `checkpoint.pt`, and at the end `encoder.safetensors` and `answers.csv`; None: none.
        on_epoch: called after each epoch with the records of all finished ones, and once first where a resume finds
            some finished.
        max_lost: seconds of work that may be lost where the process is killed. There is a checkpoint after every epoch,
            unless that would take more than a hundredth of the time, and inside of epochs that take longer than this.
        pretrained: the `encoder.safetensors` of `config.pretraining()`, for a trial that has one.
        until: stop once that many of the trial's own epochs are finished, and return None; None, or as many as there
            are: to the end.
        stop: asked before every step; when it says so, the trial is checkpointed and stops.
        gpu_share: the trial's part of its GPU, above 0 to 1, for the count of its energy and the room for its data.
        say: told in a line where the clips come from.

    Raises:
        UserError: the data do not suffice for the configuration, the checkpoint is of another trial or damaged, or
            the pre-trained encoder is missing, of another trial, or not wanted.
        NonFiniteLoss: the training diverged.
        Stopped: `stop` said so.
    """
    weights = _pretrained_encoder(config, store, pretrained)
    folder = files.place(checkpoint_dir) if checkpoint_dir else None
    run = Run(config, store, torch.device(device), folder, gpu_share, weights)
    if say:
        say(run.clips.placement)
    run.restore()
    if on_epoch and run.records:
        on_epoch(tuple(run.records))
    probed: Probed | None = None
    checkpoints = Pace(TRAFFIC, max_lost)
    pause = math.inf if until is None or until >= config.stage_epochs else until * run.steps_per_epoch
    while run.step < min(pause, run.total_steps):
        if stop and stop():
            run.save()
            raise Stopped(f"{config.title()}: stopped after {run.step} of {run.total_steps} steps")
        try:
            run.train_step()
        except NonFiniteLoss as error:
            run.give_up_rate(error)
            probed = None
            continue
        if run.step % run.steps_per_epoch == 0:
            probed = run.finish_epoch()
            if checkpoints.due() or run.step == pause:
                with checkpoints.writing():
                    run.save()
            else:
                run.tick()  # the meter wants to be read now and then
            if on_epoch:
                on_epoch(tuple(run.records))
        elif checkpoints.overdue():
            with checkpoints.writing():
                run.save()
    return run.finish(probed) if pause == math.inf else None


@dataclass
class Run:
    """The state of a running trial. All of it that matters is in the checkpoint."""

    config: TrialConfig
    store: ClipStore
    device: torch.device
    folder: Path | None
    gpu_share: float = 1.0
    pretrained: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    cost: Cost = field(default_factory=Cost)
    records: list[EpochRecord] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    best: dict[str, Any] = field(default_factory=dict)
    """Of several rates, what the best one up to now has come to: `rate`, `valid_top1`, `train_loss`, `model`."""

    def __post_init__(self) -> None:
        config, store = self.config, self.store
        self.clock = time.monotonic()
        self.meter = Meter(self.device, self.gpu_share)
        self.train_indices = store.split("train", config.fold)
        self.steps_per_epoch = len(self.train_indices) // config.batch_size
        config.check_batch(len(self.train_indices))
        self.total_steps = config.stage_epochs * self.steps_per_epoch
        self.steps_a_rate = config.epochs_a_rate * self.steps_per_epoch
        self.warmup_steps = 0 if config.loss == "finetune" else config.warmup_epochs * self.steps_per_epoch
        labels_N = np.where(
            labelled_subset(store.labels[self.train_indices], config.canonical().label_fraction, config.seed),
            store.labels[self.train_indices],
            losses.UNLABELLED,
        )
        self.train_labels = torch.from_numpy(labels_N)
        only_labelled = config.loss in ("finetune", "supervised")
        wanted_N = self.train_labels != losses.UNLABELLED if only_labelled else torch.ones(len(labels_N))
        self.drawn_from = wanted_N.nonzero().squeeze(1)
        self.begin()
        self.augment = composition(config, config.augmentations, store.sample_rate)
        self.augment_second: augment.Compose | None = None
        if config.second_view not in (None, config.augmentations):
            self.augment_second = composition(config, config.second_view or (), store.sample_rate)
        self.clips = Clips(store, self.device, self.gpu_share)
        self.shuffled: tuple[int, Tensor] | None = None

    def begin(self) -> None:
        """Make model and optimizer anew, at the rate whose turn it is."""
        config = self.config
        self.rate = config.rates[min(self.step // max(1, self.steps_a_rate), len(config.rates) - 1)]
        # The global generator draws the first weights, on the CPU for every device, and nothing else.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(config.seed, "weights").initial_seed())
            self.model = Model(config, self.store.sample_rate, len(self.store.classes))
        if self.pretrained:
            self.model.encoder.load_state_dict(self.pretrained)
        self.model.to(self.device)
        if config.input == "spectrogram":
            self.model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optim.make(config.optimizer, self.model, self.rate, config.weight_decay)

    def mixed_precision(self) -> AbstractContextManager[Any]:
        """Where the trial computes in bf16, the context to do it in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def train_step(self) -> None:
        """One batch: two views of each clip, one step of the optimizer."""
        config, began = self.config, time.monotonic()
        if self.step and self.step % self.steps_a_rate == 0:
            self.begin()
        # Each rate sees the same batches and views.
        step = self.step % self.steps_a_rate
        epoch, position = divmod(self.step, self.steps_per_epoch)
        batch = self.batch(step)
        labels_B = self.train_labels[batch].to(self.device)
        # Not beyond the epoch: its end may be followed by a probe.
        more = position + 1 < self.steps_per_epoch
        following = self.train_indices[self.batch(step + 1).numpy()] if more else None
        clips_BT = self.clips(self.train_indices[batch.numpy()], following)
        views_BT = self.views(clips_BT, step)
        rate = optim.learning_rate_at(step, self.rate, self.warmup_steps, self.steps_a_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        with self.mixed_precision():
            loss = joint_loss(self.model(views_BT), labels_B, config)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(
                f"loss is {value} in epoch {epoch + 1}, step {position + 1} of {self.steps_per_epoch}, "
                f"learning rate {rate:.3g}; last losses: {', '.join(f'{x:.4g}' for x in self.recent) or 'none'}; "
                f"lower learning_rate, or raise temperature or warmup_epochs"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.epoch_loss += value
        self.recent.append(value)
        self.epoch_seconds += time.monotonic() - began

    def views(self, clips_BT: Tensor, step: int) -> Tensor:
        """Two views of each clip (2B, T), first views first."""
        draws = generator(self.config.seed, "augment", step, device=self.device)
        if self.augment_second is None:
            return self.augment(clips_BT.repeat(2, 1), draws)
        return torch.cat([self.augment(clips_BT, draws), self.augment_second(clips_BT, draws)])

    def batch(self, step: int) -> Tensor:
        """The clips (B,) of a step, as positions in the training split."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self.shuffled is None or self.shuffled[0] != epoch:
            self.shuffled = epoch, self.order(epoch)
        return self.shuffled[1][position * self.config.batch_size : (position + 1) * self.config.batch_size]

    def order(self, epoch: int) -> Tensor:
        """The epoch's clips, as positions in the training split: shuffled, and shuffled again until they fill it."""
        shuffle = generator(self.config.seed, "order", epoch)
        count = len(self.drawn_from)
        rounds = math.ceil(self.steps_per_epoch * self.config.batch_size / count)
        return torch.cat([self.drawn_from[torch.randperm(count, generator=shuffle)] for _ in range(rounds)])

    def tick(self) -> None:
        """Add time and cost since the last call to the trial's own, which run on across restarts."""
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        self.cost += self.meter.read()

    def finish_epoch(self) -> Probed | None:
        """Probe the encoder where it is due, and write the epoch's record."""
        epoch = self.step // self.steps_per_epoch
        views = self.steps_per_epoch * self.config.batch_size
        speed = views / self.epoch_seconds
        epoch_of_rate = epoch % self.config.epochs_a_rate  # of the last one, 0
        due = epoch_of_rate % self.config.probe_every == 0
        probed = self.probe() if due else None
        self.records.append(
            EpochRecord(
                epoch=epoch,
                train_loss=self.epoch_loss / self.steps_per_epoch,
                valid_top1=probed.fitted.valid_top1 if probed else None,
                learning_rate=self.optimizer.param_groups[0]["lr"],
                clips_per_second=speed,
            )
        )
        self.epoch_loss = self.epoch_seconds = 0.0
        if not epoch_of_rate and probed and len(self.config.rates) > 1:
            return self.keep_best(probed)
        return probed

    def keep_best(self, probed: Probed) -> Probed | None:
        """Of several rates, remember the model of the best on valid; at the last one, go back to it."""
        valid_top1 = probed.fitted.valid_top1
        if not self.best or valid_top1 > self.best["valid_top1"]:
            model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best = {
                "rate": self.rate, "valid_top1": valid_top1, "train_loss": self.records[-1].train_loss, "model": model,
            }  # fmt: skip
            return probed
        if self.step == self.total_steps:
            self.model.load_state_dict(self.best["model"])
            return None
        return probed

    def give_up_rate(self, error: NonFiniteLoss) -> None:
        """Leave out the rate at which training diverged, where others are left or have come to something."""
        self.step = (self.step // self.steps_a_rate + 1) * self.steps_a_rate
        self.epoch_loss = self.epoch_seconds = 0.0
        if self.step == self.total_steps:
            if not self.best:
                raise error
            self.model.load_state_dict(self.best["model"])

    def represent(self, indices: np.ndarray) -> Tensor:
        """Representations (N, H) of clips as they are, without augmentation, by the frozen encoder."""
        self.model.eval()
        batches = [indices[start : start + EVALUATION_BATCH] for start in range(0, len(indices), EVALUATION_BATCH)]
        with torch.no_grad(), self.mixed_precision():
            return torch.cat(
                [
                    self.model.encoder(self.model.features(self.clips(batch, following)))
                    for batch, following in zip(batches, [*batches[1:], None], strict=True)
                ]
            )

    def split(self, name: str) -> probe.Split:
        """Representations and labels of valid or test, or of the clips of train that the probe is fitted on."""
        indices = self.store.split(name, self.config.fold)
        if name == "train" and self.config.probe_labels == "seen":
            indices = indices[self.train_labels.numpy() != losses.UNLABELLED]
        return self.represent(indices), torch.from_numpy(self.store.labels[indices]).to(self.device)

    def probe(self) -> Probed:
        """Fit the linear probe on train and choose its penalty on valid."""
        train = self.split("train")
        return Probed(train, probe.fit(train, self.split("valid"), len(self.store.classes)))

    def finish(self, probed: Probed | None) -> TrialResult:
        """The one look at test."""
        train, fitted = probed or self.probe()
        test = self.split("test")
        head_top1 = loss_left = None
        if self.config.loss != "self_supervised" and not self.config.probes_only:
            head_top1 = self.head_accuracy(*test)
        if self.config.loss in ("supervised", "finetune") and self.records:
            train_loss = self.best.get("train_loss", self.records[-1].train_loss)
            loss_left = train_loss / math.log(len(self.store.classes))
        train_labels_N = train[1].cpu().numpy()
        if self.folder:
            save_encoder(self.folder / ENCODER, self.model.encoder, self.config, self.store)
            answers_N = fitted.logits(test[0]).topk(1, dim=1).indices[:, 0].cpu().numpy()
            save_answers(self.folder / ANSWERS, self.store, self.store.split("test", self.config.fold), answers_N)
        self.tick()
        return TrialResult(
            test_top1=fitted.accuracy(test),
            test_top5=fitted.accuracy(test, top=5),
            valid_top1=fitted.valid_top1,
            probe_l2=fitted.l2,
            knn_test_top1=probe.nearest_neighbours(train, test),
            head_test_top1=head_top1,
            train_seconds=self.seconds,
            gpu_seconds=self.seconds if self.device.type == "cuda" else 0.0,
            epochs=tuple(self.records),
            cpu_seconds=self.cost.cpu_seconds,
            energy_joules=self.cost.joules,
            chance_top1=chance(train_labels_N, test[1].cpu().numpy()),
            chance_top5=chance(train_labels_N, test[1].cpu().numpy(), top=5),
            labelled_clips=int((self.train_labels != losses.UNLABELLED).sum()),
            loss_left=loss_left,
            finetune_rate=self.best.get("rate"),
        )

    def head_accuracy(self, representation_NH: Tensor, labels_N: Tensor) -> float:
        """Share of clips that the trained head classifies correctly."""
        self.model.eval()
        with torch.inference_mode(), self.mixed_precision():
            logits_NC = self.model.head(representation_NH).logits_BC
        return (logits_NC.argmax(dim=1) == labels_N).double().mean().item()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self.tick()
        if self.folder is None:
            return
        content = {
            "identity": self.config.identity(self.store.fingerprint),
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "cpu_seconds": self.cost.cpu_seconds,
            "energy_joules": self.cost.joules,
            "records": [asdict(record) for record in self.records],
            "recent": list(self.recent),
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(self.folder / CHECKPOINT, lambda file: torch.save(content, file))

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.folder is None:
            return
        path = self.folder / CHECKPOINT
        try:
            with files.on_disk(path) as file:
                content = torch.load(file, map_location=self.device, weights_only=True)
        except FileNotFoundError:
            return
        except pickle.UnpicklingError as error:
            # torch's own words tell how to load a file that runs code.
            raise UserError(
                f"{path} is damaged (no checkpoint of clar); delete it to train this trial from the start"
            ) from error
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); delete it to train this trial from the start") from error
        identity = self.config.identity(self.store.fingerprint)
        if content["identity"] != identity:
            raise UserError(f"{path} is of trial {content['identity']}, not of {identity}; use another folder")
        self.step, self.epoch_loss = content["step"], content["epoch_loss"]
        self.begin()  # the rate whose turn it is
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.best = content.get("best", {})
        self.seconds, self.epoch_seconds = content["seconds"], content["epoch_seconds"]
        # Older checkpoints count neither.
        self.cost = Cost(content.get("cpu_seconds", 0.0), content.get("energy_joules"))
        self.records = [EpochRecord(**record) for record in content["records"]]
        self.recent.extend(content["recent"])


class Clips:
    """Batches of clips as float32 on the device.

    Where they come from is chosen by what is measured: a GPU with room for the whole store takes it once and gathers
    there; else the next batch is read, on a GPU into pinned memory, while the device computes. On a CPU that can keep
    the store in memory the memory map is all it takes, with a word to the system about what comes next.

    Attributes:
        placement: the choice and its reason, in one line.
    """

    def __init__(self, store: ClipStore, device: torch.device, gpu_share: float = 1.0) -> None:
        self.store, self.device = store, device
        self.on_device: Tensor | None = None
        self.pinned = device.type == "cuda"
        size = store.clips.nbytes
        if device.type == "cpu":
            memory = local.free_memory()
            self.ahead = memory is not None and size > memory
            where = "read ahead from the disk" if self.ahead else "memory-mapped"
            where += "" if memory is None else f" ({_gigabytes(memory)} of memory free)"
        else:
            room = gpu_room(device, gpu_share)
            why = f"{_gigabytes(room)} of it may be data"
            if size <= room or _is_resident(store, device):
                try:
                    self.on_device = _resident(store, device)
                except torch.OutOfMemoryError:
                    # Another trial on this GPU has taken the room since it was measured, or it is in pieces.
                    why = f"{why}, but it had no room for them"
            self.ahead = self.on_device is None
            where = f"{'read ahead into pinned memory' if self.ahead else 'on the GPU'} ({why})"
        self.placement = f"{store.name}, {_gigabytes(size)}: {where}"
        self.next: tuple[np.ndarray, Future[Tensor]] | None = None

    def __call__(self, indices: np.ndarray, following: np.ndarray | None = None) -> Tensor:
        """Clips (B, T) float32 in [-1, 1).

        Args:
            indices: rows of the store.
            following: the rows that will be asked for next.
        """
        if self.on_device is not None:
            return self.on_device[torch.from_numpy(indices).to(self.device)].float() / 32768
        clips_BT = self._take(indices)
        if following is not None:
            # Also where memory has room for all of them: until they have been read once they are on the disk.
            self.store.will_need(following)
            if self.ahead:
                self.next = following, _READER.submit(self._read, following)
        return clips_BT.to(self.device, non_blocking=True).float() / 32768

    def _take(self, indices: np.ndarray) -> Tensor:
        """Clips that have been read ahead, or are read now."""
        waiting, self.next = self.next, None
        if waiting and np.array_equal(waiting[0], indices):
            return waiting[1].result()
        self.store.will_need(indices)
        return self._read(indices)

    def _read(self, indices: np.ndarray) -> Tensor:
        clips_BT = torch.from_numpy(self.store.clips[indices])
        # Pinned memory comes from torch's own cache of it, which gives it again once its copy has been made.
        return clips_BT.pin_memory() if self.pinned else clips_BT


_READER = ThreadPoolExecutor(1, thread_name_prefix="clips")
"""Reads the next batch while the device computes this one."""

_on_gpu: dict[tuple[str, str], Tensor] = {}
"""The store that this process has on each GPU: one trial after another finds it there."""


def gpu_room(device: torch.device, gpu_share: float) -> float:
    """Bytes of a GPU that a trial's data may take: half of what is free of its share; it trains in the other half.

    What another data set takes there counts as free: it makes room. So does what torch keeps of an earlier trial in
    this process, which the driver counts as taken.
    """
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free += sum(clips.nbytes for (where, _), clips in _on_gpu.items() if where == str(device))
    return min(free, total * gpu_share) / 2


def _is_resident(store: ClipStore, device: torch.device) -> bool:
    return (str(device), store.fingerprint) in _on_gpu


def _resident(store: ClipStore, device: torch.device) -> Tensor:
    """The clips (N, T) int16 on a GPU, moved there once per process, in place of any other store's."""
    key = str(device), store.fingerprint
    if key not in _on_gpu:
        for other in [other for other in _on_gpu if other[0] == key[0]]:
            del _on_gpu[other]
        clips_NT = torch.empty(store.clips.shape, dtype=torch.int16, device=device)
        for start in range(0, len(store), _MOVED):
            clips_NT[start : start + _MOVED] = torch.from_numpy(np.array(store.clips[start : start + _MOVED]))
        _on_gpu[key] = clips_NT
    return _on_gpu[key]


_MOVED = 1024
"""Clips that are moved to a GPU at a time: no second copy of the store is made in memory."""


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def save_encoder(path: Path, encoder: nn.Module, config: TrialConfig, store: ClipStore) -> None:
    """The encoder's weights as safetensors; its metadata say how to rebuild it and what it listens to."""
    about = {
        "config": config.model_dump(mode="json"),
        "sample_rate": store.sample_rate,
        "clip_samples": store.clips.shape[1],
        "dataset_fingerprint": store.fingerprint,
    }
    # safetensors takes contiguous tensors; channels_last weights are not.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    # One key: safetensors writes several in random order, and the same encoder should be the same file.
    write_atomically(path, safetensors.torch.save(tensors, {_METADATA: json.dumps(about)}))


def save_answers(path: Path, store: ClipStore, indices_N: np.ndarray, answers_N: np.ndarray) -> None:
    """The probe's answer to each test clip, a line a clip, so that what was wrong can be looked at by group."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("clip", "file", "group", "label", "answer", "right"))
    for clip, answer in zip(indices_N.tolist(), answers_N.tolist(), strict=True):
        label = int(store.labels[clip])
        names = store.classes[label], store.classes[answer]
        lines.writerow((clip, store.files[clip], store.groups[clip], *names, int(answer == label)))
    write_atomically(path, text.getvalue())


@dataclass(frozen=True)
class LoadedEncoder:
    """A trained encoder with its front end, ready to embed clips of `clip_samples` at `sample_rate` hertz."""

    module: nn.Sequential
    config: TrialConfig
    sample_rate: int
    clip_samples: int


def load_encoder(path: Path | str, device: torch.device | str = "cpu") -> LoadedEncoder:
    """Read what `save_encoder` wrote. Executes nothing from the file.

    Raises:
        UserError: the file is missing, damaged, or not an encoder of this project.
    """
    path = files.place(path)
    about, config, tensors = _read_encoder(path)
    untrained = encoder(config)
    try:
        untrained.load_state_dict(tensors)
    except RuntimeError as error:
        raise _no_encoder(path, error) from error
    module = nn.Sequential(front_end(config, about["sample_rate"]), untrained).to(device).eval()
    return LoadedEncoder(module, config, about["sample_rate"], about["clip_samples"])


def _pretrained_encoder(config: TrialConfig, store: ClipStore, path: Path | None) -> dict[str, Tensor]:
    """The encoder that the trial starts from; empty for a trial that starts from random weights."""
    wanted = config.pretraining()
    if wanted is None:
        if path is not None:
            raise UserError(f"{config.title()}, loss {config.loss}, starts from random weights, not from {path}")
        return {}
    identity = wanted.identity(store.fingerprint)
    if path is None:
        raise UserError(
            f"{config.title()}, loss {config.loss}, needs the encoder of its pre-training, trial {identity}"
        )
    about, found, tensors = _read_encoder(path)
    if found.identity(about["dataset_fingerprint"]) != identity:
        raise UserError(f"{path} is the encoder of another trial than {identity}, which {config.title()} starts from")
    return tensors


def _read_encoder(path: Path) -> tuple[dict[str, Any], TrialConfig, dict[str, Tensor]]:
    """What the file says about itself, the trial that wrote it, and the weights."""
    if not path.is_file():
        raise UserError(f"no encoder at {path}; a trial's folder holds one as {ENCODER}")
    try:
        with files.on_disk(path) as copy, safetensors.safe_open(copy, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return about, TrialConfig(**about["config"]), tensors
    except (safetensors.SafetensorError, KeyError, ValueError, UserError) as error:
        raise _no_encoder(path, error) from error


def _no_encoder(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not an encoder written by clar ({type(error).__name__}: {error})")
