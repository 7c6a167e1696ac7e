"""The probe against scikit-learn, on data with a known answer."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from clar import probe


def blobs(count: int, classes: int = 6, dims: int = 12, noise: float = 1.5, seed: int = 0) -> probe.Split:
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    features = (centres[labels] + noise * rng.normal(size=(count, dims))) * 10.0 ** np.arange(-3, dims - 3).clip(max=3)
    return torch.from_numpy(features), torch.from_numpy(labels)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_one_penalty_gives_scikit_learns_classifier(l2: float) -> None:
    train, valid = blobs(300, seed=1), blobs(200, seed=2)
    fitted = probe.fit(train, valid, l2_path=[l2])
    scaler = StandardScaler().fit(train[0].numpy())
    reference = LogisticRegression(C=1 / (l2 * 300), tol=1e-8, max_iter=10_000).fit(
        scaler.transform(train[0].numpy()), train[1].numpy()
    )
    logits = (valid[0] - fitted.mean_H) / fitted.scale_H @ fitted.weight_CH.T + fitted.bias_C
    expected = reference.predict_proba(scaler.transform(valid[0].numpy()))
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=2e-3)
    assert fitted.accuracy(valid) == reference.score(scaler.transform(valid[0].numpy()), valid[1].numpy())


def test_the_penalty_is_chosen_on_valid_and_test_changes_nothing() -> None:
    train, valid, test = blobs(60, seed=1), blobs(300, seed=2), blobs(300, seed=3)
    result = probe.linear(train, valid, test)
    alone = {l2: probe.fit(train, valid, l2_path=[l2]).valid_top1 for l2 in probe.L2_PATH}
    assert result.valid_top1 == pytest.approx(max(alone.values()), abs=1 / 300)
    assert result.top5 >= result.top1
    assert probe.linear(train, valid, valid).l2 == result.l2


def test_perfect_and_chance() -> None:
    train, valid, test = (blobs(400, noise=0.01, seed=seed) for seed in (1, 2, 3))
    assert probe.linear(train, valid, test).top1 == 1.0
    rng = torch.Generator().manual_seed(0)
    noise = [(torch.randn(500, 8, generator=rng), torch.randint(10, (500,), generator=rng)) for _ in range(3)]
    assert probe.linear(*noise).top1 < 0.2


def test_constant_dimensions_missing_classes_and_few_clips() -> None:
    train, valid, test = blobs(30, seed=1), blobs(20, seed=2), blobs(20, seed=3)
    constant = [(torch.cat([f, torch.full((len(f), 2), 7.0)], dim=1), y) for f, y in (train, valid, test)]
    assert probe.linear(*constant) == probe.linear(train, valid, test)
    few = (train[0][:2], train[1][:2])
    assert 0 <= probe.linear(few, valid, test, classes=6).top1 <= 1


def test_bad_representations_are_named() -> None:
    train, valid = blobs(30), blobs(30)
    with pytest.raises(ValueError, match="train are not finite"):
        probe.fit((train[0] * torch.nan, train[1]), valid)
    with pytest.raises(ValueError, match="valid has 0"):
        probe.fit(train, (valid[0][:0], valid[1][:0]))


@pytest.mark.parametrize("neighbours", [1, 10])
def test_nearest_neighbours_equal_scikit_learn(neighbours: int) -> None:
    train, test = blobs(400, seed=1), blobs(1500, seed=2)
    reference = KNeighborsClassifier(neighbours, metric="cosine").fit(train[0].numpy(), train[1].numpy())
    expected = reference.score(test[0].numpy(), test[1].numpy())
    actual = probe.nearest_neighbours(train, test, neighbours)
    # scikit-learn gives ties of votes to the smallest class, this project to the nearer neighbours.
    assert actual == pytest.approx(expected, abs=0 if neighbours == 1 else 0.03)


def test_a_tie_of_votes_goes_to_the_nearer_neighbours() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    test = torch.tensor([[0.4, 0.6], [0.6, 0.4]]), torch.tensor([1, 0])
    assert probe.nearest_neighbours(train, test, neighbours=2) == 1.0
