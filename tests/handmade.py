"""Trials of a storage written by hand, for tests of what goes on around training."""

from collections.abc import Iterable

from clar.result import EpochRecord, TrialFolder, TrialResult


def records(scores: Iterable[float]) -> list[EpochRecord]:
    return [EpochRecord(epoch, 1.0, score, 0.1, 100.0) for epoch, score in enumerate(scores, 1)]


def finish(folder: TrialFolder, test: float, scores: Iterable[float] = (), seconds: float = 1.0) -> None:
    folder.begin("0+r2")
    epochs = records(scores or [test] * folder.config.epochs)
    folder.write_epochs(epochs)
    folder.write_result(TrialResult(test, test, test, 0.1, test, None, seconds, 0.0, tuple(epochs)))
