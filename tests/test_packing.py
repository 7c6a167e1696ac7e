"""Packing: what a trial of each kind takes, measured for real, and what it therefore gets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clar import packing
from clar.clips import ClipStore
from clar.config import TrialConfig
from clar.errors import UserError
from clar.packing import Measured, Share

GIB = 2**30
TINY = TrialConfig(
    dataset="tones", epochs=2, batch_size=16, warmup_epochs=0, encoder_width=2, encoder_blocks=(1, 1, 1, 1), bins=16,
    projection_hidden=16,
)  # fmt: skip

CHEAP: dict[str, Any] = {
    "augmentations": ("pitch_shift",), "augmentation_probability": 0.9, "augmentation_strength": 0.5,
    "fade_shapes": "released", "label_fraction": 0.1, "seed": 5, "epochs": 3, "learning_rate": 0.1,
    "weight_decay": 0.1, "warmup_epochs": 1, "temperature": 0.1, "probe_every": 2, "finetune_epochs": 3,
    "finetune_learning_rate": 0.01, "fold": 2, "probe_labels": "all",
    "stretch": "resampled", "mask": "released", "coloured_noise": "released", "second_view": (),
    "cross_entropy_weight": 2, "scaling": "fixed",
}  # fmt: skip
COSTLY: dict[str, Any] = {
    "dataset": "digits", "input": "raw", "loss": "supervised", "batch_size": 32, "optimizer": "adamw",
    "precision": "bf16", "front_end": "released", "window_ms": 20, "hop_ms": 4, "bins": 32, "encoder_width": 4,
    "encoder_blocks": (2, 1, 1, 1), "head": "released", "projection_hidden": 32, "projection_dim": 16,
    "channels": ("mel",), "encoder": "released", "pooling": "time",
}  # fmt: skip
MATTERS_FOR = {"encoder": {"input": "raw"}}


def test_every_field_has_been_decided_on() -> None:
    assert set(COSTLY) == set(packing.COSTLY)
    assert set(COSTLY) | set(CHEAP) == set(TrialConfig.model_fields), "does a step's memory or time depend on it?"


@pytest.mark.parametrize("field", CHEAP)
def test_trials_that_take_the_same_are_of_one_kind(field: str) -> None:
    assert packing.kind(TINY.but(**{field: CHEAP[field]})) == packing.kind(TINY)


@pytest.mark.parametrize("field", COSTLY)
def test_trials_that_do_not_are_of_two(field: str) -> None:
    base = TINY.but(**MATTERS_FOR.get(field, {}))
    assert packing.kind(base.but(**{field: COSTLY[field]})) != packing.kind(base)


def test_a_kind_reads_well_and_stays_the_same() -> None:
    assert packing.kind(TINY) == "tones spectrogram clar 37cee4f3"
    # Fine-tuning is supervised training; what a supervised trial never computes costs it nothing.
    supervised = packing.kind(TINY.but(loss="supervised"))
    assert packing.kind(TINY.but(loss="finetune")) == packing.kind(TINY.but(loss="supervised", projection_dim=16))
    assert supervised == packing.kind(TINY.but(loss="finetune"))


@given(
    peak=st.integers(1, 200 * GIB),
    context=st.integers(0, GIB),
    total=st.sampled_from([8 * GIB, 80 * GIB, 141 * GIB]),
    margin=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_as_many_share_a_gpu_as_fit(peak: int, context: int, total: int, margin: float) -> None:
    measured = Measured(peak, context, total, 0.1)
    if peak + context > total:
        with pytest.raises(UserError, match="lower batch_size"):
            packing.gpu_share(measured, margin)
        return
    share = packing.gpu_share(measured, margin)
    count = int(1 / share)
    assert count * share <= 1
    assert share == pytest.approx(1 / count, abs=1e-4)
    assert count == 1 or count * (peak + context) <= total * (1 - margin)
    assert count == packing.MOST or (count + 1) * (peak + context) > total * (1 - margin)


def test_the_share_of_a_trial_by_hand() -> None:
    def share(gib: float) -> float:
        return packing.gpu_share(Measured(int((gib - 0.5) * GIB), GIB // 2, 80 * GIB, 0.1))

    assert [share(gib) for gib in (1, 4.6, 20, 24, 37, 79.9)] == [0.0625, 0.0666, 0.3333, 0.3333, 1, 1]


@pytest.mark.parametrize(
    ("seconds", "cores", "threads"),
    [
        ({1: 1.0, 2: 0.6}, 2, 1),
        ({1: 1.0, 2: 0.45}, 2, 2),  # shared caches
        ({1: 1.0, 2: 0.49}, 2, 1),  # within the noise: fewer
        ({1: 1.0, 2: 0.5, 4: 0.26}, 4, 1),
        ({1: 1.0, 2: 0.4, 4: 0.3}, 5, 1),  # of five cores, two at a time would leave one idle
        ({1: 1.0, 2: 0.4, 4: 0.15}, 8, 4),
        ({1: 1.0, 2: 0.4, 4: 0.1}, 3, 1),  # more threads than there are cores
    ],
)
def test_threads_that_get_most_done(seconds: dict[int, float], cores: int, threads: int) -> None:
    assert packing.cpu_threads(seconds, cores) == threads


def test_a_share_tells_the_user() -> None:
    assert str(Share(2, 0)) == "2 CPU"
    assert str(Share(4, 0.25)) == "4 CPU and 0.25 GPU"
    assert Share(1, 1, "a note") == Share(1, 1)


@pytest.mark.parametrize("loss", ["clar", "self_supervised", "supervised", "finetune"])
def test_a_measured_step_is_a_real_one_and_leaves_nothing(
    tone_store: ClipStore, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    # More clips a batch than there are, as with trials of no epochs: measured with what there is.
    config = TINY.but(loss=loss, batch_size=10_000, epochs=0)
    small, wide = (packing.measure(config.but(encoder_width=w), tone_store.path, "cpu", before) for w in (2, 64))
    assert 0 < small.seconds_per_step < wide.seconds_per_step
    assert (small.peak_bytes, small.context_bytes, small.total_bytes) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_shares_are_measured_once_in_a_process_of_their_own(tone_store: ClipStore, tmp_path: Path) -> None:
    storage, stores = tmp_path / "runs", {"tones": tone_store.path}
    configs = [TINY, TINY.but(seed=1), TINY.but(encoder_width=4)]
    asked = []

    def run(request: packing.Request) -> packing.Answer:
        asked.append(len(request["trials"]))
        return packing.here(request)

    first = packing.shares(configs, stores, {"CPU": 2.0, "GPU": 0.0}, storage, run)
    assert set(first) == {packing.kind(config) for config in configs}
    assert all(share.cpus in (1, 2) and share.gpus == 0 and not share.note for share in first.values())
    assert asked == [0, 2]
    kept = (storage / packing.PACKING).read_bytes()
    assert packing.shares(configs[:1], stores, {"CPU": 2.0}, storage, run).items() <= first.items()
    assert asked == [0, 2, 0]
    assert (storage / packing.PACKING).read_bytes() == kept


def _gpu(peaks: dict[int, float], cores: int = 16) -> Any:
    """A machine with a GPU of 80 GiB, by the width of the encoder: GiB of a trial; one that is not listed fails."""

    def run(request: packing.Request) -> packing.Answer:
        def one(trial: dict[str, Any]) -> dict[str, Any]:
            width = trial["config"]["encoder_width"]
            if width not in peaks:
                return {"failure": "could not be measured: no such thing"}
            if peaks[width] > 80:
                return {"failure": packing._OUT_OF_MEMORY}
            return {"measured": {"4": [int(peaks[width] * GIB), 0, 80 * GIB, 0.1]}}

        answers = [one(trial) for trial in request["trials"]]
        for found in answers:
            if "measured" in found:
                names = ("peak_bytes", "context_bytes", "total_bytes", "seconds_per_step")
                found["measured"] = {"4": dict(zip(names, found["measured"]["4"], strict=True))}
        assert request["device"] == "cuda"
        return {"machine": "Some GPU", "cores": cores, "trials": answers}

    return run


def test_gpus_are_shared_by_memory_and_cpus_follow(tone_store: ClipStore, tmp_path: Path) -> None:
    widths = (2, 4, 8, 16, 32)
    configs = [TINY.but(encoder_width=width) for width in widths]
    stores, resources = {"tones": tone_store.path}, {"CPU": 32.0, "GPU": 2.0}
    run = _gpu({2: 1, 4: 11, 8: 40, 16: 81})
    shares = packing.shares(configs, stores, resources, tmp_path, run)
    found = [shares[packing.kind(config)] for config in configs]
    assert found == [Share(1, 0.0625), Share(2, 0.1666), Share(4, 1.0), Share(4, 1.0), Share(4, 1.0)]
    assert [share.note for share in found] == [
        "", "", "", "ran out of memory alone on the GPU; it gets a whole GPU",
        "could not be measured: no such thing; it gets a whole GPU",
    ]  # fmt: skip
    # What ran out of memory is known from then on; what failed otherwise is tried again.
    again = packing.shares(configs, stores, resources, tmp_path, _gpu({32: 11}))
    assert again == {**shares, packing.kind(configs[-1]): Share(2, 0.1666)}


def test_another_machine_or_other_data_are_measured_anew(tone_store: ClipStore, tmp_path: Path) -> None:
    stores = {"tones": tone_store.path}
    first = packing.shares([TINY], stores, {"CPU": 16, "GPU": 1}, tmp_path, _gpu({2: 11}))
    assert packing.shares([TINY], stores, {"CPU": 16, "GPU": 1}, tmp_path, _gpu({2: 40})) == first

    def other(request: packing.Request) -> packing.Answer:
        return {**_gpu({2: 40})(request), "machine": "Another GPU"}

    assert packing.shares([TINY], stores, {"CPU": 16, "GPU": 1}, tmp_path, other) == {packing.kind(TINY): Share(4, 1)}


@pytest.mark.slow
def test_a_trial_that_cannot_be_measured_does_not_stop_the_others(tone_store: ClipStore, tmp_path: Path) -> None:
    bad = TINY.but(window_ms=0.1)
    shares = packing.shares([bad, TINY], {"tones": tone_store.path}, {"CPU": 2}, tmp_path)
    assert "window_ms = 0.1" in shares[packing.kind(bad)].note
    assert shares[packing.kind(bad)].note.endswith("; it gets one CPU")
    assert not shares[packing.kind(TINY)].note


def test_a_measurement_that_dies_is_one_line() -> None:
    with pytest.raises(UserError, match=r"--gpus-per-trial auto: the measurement failed \(KeyError: 'store'\)"):
        packing.here({"device": "cpu", "trials": [{"config": {}}]})


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', '{"a": {"measured": {"1": {"peak": 1}}}}'])
def test_a_damaged_file_is_named(tone_store: ClipStore, tmp_path: Path, content: str) -> None:
    (tmp_path / packing.PACKING).write_text(content)
    with pytest.raises(UserError, match=r"packing.json is damaged .* delete it to measure again"):
        packing.shares([TINY], {"tones": tone_store.path}, {"CPU": 2}, tmp_path)


@pytest.mark.slow
def test_the_command_reads_and_writes_json_alone(tone_store: ClipStore) -> None:
    trial = {"config": TINY.model_dump(mode="json"), "store": str(tone_store.path)}
    done = subprocess.run(
        [sys.executable, "-m", "clar.packing"], input=json.dumps({"device": "cpu", "trials": [trial]}), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["machine"]
    (one,) = found["trials"]
    assert next(iter(one["measured"])) == "1"
    assert all(Measured(**each).seconds_per_step > 0 for each in one["measured"].values())


def test_who_only_asks_for_the_machine_loads_no_torch() -> None:
    code = "import sys; from clar import packing; packing.here({'device': 'cpu', 'trials': []}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow"} & set(done.stdout.split())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_and_shared(tone_store: ClipStore, tmp_path: Path) -> None:
    wide = TINY.but(encoder_width=64, batch_size=64)
    small, large = (packing.measure(config, tone_store.path, "cuda", 1) for config in (TINY, wide))
    weights = 4 * 5_000_000  # ResNet of one block a stage, float32
    assert large.peak_bytes > 4 * weights, "weights, gradients and two moments"
    assert small.peak_bytes < large.peak_bytes
    assert small.total_bytes == torch.cuda.mem_get_info()[1]
    assert 0 < small.context_bytes < 2 * GIB
    # Order does not matter: the second measurement holds nothing of the first.
    again = packing.measure(TINY, tone_store.path, "cuda", 1)
    assert again.peak_bytes == pytest.approx(small.peak_bytes, rel=0.2)
    huge = TINY.but(encoder_width=40_000, encoder_blocks=(9, 9, 9, 9))
    shares = packing.shares([TINY, huge], {"tones": tone_store.path}, {"CPU": 4, "GPU": 1}, tmp_path)
    assert shares[packing.kind(TINY)].gpus < 1
    assert "ran out of memory" in shares[packing.kind(huge)].note
