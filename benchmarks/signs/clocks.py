"""Clocks: a GPU that runs slower because of its power limit or its temperature, from NVIDIA's library NVML."""

import ctypes
import statistics
import threading
from dataclasses import dataclass
from types import TracebackType

from signs.nvml import Gpu
from signs.sign import CLOCKS, Sign

SECONDS = 0.1  # between two samples
MOST_SHARE = 0.1  # of the samples
# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h), and what they mean to a user.
REASONS = {
    0x04: "power limit",  # SwPowerCap
    0x08: "hardware slowdown",
    0x20: "temperature",  # SwThermalSlowdown
    0x40: "temperature",  # HwThermalSlowdown
    0x80: "power supply",  # HwPowerBrakeSlowdown
}
SM_CLOCK = 1  # NVML_CLOCK_SM


@dataclass(frozen=True)
class Sample:
    """One reading of a GPU."""

    reasons: int  # bits
    megahertz: int
    most_megahertz: int


class ClockSampler:
    """Samples a GPU's clocks during a `with` block; `samples` stays empty without a GPU."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu, self.samples, self.ended = gpu, list[Sample](), threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "ClockSampler":
        if self.gpu:
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.ended.set()
        if self.gpu:
            self.thread.join()

    def _sample(self) -> None:
        assert self.gpu
        while not self.ended.wait(SECONDS):
            if sample := read_sample(self.gpu):
                self.samples.append(sample)


def read_sample(gpu: Gpu) -> Sample | None:
    """Read the clocks and the reasons for their change; None if the driver does not report them."""
    nvml, handle = gpu
    # The function's name until driver 535 was ...ThrottleReasons.
    name = "nvmlDeviceGetCurrentClocks{}Reasons"
    find = getattr(nvml, name.format("Event"), None) or getattr(nvml, name.format("Throttle"), None)
    reasons, now, most = ctypes.c_ulonglong(), ctypes.c_uint(), ctypes.c_uint()
    if find is None or find(handle, ctypes.byref(reasons)):
        return None
    if nvml.nvmlDeviceGetClockInfo(handle, SM_CLOCK, ctypes.byref(now)):
        return None
    if nvml.nvmlDeviceGetMaxClockInfo(handle, SM_CLOCK, ctypes.byref(most)):
        return None
    return Sample(reasons.value, now.value, most.value)


def decode_reasons(bits: int) -> set[str]:
    """Return why a GPU lowered its clocks; idleness and settings of the user are not among the reasons."""
    return {reason for bit, reason in REASONS.items() if bits & bit}


def judge_clocks(samples: list[Sample]) -> Sign | None:
    """Return the sign; None without samples."""
    if not samples:
        return None
    found = [decode_reasons(sample.reasons) for sample in samples]
    shares = {
        reason: sum(reason in each for each in found) / len(samples) for reason in dict.fromkeys(REASONS.values())
    }
    share = sum(map(bool, found)) / len(samples)
    megahertz, most = statistics.median(each.megahertz for each in samples), samples[0].most_megahertz
    says = f"The GPU ran at {megahertz:,.0f} of at most {most:,} MHz"
    if share:
        named = ", ".join(f"{reason} {each:.0%}" for reason, each in shares.items() if each)
        says += f", and lowered its clocks in {share:.0%} of {len(samples)} samples ({named})"
    if share > MOST_SHARE:
        says += ": check cooling and power limit (nvidia-smi -q -d PERFORMANCE,POWER)"
    figures = {"megahertz": megahertz, "most_megahertz": most, "shares": shares, "num_samples": len(samples)}
    return Sign(CLOCKS, share > MOST_SHARE, share, f"{says}.", figures)
