"""Figures of a sweep's results, readable in grey, in print and by the colour-blind.

The same input gives the same bytes. Importing this module loads Matplotlib: import it where a figure is drawn.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.statistics import Agreement, Effect
from analysis.tables import positive
from clar.files import write_atomically

_STYLE: Any = {
    # A `$` in a name is a dollar.
    "text.parse_math": False,
    # Fixed salt: the same results give the same bytes.
    "svg.hashsalt": "clar",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}

# Okabe and Ito's colours for every kind of colour vision, without the yellow, which white paper swallows, and in an
# order of alternating lightness. In grey, line and marker tell apart what colour does not.
_COLOURS = ("#0072B2", "#E69F00", "#000000", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

_MARKS_A_LINE = 8
_LEGEND_LINES = 24
_MOST_BANDS = 12
_PLOT_WIDTH = 4.8
_STATE_TEXTS = {"": "", "done": "–", "missing": "–"}

# By place: marker, colour, and what fills the marker.
_PLACES: dict[str, dict[str, Any]] = {
    "first": {"marker": "o", "color": _COLOURS[0], "markerfacecolor": _COLOURS[0]},
    "second": {"marker": "s", "color": _COLOURS[5], "markerfacecolor": "white"},
}
_VERDICTS: dict[str, dict[str, Any]] = {
    "confirmed": {"marker": "o", "color": _COLOURS[0], "markerfacecolor": _COLOURS[0]},
    "refuted": {"marker": "X", "color": _COLOURS[5], "markerfacecolor": _COLOURS[5]},
    "undecided": {"marker": "D", "color": "0.3", "markerfacecolor": "white"},
}
_CLAIM_WIDTH = 46
"""Characters of a claim's label on one line."""

_MOST_MARKED_CLASSES = 35
_WAVE_COLUMNS = 600
_DEEPEST_DB = 80
_HERTZ_TICKS = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)


