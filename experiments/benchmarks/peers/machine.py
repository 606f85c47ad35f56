"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """Return the name of the processor, with what tells apart processors of one name, and how busy it was."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = {key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)}
    name = found.get("model name", platform.processor() or platform.machine())
    family = "/".join(found[key] for key in ("cpu family", "model") if key in found)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    return f"{name} (family/model {family}), {os.cpu_count()} processors, load {load}"
