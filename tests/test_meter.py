"""What a trial costs: counters with numbers worked out by hand, and the way of a GPU's share to them."""

import math
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from clar import pool as pools
from clar import trainer, trial
from clar.clips import ClipStore
from clar.config import Runtime, TrialConfig
from clar.meter import Cost, Meter
from clar.packing import Share
from clar.result import TrialFolder
from clar.rounds import Goal
from clar.sweep import _Driver
from tests.test_trainer import SMALL

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
UUID = "0a1b2c3d-0000-1111-2222-333344445555"
TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A folder with `proc` and `sys` as of a machine with two packages, and a process whose CPU seconds are set."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.zone("intel-rapl:0", "package-0", 0)
        self.zone("intel-rapl:1", "package-1", 0)
        self.busy(0)
        self.own(100)

    def zone(self, folder: str, name: str, microjoules: int) -> Path:
        path = self.root / "sys" / "class" / "powercap" / folder
        path.mkdir(parents=True, exist_ok=True)
        for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", 50_000_000)):
            (path / file).write_text(f"{content}\n")
        return path

    def busy(self, seconds: float) -> None:
        """Of user, nice, system, irq and softirq a fifth each; idle, iowait, steal and guest do not count."""
        each, other = round(seconds * TICKS / 5), round(time.monotonic() * TICKS)
        numbers = [each, each, each, other, other, each, each, other, other, other]
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc" / "stat").write_text(f"cpu  {' '.join(map(str, numbers))}\ncpu0 1 2 3\n")

    def own(self, seconds: float) -> None:
        self.patch.setattr(time, "process_time", lambda: seconds)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


