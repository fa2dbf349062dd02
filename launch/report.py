"""One self-contained HTML page of sweeps and runs: their tables, and their figures inside it.

    python -m launch.report --workdirs=A,B,... --out=report.html

A workdir is one of launch.ablate (table.md) or of launch.train (summary.md, and adaptive.md where
launch.adaptive has written it). The page needs no other file and no network, and reads on a phone:
wide tables and figures scroll by themselves.
"""

from __future__ import annotations

from absl import flags

from launch import cli


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Folders of launch.ablate and launch.train.")
    flags.DEFINE_string("out", "report.html", "The page.")


cli.begin(__name__, define_flags)

import base64
import html
import os
import pathlib
import re
from collections.abc import Sequence

from core.errors import UserError
from core.files import write_atomically
from core.workdir import check_out

_PAGES = ("table.md", "summary.md")
_MORE = "adaptive.md"
# Pixels; a wider figure has panels beside each other, which a phone could not show at its width.
_ONE_PANEL = 800
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 0 1rem 3rem;
  color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #d0d0d0; white-space: nowrap; }
td.right, th.right { text-align: right; }
img { max-width: 100%; height: auto; }
img.panels { max-width: max(100%, 44rem); }
nav a { display: inline-block; margin-right: 1rem; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616; } th, td { border-color: #444; } a { color: #8ab4f8; }
  img { background: #fff; }
}
"""


def report(workdirs: Sequence[str]) -> str:
    """The page as HTML.

    Raises:
      UserError: a folder without a table or summary, or with a figure that is not there.
    """
    sections, links = [], []
    for number, path in enumerate(workdirs):
        path = os.path.expanduser(path)
        pages = [p for p in (*_PAGES, _MORE) if os.path.isfile(os.path.join(path, p))]
        if not pages or pages == [_MORE]:
            raise UserError(
                f"expected {' or '.join(_PAGES)} in {path}, found neither; run launch.ablate or "
                "launch.train with this --workdir first"
            )
        text = "\n".join(pathlib.Path(path, p).read_text(encoding="utf-8") for p in pages)
        name = html.escape(os.path.basename(os.path.abspath(path)))
        links.append(f'<a href="#part{number}">{name}</a>')
        sections.append(f'<section id="part{number}">\n{to_html(text, path)}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Results</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>Results</h1>\n"
        f"<nav>{' '.join(links)}</nav>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def to_html(text: str, folder: str) -> str:
    """HTML of the Markdown that these programs write: headings, tables, lists, images, paragraphs.

    Args:
      folder: where the images lie.
    """
    found = []
    for block in re.split(r"\n{2,}", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith("#"):
            found.append(f"<h2>{html.escape(lines[0].lstrip('# '))}</h2>")
        elif lines[0].startswith("|"):
            found.append(_table(lines))
        elif lines[0].startswith("- "):
            items = "".join(f"<li>{html.escape(line[2:])}</li>" for line in lines)
            found.append(f"<ul>{items}</ul>")
        elif image := re.fullmatch(r"!\[(.*)\]\((.+)\)", block):
            found.append(_image(image[1], os.path.join(folder, image[2])))
        else:
            found.append(f"<p>{html.escape(' '.join(lines))}</p>")
    return "".join(f"{part}\n" for part in found)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(lines: Sequence[str]) -> str:
    right = [cell.endswith(":") for cell in _cells(lines[1])]

    def row(line: str, tag: str) -> str:
        cells = (
            f"<{tag}{' class=right' if aligned else ''}>{html.escape(cell)}</{tag}>"
            for cell, aligned in zip(_cells(line), right, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(row(line, "td") for line in lines[2:])
    return f'<div class="wide"><table>\n{row(lines[0], "th")}\n{body}\n</table></div>'


def _image(label: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(
            f"expected the figure {path}, found none; run the program that made its folder again"
        ) from None
    width = int.from_bytes(data[16:20])  # a PNG begins with its header
    kind = " class=panels" if width > _ONE_PANEL else ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return f'<div class="wide"><img{kind} alt="{html.escape(label)}" src="{source}"></div>'


def main() -> None:
    if not flags.FLAGS.workdirs:
        raise UserError("expected --workdirs=A,B,..., found none; pass folders of sweeps or runs")
    check_out(flags.FLAGS.out, "--out")
    page = report(flags.FLAGS.workdirs)
    write_atomically(flags.FLAGS.out, page)
    print(f"{flags.FLAGS.out}: {len(page.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
