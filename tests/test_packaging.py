"""An installed wheel holds every package, and every file that a package reads."""

import configparser
import fnmatch
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# Folders of the checkout that are no packages.
OTHERS = {"docs", "requirements", "tests"}


def declared():
    """The packages and the package data of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = parser["options.packages.find"]["include"].split()
    data = {name: text.split() for name, text in parser["options.package_data"].items()}
    return packages, data


def test_every_package_is_declared():
    packages, _ = declared()
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - OTHERS
    assert {f"{name}*" for name in folders} == set(packages)


def test_every_folder_of_modules_is_a_package():
    packages, _ = declared()
    for name in packages:
        for module in (ROOT / name.rstrip("*")).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def test_every_file_beside_the_modules_is_package_data():
    packages, data = declared()
    for name in packages:
        for path in (ROOT / name.rstrip("*")).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc") or path.name.startswith("."):
                continue
            holders = [each for each in path.parents if (each / "__init__.py").is_file()]
            holder = holders[0]
            package = ".".join(holder.relative_to(ROOT).parts)
            patterns = data.get("*", []) + data.get(package, [])
            inside = path.relative_to(holder).as_posix()
            assert any(fnmatch.fnmatch(inside, each) for each in patterns), path
