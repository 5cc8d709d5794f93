"""The whole command, as all installed packages make it up."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "lm_eval", "bentoml", "accelerate", "scipy", "statsmodels")


@pytest.mark.parametrize("arguments", [[], ["data"], ["runs"], ["serve"], ["train"], ["eval"], ["stage"], ["chat"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys; from posttrain.core.cli import run; status = run(sys.argv[1:] + ['--help'])\n"
        f"print(status, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
