"""What searches are worth on the sample, where the best possible ranking is known.

One seed takes four trainings of some two minutes; --gap-seeds=3 is what docs/results.md reports.
"""

import numpy as np
import pytest

from configs import lcr_ser_qilin
from experiments.resolve import resolve
from experiments.train import train
from input_pipelines.dataset import Dataset
from input_pipelines.sample.truth import Truth, bayes_scores, truth_metric


def config_of(cache, seed=0, **changes):
    config = lcr_ser_qilin.get_config()
    config.cache_dir = str(cache)
    config.seed = seed
    config.rl.enabled = False
    # All that is looked at here; the catalogue's ranking would be compiled for every training.
    config.eval.protocols = ("neg99",)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def seeds(request):
    return range(request.config.getoption("--gap-seeds"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """NDCG@5 against neg99 of every test user, after the config's own pre-training."""
    folder = tmp_path_factory.mktemp("gap")
    done = {}

    def values(seed, **changes):
        key = (seed, *changes.items())
        if key not in done:
            workdir = folder / str(len(done))
            train(config_of(folder / "cache", seed, **changes), str(workdir))
            with np.load(workdir / "per_user" / "train-test-neg99.npz") as file:
                done[key] = file["ndcg@5"]
        return done[key]

    values.cache = folder / "cache"
    return values


@pytest.fixture(scope="module")
def truth(trained):
    """NDCG@5 of the Bayes-optimal ranker, with and without searches, and who searches in vain."""
    data = Dataset(resolve(config_of(trained.cache)))
    known = Truth(data.raw_dir)
    lists, examples = data.candidate_lists("test", "neg99"), data.splits.test
    with_searches, blind = (
        truth_metric(bayes_scores(known, data.log, examples, lists, use_search=use))
        for use in (True, False)
    )
    names = data.log.user_ids[examples.user]
    return with_searches, blind, np.isin(names, sorted(known.all_noise_users))


def interval(differences):
    """Mean and half the width of its 95% interval over users."""
    return differences.mean(), 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))


BLIND = {"data.use_search": False}
# README's first command reaches .60.
FLOOR = 0.57


@pytest.mark.slow
@pytest.mark.trains
def test_recovers_most_of_what_searches_are_worth(trained, truth, seeds):
    best, best_blind, _ = truth
    gains = [(trained(seed) - trained(seed, **BLIND)).mean() for seed in seeds]
    share = np.mean(gains) / (best - best_blind).mean()
    print(f"gains {gains}, share of the Bayes gap {share:.3f}")
    assert share >= 0.70
    # The pre-training of README's first command.
    assert all(trained(seed).mean() > FLOOR for seed in seeds)


@pytest.mark.slow
@pytest.mark.trains
def test_users_whose_searches_are_all_noise_lose_little(trained, truth, seeds):
    """Nobody can know that all of them are noise; an item-kNN without searches has .371 there."""
    *_, all_noise = truth
    values = np.mean([trained(seed) for seed in seeds], 0)[all_noise]
    blind = np.mean([trained(seed, **BLIND) for seed in seeds], 0)[all_noise]
    mean, half = interval(values - blind)
    print(f"{all_noise.sum()} all-noise users: {values.mean():.4f}, {mean:.4f} +- {half:.4f}")
    assert mean + half >= -0.05
    assert values.mean() >= 0.32


@pytest.mark.slow
@pytest.mark.trains
def test_searches_of_other_users_bring_nothing(trained, seeds):
    shuffled = {"on_sample.shuffle_searches": True}
    gains = [trained(seed, **shuffled) - trained(seed, **shuffled, **BLIND) for seed in seeds[:1]]
    mean, half = interval(np.mean(gains, 0))
    print(f"shuffled: {mean:.4f} +- {half:.4f}")
    assert mean - half <= 0.0
