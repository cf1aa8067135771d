"""Keeps the memory of a merge near what it uses."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 8 << 20
_KEPT = 64 << 20


def return_large_buffers() -> None:
    """Makes glibc give freed buffers of 8 MB and more back to the system at once.

    By default it keeps them, up to 32 MB each, in an arena for every thread, where matrices of different sizes leave
    holes: a spectral merge then holds nearly twice the memory that it uses. The blocks of other methods are smaller;
    without the second setting their pages would go back to the system, and come again, cleared, with every block.
    Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