class _ClaimPart(Protocol):
    """One row of a forest plot, see `claims`."""

    @property
    def label(self) -> str: ...
    @property
    def effect(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def verdict(self) -> str: ...


@dataclass
class _Drawing:
    """A figure being drawn, and its files, which are there when the block of `_drawing` has ended."""

    figure: Figure
    files: list[Path]


@contextmanager
def _drawing(path: Path, width: float, height: float) -> Iterator[_Drawing]:
    """A figure of so many inches, in the house's style, that is written when the block ends."""
    # The object-oriented interface: pyplot would choose a window system and keep every figure alive.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes in the PNG; the SVG keeps the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        drawing = _Drawing(Figure(figsize=(width, height), layout="constrained"), [])
        FigureCanvasAgg(drawing.figure)
        yield drawing
        # No date and no program's name, or tomorrow's file would differ.
        kinds: list[tuple[str, dict[str, Any]]] = [("png", {"Software": None}), ("svg", {"Date": None})]
        for kind, metadata in kinds:
            content = io.BytesIO()
            drawing.figure.savefig(content, format=kind, dpi=150, metadata=metadata)
            # Laying out takes most of the time, and both files are to look the same.
            drawing.figure.set_layout_engine("none")
            drawing.files.append(path.with_name(f"{path.name}.{kind}"))
            write_atomically(drawing.files[-1], content.getvalue())


def heat_map(
    means: pd.DataFrame,
    title: str,
    path: Path,
    states: pd.DataFrame | None = None,
    marks: pd.DataFrame | None = None,
    best: pd.DataFrame | None = None,
) -> list[Path]:
    """The grid of accuracies as colours with their values, written as `path`.png and `path`.svg.

    Args:
        means: rows x columns of shares, 0 to 1, NaN where there is none; its axes carry their names.
        title: above the picture.
        path: of the files, without suffix.
        states: of the same shape: what is said where there is no number, such as `cut` or `failed`; nothing where it is
            empty. Without it, a dash.
        marks: of the same shape, booleans: values that get a dagger, since they cannot be told from the best.
        best: of the same shape, booleans: values in bold; without it, the largest.

    Returns:
        The files written.
    """
    values = 100 * means.to_numpy(dtype=float)
    rows, columns = values.shape
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    bold = np.isclose(values, high, rtol=1e-12) if best is None else best.to_numpy(dtype=bool)
    row_names, column_names = _labels(means.index), _labels(means.columns)
    width = 1.05 * max(columns, 2) + 1.3 + _inches(row_names)
    height = (0.62 if rows <= 20 else 0.36) * max(rows, 2) + 1.4 + 0.5 * _inches(column_names)
    with _drawing(path, width, height) as drawing:
        axes = drawing.figure.add_subplot()
        axes.grid(False)
        axes.set_title(_title(title, width - _inches(row_names) - 0.4))
        if not values.size:
            _nothing(axes)
            return drawing.files
        # Cividis rises evenly in lightness: the same order in grey and for every kind of colour vision.
        image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto", vmin=low, vmax=high)
        any_marked = False
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                marked = marks is not None and bool(marks.iat[row, column])
                any_marked |= marked
                axes.text(
                    column, row, f"{value:.1f}†" if marked else f"{value:.1f}", ha="center", va="center",
                    color="black" if value > 0.55 * low + 0.45 * high else "white",
                    fontweight="bold" if bold[row, column] else "normal",
                )  # fmt: skip
                continue
            state = "missing" if states is None else str(states.iat[row, column])
            axes.text(
                column, row, _STATE_TEXTS.get(state, state), ha="center", va="center", color="0.35", style="italic"
            )
        axes.set_xticks(range(columns), column_names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(rows), row_names)
        axes.set_xlabel(_label(means.columns.name))
        axes.set_ylabel(_label(means.index.name))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if any_marked:
            drawing.figure.supxlabel("bold: best; †: cannot be told from it", x=0.01, ha="left", size="small")
        if known.size:
            bar = drawing.figure.colorbar(image, ax=axes, label="%", fraction=0.04)
            bar.outline.set_visible(False)
            if low == high:
                bar.set_ticks([low])
    return drawing.files


def curves(
    lines: Mapping[str, Mapping[int, Sequence[float]]],
    title: str,
    path: Path,
    ylabel: str = "%",
    xlabel: str = "epoch",
    percent: bool = True,
) -> list[Path]:
    """Convergence: for each label a line through the mean over seeds, in a band from the smallest to the largest.

    More than 12 lines have no bands, which would hide one another.

    Args:
        lines: label -> epoch -> values of the seeds.
        title: above the picture.
        path: of the files, without suffix.
        ylabel: with the unit.
        xlabel: what the epochs are.
        percent: the values are shares, 0 to 1, to be shown in per cent.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    scale = 100 if percent else 1
    drawn = {label: _by_epoch(epochs, scale) for label, epochs in lines.items()}
    drawn = {label: points for label, points in drawn.items() if points}
    width, height = _size(drawn)
    with _drawing(path, width, height) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, _PLOT_WIDTH - 0.4))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(_label(ylabel))
        if not drawn:
            _nothing(axes)
            return drawing.files
        banded = False
        for number, (label, points) in enumerate(drawn.items()):
            epochs, values = list(points), list(points.values())
            style = _line_style(number)
            # Marks at other places on each line, so that lines which run together do not hide each other's.
            step = max(1, math.ceil(len(epochs) / _MARKS_A_LINE))
            start = number * step // max(len(drawn), 1) % step
            means = [float(np.mean(v)) for v in values]
            axes.plot(epochs, means, label=_legend_label(label), markevery=(start, step), **style)
            if len(drawn) <= _MOST_BANDS and any(len(v) > 1 for v in values):
                banded = True
                axes.fill_between(
                    epochs, [min(v) for v in values], [max(v) for v in values],
                    color=style["color"], alpha=0.15, linewidth=0,
                )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)
        if banded:
            axes.set_xlabel(f"{xlabel}  (line: mean over the seeds; band: smallest to largest)")
    return drawing.files


def lines_by_column(
    means: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame, title: str, path: Path, ylabel: str = "%"
) -> list[Path]:
    """Accuracy against the columns, such as the label fraction: one line a row, its interval as bars.

    Where all columns are positive numbers (`10 %` is one), they stand on a logarithmic axis, else side by side.

    Args:
        means: rows x columns of shares, 0 to 1, NaN where there is none; its axes carry their names.
        low: of the same shape, lower bounds; NaN where there is none.
        high: upper bounds.
        title: above the picture.
        path: of the files, without suffix.
        ylabel: with the unit.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    numbers = [positive(name) for name in means.columns]
    logarithmic = len(numbers) > 1 and None not in numbers and len(set(numbers)) == len(numbers)
    places = [math.log10(number) if logarithmic and number else float(i) for i, number in enumerate(numbers)]
    # A step to the side for each line, so that bars of equal height do not hide each other.
    gap = min((abs(b - a) for a, b in pairwise(sorted(places))), default=1.0)
    rows = [str(name) for name in means.index]
    width, height = _size(rows)
    with _drawing(path, width, height) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, _PLOT_WIDTH - 0.4))
        axes.set_xlabel(_label(means.columns.name))
        axes.set_ylabel(_label(ylabel))
        values = 100 * means.to_numpy(dtype=float)
        if not np.isfinite(values).any():
            _nothing(axes)
            return drawing.files
        below = values - 100 * low.to_numpy(dtype=float)
        above = 100 * high.to_numpy(dtype=float) - values
        for number, name in enumerate(rows):
            shift = gap * 0.25 * (number / max(len(rows) - 1, 1) - 0.5)
            line = sorted((places[i] + shift, values[number, i], below[number, i], above[number, i])
                          for i in range(len(places)) if np.isfinite(values[number, i]))  # fmt: skip
            if line:
                x, y, down, up = (np.array(part) for part in zip(*line, strict=True))
                bars = np.nan_to_num(np.stack([down, up])).clip(min=0)
                style = _line_style(number)
                axes.errorbar(
                    x, y, yerr=bars if bars.any() else None, capsize=3, elinewidth=1, label=_legend_label(name), **style
                )
        names = _labels(means.columns)
        axes.set_xticks(places, names)
        if sum(map(len, names)) > 70:
            for tick in axes.get_xticklabels():
                tick.set(rotation=30, ha="right", rotation_mode="anchor")
        axes.grid(False, axis="x")
        _legend(axes)
    return drawing.files


