"""A zoo of methods: its trials, what is chosen, and the table and page of small runs."""

import json
import re
import shutil

import jobs
import pytest

from configs import baseline
from core.errors import UserError
from core.workdir import Workdir
from launch.zoo import parse_setting
from studies.zoo import tables
from studies.zoo.plans import Zoo, plan, recommends
from studies.zoo.running import Outcome, choose
from studies.zoo.zoo import run_zoo

FITTED = ("popularity", "item_knn")


def config_of(method):
    module, variant = baseline.file_of(method)
    choice = f"qilin,{variant}" if variant else "qilin"
    return module.get_config(choice), getattr(module, "TRIED", {})


def zoo_of(methods=FITTED, seeds=2, budget=3, **settings):
    return Zoo("qilin", methods, seeds, budget, {"data_dir": "", "on_sample.users": 60} | settings)


def run(zoo, folder, **more):
    return run_zoo(zoo, config_of, baseline.METHODS, str(folder), **more)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"cache_dir": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("zoo") / "w"
    return folder, run(zoo_of(**cache), folder)


def untimed(folder):
    """Returns what a zoo's table.json holds beside what was measured by the clock."""
    values = json.loads((folder / "table.json").read_text())
    for row in values["rows"]:
        del row["seconds"], row["cost"]["user_ms"]
        for trial in row["trials"]:
            del trial["seconds"]
    return values


def trials_of(method, tmp_path, budget=6, **settings):
    (made,) = plan(zoo_of((method,), budget=budget, **settings), config_of, Workdir(str(tmp_path)))
    return made.trials


def test_every_method_has_as_many_trials_and_the_first_is_its_config(tmp_path):
    trials = trials_of("sasrec_ce", tmp_path)
    assert len(trials) == 6 and trials[0] == {}
    # Its L2 is 0, of which there are no multiples.
    keys = {"train.learning_rate", "model.dropout"}
    assert all(trial.keys() == keys for trial in trials[1:])
    # Around the sample's own rate, 2e-3, not the file's.
    rates = [trial["train.learning_rate"] for trial in trials[1:]]
    assert all(5e-4 <= rate <= 8e-3 for rate in rates) and len(set(rates)) == 5
    assert min(rates) < 2e-3 < max(rates)
    # Every share draws the same, and more trials begin with the fewer.
    assert trials_of("sasrec_ce", tmp_path) == trials
    assert trials_of("sasrec_ce", tmp_path, budget=3) == trials[:3]
    knn = trials_of("item_knn", tmp_path)
    assert len(knn) == 6 and all(0.3 <= trial["model.decay"] <= 1 for trial in knn[1:])
    # There is nothing to try.
    assert trials_of("popularity", tmp_path) == ({},)


