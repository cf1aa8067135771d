"""Keeps the memory of a merge near what it uses."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 8 << 20


def return_large_buffers() -> None:
    """Makes glibc give freed buffers of 8 MB and more back to the system at once.

    By default it keeps them, up to 32 MB each, in an arena for every thread, where matrices of different sizes leave
    holes: a spectral merge then holds nearly twice the memory that it uses. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
