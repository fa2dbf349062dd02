"""Runs a sweep of LCR-SER and tables it.

    python -m launch.ablate --config=configs/lcr_ser.py:amazon_beauty --sweep=k:0,1,2,3,4,5 \\
        --workdir=W [--seeds=3] [--metric=ndcg@5/neg99] [--share=I/N] [--config.data_dir=DIR]

Sweeps over numbers: k, lambda_tcl, lambda_kl, margin, gamma, learning_rate (also figure6, figure7,
figure8, the paper's names for three of them); their arms train side by side in one compiled
program. Over structure: block, self_context, distance, stop_gradient, policy, reward, table3;
these run one after another. Values follow a colon; without them every sweep has its own. table4
times inference by K; figure4 and figure5 train what they show and look at its hidden states;
figure2, with a config of unisar, trains it anew on the searches above cosine thresholds.

W holds one sweep: table.md, table.json, table.png, and under W/arms a normal workdir for every
arm, which launch.evaluate, launch.predict and launch.compare take, and launch.train continues, but
for arms of figure2: no key of a single run filters searches. The same command continues a sweep
that was stopped or killed; finished arms are not trained again.

Several processes, on machines that share W, take a part of the arms each: --share=0/4 the first,
fifth, ninth, ..., --share=3/4 the fourth, eighth, .... None waits for another; the last to end
writes the table.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file: configs/lcr_ser.py:DATASET.")
    flags.DEFINE_string("sweep", None, "NAME or NAME:VALUE,VALUE,...")
    flags.DEFINE_string("workdir", None, "Folder of the sweep.")
    flags.DEFINE_integer("seeds", 1, "How many seeds, from config.seed on.")
    flags.DEFINE_string("metric", "ndcg@5/neg99", "What is tested and drawn.")
    flags.DEFINE_string("share", "", "I/N: the part of the arms that this process trains.")


def check_flags() -> None:
    for name, example in (
        ("config", "configs/lcr_ser_qilin.py"),
        ("sweep", "k:0,1,2"),
        ("workdir", "runs/k"),
    ):
        if getattr(flags.FLAGS, name) is None:
            raise UserError(f"expected --{name}=..., found none; for instance --{name}={example}")


cli.begin(__name__, define_flags, check_flags, continues=True)


from studies.ablation.ablate import ablate


def main() -> None:
    values = flags.FLAGS
    given = config_flags.get_override_values(values["config"])
    print(
        ablate(
            values.config,
            values.sweep,
            values.workdir,
            values.seeds,
            values.metric,
            given,
            values.share,
        )
    )


if __name__ == "__main__":
    cli.run(main)
