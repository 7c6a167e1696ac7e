"""The benchmark of a large sweep: its arithmetic, and a small cluster for real."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import Run, Sample, evaluate

ROOT = Path(__file__).parent.parent

RUNS = [
    Run("0-0", 10.0, 20.0), Run("0-0", 20.5, 30.5), Run("0-0", 31.0, 41.0),
    Run("0-1", 12.0, 22.0), Run("0-1", 22.0, 32.0), Run("0-1", 32.0, 42.0),
]  # fmt: skip
"""Two slots; both have had a trial from 12 s on, and none waits any more from 32 s on."""


def sample(at: float, driver: float, raylets: float) -> Sample:
    return Sample(at, {"driver": driver, "Ray: raylets": raylets}, int(at * 10**6), int(at * 10**5))


def test_figures_are_those_of_the_steady_state() -> None:
    samples = [sample(11, 50, 0), sample(13, 60, 1), sample(23, 65, 3), sample(33, 90, 9), sample(50, 99, 9)]
    figures = evaluate(RUNS, samples, began=5.0, ended=52.0, slots=2)
    assert figures.window == 20
    # One slot stood idle twice for half a second.
    assert figures.delays == [0.0, 0.0, 0.5, 0.5]
    assert figures.busy == pytest.approx(39 / 40)
    # Four trials ended in those 20 s, of six reports each.
    assert figures.events == pytest.approx(4 * 6 / 20)
    assert figures.driver_cores == pytest.approx(0.5)
    assert figures.ray_cores == {"Ray: raylets": pytest.approx(0.2)}
    # Memory counts from the beginning to the end.
    assert (figures.resident, figures.unique) == (50.0, 5.0)
    assert (figures.first, figures.full, figures.tail) == (5.0, 7.0, 10.0)


def test_a_slot_that_was_never_used_is_no_steady_state() -> None:
    with pytest.raises(SystemExit, match="2 slots had a trial, not 3"):
        evaluate(RUNS, [], 0.0, 1.0, slots=3)


@pytest.mark.slow
def test_a_small_cluster_for_real() -> None:
    options = ["--only", "cluster", "--nodes", "4", "--gpus", "2", "--trials", "40", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "scale", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 trials of 1 s in 8 slots" in done.stdout
    rows = {name.strip(): float(value.replace(",", ""))
            for name, value in re.findall(r"│ ([^│]+)│ +([\d.,]+) +│", done.stdout)}  # fmt: skip
    assert 0 < rows["driver, CPU"] < 2
    assert 0 < rows["driver, memory at most"] < 2000
    # How fast it is on a machine that does other things, too, decides nothing here.
    assert 0 < rows["slots busy"] <= 100
    assert rows["reports that the driver takes"] > 0
    assert {"Ray: raylets, CPU", "Ray: control store, CPU", "Ray: agents, CPU"} <= rows.keys()
