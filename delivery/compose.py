"""`python -m delivery.compose up | down | train`: the containers of docker/compose.yaml, by whichever compose is there.

What make up, make down and make train TRAINER=container call. It finds the program, makes the keys where there are
none, waits until the services answer and says where they do. It needs a Python and no environment, since who has
Docker has no other use for one.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from delivery.keys import make_keys
from posttrain.core.errors import PosttrainError, RequestError, WorkError
from posttrain.core.ready import why_not_ready

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker" / "compose.yaml"
SECRETS = ROOT / "docker" / "secrets"
PROFILES = ("gpu", "observability", "trainer")
READY_SECONDS = 600.0
PORTS = {
    "policy": ("POSTTRAIN_POLICY_PORT", 8001),
    "reward": ("POSTTRAIN_REWARD_PORT", 8002),
    "judge": ("POSTTRAIN_JUDGE_PORT", 8003),
}
"""Of each service on this machine: the variable that names it in compose.yaml, and its default there."""
VLLM_PORT = ("POSTTRAIN_VLLM_PORT", 8011)
GRAFANA_PORT = ("GRAFANA_PORT", 3000)

CANDIDATES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("docker", "compose"), ("docker", "info")),
    (("docker-compose",), ("docker", "info")),
    (("podman", "compose"), ("podman", "info")),
    (("podman-compose",), ("podman", "info")),
)
"""Programs that read a compose file, and what shows that the engine behind each answers."""


def find_compose() -> list[str]:
    """The command that starts compose files here: POSTTRAIN_COMPOSE, or the first of Docker's and Podman's that works.

    RequestError says of each why it does not, or why the named one is none.
    """
    if given := os.environ.get("POSTTRAIN_COMPOSE"):
        return _named(given)
    reasons = []
    for command, engine in CANDIDATES:
        name = " ".join(command)
        if shutil.which(command[0]) is None:
            reasons.append(f"{name}: {command[0]} is not installed")
        elif not _works([*command, "version"]):
            reasons.append(f"{name}: this {command[0]} has no compose")
        elif not _works(engine):
            reasons.append(f"{name}: {' '.join(engine)} fails")
        else:
            return list(command)
    raise RequestError(
        f"no compose was found ({'; '.join(reasons)}); install Docker with its compose plugin or Podman with "
        "podman-compose, or start the services without containers (make serve)"
    )


def _named(given: str) -> list[str]:
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise RequestError(f"POSTTRAIN_COMPOSE={given} is no command line: {error}") from None
    if not command or shutil.which(command[0]) is None:
        raise RequestError(f"POSTTRAIN_COMPOSE={given} names no program; give one as in 'docker compose'")
    return command


def _works(command: Sequence[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return (
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def compose_command(compose: Sequence[str], profiles: Sequence[str], *arguments: str) -> list[str]:
    """The command line for docker/compose.yaml with these profiles; RequestError for one that it does not have."""
    if unknown := [name for name in profiles if name not in PROFILES]:
        raise RequestError(f"there is no profile '{unknown[0]}'; choose from {', '.join(PROFILES)}")
    flags = [flag for name in profiles for flag in ("--profile", name)]
    return [*compose, "--file", str(FILE), *flags, *arguments]


def port_of(setting: tuple[str, int]) -> int:
    """A published port: the variable's, else the default. RequestError when it is none."""
    name, default = setting
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise RequestError(f"{name}={text} is not a port; give a number from 1 to 65535")
    return int(text)


def up(profiles: Sequence[str], passed_on: Sequence[str] = ()) -> None:
    """Starts everything and returns when policy, reward and judge service are ready; prints where they are."""
    ports = {name: port_of(setting) for name, setting in PORTS.items()}
    ports |= {"policy-vllm": port_of(VLLM_PORT)} if "gpu" in profiles else {}
    compose = find_compose()
    command = compose_command(compose, profiles, "up", "--detach", *passed_on)
    if made := make_keys(SECRETS):
        print(f"made {', '.join(str(path.relative_to(ROOT)) for path in made)}", file=sys.stderr)
    if subprocess.run(command, env=_environment(), check=False).returncode != 0:
        raise WorkError(f"{' '.join(compose)} up failed; what it said is above")
    wait_until_ready(ports, lambda name: shlex.join(compose_command(compose, profiles, "logs", name)))
    for name, port in ports.items():
        print(f"{name:12} http://127.0.0.1:{port}")
    if "observability" in profiles:
        print(f"{'grafana':12} http://127.0.0.1:{port_of(GRAFANA_PORT)}")
    print(f"{'key':12} {(SECRETS / 'posttrain_api_key').relative_to(ROOT)}")


def wait_until_ready(ports: Mapping[str, int], logs: Callable[[str], str], seconds: float = READY_SECONDS) -> None:
    """Returns once `/readyz` of each port on loopback answers 200; WorkError names the first that does not in time and
    the command (`logs` of its name) that shows why."""
    until = time.monotonic() + seconds
    for name, port in ports.items():
        told = time.monotonic()
        while why_not_ready(f"http://127.0.0.1:{port}"):
            if time.monotonic() > until:
                raise WorkError(f"{name} is not ready after {seconds:.0f} s; see {logs(name)}")
            if time.monotonic() - told > 15:
                told = time.monotonic()
                print(f"waiting for {name}; its log: {logs(name)}", file=sys.stderr)
            time.sleep(0.5)


def down(passed_on: Sequence[str] = ()) -> NoReturn:
    """Becomes the command that ends every container; volumes stay, unless `--volumes` is passed on."""
    _become(compose_command(find_compose(), PROFILES, "down", *passed_on))


def train(arguments: Sequence[str]) -> NoReturn:
    """Becomes `posttrain train …` in the trainer's container. RequestError where a service that it would ask is not
    ready: they are not started from here, since compose would start those anew that other variables were set for."""
    for name, variable in (("policy", "POLICY_URL"), ("reward", "REWARD_URL")):
        if variable not in os.environ and (reason := why_not_ready(f"http://127.0.0.1:{port_of(PORTS[name])}")):
            raise RequestError(f"the {name} service is not ready ({reason}); start it with make up, or set {variable}")
    _become(compose_command(find_compose(), ("trainer",), "run", "--rm", "--no-deps", "trainer", "train", *arguments))


def _become(command: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, _environment())


def _environment() -> dict[str, str]:
    """This process's, with the commit that images built on the way are labelled with."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    known = "GIT_COMMIT" in os.environ or shutil.which("git") is None
    done = None if known else subprocess.run(git, capture_output=True, text=True, check=False)
    commit = {"GIT_COMMIT": done.stdout.strip()} if done and done.returncode == 0 else {}
    return {**os.environ, **commit}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status, 1 where the work failed and 2 where the request was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m delivery.compose", description="The containers of docker/compose.yaml."
    )
    parser.add_argument("--profile", action="append", default=[], help=f"{', '.join(PROFILES)}; may be repeated")
    parser.add_argument("command", choices=["up", "down", "train"], help="start, end, or train in a container")
    parser.add_argument("passed_on", nargs=argparse.REMAINDER, help="for compose's up and down, or posttrain train")
    known = parser.parse_args(arguments)
    try:
        if known.command == "up":
            up(known.profile, known.passed_on)
        elif known.command == "down":
            down(known.passed_on)
        else:
            train(known.passed_on)
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted; what was started goes on, make down ends it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
