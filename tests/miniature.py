"""Packages of this repository's layout with the least in them."""

from pathlib import Path


def write_package(root: Path, name: str, version: str = "0.1.0", needs: str = "[]", extra: str = "") -> Path:
    """A package of this layout with the least in it."""
    folder = root / "packages" / name
    module = folder / "src" / "posttrain" / name
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(f'"""{name}."""\n\n__version__ = "{version}"\n')
    (folder / "README.md").write_text(f"# {name}\n")
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## Unreleased\n\n- {name} does something new.\n")
    (folder / "pyproject.toml").write_text(
        f"""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "posttrain-{name}"
readme = "README.md"
requires-python = ">=3.11"
dynamic = ["version"]
dependencies = {needs}
{extra}
[tool.hatch.version]
path = "src/posttrain/{name}/__init__.py"

[tool.hatch.build.targets.wheel]
packages = ["src/posttrain"]
"""
    )
    return folder
