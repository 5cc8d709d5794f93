"""`python -m delivery pipeline RUN`: a finished run of PPO trained again as three containers, timed, and recorded.

The containers are those of tests/containers, which also hold the results against the same command without containers.
The record is the part `pipeline` of results/bench/images.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.programs import last_object
from benchmarks.record import stamp
from delivery.sizes import RECORD
from delivery.targets import ROOT
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import atomic_write_json, read_json

TEST = "test_a_run_of_the_recipe_is_trained_again_in_containers_to_the_bit"
VARIABLE = "POSTTRAIN_PPO_RUN"


def pipeline(
    run: Annotated[Path, typer.Argument(help="A finished run of posttrain train ppo.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The record.")] = RECORD,
) -> None:
    """Train a run of PPO again as three containers, hold it against the same without containers, record the times."""
    if not (run / "provenance.json").is_file():
        raise RequestError(f"{run} is no finished run; posttrain train ppo makes one, posttrain runs list names them")
    started = stamp()
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "container and slow", "-k", TEST, "tests/containers"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, VARIABLE: str(run.resolve())},
        check=False,
    )
    figures = last_object(done.stdout)
    if figures is None:
        sys.stderr.write(done.stdout)
        raise WorkError("nothing was trained; why is said above")
    store_pipeline({**started, **figures}, out)
    print(json.dumps(figures))
    print(f"written to {out}")
    if done.returncode != 0:
        raise WorkError(f"containers and processes do not agree; python -m pytest -m container -k {TEST} says where")


def store_pipeline(figures: dict[str, Any], path: Path) -> None:
    """Writes the part `pipeline` of the record; the others stay."""
    record = read_json(path) if path.exists() else {}
    atomic_write_json(path, {**record, "pipeline": figures})
