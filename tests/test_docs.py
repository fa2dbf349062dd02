"""README and the pages of docs/ are short where they should be, and what they name exists."""

import ast
import functools
import importlib
import pathlib
import re

import pytest
import yaml
from ml_collections import config_dict

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.glob("*.md")]
# Pages that tell how old numbers were made, with the commit: their commands keep that day's names.
RECORDS = {DOCS / f"{name}.md" for name in ("ablations", "decisions", "performance", "results")}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}
# An upper-case word stands for something of the reader's, such as DIR or METHOD.
PLACEHOLDER = re.compile(r"[A-Z*]")
FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)


def each_page(pages=PAGES):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


def prose(text):
    """The lines of a page that are neither code nor a table."""
    return [line for line in FENCE.sub("", text).splitlines() if not line.startswith("|")]


@functools.cache
def defined_in(path):
    """Names of a file's functions, classes, methods and constants, and what its __all__ lists."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    for node in nodes:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= {*ast.literal_eval(node.value)}
    return names | {target.id for target in targets if isinstance(target, ast.Name)}


@functools.cache
def config_of(name):
    file, _, choice = name.removeprefix("configs/").partition(":")
    module = importlib.import_module(f"configs.{file.removesuffix('.py')}")
    return module.get_config(choice) if choice else module.get_config()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130


@each_page()
def test_prose_wraps_at_100_columns(page):
    lines = prose(page.read_text(encoding="utf-8"))
    assert [line for line in lines if len(line) > 100] == []


@each_page()
def test_links_lead_to_files(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = {target.partition("#")[0] for target in targets if "://" not in target} - {""}
    assert [target for target in local if not (page.parent / target).exists()] == []


@each_page()
def test_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    endings = "py|md|sh|gin|csv|txt|cfg|json"
    named = re.findall(rf"(?<![\w/$.-])((?:[\w*.-]+/)+[\w*.-]+\.(?:{endings}))\b", text)
    named += re.findall(r"(?<![\w/$.-])(tests/[\w/]+)(?![\w/.*])", text)
    paths = {path for path in named if path.split("/")[0] in FOLDERS}
    if page in RECORDS:
        paths = {path for path in paths if not path.startswith("configs/")}
    missing = [
        path for path in paths if not PLACEHOLDER.search(path) and not (ROOT / path).exists()
    ]
    assert missing == []


@each_page()
def test_named_modules_exist(page):
    packages = "|".join(name for name in FOLDERS if (ROOT / name / "__init__.py").exists())
    text = page.read_text(encoding="utf-8")
    wrong = []
    for name in set(re.findall(rf"(?<![\w/.-])((?:{packages})(?:\.[A-Za-z_]\w*)+)", text)):
        parts = name.split(".")
        depth = next(i for i in range(len(parts), 0, -1) if _is_module(parts[:i]))
        rest = parts[depth:]
        file = ROOT.joinpath(*parts[:depth])
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if rest and rest[0] not in defined_in(file):
            wrong.append(name)
    assert wrong == []


def _is_module(parts):
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@each_page()
def test_functions_named_beside_a_file_are_in_it(page):
    text = re.sub(r" \(a `[^`]*`\)", "", page.read_text(encoding="utf-8"))
    named = [
        (path, name)
        for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text)
        for name in re.findall(r"`([\w.]+)`", names)
    ]
    named += [(path, name) for name, path in re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", text)]
    assert [pair for pair in named if pair[1].split(".")[-1] not in defined_in(pair[0])] == []


@each_page([page for page in PAGES if page not in RECORDS])
def test_named_configs_resolve(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"--config=(configs/\w+\.py(?::[\w,]+)?)", text)
    named += re.findall(r"configs/\w+\.py:[\w,]+", text)
    for name in {name for name in named if not PLACEHOLDER.search(name)}:
        assert isinstance(config_of(name), config_dict.ConfigDict), name


@each_page([page for page in PAGES if page not in RECORDS])
def test_named_settings_exist(page):
    every = set()
    for path in (ROOT / "configs").glob("*.py"):
        every |= set(re.findall(r"[\w\"]+", path.read_text(encoding="utf-8")))
    text = page.read_text(encoding="utf-8")
    for key in set(re.findall(r"--config\.([a-z_0-9.]+)", text)):
        parts = key.rstrip(".").split(".")
        assert all(part in every or f'"{part}"' in every for part in parts), key


def test_the_site_has_every_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [name for entry in settings["nav"] for name in entry.values()]
    assert sorted(pages) == sorted(page.name for page in DOCS.glob("*.md"))
