"""Compiles a config's steps for a TPU pod on a machine without one, and says whether they fit.

    python -m launch.compile_check --config=configs/lcr_ser_qilin.py --topology=v5e:16x16 \\
        [--batch=N] [--items=N] [--users=N] [--words=N]

Both training steps and the evaluation step that `launch.train` runs are compiled by the TPU's own
compiler (`pip install libtpu`; no TPU is needed). Sizes without data come from the flags, or from
what is known of the data set. config.mesh counts, but a mesh of one device becomes one table cut
over every chip. Exit code 2 where a step does not fit or there is no such topology.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file of LCR-SER or CRS.")
    flags.DEFINE_string("topology", None, "GENERATION:SHAPE, such as v5e:16x16.")
    for name in ("batch", "items", "users", "words"):
        flags.DEFINE_integer(name, None, f"{name} instead of the config's.", lower_bound=1)


def check_flags() -> None:
    if flags.FLAGS.config is None or flags.FLAGS.topology is None:
        raise UserError(
            "expected --config=FILE and --topology=NAME, found one missing; for instance "
            "--config=configs/lcr_ser_qilin.py --topology=v5e:4x4"
        )


cli.begin(__name__, define_flags, check_flags)


import logging

from ml_collections import config_dict

from benchmarks.pod_compile import HBM, print_table, topology_devices
from benchmarks.pods import compile_for

_LOG = logging.getLogger(__name__)


def main() -> None:
    values = flags.FLAGS
    config = config_dict.ConfigDict(values.config.to_dict())
    compile_pod = compile_for(config)
    devices = topology_devices(values.topology)
    counts = {"items": values.items, "users": values.users, "words": values.words}
    mesh, what, steps = compile_pod(config, devices, values.batch, counts)
    hbm = HBM[values.topology.split(":")[0]]
    extents = " x ".join(f"{extent} {axis}" for axis, extent in mesh.shape.items())
    title = f"{values.topology}, mesh {extents}, {what}: per chip"
    print_table(steps, title, hbm)
    for step in steps:
        if step.peak > hbm:
            raise UserError(
                f"expected the {step.name} step in {hbm / 1e9:.1f} GB a chip, found a peak of "
                f"{step.peak / 1e9:.1f} GB; take more chips, a smaller --batch or fewer --items"
            )


if __name__ == "__main__":
    cli.run(main)