def pareto(
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    front: Sequence[int],
    title: str,
    path: Path,
    xlabel: str,
    ylabel: str,
    shares: tuple[bool, bool] = (False, True),
) -> list[Path]:
    """Two objectives against each other, those that no other one beats joined and numbered.

    Args:
        points: (x, y) of each trial, such as its cost and its accuracy.
        labels: of each trial; those on the front are written out.
        front: indices of the points on the Pareto front, see `analysis.statistics.pareto_front`.
        title: above the picture.
        path: of the files, without suffix.
        xlabel: with the unit.
        ylabel: with the unit.
        shares: whether x and y are shares, 0 to 1, to be shown in per cent.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    scales = [100 if share else 1 for share in shares]
    scaled = [(scales[0] * x, scales[1] * y) for x, y in points]
    known = [i for i, point in enumerate(scaled) if all(map(math.isfinite, point))]
    best = sorted((i for i in front if i in set(known)), key=lambda i: (scaled[i], i))
    width, height = _size([labels[i] for i in best])
    with _drawing(path, width, height) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, _PLOT_WIDTH - 0.4))
        for set_label, name, share in ((axes.set_xlabel, xlabel, shares[0]), (axes.set_ylabel, ylabel, shares[1])):
            set_label(f"{_label(name)}, %" if share and "%" not in name else _label(name))
        if not known:
            _nothing(axes)
            return drawing.files
        others = [scaled[i] for i in known if i not in set(best)]
        if others:
            axes.plot(*zip(*others, strict=True), "o", color="0.55", markerfacecolor="none", label="others", zorder=2)
        if best:
            # A thin line only groups them: which way its steps would go depends on the objectives.
            axes.plot(
                *zip(*(scaled[i] for i in best), strict=True), color=_COLOURS[0], marker="D", label="Pareto front",
                linewidth=1, zorder=3,
            )  # fmt: skip
        for number, i in enumerate(best, 1):
            # Numbers, with a key beside the picture: names of trials are long and would cover each other.
            axes.annotate(
                str(number), scaled[i], (-5, 5), textcoords="offset points", ha="right", va="bottom", fontsize="small",
            )  # fmt: skip
            axes.plot([], [], " ", label=f"{number}  {_label(labels[i])}")
        xs = [scaled[i][0] for i in known]
        if min(xs) > 0 and max(xs) > 10 * min(xs):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(0.08)
        _legend(axes)
    return drawing.files


def importance(importance: Mapping[str, float], title: str, path: Path) -> list[Path]:
    """How much of a search's scatter each field explains, as bars, the most important on top.

    Args:
        importance: a share of each field, 0 to 1.
        title: above the picture.
        path: of the files, without suffix.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    ordered = sorted(importance.items(), key=lambda item: (-np.nan_to_num(item[1], nan=-1), item[0]))
    names = _labels(name for name, _ in ordered)
    values = np.array([100 * share for _, share in ordered], dtype=float)
    width = 4.6 + _inches(names)
    with _drawing(path, width, 0.34 * max(len(ordered), 3) + 1.1) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, _PLOT_WIDTH - 0.6))
        axes.set_xlabel("share of the variance explained, %")
        if not ordered:
            _nothing(axes)
            return drawing.files
        places = range(len(ordered))
        axes.barh(places, np.nan_to_num(values), color=_COLOURS[0], height=0.65)
        for place, value in zip(places, values, strict=True):
            text = f"{value:.1f}" if np.isfinite(value) else "–"
            axes.annotate(
                text, (np.nan_to_num(value), place), (4, 0), textcoords="offset points", va="center", size="small"
            )
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12 * max(np.nan_to_num(values).max(), 1e-3))
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
    return drawing.files


