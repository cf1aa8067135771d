"""``python -m nemo_merge`` is ``nemo-merge``."""

from .cli import main

main()
