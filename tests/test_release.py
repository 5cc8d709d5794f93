"""A release in a clone of a miniature repository: what it makes and refuses, and that a failure changes nothing."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from delivery import changelog, release_image
from delivery.__main__ import app
from delivery.build import build_distributions, commit_time
from delivery.engines import VARIABLE, find_engine
from delivery.packages import read_packages
from delivery.release import next_steps, plan_release, release
from posttrain.core.errors import PosttrainError, RequestError, WorkError
from tests.miniature import write_package


@pytest.fixture(scope="module", autouse=True)
def gits_own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs this may sign commits, have hooks, or no name at all, own not this clone, and be inside a hook."""
    settings = tmp_path_factory.mktemp("git") / "config"
    settings.write_text("[safe]\n\tdirectory = *\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GIT_CONFIG_GLOBAL", str(settings))
        patched.setenv("GIT_CONFIG_NOSYSTEM", "1")
        for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT"):
            patched.delenv(variable, raising=False)
        yield


TODAY = datetime.now(UTC).date().isoformat()


def git(folder: Path, *arguments: str) -> str:
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=Somebody",
        "-c",
        "user.email=somebody@example.org",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """core, and data and lab that need it; one commit on main."""
    root = tmp_path_factory.mktemp("original") / "clone"
    write_package(root, "core")
    write_package(root, "data", needs='["posttrain-core>=0.1,<0.2"]')
    write_package(root, "lab", needs='["posttrain-core[stats]>=0.1,<0.2", "posttrain-data>=0.1,<0.2"]')
    (root / ".gitignore").write_text("dist/\n__pycache__/\n")
    git(root, "init", "--quiet", "--initial-branch", "main")
    git(root, "config", "user.name", "Somebody")
    git(root, "config", "user.email", "somebody@example.org")
    commit(root, "Everything")
    return root


@pytest.fixture
def clone(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "clone"))


def commit(root: Path, message: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)


def no_image(tree: Path, package) -> str:
    return "no image"


def do(root: Path, package: str, bump: str) -> list[str]:
    plan = plan_release(root, package, bump)
    return [*plan.lines(), *release(root, plan, no_image), *next_steps(root, plan)]


def state(root: Path) -> tuple[str, ...]:
    """Everything that a failed release must leave alone."""
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".git" not in path.parts)
    return (
        git(root, "rev-parse", "HEAD"),
        git(root, "status", "--porcelain"),
        git(root, "tag", "--list"),
        git(root, "worktree", "list"),
        *(file for file in files if file != "dist"),
    )


def test_the_first_release_tags_the_version_as_it_stands(clone):
    said = do(clone, "core", "first")
    assert read_packages(clone)["core"].version.release == (0, 1, 0)
    assert git(clone, "tag", "--list") == "core-v0.1.0"
    assert git(clone, "rev-parse", "core-v0.1.0^{commit}") == git(clone, "rev-parse", "main")
    assert git(clone, "status", "--porcelain") == ""
    assert f"## 0.1.0 ({TODAY})\n\n- core does something new.\n" in (clone / "packages/core/CHANGELOG.md").read_text()
    assert git(clone, "log", "-1", "--format=%s") == "Release posttrain-core 0.1.0"
    assert "- core does something new." in git(clone, "tag", "--list", "--format=%(contents)", "core-v0.1.0")
    assert "nothing was pushed: git push --atomic origin main core-v0.1.0" in said
    assert {path.name for path in (clone / "dist").iterdir()} == {
        "posttrain_core-0.1.0-py3-none-any.whl",
        "posttrain_core-0.1.0.tar.gz",
    }


def test_a_compatible_release_leaves_those_that_need_it_as_they_are(clone):
    do(clone, "core", "first")
    add_entry(clone, "core")
    said = do(clone, "core", "patch")
    assert git(clone, "diff", "--name-only", "HEAD~1").split() == [
        "packages/core/CHANGELOG.md",
        "packages/core/src/posttrain/core/__init__.py",
    ]
    assert not [line for line in said if "needs a release" in line or "release it too" in line]
    with zipfile.ZipFile(clone / "dist/posttrain_core-0.1.1-py3-none-any.whl") as wheel:
        assert '__version__ = "0.1.1"' in wheel.read("posttrain/core/__init__.py").decode()