def rung_scatter(
    rungs: Mapping[int, Sequence[tuple[float, float]]],
    agreements: Mapping[int, Agreement],
    title: str,
    path: Path,
) -> list[Path]:
    """Each trial's accuracy at a rung against its final one, a panel a rung, with Kendall's tau above it.

    Args:
        rungs: epoch of the rung -> (score at the rung, final score) of each trial, shares, 0 to 1.
        agreements: epoch of the rung -> agreement of the two orders.
        title: above the picture.
        path: of the files, without suffix.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    columns = min(max(len(rungs), 1), 4)
    lines = max(1, math.ceil(len(rungs) / columns))
    width, height = 1.0 + 2.9 * max(columns, 1.6), 0.9 + 3.0 * lines
    with _drawing(path, width, height) as drawing:
        figure = drawing.figure
        figure.suptitle(_title(title, width), x=0.01, ha="left", size="medium")
        if not rungs:
            _nothing(figure.add_subplot())
            return drawing.files
        figure.supxlabel("accuracy at the rung, %", size="medium")
        figure.supylabel("final accuracy, %", size="medium")
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (rung, pairs) in zip(panels, sorted(rungs.items()), strict=False):
            known = [(100 * a, 100 * b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
            if known:
                axes.plot(
                    *zip(*known, strict=True), "o", color=_COLOURS[0], markerfacecolor="none", markeredgewidth=1.2
                )
            else:
                _nothing(axes)
            axes.tick_params(labelbottom=True)
            axes.set_title(f"epoch {rung}\n{_agreement(agreements.get(rung))}", size="small")
        for axes in panels[len(rungs) :]:
            axes.remove()
    return drawing.files


def effects(
    effects: Sequence[Effect],
    title: str,
    path: Path,
    xlabel: str = "effect on test top-1, percentage points",
) -> list[Path]:
    """What each augmentation adds, as dots with their intervals: a row an augmentation, as first and as second.

    Args:
        effects: differences of shares, -1 to 1, NaN where there is no effect or no interval; those of pairs are left
            out.
        title: above the picture.
        path: of the files, without suffix.
        xlabel: with the unit.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    effects = [one for one in effects if one.place in _PLACES]
    names = list(dict.fromkeys(one.name for one in effects))
    width = _PLOT_WIDTH + 1.5 + _inches(_labels(names))
    with _drawing(path, width, 0.42 * max(len(names), 4) + 1.3) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, _PLOT_WIDTH - 0.4))
        axes.set_xlabel(_label(xlabel, 60))
        if not names:
            _nothing(axes)
            return drawing.files
        axes.axvline(0, color="0.35", linewidth=1)
        for number, (place, style) in enumerate(_PLACES.items()):
            shown = [one for one in effects if one.place == place and math.isfinite(one.effect)]
            rows = [names.index(one.name) + 0.26 * (number - 0.5) for one in shown]
            for row, one in zip(rows, shown, strict=True):
                axes.plot([100 * one.low, 100 * one.high], [row, row], color=style["color"], linewidth=1.4)
            if shown:
                axes.plot(
                    [100 * one.effect for one in shown], rows, linestyle="none", markeredgewidth=1.3,
                    label=f"as {place}", **style,
                )  # fmt: skip
        axes.set_yticks(range(len(names)), _labels(names))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        # Stripes: the two dots of a row stand apart, and belong together.
        for row in range(1, len(names), 2):
            axes.axhspan(row - 0.5, row + 0.5, color="0.96", linewidth=0, zorder=0)
        _legend(axes)
    return drawing.files


