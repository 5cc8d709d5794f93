"""Each package stands alone: its wheel holds its data, and it imports what it declares and nothing else."""

import ast
import email.parser
import email.policy
import re
import subprocess
import sys
import venv
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "data", "reward-model", "rollout", "trainers", "eval-harness", "llm-judge", "lab")

SHIPPED = {
    "core": [],
    "data": ["chatml.jinja", "nano/base/model.safetensors", "nano/base/tokenizer.json", "nano/base/config.json"],
    "reward-model": [],
    "rollout": ["chat_page/page.html", "chat_page/page.css", "chat_page/page.js"],
    "trainers": [],
    "eval-harness": ["tasks/"],
    "llm-judge": ["templates/alpaca.yaml"],
    "lab": [f"recipes/{name}.yaml" for name in ("nano", "gsm8k", "qwen2.5-0.5b", "simpo-onpolicy")],
}
"""Files besides Python that a wheel has to hold, below its module; a folder stands for any file in it."""

USED_WITHOUT_IMPORT = {
    ("data", "jinja2"): "transformers renders chat templates with it",
    **{
        ("eval-harness", name): "lm-eval's local-completions imports it; its extra `api` would bring tiktoken as well"
        for name in ("aiohttp", "requests", "tenacity")
    },
    ("trainers", "bitsandbytes"): "transformers loads 4-bit weights with it, and PEFT reads them",
    ("trainers", "liger-kernel"): "transformers puts its kernels into a model",
    **{
        (folder, name): "uvicorn takes it where it is installed, in place of its own in Python"
        for folder in ("rollout", "reward-model", "llm-judge")
        for name in ("httptools", "uvloop")
    },
}
"""Dependencies that no file imports, and why they are declared all the same."""
IMPORTED_WITHOUT_DECLARATION = {
    ("rollout", "vllm"): "engine vllm runs in an environment of its own (constraints-vllm.txt), whose pins differ",
}
"""Modules that a package imports inside functions from an environment that its declaration cannot describe, and why."""


def module_folder(folder: str) -> str:
    return f"posttrain/{folder.replace('-', '_')}"


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every package's wheel, built from the working tree."""
    place = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT / "packages" / folder) for folder in FOLDERS]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(place), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {folder: next(place.glob(f"posttrain_{folder.replace('-', '_')}-*.whl")) for folder in FOLDERS}


@cache
def requirements(wheel: Path) -> tuple[Requirement, ...]:
    """What a wheel declares, extras included."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(archive.read(name))
    return tuple(Requirement(text) for text in metadata.get_all("Requires-Dist", []))


def imported_modules(source: str) -> set[str]:
    """Every module named in an import statement, wherever it stands; relative imports are the package's own."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            # `from posttrain import data` names the package in what it imports.
            found |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "posttrain" else {node.module}
    return found


PROVIDERS = cache(packages_distributions)


def distributions_of(module: str) -> set[str]:
    """The canonical names of the distributions that provide a module; empty for the standard library."""
    top, _, rest = module.partition(".")
    if top in sys.stdlib_module_names:
        return set()
    if top == "posttrain":
        return {f"posttrain-{rest.partition('.')[0].replace('_', '-')}"}
    return {canonicalize_name(name) for name in PROVIDERS().get(top, [f"(nothing provides {module})"])}


@cache
def imports_of(wheel: Path) -> dict[str, frozenset[str]]:
    """Each module that a wheel imports from elsewhere to the distributions that provide it."""
    own = "posttrain-" + wheel.name.split("-")[0].removeprefix("posttrain_").replace("_", "-")
    modules: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                modules |= imported_modules(archive.read(name).decode())
    found = {module: frozenset(distributions_of(module)) for module in modules}
    return {module: names for module, names in found.items() if names and own not in names}


@pytest.mark.parametrize("folder", FOLDERS)
def test_wheel_holds_its_code_and_its_data_and_no_tests(wheels, folder):
    with zipfile.ZipFile(wheels[folder]) as archive:
        names = archive.namelist()
    package = module_folder(folder)
    assert f"{package}/__init__.py" in names
    assert f"{package}/py.typed" in names
    missing = [file for file in SHIPPED[folder] if not any(n.startswith(f"{package}/{file}") for n in names)]
    assert not missing
    strangers = [n for n in names if not n.startswith((f"{package}/", f"posttrain_{folder.replace('-', '_')}-"))]
    assert not strangers, "a file of another package, or one that ends the namespace, is in the wheel"
    assert not [n for n in names if "/tests/" in n or "__pycache__" in n]


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_imports_only_what_it_declares(wheels, folder):
    declared = {canonicalize_name(requirement.name) for requirement in requirements(wheels[folder])}
    excused = {module for owner, module in IMPORTED_WITHOUT_DECLARATION if owner == folder}
    imported = {m: names for m, names in imports_of(wheels[folder]).items() if m.partition(".")[0] not in excused}
    undeclared = {module: names for module, names in imported.items() if not names & declared}
    assert not undeclared, f"posttrain-{folder} imports what its pyproject.toml does not declare"


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_declares_only_what_it_uses(wheels, folder):
    declared = {canonicalize_name(requirement.name) for requirement in requirements(wheels[folder])}
    imported = {name for names in imports_of(wheels[folder]).values() for name in names}
    excused = {name for owner, name in USED_WITHOUT_IMPORT if owner == folder}
    assert not declared - imported - excused, f"posttrain-{folder} declares what it never imports"
    assert not excused & imported, "an exception for a dependency that is imported is not needed"


def test_every_pinned_version_satisfies_what_the_packages_declare(wheels):
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals, f"constraints.txt pins no version in '{line}'"
            pins[canonicalize_name(name)] = version
    needed = [r for wheel in wheels.values() for r in requirements(wheel) if not r.name.startswith("posttrain-")]
    assert not [str(r) for r in needed if canonicalize_name(r.name) not in pins], "constraints.txt lacks a dependency"
    assert not [str(r) for r in needed if not r.specifier.contains(pins[canonicalize_name(r.name)], prereleases=True)]


def test_constraints_name_no_address_and_no_platform():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|@|\+", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_wheel_installs_beside_others_and_is_found(wheels, folder, tmp_path):
    """Installed alone into a folder, without dependencies, the package's own module is the one that is imported."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--target", str(tmp_path), str(wheels[folder])]
    subprocess.run(command, check=True, capture_output=True)
    module = module_folder(folder).replace("/", ".")
    script = f"import importlib.util as u; print(u.find_spec({module!r}).origin)"
    found = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert found.stdout.strip() == str(tmp_path / module_folder(folder) / "__init__.py")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_package_works_in_an_environment_of_its_own(wheels, folder, tmp_path):
    """An empty environment with the wheel and what it declares: all modules import that need no extra."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    install += ["--constraint", str(ROOT / "constraints.txt"), "--find-links", str(wheels["core"].parent)]
    done = subprocess.run([*install, str(wheels[folder])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_extras = [r for r in requirements(wheels[folder]) if r.marker and "extra" in str(r.marker)]
    always = [r for r in requirements(wheels[folder]) if r not in of_extras]
    extras = {canonicalize_name(r.name) for r in of_extras} - {canonicalize_name(r.name) for r in always}
    script = f"""
import importlib, pkgutil, {module_folder(folder).replace("/", ".")} as package
optional = {sorted(m for m, names in imports_of(wheels[folder]).items() if names & extras)!r}
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        if error.name not in {{name.split(".")[0] for name in optional}} | set(optional):
            raise
"""
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    if (environment / "bin" / "posttrain").exists():
        done = subprocess.run([str(environment / "bin" / "posttrain"), "--help"], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
