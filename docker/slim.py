"""Leaves out of an environment what was measured to be large and is never used in an image, and compiles the rest.

Left out: libraries' own tests, C++ headers where there is no compiler, torch's test programs, parts of Arrow that reach
other machines. Compiled to bytecode: all but the many families of models in transformers, which are read as they are
when one is loaded. That nothing left imports what went, and no library links it, is checked in every build.
"""

import ast
import compileall
import py_compile
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = (
    "**/tests",
    # Programs of its makers, which import its tests.
    "scipy/special/_precompute",
    "torch/test",
    "torch/bin/*[Tt]est*",
    "torch/bin/protoc*",
    "pyarrow/include",
    "pyarrow/src",
    # Arrow's clients of other machines: `datasets` and pandas reach them through fsspec.
    "pyarrow/*flight*",
    "pyarrow/*s3*",
)
"""Below site-packages; with torch for the CPU its headers too."""
READ_AS_SOURCE = re.compile(r"/transformers/models/(?!auto/|qwen2/|qwen3/|llama/|mistral/)[^/]+/")
"""Not compiled: 50 MB of bytecode, of which a process uses a part of one in a hundred."""


def slim(site: Path) -> None:
    """Removes, checks and compiles; ends with a line for each module or library that would miss what went."""
    gone = left_out(site)
    modules = {name for path in gone if (name := module_name(site, path))}
    for path in gone:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    missing = [line for path in site.rglob("*.py") for line in imports_of(site, path, modules)]
    missing += links_of(site, gone)
    if missing:
        sys.exit("error: left out, and needed all the same:\n" + "\n".join(missing))
    compile_modules(site)


def left_out(site: Path) -> list[Path]:
    """What goes, the outermost folder of each; nothing in the metadata of a distribution (licences)."""
    patterns = [*LEFT_OUT, *(["torch/include"] if _without_compiler(site) else [])]
    found = {path for pattern in patterns for path in site.glob(pattern)}
    found = {path for path in found if ".dist-info" not in str(path.relative_to(site))}
    return sorted(path for path in found if not found & set(path.parents))


def _without_compiler(site: Path) -> bool:
    version = site / "torch" / "version.py"
    return version.exists() and bool(re.search(r"^cuda\b.*= None$", version.read_text(encoding="utf-8"), re.MULTILINE))


def module_name(site: Path, path: Path) -> str | None:
    """The dotted name by which a folder or module is imported; None for what holds no Python."""
    parts = [*path.relative_to(site).parts]
    if path.is_dir():
        return ".".join(parts) if any(path.rglob("*.py")) else None
    if not re.search(r"\.(py|so)$", path.name):
        return None
    return ".".join([*parts[:-1], path.name.partition(".")[0]])


def imports_of(site: Path, path: Path, gone: set[str]) -> list[str]:
    """`file:line: module` for each import of a module in `gone` that happens when this file is imported.

    Imports inside functions, in `try` and for type checkers only are not among them.
    """
    source = path.read_bytes()
    if not any(name.rpartition(".")[2].encode() in source for name in gone):
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template or a file for another Python, which nothing here imports
        return []
    package = path.relative_to(site).parent.parts
    return [
        f"{path.relative_to(site)}:{node.lineno}: {name}"
        for node in _at_import(tree.body)
        for name in imported_names(node, package)
        if any(name == other or name.startswith(f"{other}.") for other in gone)
    ]


def links_of(site: Path, gone: list[Path]) -> list[str]:
    """`file: library` for each library in `gone` whose name another of its package holds: a linker's entry is text."""
    libraries = [path for path in gone if re.search(r"\.so(\.|$)", path.name)]
    return [
        f"{path.relative_to(site)}: {library.name}"
        for folder in sorted({library.parent for library in libraries})
        for path in sorted(folder.rglob("*.so*"))
        for library in libraries
        if library.parent == folder and library.name.encode() in path.read_bytes()
    ]


def _at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            yield from _at_import([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.With | ast.ClassDef | ast.For):
            yield from _at_import(statement.body)


def imported_names(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> list[str]:
    """Dotted names that a statement in a module of `package` may import: modules, and what is taken out of them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = list(package[: len(package) - (node.level - 1)]) if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def compile_modules(site: Path) -> None:
    """Bytecode that holds without looking at the source's time; templates that are no Python stay as they are."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(site, quiet=2, workers=0, rx=READ_AS_SOURCE, invalidation_mode=mode)
