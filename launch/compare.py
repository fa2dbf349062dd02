"""Compares finished runs: means over seeds, and tests of methods and of checkpoints.

    python -m launch.compare --workdirs=A,B,... [--names=A,B,...] [--metric=ndcg@5/full]
        [--split=test] [--strata=noise|popularity|hops|queries]
        [--beyond=10] [--against=ndcg@5/search/full --figure=PNG]

Without --metric it is every metric that all runs have. Workdirs whose configs differ in the seed
alone are one row. Every stage of a run is a row of its own, in the order of training. Prints
Markdown: per row the mean over examples (as in results.json), its deviation over seeds and the
seeds. Then two tests of every pair of rows. That of the methods takes seeds and users as random
(`studies/method_tests.py`) and needs two seeds of every method that is trained; with one seed there
is none. That of these checkpoints is paired over users and speaks of these trained networks alone:
the difference over the seeds that both rows have, with a 95% interval (BCa bootstrap; Student's t
of fewer than 30 users). p-values are corrected by Holm's method over the pairs of a metric. A
user's examples are averaged first, so that each user counts once, however many examples the split
gives them.

--strata=popularity adds a table by how often the target was clicked in training; --strata=noise, on
sample data, one by the share of noise among the searches in a user's history, which only the sample
knows; --strata=hops, where on_sample.hops is set, one by the steps of reasoning that the target is
away; --strata=queries, for a metric of searches, one by the queries that the user asked before
(CRS, figure 3). --beyond=K adds what the kept rankings tell beyond one target: mrr@K, coverage@K,
Gini index and novelty, and recall@K and map@K of searches with several clicks
(`studies/beyond_accuracy.py`). --against draws one point a row, by two metrics: what a method gains
in recommendation it may lose in search (GenSAR, figure 1a).
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Folders of finished runs.")
    flags.DEFINE_list("names", [], "What to call the method of each workdir.")
    flags.DEFINE_string(
        "metric", "", "Metric with its protocol, such as hr@10/full; default all that runs share."
    )
    flags.DEFINE_string("split", "test", "validation or test.")
    kinds = ("", "noise", "popularity", "hops", "queries")
    flags.DEFINE_enum("strata", "", kinds, "Also a table over strata of users or targets.")
    flags.DEFINE_integer("beyond", 0, "Also what lists of so many items are beyond accuracy.")
    flags.DEFINE_string("against", "", "A second metric, drawn against the first in --figure.")
    flags.DEFINE_string("figure", "", "PNG to write for --against.")


cli.begin(__name__, define_flags)


from core.errors import UserError
from core.workdir import check_out
from studies import beyond_accuracy, strata
from studies.compare import read_rows, shared_metrics, trade_off
from studies.comparison_tables import strata_to_markdown, to_markdown
from studies.statistics import compare_pairs


def main() -> None:
    values = flags.FLAGS
    workdirs, metric, split = values.workdirs, values.metric, values.split
    if not workdirs:
        raise UserError("expected --workdirs=A,B,..., found none; pass folders of finished runs")
    if split not in ("validation", "test"):
        raise UserError(f"expected --split validation or test, found {split!r}; pass one of them")
    if bool(values.against) != bool(values.figure):
        raise UserError("expected --against and --figure together, found one alone; pass both")
    if values.beyond < 0:
        raise UserError(f"expected --beyond of 0 or more, found {values.beyond}; correct it")
    if values.figure:
        check_out(values.figure, "--figure", ".png")
    if values.against and not metric:
        raise UserError("expected --metric with --against, found none; name the one across")
    names, others = ([metric], []) if metric else shared_metrics(workdirs, split)
    tables = {}
    for name in names:
        rows = read_rows(workdirs, name, split, values.names)
        tables[name] = (rows, compare_pairs(rows))
    print(to_markdown(tables))
    if others:
        print(f"\nOnly some of the runs have {', '.join(others)}; pass one as --metric.")
    if values.strata:
        for name, (rows, _) in tables.items():
            protocol, examples = name.partition("/")[2], len(rows[0].users)
            groups = strata.of(values.strata, workdirs[0], split, protocol, examples)
            print("\n" + strata_to_markdown(rows, groups, name))
    if values.beyond:
        of_protocols = {name.partition("/")[2]: rows for name, (rows, _) in tables.items()}
        for protocol, rows in of_protocols.items():
            lines = beyond_accuracy.table(rows, workdirs, split, protocol, values.beyond)
            print("\n" + "\n".join(lines))
    if values.against:
        print(
            "\n"
            + trade_off(
                tables[metric][0],
                workdirs,
                split,
                metric,
                values.against,
                values.names,
                values.figure,
            )
        )


if __name__ == "__main__":
    cli.run(main)