class Nvml(ModuleType):
    """`pynvml` of a machine with a GPU that torch sees, and another."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = {f"GPU-{UUID}": 1_000_000, "GPU-other": 5}
        self.broken = ""

    def _call(self, name: str) -> None:
        if self.broken == name:
            raise RuntimeError("NVML says no")

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self._call("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._call("handle")
        assert uuid in self.millijoules
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self._call("energy")
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    about = SimpleNamespace(name="NVIDIA H100 80GB HBM3", uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    return fake


def test_a_processor_s_joules_are_charged_by_the_share_of_its_busy_time(machine: Machine) -> None:
    meter = Meter(CPU, root=machine.root)
    machine.zone("intel-rapl:0", "package-0", 30_000_000)
    machine.zone("intel-rapl:1", "package-1", 10_000_000)
    machine.busy(20)
    machine.own(105)
    assert meter.read() == Cost(5, 10.0)  # 5 of 20 busy seconds, 40 J
    # From then on the next interval, in which the second package's counter runs over at 50 J: 0 and 45 J.
    machine.zone("intel-rapl:1", "package-1", 5_000_000)
    machine.busy(25)
    machine.own(106)
    assert meter.read() == Cost(1, 9.0)
    assert meter.read() == Cost(0, 0.0)


def test_no_more_is_charged_than_there_was(machine: Machine) -> None:
    """/proc/stat counts hundredths of a second, and may be behind."""
    meter = Meter(CPU, root=machine.root)
    machine.zone("intel-rapl:0", "package-0", 3_000_000)
    machine.own(100.004)
    assert meter.read().joules == 3.0


def test_what_is_within_a_package_or_around_it_is_not_counted_twice(machine: Machine) -> None:
    others = {
        "intel-rapl:0:0": "core", "intel-rapl:0/intel-rapl:0:1": "dram", "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0", "intel-rapl": "control",
    }  # fmt: skip
    for folder, name in others.items():
        machine.zone(folder, name, 0)
    meter = Meter(CPU, root=machine.root)
    for folder, name in others.items():
        machine.zone(folder, name, 7_000_000)
    machine.zone("intel-rapl:0", "package-0", 2_000_000)
    machine.busy(10)
    machine.own(110)
    assert meter.read() == Cost(10, 2.0)


ZONE = "sys/class/powercap/intel-rapl:1"


@pytest.mark.parametrize("file", [f"{ZONE}/energy_uj", f"{ZONE}/max_energy_range_uj", f"{ZONE}/name", "proc/stat"])
@pytest.mark.parametrize("how", ["absent", "unreadable", "not text"])
def test_a_processor_of_which_something_cannot_be_read_reports_nothing(machine: Machine, file: str, how: str) -> None:
    path = machine.root / file
    path.unlink()
    if how == "unreadable":
        path.mkdir()  # root may read any file, but no folder
    elif how == "not text":
        path.write_bytes(b"\xff")
    meter = Meter(CPU, root=machine.root)
    machine.zone("intel-rapl:0", "package-0", 2_000_000)
    machine.own(107)
    assert meter.read() == Cost(7, None)


def test_a_machine_without_powercap_reports_nothing(tmp_path: Path) -> None:
    assert Meter(CPU, root=tmp_path).read().joules is None


def test_joules_that_are_missing_for_a_moment_are_missing_from_the_sum(machine: Machine) -> None:
    meter = Meter(CPU, root=machine.root)
    file = machine.root / "sys" / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
    total = Cost()
    readings = []
    for content in ("1000000", "none", "3000000", "4000000"):
        file.write_text(content)
        machine.own(time.process_time() + 1)
        total += (cost := meter.read())
        readings.append(cost.joules)
    assert readings == [1.0, None, None, 1.0]
    assert total == Cost(4, None)


def test_a_gpu_s_joules_are_charged_by_the_trial_s_share_of_it(nvml: Nvml, tmp_path: Path) -> None:
    whole, quarter = Meter(CUDA, root=tmp_path), Meter(CUDA, 0.25, tmp_path)
    nvml.millijoules[f"GPU-{UUID}"] += 80_000
    nvml.millijoules["GPU-other"] += 999_000
    assert whole.read().joules == 80.0
    assert quarter.read().joules == 20.0
    nvml.millijoules[f"GPU-{UUID}"] += 4_000
    assert quarter.read().joules == 1.0


def test_a_gpu_s_joules_and_its_processor_s_go_together(nvml: Nvml, machine: Machine) -> None:
    meter = Meter(CUDA, 0.5, machine.root)
    nvml.millijoules[f"GPU-{UUID}"] += 60_000
    machine.zone("intel-rapl:0", "package-0", 8_000_000)
    machine.busy(40)
    machine.own(110)
    assert meter.read() == Cost(10, 32.0)  # half of 60 J, a quarter of 8 J


@pytest.mark.parametrize("broken", ["init", "handle", "energy", "absent", "mig"])
def test_a_gpu_without_a_counter_reports_nothing_and_breaks_nothing(
    nvml: Nvml, machine: Machine, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    nvml.broken = broken
    if broken == "absent":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif broken == "mig":
        about = SimpleNamespace(name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", uuid=UUID)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    meter = Meter(CUDA, root=machine.root)
    # The processor's joules alone would pass for the trial's.
    machine.zone("intel-rapl:0", "package-0", 8_000_000)
    machine.busy(5)
    machine.own(102)
    assert meter.read() == Cost(2, None)


def test_a_cpu_trial_asks_no_gpu(nvml: Nvml, tmp_path: Path) -> None:
    meter = Meter(CPU, 0.25, tmp_path)
    nvml.millijoules[f"GPU-{UUID}"] += 80_000
    assert meter.read().joules is None


def test_cpu_seconds_grow_with_the_work_of_all_threads() -> None:
    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.2:
            math.factorial(500)

    meter, began = Meter(CPU), time.thread_time()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.read().cpu_seconds >= 0.4
    assert time.thread_time() - began < 0.2  # this thread did none of it
    time.sleep(0.2)
    assert meter.read().cpu_seconds < 0.1
    work()
    assert 0.2 <= meter.read().cpu_seconds < 0.4


def _job(share: float) -> trial.Job:
    runtime = Runtime("cuda", 1, Path("storage"), Path("store"), "", share)
    return trial.Job("0" * 16, {}, None, runtime, Share(1, share))


def test_a_trial_s_share_of_its_gpu_reaches_the_meter(
    tone_store: ClipStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []

    def meter(device: torch.device, gpu_share: float) -> Meter:
        shares.append(gpu_share)
        return Meter(device, gpu_share)

    monkeypatch.setattr(trainer, "Meter", meter)
    config = TrialConfig(**{**SMALL, "epochs": 1, "finetune_epochs": 1, "loss": "finetune"})
    folder = TrialFolder(tmp_path, config, tone_store.fingerprint)
    runtime = Runtime("cpu", torch.get_num_threads(), tmp_path, tone_store.path, "", 0.25)
    job = trial.Job(folder.identity, config.model_dump(mode="json"), None, runtime, Share(1, 0.25))
    report = trial._attempt(job, lambda report: None, lambda: False)
    assert report.state == "done", report.reason
    assert shares == [0.25, 0.25]  # its pre-training's too
    assert report.metrics["cpu_seconds"] > 0


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, 1.0), (0.25, 0.25), (1.0, 1.0), (2.0, 1.0)])
def test_the_driver_gives_a_trial_the_share_that_it_has_room_for(tmp_path: Path, gpus: float, expected: float) -> None:
    config = TrialConfig(**SMALL)
    plan: Any = SimpleNamespace(
        parent=lambda folder: None, storage=tmp_path, stores={"tones": SimpleNamespace(path=tmp_path)}
    )
    shares: Any = SimpleNamespace(of=lambda config: Share(1, gpus))
    driver = _Driver(plan, shares, console=None, data_seconds=0, retries=0, timeout=None, version="")  # type: ignore[arg-type]
    assert driver._job(Goal(TrialFolder(tmp_path, config, "f" * 64))).runtime.gpu_share == expected


def test_a_trial_that_is_tried_again_alone_has_the_gpu_to_itself() -> None:
    pool = pools.Pool(lambda report: None, lambda line: None)
    for cause, expected in (("", 0.25), ("memory", 1.0)):
        report = trial.Report("0" * 16, "failed", cause=cause)  # type: ignore[arg-type]
        assert pool._again(pools._Attempt(_job(0.25)), report)
        assert pool.waiting.take(Share(1, expected)).job.runtime.gpu_share == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_real_gpu_counts_its_joules() -> None:
    whole, half = Meter(CUDA), Meter(CUDA, 0.5)
    square = torch.randn(4096, 4096, device="cuda")
    began = time.monotonic()
    while time.monotonic() - began < 2:
        square @ square
        torch.cuda.synchronize()
    seconds = time.monotonic() - began
    whole_joules, half_joules = whole.read().joules, half.read().joules
    assert whole_joules is not None
    assert half_joules is not None
    assert 10 < whole_joules / seconds < 5000  # watts
    # Without a processor that can be read it is half; one that can be read adds the same to both.
    assert 0.4 * whole_joules < half_joules < whole_joules
