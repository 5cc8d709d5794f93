"""docker/Dockerfile as text, and what is sent to a build: what the images are, before any engine is asked."""

import re

import pytest

from delivery.packages import read_packages
from delivery.targets import DOCKERFILE, PINS, ROOT, TARGETS, digest_of_sources, installed_packages, tags, version_of
from posttrain.core.errors import RequestError

TEXT = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE))
INSTRUCTIONS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line.strip()]


def stages() -> dict[str, list[list[str]]]:
    """Name of each stage to its instructions, those of the stages it stands on first."""
    found: dict[str, list[list[str]]] = {}
    name = ""
    for word, rest in INSTRUCTIONS:
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = list(found.get(base, [[word, base]]))
        else:
            found[name].append([word, rest])
    return found


STAGES = stages()
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


def words(name: str, word: str) -> list[str]:
    return [rest for instruction, rest in STAGES[name] if instruction == word]


@every_target
def test_a_target_installs_its_package_and_those_it_needs(target):
    command = re.search(r"install\.py(?: --vllm \S+)? (.*?)(?: && |$)", words(target.name, "RUN")[-1])
    named = [re.sub(r"\[.*|\$.*", "", name.strip('"')) for name in command[1].split()]
    assert sorted(named) == installed_packages(target.of, read_packages(ROOT))


@every_target
def test_a_target_is_one_layer_on_a_shared_stage(target):
    own = STAGES[target.name][len(STAGES["runtime"]) :]
    assert [word for word, _ in own if word in ("COPY", "ADD")] == []
    shared = "torch" if target.name in ("rollout", "reward-model", "trainers", "lab") else "runtime"
    assert len(words(target.name, "RUN")) == len(words(shared, "RUN")) + 1


@every_target
def test_a_target_ends_as_a_user_without_rights_behind_an_init(target):
    assert words(target.name, "USER")[-1] == "10001:10001"
    assert words(target.name, "ENTRYPOINT")[-1] == '["tini", "--", "posttrain"]'
    assert words(target.name, "FROM") == ["python:3.11-slim-bookworm"]


@every_target
def test_services_serve_on_their_port_and_are_asked_there(target):
    command = words(target.name, "CMD")[-1]
    if target.port is None:
        assert (command, words(target.name, "HEALTHCHECK"), words(target.name, "EXPOSE")) == ('["--help"]', [], [])
        return
    assert command.startswith('["serve", ')
    assert '"--host", "0.0.0.0"' in command
    assert words(target.name, "EXPOSE") == [str(target.port)]
    assert (
        f'["python", "-m", "posttrain.core.ready", "http://127.0.0.1:{target.port}"]'
        in words(target.name, "HEALTHCHECK")[0]
    )


@every_target
def test_labels_say_version_and_commit_and_change_no_layer(target):
    label = words(target.name, "LABEL")[0]
    assert 'org.opencontainers.image.version="$VERSION"' in label
    assert 'org.opencontainers.image.revision="$GIT_COMMIT"' in label
    own = [word for word, _ in STAGES[target.name]]
    arguments = [rest for _, rest in STAGES[target.name]]
    assert arguments.index("VERSION GIT_COMMIT") > max(place for place, word in enumerate(own) if word == "RUN")


def test_what_is_installed_is_a_build_argument_wherever_a_stage_is_mounted():
    """Older builders do not look into a mount when they search for a layer that they have."""
    for name, digest in {"torch": "PINS", **dict.fromkeys(TARGETS, "SOURCES")}.items():
        instructions = STAGES[name]
        (declared,) = [place for place, (_, rest) in enumerate(instructions) if rest == digest]
        installs = max(place for place, (_, rest) in enumerate(instructions) if "--mount" in rest)
        assert declared < installs


def test_what_is_mounted_is_a_stage_without_steps():
    """buildah 1.28 mounts a stage that was in its cache as it was before its first step."""
    for name in set(re.findall(r"--mount=type=bind,from=([a-z-]+)", TEXT)):
        assert re.search(rf"^FROM built-{name} AS {name}\nFROM", TEXT, re.MULTILINE)


def test_no_address_and_no_syntax_of_one_builder_stands_in_it():
    assert re.findall(r"https?://(?!127\.0\.0\.1:800[123]\b)\S*", TEXT) == []
    assert "<<" not in TEXT
    assert not DOCKERFILE.read_text(encoding="utf-8").startswith("# syntax")


def test_a_build_sees_sources_and_pins_and_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert admitted == {"packages", "docker/*.py", "constraints.txt", "constraints-vllm.txt", "requirements-build.txt"}
    assert {"packages/*/tests", "**/__pycache__", "**/.*"} <= set(lines[1 + len(admitted) :])
    assert all((ROOT / name).is_file() for name in PINS)


def test_an_image_is_named_after_its_version_and_latest():
    lab = TARGETS["lab"]
    assert tags(lab, "0.3.1", "cpu") == ["posttrain/lab:0.3.1", "posttrain/lab:latest"]
    assert tags(lab, "0.3.1", "cuda") == ["posttrain/lab:0.3.1-cuda", "posttrain/lab:latest-cuda"]
    assert version_of(TARGETS["rollout-vllm"]) == version_of(TARGETS["rollout"])


@pytest.fixture
def miniature(tmp_path):
    """A repository of two packages, of which `lab` needs `core`."""
    for name in PINS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for name, needs in (("core", ""), ("lab", '"posttrain-core>=0.1,<0.2"'), ("data", "")):
        source = tmp_path / "packages" / name / "src" / "posttrain" / name
        source.mkdir(parents=True)
        (source / "__init__.py").write_text('__version__ = "0.1.0"\n')
        folder = tmp_path / "packages" / name
        (folder / "README.md").write_text(name)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "posttrain-{name}"\ndependencies = [{needs}]\n'
            f'[tool.hatch.version]\npath = "src/posttrain/{name}/__init__.py"\n'
        )
    return tmp_path


def test_the_digest_of_an_image_changes_with_what_it_holds_and_with_nothing_else(miniature):
    lab, core = TARGETS["lab"], miniature / "packages" / "core"
    before = digest_of_sources(lab, miniature)
    (core / "src" / "posttrain" / "core" / "__pycache__").mkdir()
    (core / "src" / "posttrain" / "core" / "__pycache__" / "x.pyc").write_bytes(b"1")
    (miniature / "packages" / "data" / "README.md").write_text("other")
    assert digest_of_sources(lab, miniature) == before
    (core / "src" / "posttrain" / "core" / "more.py").write_text("")
    after = digest_of_sources(lab, miniature)
    assert after != before
    (core / "src" / "posttrain" / "core" / "more.py").rename(core / "src" / "posttrain" / "core" / "other.py")
    renamed = digest_of_sources(lab, miniature)
    assert renamed not in (before, after)
    (core / "LICENSE").write_text("Terms.")
    licensed = digest_of_sources(lab, miniature)
    assert licensed not in (before, after, renamed)
    (miniature / "constraints.txt").write_text("torch==2.13.0")
    assert digest_of_sources(lab, miniature) not in (before, after, renamed, licensed)


def test_an_unknown_target_is_refused_with_the_nearest():
    from delivery.targets import chosen

    with pytest.raises(RequestError, match=r"unknown target 'rollouts' \(did you mean 'rollout'\?\)"):
        chosen(["rollouts"])
    assert [target.name for target in chosen([])] == [name for name in TARGETS if name != "rollout-vllm"]
