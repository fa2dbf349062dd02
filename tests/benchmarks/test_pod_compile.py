"""launch.compile_check: a pod's program compiled here, and mistakes in one line."""

import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from benchmarks import pod_compile
from benchmarks.pod_compile import SIZES, copies_of, partition_for, sizes_of, topology_devices
from benchmarks.pods import compile_for
from benchmarks.random_tasks import TableSizes
from configs import lcr_ser_qilin, popularity
from core.errors import UserError

NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed",
)


def test_sizes_are_known_or_given():
    config = lcr_ser_qilin.get_config()
    sizes = sizes_of(config, items=10**9, users=None, words=None)
    assert sizes == TableSizes(SIZES["qilin"].users, 10**9, SIZES["qilin"].words)
    config.dataset = "mine"
    with pytest.raises(UserError, match="expected --users and --words for the data set 'mine'"):
        sizes_of(config, items=5, users=None, words=None)
    assert sizes_of(config, items=5, users=6, words=7) == TableSizes(users=6, items=5, words=7)


def test_methods_without_a_pod_and_wrong_settings_are_refused():
    with pytest.raises(UserError, match="a config of lcr_ser or crs, found one of 'popularity'"):
        compile_for(popularity.get_config())
    config = lcr_ser_qilin.get_config()
    config.model.heads = 0
    with pytest.raises(UserError, match=r"config\.model\.heads above 0, found 0"):
        compile_for(config)


def test_one_device_becomes_a_table_over_all_chips():
    import jax

    config = lcr_ser_qilin.get_config()
    assert dict(partition_for(config, jax.devices()).mesh.shape) == {"data": 1, "model": 8}
    config.mesh.data, config.mesh.model = 2, -1
    assert dict(partition_for(config, jax.devices()).mesh.shape) == {"data": 2, "model": 4}


def test_an_unknown_generation_or_no_compiler_is_named():
    expected = "v9:2x2" if importlib.util.find_spec("libtpu") else "pip install libtpu"
    with pytest.raises(UserError, match=expected):
        topology_devices("v9:2x2")


def test_copies_are_counted_by_size():
    program = """
      %copy.1 = f32[4,128]{1,0:T(8,128)} copy(%p.1)
      %copy-start = (f32[8,64]{0,1:T(8,128)}, f32[8,64]{0,1}, u32[]{:S(2)}) copy-start(%p.5)
      %copy.2 = f32[8,64]{0,1:T(8,128)} copy-done(%copy-start)
      %copy-start.1 = (f32[4,128]{1,0:T(8,128)S(1)}, f32[4,128]{1,0}, u32[]) copy-start(%p.1)
      %copy-start.2 = (f32[4,128]{1,0}, f32[4,128]{1,0S(1)}, u32[]{:S(2)}) copy-start(%p.6)
      %scratch = f32[4,128]{1,0:T(8,128)S(1)} broadcast(%p.7)
      ROOT %pad = f32[2,2,128]{2,1,0} pad(%p.2, %zero), padding=0_0x0_1x0_0
      %scatter = f32[4,128]{1,0} fusion(%p.1, %ids), kind=kLoop
      %smaller = f32[4,64]{1,0} copy(%p.3)
      %integers = s32[4,128]{1,0} copy(%p.4)
    """
    # Moves to and from the scratch memory are none.
    assert copies_of(512, program) == 3
    assert copies_of(256, program) == 1


def test_a_program_that_this_jaxlib_cannot_read_is_measured_all_the_same(capsys):
    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: an instruction of a newer compiler")

    assert pod_compile.program_of(Unreadable()) is None
    step = pod_compile.Compiled("train", 1, 1, 1, 1, 1.0, 1.0, None, None)
    pod_compile.print_table([step], "title", 100)
    assert capsys.readouterr().out.count("?") == 2


@NEEDS_LIBTPU
@pytest.mark.slow
def test_a_pod_that_is_too_small_ends_with_2():
    command = [sys.executable, "-m", "launch.compile_check", "--topology=v5e:2x2", "--batch=8"]
    command += ["--config=configs/lcr_ser_qilin.py", "--config.model.max_steps=1"]
    command += ["--config.train.active_steps=1"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost"}
    fits = subprocess.run(
        [*command, "--items=1000"], env=environment, capture_output=True, text=True
    )
    assert fits.returncode == 0, fits.stderr
    assert "all-to-all" in fits.stdout and "evaluate" in fits.stdout
    crowded = subprocess.run(
        [*command, "--items=1000000000"], env=environment, capture_output=True, text=True
    )
    assert crowded.returncode == 2, crowded.stderr
