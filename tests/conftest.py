"""Test-wide settings: eight fake CPU devices, so that sharding is tested without a pod."""

import os
import signal

import jobs

from core import memory

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_configure(config):
    os.environ.setdefault("XLA_FLAGS", jobs.xla_flags(8, optimize=config.option.optimize))
    memory.keep_freed_memory()  # as every program does
    # A shell has its background jobs ignore Ctrl-C, and so would what tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--optimize", action="store_true", help="Let XLA optimise: for tests marked `trains`."
    )
    parser.addoption(
        "--update-golden", action="store_true", help="Write tests/golden anew instead of comparing."
    )
    parser.addoption(
        "--gap-seeds", type=int, default=1, help="Seeds of tests/end_to_end/test_sample_gap.py."
    )