def test_a_breaking_release_moves_the_ranges_of_those_that_need_it_and_says_so(clone):
    do(clone, "core", "first")
    do(clone, "data", "first")
    add_entry(clone, "core")
    said = do(clone, "core", "minor")
    packages = read_packages(clone)
    for name in ("data", "lab"):
        assert [str(needed.specifier) for needed in packages[name].needs(packages["core"])] == ["<0.3,>=0.2"]
        assert "- Works with posttrain-core >=0.2,<0.3." in changelog.unreleased((packages[name].changelog).read_text())
    assert "posttrain-core[stats]>=0.2,<0.3" in packages["lab"].pyproject.read_text()
    assert [str(needed.specifier) for needed in packages["lab"].needs(packages["data"])] == ["<0.2,>=0.1"]
    assert "its range moved, so release it too: make release PACKAGE=data BUMP=patch" in said
    assert "its range moved, so release it too: make release PACKAGE=lab BUMP=first" in said
    do(clone, "data", "patch")
    assert git(clone, "tag", "--list").split() == ["core-v0.1.0", "core-v0.2.0", "data-v0.1.0", "data-v0.1.1"]


def add_entry(clone: Path, name: str) -> None:
    file = clone / "packages" / name / "CHANGELOG.md"
    file.write_text(changelog.with_entry(file.read_text(), "Something else."))
    commit(clone, "Something else")


