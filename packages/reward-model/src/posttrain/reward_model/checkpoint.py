"""Whether a folder holds a reward model, told from its files without loading it.

So that `posttrain serve reward` refuses a wrong folder at once and in one line, instead of a server that fails to
start.
"""

import json
import math
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError


def local_folder(checkpoint: str) -> Path:
    """The folder of a checkpoint, fetched from the Hub when it is an id; RequestError when there is no such thing."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") != 1:
        raise RequestError(f"checkpoint {checkpoint} is not a folder; give a Hugging Face checkpoint folder or Hub id")
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
    try:
        return Path(snapshot_download(checkpoint, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"checkpoint {checkpoint} is no folder here and cannot be fetched from the Hub ({type(error).__name__}); "
            "give a checkpoint folder or a Hub id"
        ) from error


def check_reward_checkpoint(folder: Path) -> dict[str, Any]:
    """The configuration of a sequence-classification checkpoint with one label and weights in safetensors.

    RequestError says what the folder is instead, or what is wrong with its `reward_offset`.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"checkpoint {folder} has no config.json; give a Hugging Face checkpoint folder") from None
    except ValueError:
        raise RequestError(f"checkpoint {folder}: config.json is not JSON") from None
    architecture = (config.get("architectures") or ["none"])[0]
    # transformers writes the number of labels as their names, and takes two where neither is said.
    labels = config.get("num_labels", len(config.get("id2label") or "ab"))
    if not architecture.endswith("ForSequenceClassification") or labels != 1:
        raise RequestError(
            f"checkpoint {folder} is no reward model (architecture {architecture}, {labels} labels); "
            "give a …ForSequenceClassification with one label, as the stage rm makes it"
        )
    if not any(folder.glob("*.safetensors")):
        raise RequestError(f"checkpoint {folder} has no weights in safetensors (pickles are not loaded); convert them")
    offset = config.get("reward_offset", 0.0)
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise RequestError(f"checkpoint {folder}: reward_offset in config.json must be a finite number")
    return config
