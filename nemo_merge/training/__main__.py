"""``python -m nemo_merge.training JOB.json``, also under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

from .jobs import read_job, report

if len(sys.argv) != 2:
    sys.exit("usage: python -m nemo_merge.training JOB.json")
read_job(Path(sys.argv[1])).run(report)
