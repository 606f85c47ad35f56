import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Packages that conda-forge has by another name, and those that it does not have.
CONDA = {"torch": "pytorch", "torch-geometric": "pytorch_geometric", "kahip": "kahip-python"}
NOT_ON_CONDA = {"mtkahypar"}
EXTRAS = ("mpi", "petsc", "graphs", "partition", "fields")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files behind, and files that it finds get into the wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("mldd", "solvers", "problems"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(target), str(source)], check=True)
    (path,) = target.glob("mldd-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_only_mldd_lands_in_site_packages(wheel):
    (top_level,) = (name for name in wheel.namelist() if name.endswith("/top_level.txt"))
    assert wheel.read(top_level).decode().split() == ["mldd"]
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"mldd"}


@pytest.mark.parametrize(
    ("folder", "package"), [("mldd", "mldd"), ("solvers", "mldd/solvers"), ("problems", "mldd/problems")]
)
def test_every_module_and_door_is_shipped(wheel, folder, package):
    files = [
        path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py*") if path.suffix in (".py", ".pyi")
    ]
    assert {f"{package}/{path.as_posix()}" for path in files} <= set(wheel.namelist())
    assert Path("__init__.pyi") in files


def test_types_and_command_are_shipped(wheel):
    assert "mldd/py.typed" in wheel.namelist()
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "mldd = mldd.command.cli:main" in wheel.read(entry_points).decode()


def test_the_conda_environment_has_what_the_metadata_ask_for():
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "setup.cfg")
    lists = [configuration["options"]["install_requires"]]
    lists += [configuration["options.extras_require"][extra] for extra in EXTRAS]
    wanted = {name for text in lists for name in text.split()} - NOT_ON_CONDA
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    named = re.findall(r"^  - ([\w-]+)", text.partition("dependencies:\n")[2], re.MULTILINE)
    assert sorted(named) == sorted(
        {CONDA.get(name, name) for name in wanted} | {"python", "pip", "setuptools", "mpich"}
    )
    assert "channels:\n  - conda-forge\n  - nodefaults\n" in text
    (python,) = re.findall(r"- python (>=3\.\d+)", text)
    assert python == configuration["options"]["python_requires"]


def test_the_installation_page_names_every_extra():
    page = (ROOT / "paper" / "manual" / "installation.md").read_text(encoding="utf-8")
    configuration = configparser.ConfigParser()
    configuration.read(ROOT / "setup.cfg")
    table = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([\w-]+)`", table)) == set(configuration["options.extras_require"]) - {"dev"}
