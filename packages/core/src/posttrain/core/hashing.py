"""SHA-256 digests of settings, files and checkpoints: what fingerprints and provenance are made of."""

import hashlib
import json
from pathlib import Path
from typing import Any

NOT_PART_OF_A_CHECKPOINT = {"provenance.json", "README.md", "training_args.bin", ".gitattributes"}
"""Files beside the weights that describe them: changing one does not make another model."""

_CHUNK = 1 << 20


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no optional spaces; non-finite numbers are refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digest_weights(folder: Path | str) -> str:
    """Hex SHA-256 of a checkpoint's model.safetensors, or over names and contents of its parts; empty where `folder` is
    none with such a file (a Hub id)."""
    files = sorted(Path(folder).glob("model*.safetensors"))
    if [file.name for file in files] == ["model.safetensors"]:
        return digest_file(files[0])
    return digest_json([[file.name, digest_file(file)] for file in files]) if files else ""


def digest_checkpoint(folder: Path) -> str:
    """Hex SHA-256 over names and contents of a checkpoint's weights, configuration and tokenizer files."""
    files = sorted(p for p in Path(folder).iterdir() if p.is_file() and p.name not in NOT_PART_OF_A_CHECKPOINT)
    return digest_json([[p.name, digest_file(p)] for p in files])
