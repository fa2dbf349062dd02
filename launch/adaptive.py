"""Gives every user a number of reasoning steps: calibrated on validation, measured on test.

    python -m launch.adaptive --workdir=W [--stage=rl] [--metric=ndcg@5] [--tolerance=.002]

W is a finished run of LCR-SER. `lcrsr.adaptive` learns from validation users which users need how
many steps, at the highest price of a step at which the lower end of the 95% interval of validation
users' difference from the best fixed K lies at most `tolerance` below 0. Writes W/adaptive.md and
W/adaptive.json: the metric on test under every fixed K and under the adaptive one, the difference
from the best fixed K (chosen on validation) with its 95% interval, the steps taken, and the time a
batch of 1,024 users takes.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train.", required=True)
    flags.DEFINE_string("stage", None, "train, rl or control; rl where it was trained.")
    flags.DEFINE_string("metric", "ndcg@5", "Metric among the 99 sampled negatives.")
    flags.DEFINE_float("tolerance", 0.002, "Most that users of validation may lose (95%).")


cli.begin(__name__, define_flags)


from studies.adaptive import adapt


def main() -> None:
    values = flags.FLAGS
    print(adapt(values.workdir, values.stage, values.metric, values.tolerance))


if __name__ == "__main__":
    cli.run(main)
