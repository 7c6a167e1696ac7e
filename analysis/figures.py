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
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.statistics import Agreement
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
            drawing.files.append(path.with_name(f"{path.name}.{kind}"))
            write_atomically(drawing.files[-1], content.getvalue())


def heat_map(means: pd.DataFrame, title: str, path: Path, states: pd.DataFrame | None = None) -> list[Path]:
    """The grid of accuracies as colours with their values, written as `path`.png and `path`.svg.

    Args:
        means: rows x columns of shares, 0 to 1, NaN where there is none; its axes carry their names.
        title: above the picture.
        path: of the files, without suffix.
        states: of the same shape: what is said where there is no number, such as `cut` or `failed`; nothing where it is
            empty. Without it, a dash.

    Returns:
        The files written.
    """
    values = 100 * means.to_numpy(dtype=float)
    rows, columns = values.shape
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
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
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column, row, f"{value:.1f}", ha="center", va="center",
                    color="black" if value > 0.55 * low + 0.45 * high else "white",
                    fontweight="bold" if math.isclose(value, high, rel_tol=1e-12) else "normal",
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
        axes.set_title(_title(title, _PLOT_WIDTH))
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
    numbers = [_positive(name) for name in means.columns]
    logarithmic = len(numbers) > 1 and None not in numbers and len(set(numbers)) == len(numbers)
    places = [math.log10(number) if logarithmic and number else float(i) for i, number in enumerate(numbers)]
    # A step to the side for each line, so that bars of equal height do not hide each other.
    gap = min((abs(b - a) for a, b in pairwise(sorted(places))), default=1.0)
    rows = [str(name) for name in means.index]
    width, height = _size(rows)
    with _drawing(path, width, height) as drawing:
        axes = drawing.figure.add_subplot()
        axes.set_title(_title(title, _PLOT_WIDTH))
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
        axes.set_title(_title(title, _PLOT_WIDTH))
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


def _positive(name: object) -> float | None:
    """The number that a name is, if it is one above 0; `10 %` is."""
    try:
        number = float(str(name).strip().removesuffix("%"))
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
