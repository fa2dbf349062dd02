"""Writes one self-contained HTML page of sweeps and runs, with their tables and figures."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token

from core import results
from core.errors import UserError
from core.files import expanded
from core.workdir import Workdir

_TEXT_BYTES, _PICTURE_BYTES = 16 * 2**20, 64 * 2**20
_PAGES = ("table.md", "summary.md")
_MORE = "adaptive.md"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AGAIN = "run the program that made the folder again, or leave the folder out"
# Pixels; a wider figure has panels beside each other, which a phone could not show at its width.
_ONE_PANEL = 800
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 0 1rem 3rem;
  color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #d0d0d0; text-align: left; }
td.right, th.right { text-align: right; }
/* Names stay whole where a column can be wider. */
th, td:first-child { overflow-wrap: break-word; }
/* Where there is room for all columns cells break their lines, and none is hidden. */
@media (max-width: 900px) { th, td { white-space: nowrap; } }
img { max-width: 100%; height: auto; }
img.panels { max-width: max(100%, 44rem); }
nav a { display: inline-block; margin-right: 1rem; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616; } th, td { border-color: #444; } a { color: #8ab4f8; }
  img { background: #fff; }
}
"""


def report(workdirs: Sequence[str]) -> str:
    """Returns the page as HTML.

    Raises:
      UserError: a folder without a table or summary, with a table whose lines have other columns
        than its head, with a figure that is not there or no PNG in it, or results that are broken.
    """
    sections, links, runs = [], [], []
    for number, folder in enumerate(workdirs):
        path = expanded(folder, "--workdirs")
        pages = [p for p in (*_PAGES, _MORE) if os.path.isfile(os.path.join(path, p))]
        if not pages or pages == [_MORE]:
            raise UserError(
                f"expected {' or '.join(_PAGES)} in {path}, found neither; run launch.ablate or "
                "launch.train with this --workdir first"
            )
        text = "\n".join(_read(os.path.join(path, page)) for page in pages)
        name = os.path.basename(path)
        if _PAGES[1] in pages and os.path.lexists(os.path.join(path, "results.json")):
            runs.append((f"#part{number}", name, path))
        links.append(f'<a href="#part{number}">{html.escape(name)}</a>')
        sections.append(f'<section id="part{number}">\n{to_html(text, path)}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Results</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>Results</h1>\n"
        f"<nav>{' '.join(links)}</nav>\n"
        + _all_runs([path for *_, path in runs])
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _read(path: str) -> str:
    """Reads the text of a page. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(_TEXT_BYTES + 1)
        if len(content) > _TEXT_BYTES:
            raise ValueError(f"more than {_TEXT_BYTES:,} bytes")
        return content.decode()
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a table or summary at {path}, found {str(error)[:160]}; {_AGAIN}"
        ) from None


def _all_runs(paths: Sequence[str]) -> str:
    """Writes a table of all runs for every data, split and protocol; a line a run and stage."""
    groups: dict[str, dict[str, list[list[str]]]] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        workdir = Workdir(path)
        read, method = workdir.read_results(), workdir.read_setting("method", str)
        split = results.reported_split(read)
        rows = [row for row in read["rows"] if row["split"] == split]
        if not rows:
            continue
        heading = f"{rows[0]['data']}, {split} split ({rows[0]['data_split']})"
        columns, lines = results.grid(read, split)
        for protocol in dict.fromkeys(name.partition("/")[2] for name in columns):
            chosen = [i for i, name in enumerate(columns) if name.partition("/")[2] == protocol]
            known = names.setdefault((heading, protocol), [])
            known += [columns[i] for i in chosen if columns[i] not in known]
            for title, *cells in lines:
                values = {columns[i]: cells[i] for i in chosen}
                line = [f"{method}, {title}", os.path.basename(path), str(rows[0]["seed"])]
                if any(values.values()):
                    groups.setdefault(heading, {}).setdefault(protocol, []).append(
                        [*line, *(values.get(name, "") for name in known)]
                    )
    parts = []
    for heading, tables in groups.items():
        parts.append(f"<h2>All runs: {html.escape(heading)}</h2>")
        for protocol, lines in tables.items():
            head = ["", "run", "seed", *names[heading, protocol]]
            body = [[*line, *[""] * (len(head) - len(line))] for line in lines]
            right = [False, False, *[True] * (len(head) - 2)]
            parts.append(_html_table(head, body, right))
    return "".join(f"{part}\n" for part in parts)


def to_html(text: str, folder: str) -> str:
    """Returns HTML of the Markdown that our programs write: headings, tables, lists, images, text.

    What else Markdown or HTML may be, such as links, emphasis and tags, stays text: names of runs
    and metrics hold such signs. An image is a paragraph of its own.

    Args:
      folder: where the images lie.

    Raises:
      UserError: as `report`.
    """
    _check_tables(text, folder)
    tokens = _MARKDOWN.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"  # below the heading of the page
    for place in range(len(tokens) - 2, -1, -1):
        image = re.fullmatch(r"!\[([^\]]*)\]\(([^)]+)\)", tokens[place + 1].content)
        if tokens[place].type == "paragraph_open" and image:
            content = _image(image[1], image[2], folder) + "\n"
            tokens[place : place + 3] = [Token("html_block", "", 0, content=content)]
    return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})


def _markdown() -> MarkdownIt:
    """Returns a parser of what our programs write alone."""
    parser = MarkdownIt("zero", {"html": False}).enable(["heading", "list", "newline", "table"])

    def cell(renderer: object, tokens: Sequence[Token], place: int, *_: object) -> str:
        token = tokens[place]
        right = "right" in str(token.attrGet("style") or "")
        return f"<{token.tag}{' class=right' if right else ''}>"

    for kind in ("th_open", "td_open"):
        parser.add_render_rule(kind, cell)
    for kind, tag in (
        ("table_open", '<div class="wide"><table>\n'),
        ("table_close", "</table></div>\n"),
        ("softbreak", " "),
    ):
        parser.add_render_rule(kind, lambda *_, tag=tag: tag)
    return parser


_MARKDOWN = _markdown()


def _check_tables(text: str, folder: str) -> None:
    """Raises UserError where a table's lines differ in their cells; the parser would fill them."""
    for table in re.finditer(r"^\|.*(?:\n.+)*", text, re.MULTILINE):
        lines = table[0].split("\n")
        count, *counts = [len(_cells(line)) for line in lines]
        for cells in counts or [0]:
            if cells != count:
                raise UserError(
                    "expected tables with as many cells in every line as in their head in "
                    f"{folder}, found {cells} for {count} below {lines[0][:60]!r}; {_AGAIN}"
                )


def _cells(line: str) -> list[str]:
    return line.strip().removeprefix("|").removesuffix("|").split("|")


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    def row(line: Sequence[str], tag: str) -> str:
        cells = (
            f"<{tag}{' class=right' if aligned else ''}>{html.escape(cell)}</{tag}>"
            for cell, aligned in zip(line, right, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    lines = "\n".join(row(line, "td") for line in body)
    return f'<div class="wide"><table>\n{row(head, "th")}\n{lines}\n</table></div>'


def _image(label: str, name: str, folder: str) -> str:
    """Embeds a picture of the folder alone: a page of others may name any file."""
    path, whole = os.path.join(folder, name), os.path.realpath(folder)
    data = b""
    inside = os.path.commonpath([whole, os.path.realpath(path)]) == whole
    if inside and not os.path.exists(path):
        raise UserError(
            f"expected the figure {path}, found none; run the program that made its folder again"
        )
    if inside and os.path.isfile(path):
        with open(path, "rb") as file:
            data = file.read(_PICTURE_BYTES + 1)
    # A PNG begins with its signature and its header, whose first number is the width.
    if not data.startswith(_SIGNATURE + b"\0\0\0\x0dIHDR") or not 33 <= len(data) <= _PICTURE_BYTES:
        raise UserError(
            f"expected a PNG of at most {_PICTURE_BYTES:,} bytes inside {folder} as figure, found "
            f"{name!r:.80}; {_AGAIN}"
        )
    kind = " class=panels" if int.from_bytes(data[16:20]) > _ONE_PANEL else ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return f'<div class="wide"><img{kind} alt="{html.escape(label)}" src="{source}"></div>'
