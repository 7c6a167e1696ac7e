"""Splits and folds of one's own recordings, drawn: by the hash of the files' names, or of their groups'.

So they are the same on every machine and do not depend on any order; classes have their shares, groups are kept whole.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WEIGHTS = (70, 15, 15)
"""Percent of the clips of a class in train, valid and test, where splits are drawn."""


class Clip(NamedTuple):
    """One file of the data set.

    Attributes:
        path: relative to the root, or absolute.
        label: name of the class.
        where: it is listed, such as `line 3`; empty where the folder itself is the list.
        split: as it is given, a name in `SPLITS`, else empty.
        group: as it is given, such as a speaker; else empty.
        fold: as it is given, from 1 on; else 0.
    """

    path: str
    label: str
    where: str = ""
    split: str = ""
    group: str = ""
    fold: int = 0


def stratified(
    clips: Sequence[Clip], labels: Sequence[int], seed: int, weights: Sequence[int] = WEIGHTS
) -> NDArray[np.uint8]:
    """Positions (N,) in `SPLITS`, drawn by the hash of the clips' paths, or of their groups' names.

    Without groups each class has its shares to within one clip, and at least one clip in each split where it has enough
    of them. A file more moves at most a few others to another split. With groups, whose clips stay together, the shares
    are as near as a greedy choice gets (that of scikit-learn's StratifiedGroupKFold, the largest group first), and a
    class has all the splits where its groups allow it; a file more may move any group.

    Args:
        clips: N files.
        labels: N positions of their classes.
        seed: of the hash.
        weights: of the splits; one of weight 0 gets no clip.
    """
    units = _drawn(clips, seed)
    counts = [Counter(labels[row] for row in rows) for rows in units]
    single = all(len(rows) == 1 for rows in units)
    chosen = _ranked([labels[rows[0]] for rows in units], weights) if single else _greedy(counts, weights)
    splits = np.zeros(len(clips), np.uint8)
    for rows, split in zip(units, chosen, strict=True):
        splits[rows] = split
    return splits


def drawn_folds(clips: Sequence[Clip], labels: Sequence[int], seed: int, count: int) -> NDArray[np.uint8]:
    """Folds (N,) from 1 to `count`, drawn by the hash of the clips' paths, or of their groups' names.

    The largest group comes first, then class by class; each goes to the fold that has fewest clips of its classes, then
    fewest clips. So without groups folds differ by one clip at most, in all and of each class. scikit-learn's
    StratifiedGroupKFold chooses in the same way, but what it draws depends on its version and on the clips' order.
    """
    units = _drawn(clips, seed)
    total = Counter(labels)
    have = [Counter[int]() for _ in range(count)]
    folds = np.zeros(len(clips), np.uint8)
    for rows in sorted(units, key=lambda rows: (-len(rows), sorted(labels[row] for row in rows))):
        group = Counter(labels[row] for row in rows)

        def cost(fold: int, group: Counter[int] = group) -> tuple[float, int]:
            terms = ((2 * have[fold][label] + n) * n / total[label] for label, n in sorted(group.items()))
            return math.fsum(terms), have[fold].total()

        fold = min(range(count), key=cost)
        have[fold].update(group)
        folds[rows] = fold + 1
    return folds


def _drawn(clips: Sequence[Clip], seed: int) -> list[list[int]]:
    """The rows of each group, or file that has none, in an order that the seed and their names say."""
    units: defaultdict[str, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        units[unit_of(clip)].append(row)
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}\n{unit}".encode(errors="surrogatepass")).digest())
    return [units[unit] for unit in order]


def unit_of(clip: Clip) -> str:
    """What is not divided between splits: a group, or a file that has none."""
    return f"group {clip.group}" if clip.group else f"file {clip.path}"


def _held_out(count: int, weights: Sequence[int]) -> list[int]:
    """Clips of a class of `count` for each split after the first: its share, at least one; none of a tiny class."""
    if count < sum(weight > 0 for weight in weights):
        return [0 for _ in weights[1:]]
    return [
        max(1, (2 * count * weight + sum(weights)) // (2 * sum(weights))) if weight else 0 for weight in weights[1:]
    ]


def _ranked(labels: list[int], weights: Sequence[int]) -> list[int]:
    """The split of each clip: the first of a class are held out, test before valid."""
    left = {label: _held_out(count, weights) for label, count in Counter(labels).items()}
    chosen = []
    for label in labels:
        split = next((place for place in range(len(weights) - 1, 0, -1) if left[label][place - 1]), 0)
        if split:
            left[label][split - 1] -= 1
        chosen.append(split)
    return chosen


def _greedy(counts: list[Counter[int]], weights: Sequence[int]) -> list[int]:
    """The split of each group, given how many clips of each class it has.

    The next group goes where it adds least to the sum over splits and classes of (clips)^2 / (clips wanted), whose
    minimum is at the shares wanted.
    """
    total = Counter[int]()
    for group in counts:
        total.update(group)
    wanted: list[dict[int, float]] = [{} for _ in weights]
    for label, count in total.items():
        held = _held_out(count, weights)
        for split, size in enumerate([count - sum(held), *held]):
            wanted[split][label] = max(1.0, size)
    have = [Counter[int]() for _ in weights]
    usable = [split for split, weight in enumerate(weights) if weight]

    def cost(group: Counter[int], split: int) -> float:
        terms = ((2 * have[split][label] + n) * n / wanted[split][label] for label, n in sorted(group.items()))
        return math.fsum(terms)

    chosen = [0] * len(counts)
    for place in sorted(range(len(counts)), key=lambda place: -counts[place].total()):
        chosen[place] = min(usable, key=lambda split: cost(counts[place], split))
        have[chosen[place]].update(counts[place])
    _fill_gaps(counts, chosen, usable)
    return chosen


def _fill_gaps(counts: list[Counter[int]], chosen: list[int], usable: list[int]) -> None:
    """Move groups, the smallest that will do, into splits that lack a class: train first, which must have all.

    A group is moved out of another split only if that one keeps all its classes, but for the sake of train.
    """
    holders = {split: Counter[int]() for split in usable}
    for group, split in zip(counts, chosen, strict=True):
        holders[split].update(group.keys())
    by_size = sorted(range(len(counts)), key=lambda place: counts[place].total())
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place in by_size:
        for label in counts[place]:
            places[label].append(place)
    for split in usable:
        for label in sorted(places):
            if holders[split][label]:
                continue
            for place in places[label]:
                other = holders[chosen[place]]
                if split == 0 or all(other[each] > 1 for each in counts[place]):
                    other.subtract(counts[place].keys())
                    holders[split].update(counts[place].keys())
                    chosen[place] = split
                    break
