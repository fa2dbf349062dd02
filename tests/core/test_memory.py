"""Freed memory is kept: a large block that is taken again faults no page in."""

import platform
import subprocess
import sys

import pytest

# Blocks of 100 MB from a thread that is not the first, as XLA takes them.
_FAULTS = """
import resource, sys, threading
from core.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def take():
    for _ in range(20):
        b"x" * (100 << 20)

def run():
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()

run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_a_block_that_was_freed_is_taken_again_without_page_faults():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", _FAULTS, how]))
        for how in ("keep", "give back")
    }
    assert faults["keep"] < 1_000 and faults["give back"] > 100_000, faults
