"""The page of sweeps and runs: whole in itself, with their tables and figures."""

import base64
import html
import html.parser
import json
import os
import re
import time

import made_results
import matplotlib.image
import numpy as np
import pytest

from core import run_schema
from core.errors import UserError
from core.results import markdown_table
from studies.report import report, to_html

TABLE = """# Sweep k:0,1

sample <data>, test split

| K | ndcg@5 |
|---|---:|
| K = 0 | .5 & more |

Stopped:

- K = 1: expected a finite loss

![curves](table.png)
"""


def picture(path, width=10):
    matplotlib.image.imsave(path, np.zeros((3, width)))


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
    picture(tmp_path / "a" / "table.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "summary.md").write_text("# run\n\nwords\nof a paragraph\n")
    (tmp_path / "b" / "adaptive.md").write_text("Adaptive minus the best fixed K\n")
    page = report([str(tmp_path / "a"), str(tmp_path / "b")])
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert parser.cells == ["K", "ndcg@5", "K = 0", ".5 & more", "K = 1: expected a finite loss"]
    (image,) = parser.images
    whole = (tmp_path / "a" / "table.png").read_bytes()
    assert base64.b64decode(image.partition("base64,")[2]) == whole
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
        picture(tmp_path / f"{name}.png", width)
    assert "<img class=panels " in to_html("![](wide.png)", str(tmp_path))
    assert "<img alt=" in to_html("![](narrow.png)", str(tmp_path))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="found neither"):
        report([str(tmp_path)])
    (tmp_path / "table.md").write_text(TABLE)
    with pytest.raises(UserError, match=r"expected the figure .*table\.png, found none"):
        report([str(tmp_path)])


def test_only_pictures_of_the_folder_are_part_of_the_page(tmp_path):
    run, secret = tmp_path / "run", tmp_path / "secret.png"
    run.mkdir()
    picture(secret)
    picture(run / "own.png")
    (run / "link.png").symlink_to(secret)
    (run / "inside.png").symlink_to("own.png")
    (run / "words.png").write_text("-----BEGIN OPENSSH PRIVATE KEY-----" * 9)
    (run / "short.png").write_bytes((run / "own.png").read_bytes()[:20])
    (run / "folder.png").mkdir()
    os.mkfifo(run / "pipe.png")
    assert "<img" in to_html("![](inside.png)", str(run))
    for name in ("link.png", "../secret.png", str(secret), "words.png", "short.png"):
        with pytest.raises(UserError, match=r"a PNG of at most .* bytes inside .*run as figure"):
            to_html(f"![]({name})", str(run))
    for name in ("folder.png", "pipe.png", "/etc/passwd"):
        with pytest.raises(UserError, match=f"as figure, found '{name}'; run the program"):
            to_html(f"![]({name})", str(run))


def test_nothing_of_a_run_becomes_html(tmp_path):
    evil = "<script>alert('x')</script>"
    run = tmp_path / evil.replace("/", "_")
    run.mkdir()
    picture(run / "a.png")
    lines = [f"# {evil}", f"| {evil} |\n|---|\n| {evil} |", f"- {evil}", evil]
    lines.append(f'!["{evil}](a.png)')
    (run / "summary.md").write_text("\n\n".join(lines))
    (run / "config.json").write_text(json.dumps(run_schema.stamped({"method": evil})))
    saved = made_results.row(stage=evil, data=evil, metrics={f"{evil}/full": 0.5}, commit=evil)
    (run / "results.json").write_text(json.dumps({"rows": [saved]}))
    page = report([str(run)])
    assert "<script" not in page and page.count("&lt;script&gt;") > 8
    assert 'alt="&quot;&lt;script' in page


