"""Keeps memory that a step has freed for the next one, instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt, as <malloc.h> has them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1  # a C int


def keep_freed_memory() -> bool:
    """Sets glibc's allocator to reuse large blocks; call it before other threads start.

    XLA's CPU backend takes the temporaries of a program, often 50 MB to 1 GB, anew for every
    call. Blocks that large are otherwise mapped and unmapped each time, and the system clears
    every page of them: a fifth of the time of a training step of `configs/lcr_ser_qilin.py`. An
    arena that belongs to one thread cannot hold blocks over 64 MB, so all threads share one arena.

    Returns:
      Whether the allocator is glibc's and has taken the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _MOST, _TRIM_THRESHOLD: _MOST}
    return all(mallopt(parameter, value) == 1 for parameter, value in settings.items())
