"""The command line as users call it, in the process of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from nemo_merge.cli import main

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(capsys, monkeypatch) -> CommandLine:
    """Exit code, standard output and standard error of ``nemo-merge ARGUMENTS``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nemo-merge", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        return code, *capsys.readouterr()

    return run