@pytest.mark.parametrize(
    "name",
    [
        "*a* __b__ `c` ~~d~~",
        "[a](http://b) <http://b> http://b",
        "[a](javascript:b) [a][b]",
        "<b>a</b> &amp; &#60; <!-- -->",
        "a ![](/etc/passwd) b",
        "10^5 a_b_c \\* \\_",
    ],
)
def test_markup_in_a_name_stays_text(tmp_path, name):
    for text in (f"| {name} |\n|---|\n| {name} |", f"- {name}", name, f"# {name}"):
        parser = Balanced()
        html_text = to_html(text, str(tmp_path))
        parser.feed(html_text)
        tags = set(re.findall(r"<(\w+)", html_text)) - {"div", "table", "thead", "tbody", "tr"}
        assert not parser.open and tags <= {"th", "td", "ul", "li", "p", "h2"}
        assert html.unescape(re.sub("<.*?>", "", html_text)).strip().split("\n")[0] == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("| a | b |\n|---|---|\n| 1 |", "found 1 for 2 below '| a | b |'; run the program"),
        ("| a | b |\n|---|", "found 1 for 2"),
        ("| a |\n|---|\n| 1 | 2 |", "found 2 for 1"),
        ("| a | b |", "found 0 for 2"),
        ("text\n| a | b |\n|---|---|\n| 1 |", "found 1 for 2"),
    ],
)
def test_a_ragged_table_is_one_line(tmp_path, text, words):
    (tmp_path / "summary.md").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        report([str(tmp_path)])


def test_headings_lists_and_tables_beside_text_keep_their_places(tmp_path):
    html_text = to_html("# a\n\n## b\nword\n- c\n- d\n\n| e |\n|---:|\n| f |\n", str(tmp_path))
    assert html_text.replace("\n", "") == (
        "<h2>a</h2><h3>b</h3><p>word</p><ul><li>c</li><li>d</li></ul>"
        '<div class="wide"><table><thead><tr><th class=right>e</th></tr></thead>'
        "<tbody><tr><td class=right>f</td></tr></tbody></table></div>"
    )


def test_half_an_image_again_and_again_is_read_in_time(tmp_path):
    begin = time.perf_counter()
    assert to_html("![](" * 100_000, str(tmp_path)).count("![](") == 100_000
    assert time.perf_counter() - begin < 10


def test_a_page_that_is_no_text_is_one_line(tmp_path):
    for content in (b"\xff\xfe", b"x" * (16 * 2**20 + 1)):
        (tmp_path / "summary.md").write_bytes(content)
        with pytest.raises(UserError, match=r"a table or summary at .*summary\.md, found "):
            report([str(tmp_path)])
    (tmp_path / "summary.md").write_text("")
    assert "<section" in report([str(tmp_path)])


def test_one_table_holds_all_runs_with_their_methods(tmp_path):
    for method, stages in (("popularity", ["fit"]), ("lcr_ser", ["rl", "train"])):
        run = tmp_path / f"run_{method}"
        run.mkdir()
        (run / "summary.md").write_text("# one\n")
        (run / "config.json").write_text(json.dumps(run_schema.stamped({"method": method})))
        metrics = {"hr@1/full": 0.25} | ({"hr@5/full": 0.5} if method == "lcr_ser" else {})
        rows = [made_results.row(stage=stage, metrics=metrics, seed=3) for stage in stages]
        (run / "results.json").write_text(json.dumps({"rows": rows}))
    page = report([str(tmp_path / f"run_{m}") for m in ("popularity", "lcr_ser")])
    parser = Balanced()
    parser.feed(page)
    assert "All runs: d, test split (leave_one_out)" in page
    assert parser.cells == [
        *("run", "seed", "hr@1/full", "hr@5/full"),
        *("popularity, fitted", "run_popularity", "3", "0.2500"),
        *("lcr_ser, after training", "run_lcr_ser", "3", "0.2500", "0.5000"),
        *("lcr_ser, after RL", "run_lcr_ser", "3", "0.2500", "0.5000"),
    ]


def test_a_run_of_another_schema_is_refused(tmp_path):
    (tmp_path / "summary.md").write_text("# one\n")
    (tmp_path / "config.json").write_text('{"method": "popularity"}')
    (tmp_path / "results.json").write_text('{"rows": "of another kind"}')
    with pytest.raises(UserError, match=r"config\.json, found one written by a version before 0"):
        report([str(tmp_path)])


def test_a_wide_summary_has_a_line_a_metric():
    names = [f"hr@{k}/full" for k in range(1, 10)]
    assert markdown_table(names[:2], [["a", "1", "2"]])[0] == "|  | hr@1/full | hr@2/full |"
    lines = markdown_table(names, [["a", *map(str, range(9))], ["b", *map(str, range(9, 18))]])
    assert lines[:4] == ["|  | a | b |", "|---|---:|---:|", *lines[2:4]]
    assert lines[2:4] == ["| hr@1/full | 0 | 9 |", "| hr@2/full | 1 | 10 |"]
