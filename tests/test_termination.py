"""A command that gets SIGTERM ends with it, whatever swallows the exception."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_merge

BEGINNING = f"""
import os, signal, sys, time, weakref
sys.path.append({str(Path(nemo_merge.__file__).parent)!r})  # alone, which is quicker than the package
from termination import terminable
def end(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0)
class Thing:
    pass
"""

WAYS = {
    "nothing": "end()\ntime.sleep(30)",
    "a destructor": "Thing.__del__ = lambda _: end()\nThing()\ntime.sleep(30)",
    "a weak reference": "thing = Thing()\nref = weakref.ref(thing, lambda _: end())\ndel thing\ntime.sleep(30)",
    "a library that catches all": "try:\n    end()\nexcept BaseException:\n    pass\ntime.sleep(30)",
    "the end of the work": "try:\n    end()\nexcept BaseException:\n    pass",
    "a hang-up": "end(signal.SIGHUP)\ntime.sleep(30)",
    "cleaning that takes a while": "try:\n    end()\nfinally:\n    time.sleep(0.3)\n    print('clean')",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_ends_the_block(way):
    body = "\n".join(f"    {line}" for line in WAYS[way].splitlines())
    # Under nohup a hang-up is ignored, and whatever is started there inherits that.
    program = f"{BEGINNING}\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\nwith terminable():\n{body}\nprint('went on')"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60)
    number = signal.SIGHUP if way == "a hang-up" else signal.SIGTERM
    assert done.returncode == 128 + number
    assert f"ended by {number.name}" in done.stderr
    assert "Traceback (most recent call last):\n  File" not in done.stderr or "Exception ignored" in done.stderr
    assert done.stdout == ("clean\n" if "cleaning" in way else "")


def test_within_an_import_it_waits_for_the_end_of_it(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nprint('whole')\n"
    )
    program = (
        f"{BEGINNING}\nsys.path.insert(0, {str(tmp_path)!r})\nwith terminable():\n    import slow\n    time.sleep(30)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "whole\n")


def test_afterwards_signals_do_what_they_did(tmp_path):
    program = f"{BEGINNING}\nwith terminable():\n    pass\nend()\nprint('went on')"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_a_hang_up_that_is_ignored_stays_so():
    program = f"{BEGINNING}\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith terminable():\n    end(signal.SIGHUP)\nprint('went on')"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "went on\n")
