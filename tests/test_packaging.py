"""What is installed: requirements, pins, the wheel and the source distribution."""
import ast
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

_config = ConfigParser(delimiters=["="], interpolation=None)
_config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = _config["DEFAULT"]
PYTHONS = SETTINGS["py_versions"].split()
EXTRAS = sorted(key.removesuffix("_requirements") for key in SETTINGS if key.endswith("_requirements"))


def requirements(key: str) -> list[Requirement]:
    "One of the requirement lists of settings.ini."
    return [Requirement(word) for word in SETTINGS[key].split()]


def pins(python: str) -> dict[str, str]:  # name -> version
    "What constraints.txt pins for one version of Python."
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"two pins for {name} on Python {python}"
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"not an exact version: {line}"
            found[name] = str(pin.specifier).removeprefix("==")
    return found


def test_settings_agree():
    assert SETTINGS["min_python"] == PYTHONS[0]
    assert (ROOT / "safetune" / "__init__.py").read_text(encoding="utf-8").strip() == f'__version__ = "{SETTINGS["version"]}"'
    assert "custom_quarto_yml" not in SETTINGS, "nbdev deletes _quarto.yml when this is false"
    assert not re.search(r"[|,]", SETTINGS["tst_flags"]), "tst_flags are separated by spaces"
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert re.search(r"python-version: \[(.*)\]", workflow).group(1).replace('"', "").split(", ") == PYTHONS


def test_licence_is_the_plain_apache_text():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_satisfy_the_requirements(python):
    "Each requirement is pinned once for each Python (but for the build tool), within the range that settings.ini gives."
    pinned = pins(python)
    for key in ["requirements", *(f"{extra}_requirements" for extra in EXTRAS)]:
        for requirement in requirements(key):
            name = canonicalize_name(requirement.name)
            if name != "setuptools":
                assert name in pinned, f"constraints.txt has no {name} for Python {python}"
                assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes the pinned {pinned[name]}"


def test_installed_metadata():
    "What pip shows: requirements and extras of settings.ini, licence, the command."
    # Not the safetune.egg-info that setuptools leaves beside the sources: that has no RECORD and may be old.
    installed = next(found for found in importlib.metadata.distributions(name="safetune") if found.read_text("RECORD"))
    assert installed.version == SETTINGS["version"]
    assert installed.metadata["License"] == "Apache-2.0" and installed.metadata["Requires-Python"] == f">={PYTHONS[0]}"
    assert set(installed.metadata.get_all("Provides-Extra")) == {*EXTRAS, "all"}
    plain = {str(Requirement(line)) for line in installed.requires if "extra ==" not in line}
    assert plain == {str(requirement) for requirement in requirements("requirements")}
    commands = {entry.name: entry.value for entry in installed.entry_points if entry.group == "console_scripts"}
    assert commands == {"safetune": "safetune.cli:main"}


def third_party(module: Path) -> set[str]:  # top-level names, such as "numpy"
    "Packages outside the standard library that a module imports anywhere."
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"safetune"}


def test_every_import_is_a_requirement():
    "What a module imports is named in settings.ini, so that installing safetune alone is enough to run it."
    providers = importlib.metadata.packages_distributions()
    providers.setdefault("sklearn", ["scikit-learn"])  # Python 3.10 does not find it
    named = {canonicalize_name(requirement.name)
             for key in ["requirements", *(f"{extra}_requirements" for extra in EXTRAS if extra != "dev")]
             for requirement in requirements(key)}
    for module in sorted((ROOT / "safetune").rglob("*.py")):
        for package in third_party(module) - {"textattack"}:  # adapted to where a user has it, never needed
            distributions = {canonicalize_name(name) for name in providers.get(package, [package])}
            assert distributions & named, f"{module.name} imports {package}, which settings.ini does not require"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, set[str]]:  # "sdist", "wheel", "wheel from sdist" -> names of the files within
    "Build as pip does, but with the setuptools at hand, so that no network is needed."
    folder = tmp_path_factory.mktemp("packages")

    def build(kind: str, source: Path, into: Path) -> Path:
        code = f"from setuptools.build_meta import build_{kind}; print(build_{kind}({str(into)!r}))"
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=source, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return into / done.stdout.strip().splitlines()[-1]

    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "_proc", "_docs", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    sdist = build("sdist", source, folder)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    found = {"sdist": names}
    (source / "README.md").write_text("![a](nbs/images/a.png) [b](nbs/b.ipynb) [c](https://d.e) [f](#g)", encoding="utf-8")
    for label, place in (("wheel", source), ("wheel from sdist", next((folder / "unpacked").iterdir()))):
        into = folder / label.replace(" ", "-")
        into.mkdir()
        with zipfile.ZipFile(build("wheel", place, into)) as archive:
            found[label] = set(archive.namelist())
            page = archive.read(next(name for name in found[label] if name.endswith("/METADATA"))).decode("utf-8")
            found[f"page of {label}"] = set(page.split("\n\n", 1)[1].split())
    return found


def test_wheel_holds_the_package_and_nothing_else(built):
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "safetune").rglob("*")
               if path.is_file() and "__pycache__" not in path.parts}
    inside = {name for name in built["wheel"] if ".dist-info/" not in name}
    assert inside == tracked
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in built["wheel"])


def test_links_of_the_page_on_pypi(built):
    "README.md's relative links (here those of a small one) become whole addresses."
    github = "https://github.com/safetune/safetune"
    assert built["page of wheel"] == {f"![a]({github}/raw/main/nbs/images/a.png)", f"[b]({github}/blob/main/nbs/b.ipynb)",
                                      "[c](https://d.e)", "[f](#g)"}


def test_sdist_builds_the_same_wheel(built):
    assert built["wheel from sdist"] == built["wheel"]
    assert {"settings.ini", "setup.py", "pyproject.toml", "LICENSE", "README.md", "constraints.txt"} <= built["sdist"]
    assert not any(name.startswith(("tests/", "nbs/", ".")) for name in built["sdist"])
