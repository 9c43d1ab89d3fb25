"""Memory of a training process on a CPU: what is freed stays with the process.

A step allocates and frees gigabytes of activations. glibc gives large blocks back to the kernel at once, and the next
step pays for fresh, zeroed pages: a third of an RN50's step (docs/decisions/0007).
"""

import ctypes
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory instead of giving it back. False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
    return False
