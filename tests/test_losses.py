"""NT-Xent and cross-entropy against plain float64 formulas, at one and at several processes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from clar import losses


def reference(z1: np.ndarray, z2: np.ndarray, temperature: float) -> float:
    """The definition, one exponential at a time."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    count, total = len(z), 0.0
    for i in range(count):
        j = (i + count // 2) % count
        exponents = [z[i] @ z[k] / temperature for k in range(count) if k != i]
        peak = max(exponents)
        total += math.log(sum(math.exp(e - peak) for e in exponents)) + peak - z[i] @ z[j] / temperature
    return total / count


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 33])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_nt_xent_equals_the_definition(temperature: float, count: int, scale: float) -> None:
    rng = np.random.default_rng(count)
    z1 = rng.normal(size=(count, 16)) * scale
    z2 = z1 + rng.normal(size=(count, 16)) * scale * 0.3
    actual = losses.nt_xent(torch.from_numpy(z1).float(), torch.from_numpy(z2).float(), temperature)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(reference(z1, z2, temperature), abs=1e-5)


def test_nt_xent_is_exact_under_mixed_precision() -> None:
    z1, z2 = torch.randn(2, 64, 32).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        actual = losses.nt_xent(z1, z2, 0.05)
    assert actual.item() == pytest.approx(reference(z1.float().numpy(), z2.float().numpy(), 0.05), abs=1e-4)


def test_nt_xent_survives_identical_views_and_zeros() -> None:
    z = torch.randn(8, 4, requires_grad=True)
    loss = losses.nt_xent(z, z, 0.05)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert losses.nt_xent(torch.zeros(4, 3), torch.zeros(4, 3), 0.5).item() == pytest.approx(math.log(7))


def test_nt_xent_gradient() -> None:
    z1, z2 = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda a, b: losses.nt_xent(a, b, 0.5), (z1, z2))


def test_nt_xent_refuses_views_of_different_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        losses.nt_xent(torch.zeros(3, 2), torch.zeros(4, 2), 0.5)


def test_cross_entropy_takes_labelled_clips_only_and_is_zero_without_any() -> None:
    logits = torch.randn(6, 10, requires_grad=True)
    labels = torch.tensor([3, -1, 0, -1, 9, -1])
    kept = torch.tensor([0, 2, 4])
    expected = torch.nn.functional.cross_entropy(logits[kept], labels[kept])
    torch.testing.assert_close(losses.cross_entropy(logits, labels), expected)
    none = losses.cross_entropy(logits, torch.full((6,), losses.UNLABELLED))
    none.backward()
    assert none.item() == 0
    assert not logits.grad.any()


def _one_process(rank: int, world: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.manual_seed(0)
    weight = torch.randn(8, 5, dtype=torch.float64).requires_grad_()
    x1, x2 = torch.randn(2, 6 * world, 8, dtype=torch.float64)
    own = slice(6 * rank, 6 * rank + 6)
    loss = losses.nt_xent(x1[own] @ weight, x2[own] @ weight, 0.1)
    loss.backward()
    # What DistributedDataParallel does with the gradients, and what a log does with the losses.
    for value in (mean_loss := loss.detach().clone(), weight.grad):
        distributed.all_reduce(value)
        value /= world
    if rank == 0:
        torch.save({"loss": mean_loss, "grad": weight.grad}, f"{folder}/result.pt")
    # Together: gloo's threads abort a process that leaves while another still talks to it.
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_nt_xent_of_three_processes_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    world = 3
    multiprocessing.spawn(_one_process, args=(world, str(tmp_path)), nprocs=world)
    several = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.manual_seed(0)
    weight = torch.randn(8, 5, dtype=torch.float64).requires_grad_()
    x1, x2 = torch.randn(2, 6 * world, 8, dtype=torch.float64)
    loss = losses.nt_xent(x1 @ weight, x2 @ weight, 0.1)
    loss.backward()
    torch.testing.assert_close(several["loss"], loss.detach())
    torch.testing.assert_close(several["grad"], weight.grad)
