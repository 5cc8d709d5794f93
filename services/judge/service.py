"""What BentoML deploys: the judge service of posttrain-llm-judge with the settings beside this file.

`POSTTRAIN_JUDGE` in the environment (JSON, `posttrain.llm_judge.serving.settings`) takes the place of settings.yaml.
The image that `bentoml build services/judge` describes installs the wheels in dist/; no key goes into it.
"""

import json
import os
from pathlib import Path

import bentoml

from posttrain.core.bentos import bento_requirements
from posttrain.core.config import read_yaml
from posttrain.llm_judge.serving.settings import ENVIRONMENT

HERE = Path(__file__).resolve().parent
os.environ.setdefault(ENVIRONMENT, json.dumps(read_yaml(HERE / "settings.yaml")))

# The service reads its settings when it is imported.
from posttrain.llm_judge.service import JudgeService  # noqa: E402

JudgeService.image = (  # type: ignore[attr-defined]
    bentoml.images.Image(python_version="3.11", lock_python_packages=False)
    .python_packages(*bento_requirements(HERE, "posttrain-llm-judge"))
    # Without it the wheels are not there yet when the image installs its packages.
    .build_include("dist")
)
