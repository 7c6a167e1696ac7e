"""A picture of a data set: the spectrogram of one example of each class."""

import math
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clar.clips import ClipStore
from clar.files import write_atomically

WINDOW_SECONDS = 0.032
RANGE_DB = 80
"""Below the loudest, what is black."""

WIDTH = 1.9
"""Inches of one spectrogram; its title has room for some 28 letters, the picture's for some 20 in each column."""


def draw(store: ClipStore, path: Path) -> None:
    """Write a PNG with the first training clip of each class; of a class that has none, the first there is.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = examples(store)
    columns = min(len(rows), 12 if len(rows) > 40 else 6)
    lines = math.ceil(len(rows) / columns)
    what = f"{store.name}: one clip of each class, {store.seconds:g}\u00a0s, 0 to {store.sample_rate / 2000:g}\u00a0kHz"
    title = textwrap.wrap(what, 20 * columns)  # the name may be a path, of any length
    figure = Figure(figsize=(WIDTH * columns, 1.6 * lines + 0.2 + 0.3 * len(title)), layout="constrained")
    FigureCanvasAgg(figure)
    # Names are no formulas: one may have dollars in it.
    figure.suptitle("\n".join(title), parse_math=False)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (label, row) in zip(grid.flat, rows.items(), strict=False):
        axes.imshow(spectrogram(store.clips[row], store.sample_rate), origin="lower", aspect="auto", cmap="magma",
                    vmin=-RANGE_DB, vmax=0)  # fmt: skip
        axes.set_title(_shortened(store.classes[label]), fontsize=8, parse_math=False)

    def save(file: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as boxes; there is one font
            figure.savefig(file, format="png", dpi=110)

    write_atomically(path, save)


def _shortened(word: str) -> str:
    """A class's name that does not run into its neighbour's."""
    return word if len(word) <= 28 else f"{word[:27]}…"


def examples(store: ClipStore) -> dict[int, int]:
    """Of each class that has a clip, the row of an example."""
    found: dict[int, int] = {}
    for rows in (store.split("train"), np.arange(len(store))):
        labels, first = np.unique(store.labels[rows], return_index=True)
        for label, place in zip(labels.tolist(), first.tolist(), strict=True):
            found.setdefault(label, int(rows[place]))
    return dict(sorted(found.items()))


def spectrogram(clip_T: NDArray[np.int16], sample_rate: int) -> NDArray[np.float64]:
    """Levels (frequencies, frames) in dB below the loudest."""
    length = min(round(WINDOW_SECONDS * sample_rate), len(clip_T))
    hop = max(1, length // 2)
    frames = np.lib.stride_tricks.sliding_window_view(clip_T / 32768, length)[::hop] * np.hanning(length)
    power = np.square(np.abs(np.fft.rfft(frames))).T
    return np.asarray(10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 1e-12)))
