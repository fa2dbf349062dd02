"""Writes one self-contained HTML page of sweeps and runs, with their tables and figures.

    python -m launch.report --workdirs=A,B,... --out=report.html

A workdir is one of launch.ablate (table.md) or of launch.train (summary.md, and adaptive.md where
launch.adaptive has written it). Above them stands one table of all runs. The page needs no other
file and no network, and reads on a phone: wide tables and figures scroll by themselves there.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Folders of launch.ablate and launch.train.")
    flags.DEFINE_string("out", "report.html", "The page.")


cli.begin(__name__, define_flags)


from core.errors import UserError
from core.files import write_atomically
from core.workdir import check_out
from studies.report import report


def main() -> None:
    if not flags.FLAGS.workdirs:
        raise UserError("expected --workdirs=A,B,..., found none; pass folders of sweeps or runs")
    check_out(flags.FLAGS.out, "--out")
    page = report(flags.FLAGS.workdirs)
    write_atomically(flags.FLAGS.out, page)
    print(f"{flags.FLAGS.out}: {len(page.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
