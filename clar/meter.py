"""What a trial costs besides time: CPU seconds, and joules where the hardware counts them.

A GPU counts its own energy (NVML, from Volta on), a processor that of its packages (RAPL, in Linux's powercap; mostly
root alone may read it). Neither knows whose work it was, so a trial is charged a share. Nothing read here changes what
is computed, and nothing that cannot be read ends a trial.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the process, all its threads, and joules, None where they were not reported."""

    cpu_seconds: float = 0.0
    joules: float | None = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Both together. Joules that are missing on one side leave the sum unknown, rather than too small."""
        joules = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Cost(self.cpu_seconds + other.cpu_seconds, joules)


class Meter:
    """Counts from its making on what this process spends.

    On CUDA a trial is charged its share of the GPU's joules, and the processor's where they can be read. Of the
    processor's joules it is charged as large a part as of the machine's busy CPU time: alone on a machine, all of them,
    those of idle cores too.

    Args:
        device: on which the trial computes; its joules count, and without them there are none.
        gpu_share: the trial's part of its GPU, above 0 to 1. That its neighbours' places are empty is not known here.
        root: where `proc` and `sys` lie.
    """

    def __init__(self, device: torch.device, gpu_share: float = 1.0, root: Path = Path("/")) -> None:
        self.on_gpu, self.gpu_share = device.type == "cuda", gpu_share
        self.gpu = _Gpu(device) if self.on_gpu else None
        self.processor = _Processor(root)
        self.last = self._counters()

    def read(self) -> Cost:
        """What was spent since the last reading.

        To be called every few minutes: a processor's counter begins anew after 65 to 262 kJ, once between two readings
        at most.
        """
        before, self.last = self.last, self._counters()
        spent = self.last.cpu_seconds - before.cpu_seconds
        processor = self.processor.joules(before.processor, self.last.processor, spent)
        if not self.on_gpu:
            return Cost(spent, processor)
        if before.gpu_millijoules is None or self.last.gpu_millijoules is None:
            return Cost(spent, None)
        gpu = self.gpu_share * (self.last.gpu_millijoules - before.gpu_millijoules) / 1e3
        return Cost(spent, gpu + (processor or 0.0))

    def _counters(self) -> "_Counters":
        gpu = self.gpu.millijoules() if self.gpu else None
        return _Counters(time.process_time(), gpu, self.processor.counters())


class _ProcessorCounters(NamedTuple):
    """Microjoules of each package, and busy CPU seconds of the whole machine."""

    microjoules: list[int]
    busy_seconds: float


class _Counters(NamedTuple):
    """The counters at one moment, None where they are not reported."""

    cpu_seconds: float
    gpu_millijoules: int | None
    processor: _ProcessorCounters | None


class _Gpu:
    """The energy counter of torch's GPU, found by UUID: NVML numbers GPUs without regard to CUDA_VISIBLE_DEVICES."""

    def __init__(self, device: torch.device) -> None:
        self.nvml: Any = None
        try:
            import pynvml

            about = torch.cuda.get_device_properties(device)
            # A slice of a GPU has no counter of its own, and the whole GPU's would be too much.
            if " MIG " not in about.name:
                pynvml.nvmlInit()
                self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{about.uuid}")
                self.nvml = pynvml
        except Exception:  # whatever the driver lacks: the trial runs on without this number
            return

    def millijoules(self) -> int | None:
        """Since the driver was loaded; None where they are not reported."""
        try:
            return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) if self.nvml else None
        except Exception:
            return None


class _Processor:
    """The energy counters of the processor's packages, which contain their sub-zones (cores, memory controller)."""

    def __init__(self, root: Path) -> None:
        self.stat = root / "proc" / "stat"
        # Not intel-rapl-mmio:*, a second path to the same counters.
        zones = sorted((root / "sys" / "class" / "powercap").glob("intel-rapl:*"))
        try:
            # A zone `psys` stands beside the packages and contains them.
            packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
            self.files = [zone / "energy_uj" for zone in packages]
            self.ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in packages]
        except (OSError, ValueError):
            self.files = []

    def counters(self) -> _ProcessorCounters | None:
        """None where not all of them can be read."""
        if not self.files:
            return None
        try:
            microjoules = [int(file.read_text()) for file in self.files]
            with open(self.stat) as file:
                ticks = [int(number) for number in file.readline().split()[1:]]
        except (OSError, ValueError):
            return None
        # proc(5): user, nice, system, idle, iowait, irq, softirq; steal is another machine's, guest is in user.
        return _ProcessorCounters(microjoules, sum(ticks[:3] + ticks[5:7]) / os.sysconf("SC_CLK_TCK"))

    def joules(
        self, before: _ProcessorCounters | None, after: _ProcessorCounters | None, own_seconds: float
    ) -> float | None:
        """What a process that computed so many CPU seconds between two moments is charged."""
        if before is None or after is None:
            return None
        counted = zip(before.microjoules, after.microjoules, self.ranges, strict=True)
        spent = sum(end - start + (span if end < start else 0) for start, end, span in counted) / 1e6
        # The machine's seconds come in hundredths: over a moment they may be fewer than the process's own.
        busy = max(after.busy_seconds - before.busy_seconds, own_seconds)
        return spent * own_seconds / busy if busy > 0 else 0.0
