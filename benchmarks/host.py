"""What a JSON line says of the machine and of the steps, in every library's script alike; the standard library only."""

from __future__ import annotations

import os
import platform
import re
import resource
import statistics


def busy() -> tuple[float, float]:
  """CPU seconds of the machine since it started, and of this process; those of the process twice where nobody says."""
  own = resource.getrusage(resource.RUSAGE_SELF)
  own = own.ru_utime + own.ru_stime
  try:
    with open("/proc/stat", encoding="utf-8") as file:
      user, nice, system, _, _, *rest = map(int, file.readline().split()[1:9])
  except OSError:
    return own, own
  return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK"), own


def processor(cpuinfo: str = "/proc/cpuinfo") -> str:
  """Its name, and whether it has no units for bfloat16: such machines are not compared with others of the same name."""
  try:
    with open(cpuinfo, encoding="utf-8") as file:
      said = file.read()
  except OSError:
    return platform.machine()
  found = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
  name = found[1] if found else platform.machine()
  return name if re.search(r"bf16\b", said) else f"{name} without bfloat16 units"


def peak_bytes() -> int:
  """Of this process's memory."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def has_huge_pages() -> bool:
  """Whether the C library's allocator was told to use them."""
  return "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")


def seconds(times: list[float], ragged: bool) -> float:
  """Of all steps: as many median ones where all are alike, their sum otherwise."""
  return sum(times) if ragged else statistics.median(times) * len(times)


def timing(times: list[float], tokens: int, ragged: bool, peak: int) -> dict:
  """The fields of a line that come from the steps' seconds, their tokens and the peak bytes."""
  return {
    "median_s": round(statistics.median(times), 5),
    "min_s": round(min(times), 5),
    "max_s": round(max(times), 5),
    "times": [round(t, 5) for t in times],
    "n": len(times),
    "tokens": tokens,
    "tokens_per_s": round(tokens / seconds(times, ragged), 1),
    "peak_mb": round(peak / 2**20),
  }
