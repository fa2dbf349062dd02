"""The notebooks of docs/notebooks are clean, import what exists, and come to what they tell."""

import ast
import importlib
import os
import re
import sys

import jobs
import nbclient
import nbformat
import pytest

FOLDER = jobs.ROOT / "docs" / "notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
PUBLIC = {"lcrsr", "experiments", "studies", "configs", "pandas", "IPython"}
NUMBER = r"(-?\d+\.\d+)"
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def read(name):
    return nbformat.read(NOTEBOOKS[name], nbformat.NO_CONVERT)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def modules_imported(source):
    """Pairs of a module and a name taken from it, or None where the module itself is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def resolves(module, name):
    try:
        imported = importlib.import_module(module)
        if name is not None and not hasattr(imported, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def test_there_are_three():
    assert [*NOTEBOOKS] == ["first_model", "reading_a_comparison", "your_own_log"]


@each_notebook
def test_is_valid_and_pretty_printed(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    assert text == nbformat.writes(notebook).rstrip("\n") + "\n"


@each_notebook
def test_has_no_outputs(name):
    cells = code(read(name))
    assert cells
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []


@each_notebook
def test_imports_public_modules_that_exist(name):
    pairs = {pair for cell in code(read(name)) for pair in modules_imported(cell.source)}
    assert pairs
    parts = {part for module, taken in pairs for part in (*module.split("."), taken or "")}
    assert [part for part in parts if part.startswith("_")] == []
    packages = {module.split(".")[0] for module, _ in pairs}
    assert packages - PUBLIC - sys.stdlib_module_names == set()
    assert [pair for pair in pairs if not resolves(*pair)] == []


@each_notebook
def test_names_no_folder_of_a_machine(name):
    texts = [
        node.value
        for cell in code(read(name))
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    # What follows a folder in an f-string begins with a slash as well: then it has no second one.
    assert [text for text in texts if re.match(r"~|[A-Za-z]:\\|/[^/]+/", text)] == []


@pytest.fixture
def outputs_of(tmp_path, monkeypatch):
    """Returns a function that runs a notebook in an empty folder and returns all it has shown."""
    for key, value in jobs.one_device().items():
        monkeypatch.setenv(key, value)
    # One device and optimised, as a reader has it: training takes longer than compiling.
    monkeypatch.setenv("XLA_FLAGS", "")
    path = os.pathsep.join([str(jobs.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        folder = tmp_path / variable.lower()
        folder.mkdir()
        monkeypatch.setenv(variable, str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(name):
        notebook = read(name)
        resources = {"metadata": {"path": str(empty)}}
        nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
        outputs = [output for cell in code(notebook) for output in cell.outputs]
        assert [output for output in outputs if output.output_type == "error"] == []
        # Everything was written below the temporary folder, which the last cell removes.
        assert [*empty.iterdir()] == []
        assert [path for path in (tmp_path / "tmpdir").iterdir() if path.is_dir()] == []
        shown = [output.get("data", {}) for output in outputs]
        texts = [output.get("text", "") for output in outputs]
        texts += [one.get("text/markdown", one.get("text/plain", "")) for one in shown]
        return "\n".join(texts)

    return run


def numbers(pattern, text):
    """The numbers of the only match of a pattern."""
    (match,) = re.findall(pattern, text)
    return [float(number) for number in ([match] if isinstance(match, str) else match)]


@pytest.mark.slow
def test_first_model_is_better_than_guessing_and_recommends(outputs_of):
    text = outputs_of("first_model")
    reached, guessed = numbers(rf"hr@5/neg99: {NUMBER}, by guessing: {NUMBER}", text)
    assert reached > 1.5 * guessed
    (hard,) = numbers(rf"hr@5/neg99pop: {NUMBER}", text)
    assert 0 <= hard < reached
    assert re.findall(r"^\d +17 +(\d) +\d+ +-?\d", text, re.M) == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
def test_your_own_log_teaches_a_network_more_than_popularity(outputs_of):
    text = outputs_of("your_own_log")
    assert "the log is well-formed" in text
    assert re.search(r"'users': 300,\s+'items': 160,\s+'clicks': 2400", text)
    (floor,) = numbers(rf"popularity: ndcg@5/full {NUMBER}", text)
    (reached,) = numbers(rf"sasrec: ndcg@5/full {NUMBER}", text)
    assert reached > 0.2 > 0.05 > floor
    # After desks-13 the shelf goes on.
    assert re.search(r"^\d +u8 +[123] +desks-14 ", text, re.M)


@pytest.mark.slow
def test_reading_a_comparison_shows_what_its_text_says(outputs_of):
    text = outputs_of("reading_a_comparison")
    means = {
        name: numbers(rf"(?m)^{name}: {NUMBER}$", text)[0]
        for name in ("popularity", "item_knn", "bce", "ce")
    }
    assert means["item_knn"] > means["ce"] > means["bce"]
    difference, low, high = numbers(
        rf"\| bce -> ce \| \+?{NUMBER} \[\+?{NUMBER}, \+?{NUMBER}\], p <1e-4 \| 0, 1 \|", text
    )
    assert low < difference < high
    assert difference == pytest.approx(means["ce"] - means["bce"], abs=2e-4)
    assert "item_knn -> ce" in text and "item_knn is better" in text
