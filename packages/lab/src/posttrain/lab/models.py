"""From what a recipe calls a model to a folder on disk and a digest: `nano`, a random one, a folder, or a Hub id with
revision."""

from dataclasses import dataclass
from pathlib import Path

from posttrain.core.errors import RequestError
from posttrain.core.hashing import digest_checkpoint
from posttrain.data.tokenizer import tokenizer_changes
from posttrain.lab.random_models import is_random, random_model

NANO = "nano"
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""What is fetched from the Hub; never pickles."""


@dataclass(frozen=True)
class BaseModel:
    """A base checkpoint: where it lies and what defines it."""

    name: str
    folder: Path
    revision: str | None
    """The Hub's commit; None for a folder."""
    digest: str
    """SHA-256 of the folder's weights, configuration and tokenizer."""

    def definition(self) -> dict[str, str | None]:
        """What enters the config hash. A folder's name does not: its content does, and what we set in its tokenizer
        (a template with generation markers, the end token, padding) where that is not the folder's own."""
        return {"revision": self.revision, "digest": self.digest, **tokenizer_changes(self.folder)}


def resolve_model(model: str, revision: str | None = None) -> BaseModel:
    """The base checkpoint called `model`; RequestError when there is none or it has no safetensors weights."""
    if model == NANO:
        from posttrain.data import nano

        folder = nano.BASE
    elif is_random(model):
        folder = random_model(model)
    elif Path(model).is_dir():
        folder = Path(model)
    else:
        folder, revision = _from_hub(model, revision)
    if not (folder / "config.json").exists():
        raise RequestError(f"model '{model}' is not a checkpoint: {folder} has no config.json")
    if not list(folder.glob("*.safetensors")):
        raise RequestError(f"model '{model}' has no safetensors weights in {folder}; other formats are not loaded")
    return BaseModel(model, folder, revision, digest_checkpoint(folder))


def _from_hub(model: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(WEIGHTS)))
    except HFValidationError:
        raise RequestError(f"model '{model}' is neither a folder nor a Hub id (owner/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RequestError(
            f"model '{model}' is not a folder here and could not be had from the Hub ({reason}); "
            "set model to a folder, or check name, revision and network"
        ) from None
    # A snapshot's folder is named by the commit that the revision resolved to.
    return folder, folder.name
