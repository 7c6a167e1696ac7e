"""How many trials fit side by side: `--gpus-per-trial auto`. Measured once a kind of trial, and kept.

Trials that differ only in seed, learning rate and the like are of one kind: their steps take the same memory and time.
A few real steps of each kind are run, outside the driver, which knows no tensor. On a GPU their peak memory says how
many trials share it; on a CPU their speed says how many threads each gets. What was measured is kept in the storage as
`packing.json`, so that the same command later gives the same resources: on a CPU the number of threads decides the last
bits of a result.

`python -m clar.packing` reads a `Request` as JSON from standard input and writes the `Answer` to standard output.
"""

import contextlib
import gc
import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clar.clips import ClipStore, cores
from clar.config import AUGMENTATIONS, RESULTS_VERSION, TrialConfig
from clar.errors import UserError
from clar.files import lock, write_json

PACKING = "packing.json"

MARGIN = 0.1
"""Share of a GPU's memory that stays free, for what a short measurement does not show."""

MOST = 16
"""Trials on one GPU. More would wait for each other's kernels, and each brings a CUDA context and a CPU's work."""

COSTLY = (
    "dataset", "input", "loss", "batch_size", "optimizer", "precision", "front_end", "window_ms", "hop_ms", "bins",
    "channels", "encoder", "encoder_width", "encoder_blocks", "pooling", "head", "projection_hidden", "projection_dim",
)  # fmt: skip
"""The fields on which the memory and the time of a step depend. Augmentations do not count: on a GPU all of them are
measured at once, on a CPU they are a tenth of a step. Nor do folds, which are of about one size."""

_CPU_BATCH = 64
"""Clips of a measured step on a CPU, at most: enough to keep the threads busy as a larger batch would."""

_CPU_STEPS = 2
_TIE = 0.03
_CONTEXT_MOST = 3 * 2**29
_OUT_OF_MEMORY = "ran out of memory alone on the GPU"

Request = dict[str, Any]
"""`device` (`cpu` or `cuda`) and `trials`, a list of `config` (fields) and `store` (folder)."""

Answer = dict[str, Any]
"""`machine` (text), `cores`, and `trials`: in the order of the request `measured` (fields of `Measured`, by number of
threads) or `failure` (one line)."""


@dataclass(frozen=True)
class Share:
    """What one trial of a kind gets of the machine: CPUs, which are its torch threads too, and GPUs or a part of one.

    `note` says what the user should know about it, mostly nothing.
    """

    cpus: int
    gpus: float
    note: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


@dataclass(frozen=True)
class Measured:
    """What a few steps of one trial took.

    `peak_bytes` is the most that torch reserved on the GPU, `context_bytes` what the process holds there besides,
    `total_bytes` the GPU's memory; all 0 on a CPU.
    """

    peak_bytes: int
    context_bytes: int
    total_bytes: int
    seconds_per_step: float


def typical(config: TrialConfig) -> TrialConfig:
    """The trial that stands for all of its kind: whatever costs nothing is at its default."""
    fields = {name: getattr(config, name) for name in COSTLY}
    if config.loss == "finetune":
        # Its pre-training is a trial of its own.
        fields["loss"] = "supervised"
    if config.input == "statistics":
        # Trains nothing: whatever an encoder is given suffices.
        fields["input"] = "spectrogram"
    return TrialConfig(**fields).canonical()


def kind(config: TrialConfig) -> str:
    """The trial's kind, short and the same on any machine: `digits spectrogram clar 0a1b2c3d`."""
    one = typical(config)
    digits = hashlib.sha256(json.dumps(one.differences(), sort_keys=True).encode()).hexdigest()[:8]
    return f"{one.dataset} {one.input} {one.loss} {digits}"


def gpu_share(measured: Measured, margin: float = MARGIN) -> float:
    """The part of a GPU that one such trial needs: 1/n, n the most that fit with a margin; alone it needs none.

    Args:
        measured: one trial.
        margin: share of the memory that stays free where several trials share it.

    Raises:
        UserError: not even one fits.
    """
    needed = measured.peak_bytes + measured.context_bytes
    if needed > measured.total_bytes:
        raise UserError(
            f"a trial takes {_gib(needed)} of GPU memory and there are {_gib(measured.total_bytes)}; "
            f"lower batch_size or encoder_width"
        )
    fit = int(measured.total_bytes * (1 - margin) / max(needed, 1))
    # Rounded down to Ray's steps of 1/10,000: 6 x 0.1667 would be more than a GPU.
    return math.floor(10_000 / min(max(fit, 1), MOST)) / 10_000