REFUSALS = {
    "a dirty tree": (
        lambda root: (root / "packages/core/README.md").write_text("other"),
        "core",
        "first",
        "packages/core/README.md",
    ),
    "an untracked file": (lambda root: (root / "new").write_text(""), "core", "first", r"1 files .*\(new\)"),
    "another branch": (lambda root: git(root, "switch", "--quiet", "--create", "work"), "core", "first", "branch work"),
    "no branch": (lambda root: git(root, "switch", "--quiet", "--detach"), "core", "first", "no branch is checked out"),
    "an unknown package": (lambda root: None, "cor", "first", r"unknown package 'cor' \(did you mean 'core'\?\)"),
    "an unknown bump": (lambda root: None, "core", "big", "unknown bump 'big'"),
    "a bump of what was never released": (lambda root: None, "core", "patch", "BUMP=first releases it as it is"),
    "a second first release": (lambda root: git(root, "tag", "core-v0.1.0"), "core", "first", "was released before"),
    "an existing tag": (lambda root: git(root, "tag", "core-v0.1.1"), "core", "patch", "the tag core-v0.1.1 exists"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_release_is_refused_in_a_line_and_changes_nothing(clone, why):
    prepare, package, bump, said = REFUSALS[why]
    prepare(clone)
    before = state(clone)
    with pytest.raises(RequestError, match=said):
        plan_release(clone, package, bump)
    assert state(clone) == before


@pytest.mark.parametrize("text", ["# Changelog\n", "# Changelog\n\n## Unreleased\n\n## 0.0.1 (2026-01-01)\n\n- Old.\n"])
def test_nothing_unreleased_is_nothing_to_release(clone, text):
    (clone / "packages/core/CHANGELOG.md").write_text(text)
    commit(clone, "Nothing new")
    with pytest.raises(RequestError, match=r"packages/core/CHANGELOG.md has nothing under Unreleased"):
        plan_release(clone, "core", "first")


def test_a_build_that_fails_leaves_the_clone_as_it_was(clone):
    (clone / "packages/core/pyproject.toml").write_text(
        (clone / "packages/core/pyproject.toml").read_text().replace('readme = "README.md"', 'readme = "NONE.md"')
    )
    commit(clone, "A readme that is not there")
    before = state(clone)
    with pytest.raises(WorkError, match=r"building posttrain-core failed: .*NONE.md"):
        do(clone, "core", "first")
    assert state(clone) == before


def test_an_image_that_fails_leaves_the_clone_as_it_was(clone):
    def failing(tree, package):
        assert package.version.release == (0, 1, 0)
        assert (tree / "packages/core/CHANGELOG.md").read_text().count(TODAY) == 1
        raise WorkError("no space left")

    before = state(clone)
    with pytest.raises(WorkError, match="no space left"):
        release(clone, plan_release(clone, "core", "first"), failing)
    assert state(clone) == before


def test_a_place_for_what_is_built_that_is_no_folder_is_a_line(clone):
    (clone / ".gitignore").write_text("dist\n__pycache__/\n")
    commit(clone, "Other ignored files")
    (clone / "dist").write_text("a file")
    before = state(clone)
    with pytest.raises(WorkError, match=r"cannot write .*/dist: File exists"):
        do(clone, "core", "first")
    assert state(clone) == before


def test_main_that_moved_meanwhile_is_left_where_it_is(clone):
    """Somebody commits while the image is built: the release would not be main's next commit any more."""

    def meanwhile(tree, package):
        (clone / "packages/core/README.md").write_text("# other\n")
        commit(clone, "Another change")
        return "no image"

    with pytest.raises(WorkError, match="main could not move to the release, so nothing was changed"):
        release(clone, plan_release(clone, "core", "first"), meanwhile)
    assert git(clone, "log", "-1", "--format=%s") == "Another change"
    assert git(clone, "tag", "--list") == ""
    assert not list((clone / "dist").iterdir())


def test_two_builds_of_a_commit_are_the_same_bytes(clone, tmp_path):
    """Elsewhere, later, with other modes and times of the files: only the commit counts."""
    other = tmp_path / "elsewhere" / "clone"
    git(tmp_path, "clone", "--quiet", str(clone), str(other))
    for path in other.rglob("*"):
        if path.is_file() and ".git" not in path.parts:
            path.chmod(0o600)
    built = []
    for number, root in enumerate((clone, other)):
        into = tmp_path / str(number)
        into.mkdir()
        paths = build_distributions(read_packages(root)["core"], commit_time(root), into)
        built.append({path.name: path.read_bytes() for path in paths})
    assert built[0] == built[1]


def test_files_of_a_build_bear_the_commits_time(clone, tmp_path):
    epoch = int(datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp())
    wheel, sdist = build_distributions(read_packages(clone)["core"], epoch, tmp_path / "built")
    with zipfile.ZipFile(wheel) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2026, 2, 3, 4, 5, 6)}
    with tarfile.open(sdist) as archive:
        assert {entry.mtime for entry in archive.getmembers()} == {epoch}


