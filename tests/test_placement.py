"""Where a trial's clips lie while it trains on a GPU, by what a made-up GPU says of itself."""

import numpy as np
import pytest
import torch

from clar import trainer

GPU = torch.device("cuda")


def gpu(monkeypatch, free, total=80, reserved=0, allocated=0, data=()):
    """A made-up GPU; `data` are the sizes of data sets that this process has there."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    there = {("cuda", str(i)): torch.empty(size, dtype=torch.int8) for i, size in enumerate(data)}
    monkeypatch.setattr(trainer, "_on_gpu", there)


@pytest.mark.parametrize(
    ("share", "state", "room"),
    [
        pytest.param(1.0, {"free": 80}, 40, id="empty"),
        pytest.param(0.25, {"free": 80}, 10, id="a quarter of it"),
        pytest.param(0.5, {"free": 30}, 15, id="others have taken most"),
        pytest.param(1.0, {"free": 30, "reserved": 50, "allocated": 10}, 35, id="an earlier trial's, kept by torch"),
        pytest.param(1.0, {"free": 30, "reserved": 50, "allocated": 50, "data": [20]}, 25, id="another data set"),
        pytest.param(0.25, {"free": 2, "reserved": 78, "allocated": 0}, 10, id="never more than half of the share"),
    ],
)
def test_half_of_what_a_trial_may_have_of_a_gpu_is_for_data(monkeypatch, share, state, room):
    gpu(monkeypatch, **state)
    assert trainer.gpu_room(GPU, share) == room


def test_a_store_goes_to_a_gpu_that_has_room(tone_store, monkeypatch):
    size = tone_store.clips.nbytes
    on_gpu = torch.from_numpy(np.array(tone_store.clips))
    monkeypatch.setattr(trainer, "_resident", lambda store, device: on_gpu)
    gpu(monkeypatch, free=2 * size, total=10 * size)
    clips = trainer.Clips(tone_store, GPU)
    assert clips.on_device is on_gpu
    assert not clips.ahead
    assert clips.placement.startswith("tones, ")
    assert clips.placement.endswith("on the GPU (0.0015 GB of it may be data)")
    gpu(monkeypatch, free=2 * size - 2, total=10 * size)
    clips = trainer.Clips(tone_store, GPU)
    assert clips.on_device is None
    assert clips.ahead
    assert clips.placement.endswith("read ahead into pinned memory (0.0015 GB of it may be data)")


def test_a_store_stays_on_a_gpu_that_has_become_full(tone_store, monkeypatch):
    gpu(monkeypatch, free=0)
    trainer._on_gpu["cuda", tone_store.fingerprint] = torch.from_numpy(np.array(tone_store.clips))
    assert trainer.Clips(tone_store, GPU).on_device is not None


def test_a_gpu_that_fills_up_after_it_was_measured_fails_no_trial(tone_store, monkeypatch):
    """Several trials of a GPU begin at the same time."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu(monkeypatch, free=10**12, total=10**12)
    monkeypatch.setattr(torch, "empty", full)
    clips = trainer.Clips(tone_store, GPU)
    assert clips.on_device is None
    assert clips.ahead
    assert clips.placement.endswith(
        "read ahead into pinned memory (500 GB of it may be data, but it had no room for them)"
    )