def claims(parts: Sequence[_ClaimPart], title: str, path: Path) -> list[Path]:
    """A forest plot of claims: a row a part, its effect with the interval, and what became of it.

    Args:
        parts: `label`; `effect` and its 95 % interval, `low` and `high`, in the row's own `unit`, such as `percentage
            points`, NaN where there is none; `verdict`: `confirmed`, `refuted` or `undecided`. Rows of one unit share a
            panel.
        title: above the picture.
        path: of the files, without suffix.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    units = list(dict.fromkeys(part.unit for part in parts))
    panels = [[part for part in parts if part.unit == unit] for unit in units]
    labels = {part.label: _wrapped(part.label) for part in parts}
    lines = [[labels[part.label].count("\n") + 1 for part in panel] for panel in panels]
    # A row is as high as its label; inches.
    heights = [[0.16 * max(count, 1) + 0.16 for count in panel] for panel in lines]
    label_width = _inches(line for label in labels.values() for line in label.split("\n"))
    width = label_width + _PLOT_WIDTH + 1.2
    height = sum(map(sum, heights)) + 0.6 * max(len(units), 1) + 0.7
    with _drawing(path, width, max(height, 2.2)) as drawing:
        figure = drawing.figure
        figure.suptitle(_title(title, width), x=0.01, ha="left", size="medium")
        if not parts:
            _nothing(figure.add_subplot())
            return drawing.files
        # A reader of the SVG has another font, which may be wider than the labels' space.
        figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr, call-arg]
        axes_of = figure.subplots(len(units), 1, height_ratios=[sum(panel) for panel in heights], squeeze=False).ravel()
        for axes, unit, panel, rows in zip(axes_of, units, panels, heights, strict=True):
            places = np.cumsum(rows) - np.array(rows) / 2
            axes.axvline(0, color="0.35", linewidth=1)
            for part, place in zip(panel, places, strict=True):
                style = _VERDICTS[part.verdict]
                axes.plot([part.low, part.high], [place, place], color=style["color"], linewidth=1.4)
                axes.plot([part.effect], [place], linestyle="none", markeredgewidth=1.3, markersize=7, **style)
                axes.annotate(
                    _estimate(part), (1, place), (10, 0), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="center", size="small",
                )  # fmt: skip
            axes.set_yticks(places, [labels[part.label] for part in panel], size="small")
            axes.set_ylim(sum(rows), 0)
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            axes.set_xlabel(_label(unit, 60))
        handles = [
            Line2D([], [], linestyle="none", markeredgewidth=1.3, markersize=7, label=verdict, **style)
            for verdict, style in _VERDICTS.items()
            if any(part.verdict == verdict for part in parts)
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    return drawing.files


def embedding_map(points: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str, path: Path) -> list[Path]:
    """Embeddings on a plane, each class with its own colour and marker.

    More than 35 classes go by colour alone, from dark to light in their order, as pitches do.

    Args:
        points: (N, 2); one with a NaN is left out.
        labels: (N,) integers, positions in `classes`.
        classes: their names.
        title: above the picture.
        path: of the files, without suffix.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    known = np.isfinite(points).all(axis=1) if len(points) else np.zeros(0, bool)
    points, labels = points[known], labels[known]
    present = [number for number in range(len(classes)) if (labels == number).any()]
    marked = len(classes) <= _MOST_MARKED_CLASSES
    names = _labels(classes[number] for number in present) if marked else []
    columns = math.ceil(len(names) / _LEGEND_LINES)
    width = 5.6 + columns * (0.5 + _inches(names)) if marked else 6.8
    if not marked:
        title = f"{title} (colour: the {len(classes)} classes in their order)"
    with _drawing(path, width, 5.8) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, 5.0))
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("0.8")
        if not present:
            _nothing(axes)
            return drawing.files
        for number in present if marked else ():
            style = _line_style(number)
            axes.plot(
                *points[labels == number].T, linestyle="none", marker=style["marker"], color=style["color"],
                markeredgecolor="white", markeredgewidth=0.4, label=_legend_label(classes[number]),
            )  # fmt: skip
        if not marked:
            dots = axes.scatter(
                points[:, 0], points[:, 1], c=labels, cmap="cividis", vmin=0, vmax=len(classes) - 1, s=22,
                edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            _class_bar(drawing.figure, axes, dots, classes)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        _legend(axes)
    return drawing.files


def before_after(
    waveforms: tuple[np.ndarray, np.ndarray],
    sample_rate: int,
    spectrograms: tuple[np.ndarray, np.ndarray],
    title: str,
    path: Path,
    hertz: np.ndarray | None = None,
) -> list[Path]:
    """What an augmentation does to a clip: before it and after it, waveform above and spectrogram below.

    Both clips have the same scales. Colours go down to 80 dB below the loudest.

    Args:
        waveforms: before and after, each (T,) float, full scale 1.
        sample_rate: hertz.
        spectrograms: before and after, each (F, T') log power on the Mel scale, dB.
        title: above the picture.
        path: of the files, without suffix.
        hertz: (F,) centres of the bins, ascending. None: the axis counts bins.

    Returns:
        The files written: `path`.png and `path`.svg.
    """
    with _drawing(path, 8.6, 4.8) as drawing:
        figure = drawing.figure
        figure.suptitle(_title(title, 8), x=0.01, ha="left", size="medium")
        if not all(array.size for array in (*waveforms, *spectrograms)):
            _nothing(figure.add_subplot())
            return drawing.files
        seconds = max(map(len, waveforms)) / sample_rate
        peak = max(float(np.nanmax(np.abs(wave), initial=0)) for wave in waveforms) or 1.0
        high = max(float(np.nanmax(one)) for one in spectrograms)
        low = max(min(float(np.nanmin(one)) for one in spectrograms), high - _DEEPEST_DB)
        panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1, 1.5))
        for (above, below), wave, picture, name in zip(
            panels.T, waveforms, spectrograms, ("before", "after"), strict=True
        ):
            above.set_title(name, size="medium")
            _waveform(above, wave, sample_rate)
            below.grid(False)
            bins = len(picture)
            # Magma rises evenly in lightness: louder is lighter, in grey as well.
            image = below.imshow(
                picture, cmap="magma", aspect="auto", origin="lower", interpolation="none", vmin=low, vmax=high,
                extent=(0, len(wave) / sample_rate, -0.5, bins - 0.5),
            )  # fmt: skip
            below.set_xlabel("seconds")
        above, below = panels[:, 0]
        above.set_xlim(0, seconds)
        above.set_ylim(-1.05 * peak, 1.05 * peak)
        above.set_ylabel("amplitude")
        below.set_ylabel("Mel bin" if hertz is None else "hertz, Mel scale")
        if hertz is not None:
            ticks = [tick for tick in _HERTZ_TICKS if hertz[0] <= tick <= hertz[-1]]
            below.set_yticks(np.interp(ticks, hertz, np.arange(len(hertz))), [f"{tick:,}" for tick in ticks])
        bar = figure.colorbar(image, ax=panels[1, :], label="dB", fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        if low == high:
            bar.set_ticks([low])
    return drawing.files


def _waveform(axes: Axes, wave: np.ndarray, sample_rate: int) -> None:
    """Drawn as the band that a line of so many samples would fill: a hundredth of the line's bytes in an SVG."""
    if len(wave) <= 2 * _WAVE_COLUMNS:
        axes.plot(np.arange(len(wave)) / sample_rate, wave, color=_COLOURS[0], linewidth=0.8)
        return
    starts = np.arange(_WAVE_COLUMNS) * len(wave) // _WAVE_COLUMNS
    axes.fill_between(
        (starts + len(wave) / _WAVE_COLUMNS / 2) / sample_rate,
        np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts), color=_COLOURS[0], linewidth=0.5,
    )  # fmt: skip


