"""The page of sweeps and runs: whole in itself, with their tables and figures."""

import base64
import html.parser

import matplotlib.image
import numpy as np
import pytest

from core.errors import UserError
from launch.report import report, to_html

TABLE = """# Sweep k:0,1

sample <data>, test split

| K | ndcg@5 |
|---|---:|
| K = 0 | .5 & more |

Stopped:

- K = 1: expected a finite loss

![curves](table.png)
"""


class Balanced(html.parser.HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.cells = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "li"):
            self.cells.append(data)


def test_the_page_holds_tables_and_figures(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.md").write_text(TABLE)
    (tmp_path / "a" / "table.png").write_bytes(b"\x89PNG picture")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.md").write_text("# run\n\nwords\nof a paragraph\n")
    (tmp_path / "b" / "adaptive.md").write_text("Adaptive minus the best fixed K\n")
    page = report([str(tmp_path / "a"), str(tmp_path / "b")])
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert parser.cells == ["K", "ndcg@5", "K = 0", ".5 & more", "K = 1: expected a finite loss"]
    (image,) = parser.images
    assert base64.b64decode(image.partition("base64,")[2]) == b"\x89PNG picture"
    assert "<p>Adaptive minus the best fixed K</p>" in page
    assert "sample &lt;data&gt;" in page and "<p>words of a paragraph</p>" in page
    assert "http" not in page, "nothing is fetched"
    assert 'name="viewport"' in page
    assert "<th class=right>ndcg@5</th>" in to_html(TABLE, str(tmp_path / "a"))


def test_a_tilde_in_a_workdir_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.md").write_text("one line\n")
    assert "one line" in report(["~/a"])


def test_figures_of_several_panels_keep_a_width_to_read_them_at(tmp_path):
    for name, width in (("narrow", 600), ("wide", 1200)):
        matplotlib.image.imsave(tmp_path / f"{name}.png", np.zeros((3, width)))
    assert "<img class=panels " in to_html("![](wide.png)", str(tmp_path))
    assert "<img alt=" in to_html("![](narrow.png)", str(tmp_path))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="found neither"):
        report([str(tmp_path)])
    (tmp_path / "table.md").write_text(TABLE)
    with pytest.raises(UserError, match=r"expected the figure .*table\.png, found none"):
        report([str(tmp_path)])
