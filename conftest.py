"""What every test of every package runs under: no network, no telemetry, one thread a process."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    BENTOML_DO_NOT_TRACK="True",
    WANDB_MODE="disabled",
    TOKENIZERS_PARALLELISM="false",
)
# The runs are deterministic for a fixed number of threads, and two test processes on two cores must not share four.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A key of the developer's own shell would make the loopback services refuse the tests.
for variable in ("POSTTRAIN_API_KEY", "POSTTRAIN_API_KEY_FILE"):
    os.environ.pop(variable, None)