def test_the_command_says_what_it_would_do_and_does_nothing_on_a_dry_run(clone, monkeypatch):
    monkeypatch.chdir(clone / "packages")
    before = state(clone)
    done = CliRunner().invoke(app, ["release", "core", "first", "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "posttrain-core 0.1.0, core-v0.1.0" in done.output
    assert "- core does something new." in done.output
    assert "nothing was done" in done.output
    assert state(clone) == before


def test_the_command_releases_without_an_image_where_no_engine_is(clone, monkeypatch):
    def no_engine():
        raise RequestError("images need a container engine: none is there")

    monkeypatch.setattr(release_image, "find_engine", no_engine)
    monkeypatch.chdir(clone)
    done = CliRunner().invoke(app, ["release", "data", "first"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "no image: images need a container engine: none is there" in done.output
    assert git(clone, "tag", "--list") == "data-v0.1.0"


INTERRUPTED = """
import time
from pathlib import Path
from delivery import release_command

def build(tree, package):
    Path({begun!r}).touch()
    time.sleep(60)

release_command.build_release_image = build
from delivery.__main__ import app
app(["release", "core", "first"])
"""


@pytest.mark.long
def test_a_release_that_sigterm_ends_leaves_the_clone_as_it_was(clone, tmp_path):
    before, begun = state(clone), tmp_path / "begun"
    command = [sys.executable, "-c", INTERRUPTED.format(begun=str(begun))]
    paths = os.pathsep.join(sys.path)
    with subprocess.Popen(command, cwd=clone, env={**os.environ, "PYTHONPATH": paths}) as process:
        try:
            deadline = time.monotonic() + 60
            while not begun.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            assert process.wait(timeout=30) != 0
        finally:
            process.kill()
    assert state(clone) == before


def test_a_package_without_an_image_of_its_own_says_so(clone):
    assert (
        release_image.build_release_image(clone, read_packages(clone)["core"]) == "no image: core has none of its own"
    )


def test_outside_a_clone_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PosttrainError, match="is in no git repository"):
        CliRunner().invoke(app, ["release", "core", "first"], catch_exceptions=False)


CHANGES = (
    "# Changelog\n\nWords.\n\n## Unreleased\n\n- One,\n  in two lines.\n- Two.\n\n## 0.1.0 (2026-01-02)\n\n- Old.\n"
)


def test_unreleased_entries_become_the_versions_and_an_empty_section_stays():
    assert changelog.unreleased(CHANGES) == "- One,\n  in two lines.\n- Two."
    after = changelog.released(CHANGES, "0.2.0", "2026-03-04")
    assert after == CHANGES.replace("## Unreleased\n", "## Unreleased\n\n## 0.2.0 (2026-03-04)\n")
    assert changelog.unreleased(after) == ""


def test_an_entry_goes_to_the_end_of_unreleased_and_makes_the_section():
    assert changelog.unreleased(changelog.with_entry(CHANGES, "Three.")).endswith("- Two.\n- Three.")
    assert changelog.with_entry(CHANGES, "Three.").endswith("\n\n## 0.1.0 (2026-01-02)\n\n- Old.\n")
    bare = "# Changelog\n\n## 0.1.0 (2026-01-02)\n\n- Old.\n"
    assert changelog.with_entry(bare, "New.") == bare.replace("## 0.1.0", "## Unreleased\n\n- New.\n\n## 0.1.0")
    assert changelog.with_entry("# Changelog\n", "New.") == "# Changelog\n\n## Unreleased\n\n- New.\n"


def test_every_changelog_of_this_repository_can_be_released():
    for package in read_packages(Path(__file__).resolve().parents[1]).values():
        text = package.changelog.read_text()
        if changelog.unreleased(text):
            after = changelog.released(text, "9.9.9", "2026-03-04")
            assert re.search(r"^## Unreleased\n\n## 9\.9\.9 \(2026-03-04\)\n\n- ", after, re.MULTILINE)
            assert sorted(after.split()) == sorted([*text.split(), "##", "9.9.9", "(2026-03-04)"])


@pytest.mark.long
def test_the_image_is_built_from_the_releases_own_tree(tmp_path, monkeypatch):
    """In a clone of this repository, with a program in the engine's place that writes down what it is asked for."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        pytest.skip("these sources are in no clone")
    tree, log, program = tmp_path / "tree", tmp_path / "log", tmp_path / "engine"
    git(tmp_path, "clone", "--quiet", "--shared", str(here), str(tree))
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{log}"\n')
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))
    monkeypatch.setattr(release_image, "find_engine", lambda: find_engine("tool"))
    said = release_image.build_release_image(tree, read_packages(tree)["data"])
    version = read_packages(tree)["data"].version
    assert said == f"image posttrain/data:{version}"
    asked = log.read_text().splitlines()
    assert asked[0] == "build"
    assert asked[-1] == str(tree)
    assert f"posttrain/data:{version}" in asked
    assert f"GIT_COMMIT={git(tree, 'rev-parse', 'HEAD')}" in asked
    program.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(WorkError, match="building the image of data failed"):
        release_image.build_release_image(tree, read_packages(tree)["data"])
