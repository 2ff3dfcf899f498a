"""Send to a release for a while, with the credentials of a mounted Secret, and fail unless each delivery is acknowledged.

A Job of the cluster: `python -m e2e.verify` reads ADDRESS (host:port), CREDENTIALS (a folder, as `NAME-credentials` is mounted), SECONDS
and RATE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from factories import ACCOUNT


def main() -> None:
    """Send, count what came back, and end with 1 if anything but a 2xx did."""
    mounted = Path(os.environ["CREDENTIALS"])
    names = {"client_id": "client_id", "client_secret": "client_secret", "url": f"url.{ACCOUNT}"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        credentials = {key: (mounted / file).read_text(encoding="utf-8") for key, file in names.items()}
        (folder / "credentials.json").write_text(json.dumps(credentials), encoding="utf-8")
        # Numbers of this run's own: what an earlier one has sent would only be counted up.
        options = ["--first", str(1_000_000_000 + int(time.time()) % 100_000 * 1_000)]
        options += ["--rate", os.environ.get("RATE", "20"), "--seconds", os.environ.get("SECONDS", "20")]
        subprocess.run([sys.executable, "-m", "e2e.sender", name, os.environ["ADDRESS"], *options], check=True)
        lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    statuses = Counter(json.loads(line)["status"] for line in lines)
    good = sum(number for status, number in statuses.items() if 200 <= status < 300)
    print(f"{len(lines)} deliveries: {good} acknowledged, by status {dict(statuses)} (0: no answer)")  # noqa: T201 - a Job's log
    sys.exit(0 if good == len(lines) > 0 else 1)


if __name__ == "__main__":
    main()
