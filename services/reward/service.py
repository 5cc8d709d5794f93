"""What BentoML deploys: the reward service of posttrain-reward-model with the settings beside this file.

`POSTTRAIN_REWARD` in the environment (JSON, `posttrain.reward_model.settings`) takes the place of settings.yaml. The
image that `bentoml build services/reward` describes installs the wheels in dist/; no key and no checkpoint goes into
it.
"""

import json
import os
from pathlib import Path

import bentoml

from posttrain.core.bentos import bento_requirements
from posttrain.core.config import read_yaml
from posttrain.reward_model.settings import ENVIRONMENT

HERE = Path(__file__).resolve().parent
os.environ.setdefault(ENVIRONMENT, json.dumps(read_yaml(HERE / "settings.yaml")))

# The service reads its settings when it is imported.
from posttrain.reward_model.service import RewardService  # noqa: E402

RewardService.image = (  # type: ignore[attr-defined]
    bentoml.images.Image(python_version="3.11", lock_python_packages=False)
    .python_packages(*bento_requirements(HERE, "posttrain-reward-model"))
    # Without it the wheels are not there yet when the image installs its packages.
    .build_include("dist")
)
