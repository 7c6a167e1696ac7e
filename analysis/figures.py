"""Figures of a sweep's results, readable in grey, in print and by the colour-blind."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def heat_map(means: pd.DataFrame, title: str, path: Path) -> list[Path]:
    """The grid of accuracies as colours with their values, written as `path`.png and `path`.svg.

    Args:
        means: rows x columns of shares, 0 to 1, NaN where there is none; its axes carry their names.
        title: above the picture.
        path: of the files, without suffix.

    Returns:
        The files written.
    """
    values = 100 * means.to_numpy(dtype=float)
    # The object-oriented interface: pyplot would choose a window system and keep every figure alive.
    figure = Figure(figsize=(1.05 * values.shape[1] + 2.6, 0.62 * values.shape[0] + 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Cividis rises evenly in lightness: the same order in grey and for every kind of colour vision.
    image = axes.imshow(values, cmap="cividis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0.0
    best = np.nanmax(values) if np.isfinite(values).any() else None
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "–", ha="center", va="center", color="0.4")
            continue
        axes.text(
            column, row, f"{value:.1f}", ha="center", va="center",
            color="black" if value > middle else "white", fontweight="bold" if value == best else "normal",
        )  # fmt: skip
    axes.set_xticks(range(values.shape[1]), means.columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(values.shape[0]), means.index)
    axes.set_xlabel(str(means.columns.name))
    axes.set_ylabel(str(means.index.name))
    axes.set_title("\n".join(textwrap.wrap(title, 11 * values.shape[1])), loc="left", fontsize="medium")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="%", fraction=0.04)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    # Fixed salt and no date: the same results give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "clar", "svg.fonttype": "none"}):
        figure.savefig(written[0], dpi=150, metadata={"Software": None})
        figure.savefig(written[1], metadata={"Date": None})
    return written
