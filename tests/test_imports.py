"""Imports go one way, and only input_pipelines may import TensorFlow."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
_DATA = {"core", "input_pipelines", "text_encoders"}
_SYSTEMS = {*_DATA, "lcrsr", "gensar_jax", "crs_jax"}
ALLOWED = {
    "core": {"core"},
    "text_encoders": {"core", "text_encoders"},
    "input_pipelines": {"core", "input_pipelines"},
    "lcrsr": {*_DATA, "lcrsr"},
    "gensar_jax": {*_DATA, "gensar_jax"},
    "crs_jax": {*_DATA, "crs_jax"},
    "experiments": {*_SYSTEMS, "experiments"},
    "serving": {*_SYSTEMS, "experiments", "serving"},
    "studies": {*_SYSTEMS, "experiments", "serving", "studies"},
    "benchmarks": {*_SYSTEMS, "experiments", "serving", "studies", "benchmarks"},
    "launch": {*_SYSTEMS, "experiments", "serving", "studies", "benchmarks", "launch"},
    "configs": {"configs"},
}
# Modules that only the data contract itself may read sources with.
READERS = "input_pipelines.readers"
PROGRAM_LINES, LAUNCH_LINES = 110, 1400
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "seqio"}
# Needs what is not always installed, and nothing but a program that names it imports it.
BRIDGE = ROOT / "gensar_jax" / "t5x_bridge"
# Import what the extras of their names bring.
EXTRAS = {ROOT / "core" / "wandb_writer.py", ROOT / "core" / "mlflow_writer.py"}


def _modules(path):
    """Yields the full names of what a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imports(path):
    yield from (name.split(".")[0] for name in _modules(path))


def test_imports_go_one_way():
    wrong = []
    for package, allowed in ALLOWED.items():
        files = sorted((ROOT / package).rglob("*.py"))
        assert files, package
        for path in files:
            for name in _imports(path):
                if name in ALLOWED and name not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
                if name in TENSORFLOW and package != "input_pipelines" and path.parent != BRIDGE:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_module_outside_input_pipelines_loads_tensorflow():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in (set(ALLOWED) - {"input_pipelines"})
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem != "__init__" and path.parent != BRIDGE and path not in EXTRAS
    ]
    code = "import importlib, sys\n" + "".join(f"importlib.import_module({m!r})\n" for m in modules)
    code += "print([name for name in ('tensorflow', 'seqio', 't5x', 'gin') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_the_face_of_lcrsr_names_packages_above_it():
    """`lcrsr.train` is imported by name once it is used: the one exception to the order."""
    naming = [
        str(path.relative_to(ROOT))
        for package in ("core", "input_pipelines", "lcrsr", "gensar_jax", "crs_jax")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"[\"'](experiments|serving)\.", path.read_text(encoding="utf-8"))
    ]
    assert naming == ["lcrsr/__init__.py"]


def test_only_the_programs_for_t5x_import_its_bridge():
    programs = set()
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.parent != BRIDGE and re.search(r"^\s*(from|import) .*t5x_bridge", text, re.M):
                programs.add(path.stem)
    assert programs == {"t5x", "export_t5x"}


def test_what_jax_keeps_private_is_read_in_one_file():
    files = {
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if any(re.match(r"jax\._src\b", name) for name in _modules(path))
        or "jax._src" in path.read_text(encoding="utf-8")
    }
    # The coordinator's key-value store: it needs no device and can wait for hours.
    assert files == {"core/distributed.py"}


def test_arrays_are_written_by_one_file_which_tells_of_a_full_disk():
    writers = {
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\bnp\.save\w*\b|\.tofile\(", path.read_text(encoding="utf-8"))
    }
    assert writers == {"core/files.py"}


def test_no_file_is_named_after_nothing():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            assert path.stem not in {"utils", "helpers", "common", "misc"}, path


def test_systems_read_no_source_themselves():
    for package in ("lcrsr", "gensar_jax", "crs_jax"):
        for path in (ROOT / package).rglob("*.py"):
            assert not [m for m in _modules(path) if m.startswith(READERS)], path


def test_no_circle():
    """Every file of ours, and which others its imports need to be loaded first."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
    }
    needs = {}
    for module, path in files.items():
        named = set(_modules(path))
        # `from package import module` names the module; `from module import name` does not.
        needs[module] = {m for m in files for n in named if n == m or n.startswith(m + ".")}
        needs[module].discard(module)
    assert len(needs) > 200
    order = graphlib.TopologicalSorter(needs)
    order.prepare()  # raises CycleError, which names the circle


def test_programs_are_flags_and_one_call():
    lengths = {p: len(p.read_text("utf-8").splitlines()) for p in (ROOT / "launch").glob("*.py")}
    assert {p.name: n for p, n in lengths.items() if n > PROGRAM_LINES} == {}
    assert sum(lengths.values()) < LAUNCH_LINES
