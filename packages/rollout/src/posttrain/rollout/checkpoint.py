"""Looks at a checkpoint folder before a server starts, without loading anything heavy."""

import json
from pathlib import Path

from posttrain.core.errors import RequestError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def refuse_unservable(folder: Path) -> None:
    """RequestError when a folder cannot be served as a policy: no config, no safetensors, no tokenizer."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a checkpoint folder; give one, or a Hub id")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder} is not a checkpoint: it has no config.json") from None
    except ValueError:
        raise RequestError(f"{folder}/config.json is not JSON; save the checkpoint again") from None
    kinds = config.get("architectures") or []
    if kinds and not any(kind.endswith("ForCausalLM") for kind in kinds):
        raise RequestError(f"{folder} holds a {kinds[0]}; a policy is a causal language model (…ForCausalLM)")
    if not any(folder.glob("*.safetensors")):
        if any(path for pattern in PICKLES for path in folder.glob(pattern)):
            raise RequestError(f"{folder} has pickled weights only, which can run code; save them as safetensors")
        raise RequestError(f"{folder} has no weights (model.safetensors)")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise RequestError(f"{folder} has no tokenizer (tokenizer.json); save its model's tokenizer beside it")
