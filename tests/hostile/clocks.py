"""Give programs a clock of their own that can be set while they run."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

NAME = "faketime/libfaketimeMT.so.1"
INSTALL = "apt-get install -y -q faketime || (apt-get update -q && apt-get install -y -q faketime)"


@cache
def library() -> Path | None:
    """Find libfaketime, after installing Debian's package if there is none and we may."""
    found = _find()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["sh", "-c", INSTALL], env=environment, capture_output=True, check=False)
        found = _find()
    return found


def _find() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob(f"*/{NAME}"))), None)


class Clock:
    """A clock that is ahead by so many seconds; only the time of day, for durations are nobody's clock."""

    def __init__(self, file: Path, seconds: int = 0) -> None:
        self._file = file
        self.set(seconds)

    def set(self, seconds: int) -> None:
        """Set it; its program notices within two seconds."""
        self.seconds = seconds
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.rename(self._file)

    def environment(self) -> dict[str, str]:
        """Return what a program needs in order to follow this clock; nothing where that cannot be had."""
        found = library()
        if found is None:
            return {}
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
