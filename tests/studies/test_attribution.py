"""The study of attributions asks where the generator knows the reason."""

from input_pipelines.sample.truth import announces
from studies.attribution import Attribution


def test_a_query_of_a_topic_announces_and_noise_does_not():
    assert announces(["aquariumguide", "x"])
    assert not announces(["refund", "photo"])
    assert not announces([])


def test_the_figures_are_told():
    told = Attribution(20, 0.9, 0.85, 10, 0.5, (0.1, 0.5), (1.0, 2.0), (0.25, 1.5))
    lines = told.lines()
    assert "90.0% (85.0% of 10 users" in lines[1]
    rows = [line.split() for line in lines[3:]]
    assert rows == [["10%", "1.000", "0.250"], ["50%", "2.000", "1.500"]]
