"""Run the operator: `python -m amo_operator`."""

from __future__ import annotations

from amo_operator.handlers import run

if __name__ == "__main__":
    run()
