"""What BentoML deploys: the policy service of posttrain-rollout with the settings beside this file.

`POSTTRAIN_POLICY` in the environment (JSON, `posttrain.rollout.settings`) takes the place of settings.yaml. The image
that `bentoml build services/policy` describes installs the wheels in dist/; no key and no checkpoint goes into it.
"""

import json
import os
from pathlib import Path

import bentoml

from posttrain.core.bentos import bento_requirements
from posttrain.core.config import read_yaml
from posttrain.rollout.settings import ENVIRONMENT

HERE = Path(__file__).resolve().parent
os.environ.setdefault(ENVIRONMENT, json.dumps(read_yaml(HERE / "settings.yaml")))

# The service reads its limits when it is imported.
from posttrain.rollout.service import PolicyService  # noqa: E402

PolicyService.image = (  # type: ignore[attr-defined]
    bentoml.images.Image(python_version="3.11", lock_python_packages=False)
    .system_packages("g++")  # the native engine's kernel is compiled where it runs
    .python_packages(*bento_requirements(HERE, "posttrain-rollout"))
    # Without it the wheels are not there yet when the image installs its packages.
    .build_include("dist")
)