def _class_bar(figure: Figure, axes: Axes, dots: PathCollection, classes: Sequence[str]) -> None:
    """A colour bar that names some of the classes, the first and the last among them."""
    bar = figure.colorbar(dots, ax=axes, fraction=0.05)
    bar.outline.set_visible(False)
    ticks = np.unique(np.linspace(0, len(classes) - 1, 9).round().astype(int))
    bar.set_ticks(ticks.tolist(), labels=[_label(classes[tick], 18) for tick in ticks])


def _estimate(part: _ClaimPart) -> str:
    """`+3.1 (+1.2 to +5.0)`, as far as it is known."""
    if not math.isfinite(part.effect):
        return "–"
    effect, low, high = (f"{number:+.1f}".replace("-", "−") for number in (part.effect, part.low, part.high))
    return f"{effect} ({low} to {high})" if math.isfinite(part.low) and math.isfinite(part.high) else effect


def _wrapped(name: str) -> str:
    """A claim's label on as many lines as it needs, and not without end."""
    return "\n".join(textwrap.wrap(_label(name, 1000), _CLAIM_WIDTH, max_lines=5, placeholder=" …"))


def _agreement(one: Agreement | None) -> str:
    if one is None or math.isnan(one.tau):
        return f"τ –, n = {one.n if one else 0}"
    interval = "" if math.isnan(one.low) else f" ({one.low:.2f} to {one.high:.2f})"
    return f"τ = {one.tau:.2f}{interval}, n = {one.n}"


