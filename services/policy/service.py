"""What BentoML deploys: the policy service of posttrain-rollout with the settings beside this file.

`POSTTRAIN_POLICY` in the environment (JSON, `posttrain.rollout.settings`) takes the place of settings.yaml. The image
that `bentoml build services/policy` describes installs the wheels in dist/; no key and no checkpoint goes into it.
"""

import json
import os
from pathlib import Path

import bentoml

from posttrain.core.config import read_yaml
from posttrain.rollout.settings import ENVIRONMENT

HERE = Path(__file__).resolve().parent
os.environ.setdefault(ENVIRONMENT, json.dumps(read_yaml(HERE / "settings.yaml")))

# The service reads its limits when it is imported.
from posttrain.rollout.service import PolicyService  # noqa: E402

WHEELS = [f"./dist/{wheel.name}" for wheel in sorted((HERE / "dist").glob("posttrain_*.whl"))]
SERVING = ["bentoml>=1.4.39", "fastapi>=0.115", "starlette>=0.40", "prometheus-client>=0.20"]

PolicyService.image = (  # type: ignore[attr-defined]
    bentoml.images.Image(python_version="3.11", lock_python_packages=False)
    .python_packages(*WHEELS, *SERVING)
    # Without it the wheels are not there yet when the image installs its packages.
    .build_include("dist")
)