def test_what_the_zoo_sets_is_not_varied(tmp_path):
    trials = trials_of("sasrec_ce", tmp_path, **{"train.learning_rate": 1e-3})
    assert all("train.learning_rate" not in trial for trial in trials)
    (method,) = plan(
        zoo_of(
            ("sasrec_ce",), **{"train.learning_rate": 1e-3, "eval.protocols": ["full", "neg99"]}
        ),
        config_of,
        Workdir(str(tmp_path)),
    )
    config, path = method.run(1, 1)
    assert config.train.learning_rate == 1e-3 and config.seed == 1
    assert config.model.dropout == method.trials[1]["model.dropout"]
    assert config.eval.protocols == ("full",) and path.endswith("runs/sasrec_ce/trial1/seed1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("popularity", "sasrek")}, "--methods of .*, found sasrek; pass these"),
        ({"methods": ("popularity",) * 2}, "every method of --methods once"),
        ({"seeds": 0}, "--seeds of 1 or more, found 0"),
        ({"budget": -1}, "--budget of 1 or more, found -1"),
        ({"train.max_epoch": 2}, "keys that a method of the zoo has, found train.max_epoch"),
        ({"model.decay": 7.0}, "model.decay"),
        ({"eval.protocols": "all"}, "eval.protocols"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        run(zoo_of(**changes), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_flags_of_settings():
    assert parse_setting("train.max_epochs=2") == ("train.max_epochs", 2)
    assert parse_setting('eval.protocols=["full"]') == ("eval.protocols", ["full"])
    assert parse_setting("cache_dir=a=b") == ("cache_dir", "a=b")
    with pytest.raises(UserError, match="KEY=VALUE, found 'seed'"):
        parse_setting("seed")


def test_the_best_trial_on_validation_is_chosen():
    outcomes = [Outcome(0.2), Outcome(stopped="loss nan"), Outcome(0.3), Outcome(0.3)]
    assert choose(outcomes) == 2
    assert choose(outcomes[1:2]) is None
    assert not Outcome(seconds=3.0).ended and outcomes[1].ended


def test_the_front_is_what_no_other_beats():
    # Cost and quality: c is dearer and worse than b, e as good as d and dearer, f as dear as a.
    points = [(1.0, 0.1), (2.0, 0.3), (3.0, 0.2), (4.0, 0.5), (5.0, 0.5), (1.0, 0.05)]
    assert tables.front(points) == [0, 1, 3]


def test_the_table_has_tests_and_costs(finished):
    folder, text = finished
    lines = text.splitlines()
    values = json.loads((folder / "table.json").read_text())
    first, second = (row["method"] for row in values["rows"])
    assert {first, second} == {*FITTED}
    head = next(line for line in lines if line.startswith("| method | seeds |"))
    assert f"ndcg@5/neg99 | difference from {first} | p of the methods | g |" in head
    assert "p of these checkpoints | s of training | ms a user | parameters |" in head
    reference, other = (
        next(line for line in lines if line.startswith(f"| {method} | 0, 1 |"))
        for method in (first, second)
    )
    assert re.search(r"\| 0\.\d{4} \|  \|  \|  \|  \|", reference)
    # Fitted methods have a test over users, which is then that of the checkpoints too.
    difference, p, g, of_checkpoints = other.split(" | ")[3:7]
    assert re.match(r"[+-]0\.", difference) and p == of_checkpoints and g == ""
    assert "± 0.0000" not in text and "| full | mrr@10 |" in text
    assert "| item_knn | 0" in text and text.count("(chosen)") == 2
    assert text.count("| item_knn | 1") + text.count("| item_knn | 2") == 2
    assert "| full | mrr@10 | coverage@10 | gini@10 | novelty@10 |" in lines
    assert "popularity: nothing to try, one trial." in lines
    by_name = {row["method"]: row for row in values["rows"]}
    knn, pop = by_name["item_knn"], by_name["popularity"]
    # The best of three on validation, whichever it is.
    best = max(knn["trials"], key=lambda trial: trial["validation"])
    chosen = knn["trials"].index(best)
    assert knn["chosen"] == (trials_of("item_knn", folder, 3)[chosen])
    # A count for every item of the catalogue and the padding.
    assert pop["cost"]["parameters"] > 100 and pop["cost"]["user_ms"] > 0
    # Runs that were not chosen are not tested against every protocol.
    other = folder / "runs" / "item_knn" / f"trial{(chosen + 1) % 3}" / "seed0" / "results.json"
    assert {row["protocol"] for row in json.loads(other.read_text())["rows"]} == {"neg99"}


def test_the_page_needs_no_other_file(finished):
    page = (finished[0] / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == [] and "<script" not in page
    assert "difference from " in page and "<td>item_knn</td>" in page


def test_the_same_command_trains_nothing_again(finished, cache):
    folder, text = finished
    files = sorted((folder / "runs").rglob("results.json"))
    before = [path.stat().st_mtime_ns for path in files]
    assert run(zoo_of(**cache), folder) == text
    assert [path.stat().st_mtime_ns for path in files] == before
    with pytest.raises(UserError, match=r"with budget 3, .* found 4; pass another --workdir"):
        run(zoo_of(budget=4, **cache), folder)
    # A run that was killed is trained again, and nothing else.
    outcome = folder / "runs" / "item_knn" / "trial1" / "seed0.json"
    outcome.write_text('{"validation": 1}')
    with pytest.raises(UserError, match=r"of a run in .*seed0\.json, found .*; remove the file"):
        run(zoo_of(**cache), folder)
    outcome.unlink()
    assert run(zoo_of(**cache), folder).count("(chosen)") == 2


def test_shares_take_methods_and_the_last_writes_the_table(finished, cache, tmp_path):
    zoo, folder = zoo_of(**cache), tmp_path / "w"
    assert run(zoo, folder, share="1/2").startswith("share 1/2 is through; popularity are other")
    assert not (folder / "table.md").exists()
    text = run(zoo, folder, share="0/2")
    assert "| item_knn | 0, 1 | 0." in text
    assert untimed(folder) == untimed(finished[0])
    with pytest.raises(UserError, match=r"--share=I/N with I from 0 to N - 1, found '2/2'"):
        run(zoo, folder, share="2/2")


def test_a_zoo_grows_in_seeds_and_methods_and_does_not_shrink(cache, tmp_path):
    folder = tmp_path / "w"
    run(zoo_of(("item_knn",), 1, 3, **cache), folder)
    files = sorted((folder / "runs").rglob("results.json"))
    before = [path.stat().st_mtime_ns for path in files]
    text = run(zoo_of(("popularity", "item_knn"), 2, 3, **cache), folder)
    assert "| item_knn | 0, 1 | 0." in text and "| popularity | 0, 1 | 0." in text
    assert [path.stat().st_mtime_ns for path in files] == before
    # A kill after a run that was added, before its tests: these are made up for.
    popular = folder / "runs" / "popularity"
    outcome = popular / "trial0" / "seed1.json"
    whole = outcome.read_text()
    assert json.loads(whole)["tested"] == "neg99, full"
    outcome.write_text(whole.replace("neg99, full", ""))
    assert run(zoo_of(("popularity", "item_knn"), 2, 3, **cache), folder) == text
    assert outcome.read_text() == whole
    shutil.rmtree(popular / "trial0" / "seed1")
    (popular / "cost.json").unlink()
    with pytest.raises(UserError, match=r"the finished run .*seed1, found no such folder; remove"):
        run(zoo_of(("popularity", "item_knn"), 2, 3, **cache), folder)
    for smaller in (zoo_of(("item_knn",), 2, 3, **cache), zoo_of(("popularity", "item_knn"), 1, 3)):
        with pytest.raises(UserError, match="or with more methods or seeds, found"):
            run(smaller, folder)


@pytest.mark.slow
def test_two_processes_at_once_write_the_table_of_one(tmp_path):
    def zoo(workdir, *more):
        settings = {"on_sample.users": 60, "model.width": 16, "train.max_epochs": 0.2}
        settings |= {"cache_dir": tmp_path / "cache"}
        arguments = ["--dataset=qilin", "--methods=popularity,sasrec_ce,item_knn", "--seeds=2"]
        arguments += [f"--setting={key}={value}" for key, value in settings.items()]
        return jobs.program("zoo", f"--workdir={workdir}", *arguments, *more)

    # At once, also at the preparation of the data. The first has the more to do.
    both = [zoo(tmp_path / "w", f"--share={number}/2") for number in (0, 1)]
    codes, outputs = jobs.endings(both)
    assert codes == [0, 0], outputs
    assert (tmp_path / "w" / "page.html").exists()
    jobs.finished(zoo(tmp_path / "one"))
    assert untimed(tmp_path / "w") == untimed(tmp_path / "one")
    assert len(untimed(tmp_path / "w")["rows"]) == 3


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="empty or a zoo's workdir, found other files"):
        run(zoo_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_trained_method_has_a_test_over_seeds_and_one_that_stops_is_told(tmp_path, cache):
    settings = {"model.width": 16, "train.max_epochs": 1.0, "train.batch_size": 32} | cache
    text = run(zoo_of(("popularity", "sasrec_ce"), 2, 1, **settings), tmp_path / "w")
    line = next(line for line in text.splitlines() if line.startswith("| sasrec_ce | 0, 1 |"))
    assert line.count("±") == 1
    assert "Of the methods: seeds and users are random factors" in text
    assert "With one seed" not in text
    broken = run(
        zoo_of(("popularity", "sasrec_ce"), 1, 1, **settings, **{"train.learning_rate": 1e30}),
        tmp_path / "broken",
    )
    assert "- sasrec_ce, trial 0: " in broken and "| popularity | 0 |" in broken


def test_all_methods_that_recommend_fit_into_a_zoo_and_searchers_are_refused(tmp_path):
    methods = tuple(name for name in baseline.METHODS if recommends(config_of(name)[0]))
    assert set(baseline.METHODS) - set(methods) == {"copps", "qem", "tem"}
    zoo = zoo_of(methods, budget=2)
    for method in plan(zoo, config_of, Workdir(str(tmp_path))):
        assert method.run(0, 0)[0].eval.protocols
    with pytest.raises(UserError, match="found tem, which answers searches alone; leave it out"):
        run(zoo_of(("popularity", "tem")), tmp_path / "w")
    assert not (tmp_path / "w").exists()
