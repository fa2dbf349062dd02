"""Times training, windows, scoring, reasoning steps, growth, ranking, GRPO, reading and UniSAR.

    python -m launch.benchmark --suite=all [--json=OUT] [--dtype=bfloat16]

Random data of the sizes of KuaiSAR-small as UniSAR publishes it; only the suite `reading` reads a
data set (--config's, the embedded sample by default) and needs TensorFlow. Every figure is the
median of several calls after a warm-up, compilation apart, and stands beside the machine's own
float32 matmul rate and copy bandwidth of the same run.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_list(
        "suite",
        ["all"],
        "all, or some of train, windows, score, steps, growth, full, grpo, reading, unisar, "
        "identifiers, gensar.",
    )
    flags.DEFINE_enum("scale", "full", ["full", "tiny"], "Shapes: full, or tiny for a quick look.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
    flags.DEFINE_string("json", None, "File to write the figures to.")
    config_flags.DEFINE_config_file(
        "config", "configs/lcr_ser_qilin.py", "Of LCR-SER: its model, and the data of `reading`."
    )


cli.begin(__name__, define_flags)

from benchmarks.run import run


def main() -> None:
    values = flags.FLAGS
    run(values.suite, values.scale, values.dtype, values.config, values.json)


if __name__ == "__main__":
    cli.run(main)
