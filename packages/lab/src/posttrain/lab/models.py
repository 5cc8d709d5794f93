"""From what a recipe calls a model to a folder on disk and a digest: `nano`, a random one, a folder, or a Hub id with
revision."""

import re
from dataclasses import dataclass
from pathlib import Path

from posttrain.core.errors import RequestError
from posttrain.core.files import read_json
from posttrain.core.hashing import digest_checkpoint
from posttrain.data.tokenizer import tokenizer_changes
from posttrain.lab.model_shapes import KNOWN, ModelShape, ShapeNotKnown, shape_of
from posttrain.lab.random_models import is_random, random_config, random_model

NANO = "nano"
COMMIT = re.compile("[0-9a-f]{40}")
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""What is fetched from the Hub; never pickles."""


class ModelNotHere(RequestError):
    """The model is on no disk of this machine, and could not be fetched."""


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
    commit: str | None = None
    if model == NANO:
        folder = _nano()
    elif is_random(model):
        folder = random_model(model)
    elif Path(model).is_dir():
        folder = Path(model)
    else:
        folder, commit = _from_hub(model, revision)
    if not (folder / "config.json").exists():
        raise RequestError(f"model '{model}' is not a checkpoint: {folder} has no config.json")
    if not list(folder.glob("*.safetensors")):
        raise RequestError(f"model '{model}' has no safetensors weights in {folder}; other formats are not loaded")
    return BaseModel(model, folder, commit, digest_checkpoint(folder))


def refuse_unpinned(model: str, revision: str | None) -> None:
    """RequestError for a model on the Hub without the commit that it is of: a branch or tag may be another model
    tomorrow, and rows of one table are of one model."""
    if model == NANO or is_random(model) or Path(model).is_dir() or COMMIT.fullmatch(revision or ""):
        return
    what = f"has revision '{revision}', which can move" if revision else "has no revision"
    raise RequestError(
        f"model '{model}' {what}: a comparison is of one commit; set revision to its 40 hex digits (the Hub's page of "
        f"the model lists them; `posttrain train` records in provenance.json what a branch resolved to){_here(model)}"
    )


def _here(model: str) -> str:
    """The commit of the model that the Hub's cache has, in words."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return ""
    return f"; on this machine lies {Path(cached).parent.name}" if isinstance(cached, str) else ""


def resolve_shape(model: str, revision: str | None = None) -> ModelShape:
    """The shape of the model called `model`, from its config.json: that of a folder, of the Hub's cache, or the
    published one of a model that recipes name. Nothing is downloaded; ShapeNotKnown where none is at hand."""
    if is_random(model):
        return shape_of(random_config(model), f"model '{model}'")
    if model == NANO or Path(model).is_dir():
        folder = _nano() if model == NANO else Path(model)
        return shape_of(read_json(folder / "config.json"), f"model '{model}'")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        raise RequestError(f"model '{model}' is neither a folder nor a Hub id (owner/name)") from None
    if isinstance(cached, str):
        return shape_of(read_json(Path(cached)), f"model '{model}'")
    if model in KNOWN:
        return shape_of(KNOWN[model], f"model '{model}'")
    raise ShapeNotKnown(
        f"the config.json of model '{model}' is not on this machine; fetch that one file (hf download {model} "
        "config.json), or set model to a folder that has it"
    )


def _nano() -> Path:
    from posttrain.data import nano

    return nano.BASE


def _from_hub(model: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(WEIGHTS)))
    except HFValidationError:
        raise RequestError(f"model '{model}' is neither a folder nor a Hub id (owner/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelNotHere(
            f"model '{model}' is not a folder here and could not be had from the Hub ({reason}); "
            "set model to a folder, or check name, revision and network"
        ) from None
    # A snapshot's folder is named by the commit that the revision resolved to.
    return folder, folder.name
