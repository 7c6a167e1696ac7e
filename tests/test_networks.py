"""Encoders, heads and optimizers: a contract for every encoder, and references from elsewhere."""

import copy
import math
from typing import get_args

import pytest
import torch

from clar import encoders, heads, losses, optim
from clar.config import Optimizer


@pytest.fixture(params=[("raw", 16), ("raw", 4), ("spectrogram", 16), ("spectrogram", 4)], ids=str)
def encoder_and_input(request: pytest.FixtureRequest) -> tuple[encoders.ResNet, torch.Tensor]:
    kind, width = request.param
    torch.manual_seed(0)
    shape = (5, 1, 4000) if kind == "raw" else (5, 3, 64, 63)
    return encoders.make(kind, width, (1, 1, 1, 1)), torch.randn(shape)


def test_encoder_contract(encoder_and_input: tuple[encoders.ResNet, torch.Tensor]) -> None:
    encoder, inputs = encoder_and_input
    out = encoder(inputs)
    assert out.shape == (5, encoder.out_features)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    encoder.eval()
    alone = torch.cat([encoder(row[None]) for row in inputs])
    torch.testing.assert_close(encoder(inputs), alone, rtol=1e-4, atol=1e-5)
    assert encoder(torch.zeros_like(inputs)).isfinite().all()


@pytest.mark.parametrize(("kind", "parameters"), [("spectrogram", 11_176_512), ("raw", None)])
def test_width_64_is_resnet_18(kind: str, parameters: int | None) -> None:
    encoder = encoders.make(kind)
    assert encoder.out_features == 512
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size[0] > 1]) == 17
    if parameters:  # the published ResNet-18 without its classifier
        assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("samples", [1, 20, 4000])
