"""What a checkpoint's files say besides weights: its configuration, how it generates, which tokens end an answer."""

from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.files import read_json


def refuse_other_folders(checkpoint: str) -> None:
    """RequestError for a folder that holds neither a model nor an adapter."""
    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise RequestError(f"{checkpoint} is not a checkpoint: it has no config.json")


def cannot_load(checkpoint: str, error: Exception) -> RequestError:
    """What is said when transformers cannot make a model of a checkpoint."""
    return RequestError(f"cannot load a model from {checkpoint}: {' '.join(str(error).split())[:200]}")


def read_settings(checkpoint: str, revision: str | None) -> tuple[Any, Any]:
    """The configuration and the generation settings that a loaded model would have, without its weights or torch.

    An adapter has those of the model under it. RequestError when there are none.
    """
    from transformers import AutoConfig, GenerationConfig

    refuse_other_folders(checkpoint)
    revision = revision or "main"
    try:
        model = _under_adapter(checkpoint, revision)
        config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise cannot_load(checkpoint, error) from error
    try:
        return config, GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:  # the file is not there; a loaded model does the same
        return config, GenerationConfig.from_model_config(config)


def _under_adapter(checkpoint: str, revision: str) -> str:
    """The model that an adapter is of; a folder with both is a model."""
    from transformers.utils import find_adapter_config_file

    found = find_adapter_config_file(checkpoint, revision=revision)
    if found is None or (Path(checkpoint) / "config.json").exists():
        return checkpoint
    said = read_json(Path(found))
    base = said.get("base_model_name_or_path") if isinstance(said, dict) else None
    if not isinstance(base, str) or not base:
        raise RequestError(f"{found} does not name the model that it is an adapter of (base_model_name_or_path)")
    return base


def end_tokens(end_token: int, *settings: Any) -> list[int]:
    """The tokenizer's end token and every end token that a model's settings name."""
    ends = {end_token}
    for named in (getattr(of_model, "eos_token_id", None) for of_model in settings):
        ends |= set(named) if isinstance(named, list) else {named} if named is not None else set()
    return sorted(ends)
