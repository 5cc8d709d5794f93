"""What BentoML deploys: the judge service of posttrain-llm-judge with the settings beside this file.

`POSTTRAIN_JUDGE` in the environment (JSON, `posttrain.llm_judge.serving.settings`) takes the place of settings.yaml.
The image that `bentoml build services/judge` describes installs the wheels in dist/; no key goes into it.
"""

import json
import os
from pathlib import Path

import bentoml

from posttrain.core.config import read_yaml
from posttrain.llm_judge.serving.settings import ENVIRONMENT

HERE = Path(__file__).resolve().parent
os.environ.setdefault(ENVIRONMENT, json.dumps(read_yaml(HERE / "settings.yaml")))

# The service reads its settings when it is imported.
from posttrain.llm_judge.service import JudgeService  # noqa: E402

WHEELS = [f"./dist/{wheel.name}" for wheel in sorted((HERE / "dist").glob("posttrain_*.whl"))]
SERVING = ["bentoml>=1.4.39", "fastapi>=0.115", "starlette>=0.40", "prometheus-client>=0.20"]

JudgeService.image = (  # type: ignore[attr-defined]
    bentoml.images.Image(python_version="3.11", lock_python_packages=False)
    .python_packages(*WHEELS, *SERVING)
    # Without it the wheels are not there yet when the image installs its packages.
    .build_include("dist")
)