def test_released_waveform_encoder_pools_the_maximum_of_nine(samples: int) -> None:
    torch.manual_seed(0)
    paper, released = (encoders.make("raw", 4, (1, 1, 1, 1), variant=variant) for variant in ("paper", "released"))
    released.load_state_dict(paper.state_dict())  # the same weights, pooled otherwise
    clips = torch.randn(3, 1, samples)
    for encoder, size, step in ((paper, 3, 2), (released, 9, 9)):
        before = encoder.stem[:3](clips)
        padded = torch.nn.functional.pad(before, (size // 2, size // 2), value=-torch.inf)
        assert torch.equal(encoder.stem(clips), padded.unfold(2, size, step).amax(3))
        assert encoder(clips).isfinite().all()
    spectrogram = encoders.make("spectrogram", 4, (1, 1, 1, 1), variant="released")
    assert spectrogram.stem[-1].kernel_size == 3


@pytest.mark.parametrize("channels", [1, 2])
def test_spectrogram_encoder_takes_fewer_pictures(channels: int) -> None:
    encoder = encoders.make("spectrogram", 4, (1, 1, 1, 1), in_channels=channels)
    assert encoder(torch.randn(2, channels, 16, 33)).shape == (2, 32)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_heads_give_what_their_loss_needs(variant: str) -> None:
    representation = torch.randn(6, 32)
    outputs = {
        loss: heads.Head(loss, 32, 24, 16, 10, variant)(representation)
        for loss in ("self_supervised", "supervised", "clar")
    }
    assert outputs["self_supervised"].projection_BD.shape == (6, 16)
    assert outputs["self_supervised"].logits_BC is None
    assert outputs["supervised"].projection_BD is None
    assert outputs["supervised"].logits_BC.shape == (6, 10)
    assert outputs["clar"].projection_BD.shape == (6, 16)
    assert outputs["clar"].logits_BC.shape == (6, 10)
    lengths = outputs["self_supervised"].projection_BD.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(6)) == (variant == "released")
    assert not torch.allclose(outputs["clar"].projection_BD.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("loss", ["self_supervised", "supervised", "clar"])
def test_released_head_equals_the_formula(loss: str) -> None:
    torch.manual_seed(0)
    head = heads.Head(loss, 32, 24, 16, 10, "released")
    x = representation = torch.randn(7, 32)
    *hidden, last = [m for m in head.modules() if isinstance(m, torch.nn.Linear)]
    widths = {"self_supervised": [24, 24, 16], "supervised": [24, 24, 10], "clar": [24, 16, 10]}[loss]
    assert [layer.out_features for layer in (*hidden, last)] == widths
    assert last.bias is None
    for layer in hidden[:1] if loss == "clar" else hidden:
        x = x @ layer.weight.T + layer.bias
        x = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()).clamp(min=0)
    projection, logits = head(representation)
    if loss == "clar":
        x = x @ hidden[1].weight.T + hidden[1].bias
        torch.testing.assert_close(projection, x)
        torch.testing.assert_close(logits, x @ last.weight.T)
    elif loss == "supervised":
        torch.testing.assert_close(logits, x @ last.weight.T)
    else:
        x = x @ last.weight.T
        torch.testing.assert_close(projection, x / x.norm(dim=1, keepdim=True))


def test_released_joint_head_lets_the_cross_entropy_fall() -> None:
    torch.manual_seed(0)
    labels = torch.arange(64) % 4
    representation = torch.randn(4, 32)[labels] + 0.3 * torch.randn(64, 32)
    head = heads.Head("clar", 32, 24, 16, 4, "released")
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(100):
        loss = losses.cross_entropy(head(representation).logits_BC, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_learning_rate_warms_up_linearly_and_decays_as_a_cosine() -> None:
    rates = [optim.learning_rate_at(step, 2.0, 10, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[110] == pytest.approx(0, abs=1e-12)
    assert optim.learning_rate_at(0, 1.0, 0, 1) == 1.0


def test_lars_step_equals_the_formula() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5)
    torch.nn.init.zeros_(model.bias)
    optimizer = optim.make("lars", model, 0.5, weight_decay=0.1)
    w, b = model.weight.detach().double().clone(), model.bias.detach().double().clone()
    velocity, bias_velocity = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(1, 6):
        rate = 0.5 / step  # which the trainer sets before every step
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        model(torch.ones(2, 7) * step).square().mean().backward()
        u = model.weight.grad.double() + 0.1 * w
        velocity = 0.9 * velocity + rate * 1e-3 * w.norm() / u.norm() * u
        bias_velocity = 0.9 * bias_velocity + rate * model.bias.grad.double()
        w, b = w - velocity, b - bias_velocity
        optimizer.step()
        torch.testing.assert_close(model.weight.detach().double(), w, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(model.bias.detach().double(), b, rtol=1e-5, atol=1e-6)


def test_lars_of_zeros_or_without_a_gradient_takes_the_plain_step() -> None:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(model.weight)
    optimizer = optim.make("lars", model, 1.0, 0.0)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.full((3, 4), -2.0))
    optimizer.zero_grad(set_to_none=False)
    before = model.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.9 * 2)  # the momentum alone


def test_released_optimizer_is_adam_on_rescaled_gradients() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    twin = copy.deepcopy(model).double()
    optimizer = optim.make("released", model, 0.01, weight_decay=0.1)
    adam = torch.optim.Adam(twin.parameters(), 0.01)
    for step in range(5):
        x = torch.randn(6, 7) * (step + 1)
        for network, stepper in ((model, optimizer), (twin, adam)):
            stepper.zero_grad()
            network(x.to(network[0].weight.dtype)).square().sum().backward()
            if network is twin:
                for p in (twin[0].weight, twin[2].weight):
                    scale = 1e-3 * p.detach().norm() / (p.grad.norm() + 0.1 * p.detach().norm())
                    p.grad = scale * (p.grad + 0.1 * p.detach())
            stepper.step()
        for p, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.detach().double(), expected.detach(), rtol=1e-4, atol=1e-5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_lamb_stays_as_it_is() -> None:
    # What version 2 of the results called lars computed.
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5)
    optimizer = optim.make("lamb", model, 1.0, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.ones(2, 7) * (step + 1)).square().sum().backward()
        optimizer.step()
    total = sum(p.detach().double().abs().sum().item() for p in model.parameters())
    assert total == pytest.approx(7.567937439423986, rel=1e-9)


def test_lamb_step_equals_the_formula_and_moves_a_layer_by_its_trust() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5)
    optimizer = optim.make("lamb", model, 1.0, weight_decay=0.1)
    w, b = model.weight.detach().double().clone(), model.bias.detach().double().clone()
    mean, square, bias_mean, bias_square = (torch.zeros_like(x) for x in (w, w, b, b))
    for step in (1, 2, 3):
        optimizer.zero_grad()
        model(torch.ones(2, 7) * step).square().sum().backward()
        g, gb = model.weight.grad.double(), model.bias.grad.double()
        before = w.clone()
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        update = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8) + 0.1 * w
        w = w - 1e-3 * w.norm() / update.norm() * update
        bias_mean, bias_square = 0.9 * bias_mean + 0.1 * gb, 0.999 * bias_square + 0.001 * gb**2
        b = b - 1e-3 * bias_mean / (1 - 0.9**step) / ((bias_square / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
        torch.testing.assert_close(model.weight.detach().double(), w, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(model.bias.detach().double(), b, rtol=1e-5, atol=1e-7)
        assert (w - before).norm() / before.norm() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_layers_do_not_see_the_scale_of_the_gradient(name: str) -> None:
    moved = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = optim.make(name, model, 1.0, 0.0)
        (model(torch.ones(2, 4)).square().sum() * scale).backward()
        optimizer.step()
        moved.append(model.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_neither_biases_nor_batch_norms_are_decayed(name: str) -> None:
    model = encoders.make("spectrogram", 4, (1, 1, 1, 1))
    optimizer = optim.make(name, model, 1.0, 0.5)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            is_weight = isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and parameter.ndim > 1
            assert (id(parameter) in decayed) == is_weight


@pytest.mark.parametrize("bins", [16, 64, 100, 128])
def test_pooled_over_time_alone_the_heights_of_the_picture_stay_apart(bins: int) -> None:
    whole, apart = (encoders.make("spectrogram", 4, (1, 1, 1, 1), pooling=pooling, bins=bins)
                    for pooling in ("mean", "time"))  # fmt: skip
    apart.load_state_dict(whole.state_dict())
    pictures = torch.randn(2, 3, bins, 60)
    found = apart.eval()(pictures)
    assert found.shape == (2, apart.out_features)
    heights = apart.out_features // whole.out_features
    assert heights == -(-bins // 32)
    torch.testing.assert_close(found.view(2, -1, heights).mean(2), whole.eval()(pictures))
