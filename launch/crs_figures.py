"""Makes CRS's Figure 2, Table 3 and Figure 3 from finished runs.

    python -m launch.crs_figures --workdirs=A,B --names=R-GRPO,GRPO --out=DIR [--beside=C,D]

A, B are runs of CRS; runs of one name are its seeds (without --names a run is called by its
`rl.algorithm`). Figure 2: two metrics after every stage of the self-evolving loop, dashed the
variant without RL. Table 3: after each RL stage every name's metrics, and each name's difference
from the last of them, paired over users. Figure 3: hr@10 by how many queries a user asked before,
of the loop's last stage and of runs of other methods on the same searches (--beside). Writes
DIR/table.md, table.json, figure2.png and figure3.png; `launch.report --workdirs=DIR` shows them.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Folders of runs of CRS.")
    flags.DEFINE_list("names", [], "What to call each; runs of one name are its seeds.")
    flags.DEFINE_list("beside", [], "Folders of runs of other methods, for Figure 3.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)


cli.begin(__name__, define_flags)


from core.errors import UserError
from core.files import expanded
from core.workdir import check_no_file
from studies.crs_figures import read, write


def main() -> None:
    values = flags.FLAGS
    if not values.workdirs:
        raise UserError("expected --workdirs=A,B,..., found none; pass folders of runs of CRS")
    out = expanded(values.out, "--out")
    check_no_file(out, "--out")
    print(write(read(values.workdirs, values.names), values.workdirs[0], values.beside, out))


if __name__ == "__main__":
    cli.run(main)