def _label(name: object, most: int = 36) -> str:
    """A name on one line and not too long: its middle goes, since names of trials often differ at the end."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str("" if name is None else name)).split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most // 2 + 1 :]}"


def _labels(names: Iterable[object]) -> list[str]:
    return [_label(name) for name in names]


def _inches(labels: Iterable[str]) -> float:
    """About how wide the longest is."""
    return 0.085 * max(map(len, labels), default=0)


def _title(title: str, width: float) -> str:
    """On as many lines as a figure of so many inches needs, and not without end."""
    return "\n".join(textwrap.wrap(_label(title, 1000), max(20, round(13 * width)), max_lines=6, placeholder=" …"))


def _size(labels: Iterable[str]) -> tuple[float, float]:
    """Width and height of a figure with lines and a legend beside them, inches."""
    names = _labels(labels)
    columns = max(1, math.ceil(len(names) / _LEGEND_LINES))
    return _PLOT_WIDTH + 0.6 + columns * (0.6 + _inches(names)), max(3.8, 1.2 + 0.21 * math.ceil(len(names) / columns))


def _line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of a figure's line; the first 63 all differ."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
    }


def _legend_label(name: object) -> str:
    """A name that the legend shows: Matplotlib leaves out empty ones and those that begin with an underscore."""
    label = _label(name) or "(no name)"
    return f" {label}" if label.startswith("_") else label


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    shown = list(zip(handles, labels, strict=True))
    if shown:
        columns = math.ceil(len(shown) / _LEGEND_LINES)
        # Outside: inside it would cover a line sooner or later.
        axes.get_figure().legend(*zip(*shown, strict=True), loc="outside right upper", ncols=columns, handlelength=3)  # type: ignore[union-attr]


def _nothing(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(
        0.5, 0.5, "no result yet", transform=axes.transAxes, ha="center", va="center", color="0.35", style="italic"
    )


def _by_epoch(epochs: Mapping[int, Sequence[float]], scale: float) -> dict[int, list[float]]:
    """In order of epochs, those with a number."""
    found = {epoch: [scale * v for v in values if math.isfinite(v)] for epoch, values in sorted(epochs.items())}
    return {epoch: values for epoch, values in found.items() if values}