def cpu_threads(seconds_by_threads: Mapping[int, float], cores: int) -> int:
    """The threads of a trial at which the machine gets most done; of equals, within 3 %, the fewest.

    Args:
        seconds_by_threads: seconds a step, by number of threads.
        cores: of the machine.
    """
    speed = {threads: _throughput(threads, each, cores) for threads, each in seconds_by_threads.items()}
    best = max(speed.values())
    return min(threads for threads in speed if speed[threads] >= (1 - _TIE) * best)


def measure(config: TrialConfig, store_path: Path | str, device: str, threads: int) -> Measured:
    """Run a few real steps of a trial in this process, and see what they take. Writes nothing.

    On a GPU two steps, since the optimizer's state comes with the first, with every augmentation on every clip, and an
    evaluation over as many representations as the trial will have. On a CPU one step to warm up and two to time, of a
    small batch.

    Args:
        config: the trial.
        store_path: the folder of its data.
        device: `cpu` or `cuda`.
        threads: of torch.

    Raises:
        UserError: the data do not suffice for the configuration.
        RuntimeError: of torch, `torch.OutOfMemoryError` where the trial does not fit.
    """
    import torch

    from clar import probe, trainer

    store = ClipStore.open(store_path)
    clips = len(store.split("train"))
    torch.set_num_threads(threads)
    # A rate next to nothing, so that no weights run away: what is measured does not depend on it.
    config = typical(config).but(learning_rate=1e-6, batch_size=min(config.batch_size, clips))
    if device == "cpu":
        config = config.but(batch_size=min(config.batch_size, _CPU_BATCH))
        run = trainer.Run(config, store, torch.device(device), None)
        run.train_step()
        return Measured(0, 0, 0, min(_seconds(run.train_step) for _ in range(_CPU_STEPS)))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # A field of one number or of one for each augmentation takes one.
    everything = {"augmentations": AUGMENTATIONS, "augmentation_probability": 1}
    run = trainer.Run(config.but(**everything), store, torch.device(device), None)

    def step() -> None:
        run.train_step()
        torch.cuda.synchronize()

    step()
    seconds = _seconds(step)
    some = run.represent(store.split("train")[: trainer.EVALUATION_BATCH])
    labels = torch.from_numpy(store.labels[store.split("train")]).to(some.device)
    train = some.repeat(-(-clips // len(some)), 1)[:clips], labels
    valid = train[0][:1024], labels[:1024]
    probe.fit(train, valid, len(store.classes), l2_path=probe.L2_PATH[:1])
    probe.nearest_neighbours(train, valid)
    free, total = torch.cuda.mem_get_info()
    # What is taken and not torch's is the context, and other processes' memory too: no more than contexts are known to
    # take.
    context = min(max(total - free - torch.cuda.memory_reserved(), 0), _CONTEXT_MOST)
    return Measured(torch.cuda.max_memory_reserved(), context, total, seconds)


def answer(request: Request) -> Answer:
    """Measure every trial of a request, one after the other, in this process. Without trials, torch stays unloaded."""
    device = request["device"]
    return {
        "machine": _machine(device),
        "cores": cores(),
        "trials": [_measure_one(trial, device) for trial in request["trials"]],
    }


def here(request: Request) -> Answer:
    """The answer of this machine, from a process of its own: the caller knows no tensor.

    Raises:
        UserError: the process died.
    """
    if not request["trials"]:
        return answer(request)
    command = [sys.executable, "-m", "clar.packing"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"--gpus-per-trial auto: the measurement failed ({reason}); name numbers with --gpus-per-trial and "
            f"--cpus-per-trial instead"
        )
    return json.loads(done.stdout)


def shares(
    configs: Iterable[TrialConfig],
    stores: Mapping[str, Path],
    resources: Mapping[str, float],
    storage: Path,
    run: Callable[[Request], Answer] = here,
) -> dict[str, Share]:
    """What a trial of each kind gets, by `kind`. Measures what was not measured before, and keeps it.

    A kind that cannot be measured gets a whole GPU, or one CPU, and a note.

    Args:
        configs: the trials.
        stores: folder of each data set that they name.
        resources: `CPU` and `GPU` of the machine or the cluster.
        storage: where `packing.json` is kept.
        run: does what `answer` does, where the trials will run. On a cluster one worker speaks for all.

    Raises:
        UserError: `packing.json` is damaged, or the measurement failed as a whole.
    """
    gpus = int(resources.get("GPU", 0))
    device = "cuda" if gpus else "cpu"
    wanted = {kind(config): typical(config) for config in configs}
    about = run({"device": device, "trials": []})
    cpus = min(int(resources["CPU"]), about["cores"])
    keys = {name: _key(name, one, stores, about, device) for name, one in wanted.items()}
    path = storage / PACKING
    # A second driver waits, and then finds measured what it wants too.
    with lock(storage / "locks" / "packing.lock"):
        known = _read(path)
        missing = sorted(name for name, key in keys.items() if key not in known)
        failures = {}
        if missing:
            trials = [
                {"config": wanted[name].model_dump(mode="json"), "store": str(stores[wanted[name].dataset])}
                for name in missing
            ]
            for name, found in zip(missing, run({"device": device, "trials": trials})["trials"], strict=True):
                if "measured" in found or found["failure"] == _OUT_OF_MEMORY:
                    known[keys[name]] = found
                else:
                    failures[name] = found
            write_json(path, known)
    found = {**failures, **{name: known[keys[name]] for name in keys if name not in failures}}
    return {name: _share(found[name], cpus, gpus, int(resources["CPU"])) for name in wanted}


def _share(found: dict[str, Any], cores: int, gpus: int, all_cpus: int) -> Share:
    """The share of one kind, from what was measured of it.

    Args:
        found: one of an answer's `trials`.
        cores: of one machine.
        gpus: of all machines.
        all_cpus: of all machines.
    """
    note = f"{found['failure']}; it gets {'a whole GPU' if gpus else 'one CPU'}" if "failure" in found else ""
    measured = {int(threads): Measured(**one) for threads, one in found.get("measured", {}).items()}
    if not gpus:
        seconds = {threads: one.seconds_per_step for threads, one in measured.items()}
        return Share(cpu_threads(seconds, cores) if seconds else 1, 0.0, note)
    share = min((gpu_share(one) for one in measured.values()), default=1.0)
    at_a_time = gpus * int(1 / share)
    return Share(max(1, min(4, all_cpus // at_a_time)), share, note)


def _key(name: str, one: TrialConfig, stores: Mapping[str, Path], about: Answer, device: str) -> str:
    """What a measurement holds for: the kind, its data, the machine, and the code."""
    fingerprint = ClipStore.open(stores[one.dataset]).fingerprint[:8]
    machine = about["machine"] + (f", {about['cores']} cores" if device == "cpu" else "")
    return f"{name}, data {fingerprint}, {machine}, torch {version('torch')}, results {RESULTS_VERSION}"


def _read(path: Path) -> dict[str, Any]:
    """What has been measured so far."""
    try:
        known = json.loads(path.read_text())
        for found in known.values():
            for one in found.get("measured", {}).values():
                Measured(**one)
        return known
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to measure again") from error


def _measure_one(trial: dict[str, Any], device: str) -> dict[str, Any]:
    """One trial's entry of an answer: on a CPU at 1, 2, 4, ... threads, as long as more threads may help."""
    measured: dict[str, Any] = {}
    best = 0.0
    try:
        config = TrialConfig(**trial["config"])
        for threads in _thread_counts(cores()) if device == "cpu" else [min(4, cores())]:
            one = measure(config, trial["store"], device, threads)
            measured[str(threads)] = asdict(one)
            speed = _throughput(threads, one.seconds_per_step, cores())
            # Doubling the threads again never made up for as much as this.
            if speed < 0.7 * best:
                break
            best = max(best, speed)
    except (UserError, RuntimeError) as error:
        if device == "cuda" and is_out_of_memory(error):
            return {"failure": _OUT_OF_MEMORY}
        return {"failure": "could not be measured: " + " ".join(str(error).split())}
    return {"measured": measured}


def is_out_of_memory(error: Exception) -> bool:
    """Torch has a class for it; what cuBLAS and cuDNN fail to get arrives as text."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "alloc_failed", "can't allocate memory")
    )


def _thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... up to the cores."""
    return [2**power for power in range(cores.bit_length())]


def _throughput(threads: int, seconds: float, cores: int) -> float:
    """Steps a second of a machine filled with trials of so many threads."""
    return cores // threads / seconds


def _seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _machine(device: str) -> str:
    """The model of the GPUs, or of the processor, without loading CUDA."""
    if device == "cuda":
        texts = [path.read_text() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
        models = {line.split(":", 1)[1].strip() for text in texts for line in text.splitlines() if "Model:" in line}
        return " + ".join(sorted(models)) or "GPU"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return " + ".join(sorted(models)) or platform.processor() or platform.machine()


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


if __name__ == "__main__":
    # Libraries may print; standard output is the answer's alone.
    with contextlib.redirect_stdout(sys.stderr):
        _answer = answer(json.load(sys.stdin))
    print(json.dumps(_answer))
