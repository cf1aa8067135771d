"""``python -m nemo_merge.training JOB.json...``, also under torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import NemoMergeError
from .jobs import ERROR_PREFIX, read_job, report, report_done

if len(sys.argv) < 2:
    sys.exit("usage: python -m nemo_merge.training JOB.json...")
try:
    for file in sys.argv[1:]:
        read_job(Path(file)).run(report)
        report_done(file)
except NemoMergeError as error:
    sys.exit(f"{ERROR_PREFIX}{error}")
