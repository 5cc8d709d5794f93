"""The model card of a trained checkpoint: what it is and where it comes from, in the Hub's README form."""

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(provenance: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, from the provenance of the stage that made it."""
    head = {"library_name": "transformers", "tags": ["posttrain", provenance["method"]]}
    cost, environment = provenance["cost"], provenance["environment"]
    numbers = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.5g} |"
        for name, value in provenance["summary"].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    commit = environment["git_commit"]
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {provenance['stage']} {provenance['fingerprint'][:12]}\n\n"
        f"Trained by posttrain with the method `{provenance['method']}`, seed {provenance['seed']}, in "
        f"{cost['wall_seconds']:.0f} s ({cost['core_seconds'] / 3600:.3f} core-hours) on "
        f"{environment['hardware']['processor'] or environment['hardware']['machine']}"
        f"{f', commit {commit[:12]}' if commit else ''}.\n"
        f"`provenance.json` beside this file says everything about the run.\n\n"
        f"- config hash: `{provenance['config_hash']}`\n"
        f"- fingerprint: `{provenance['fingerprint']}`\n\n"
        f"| summary | |\n|---|---:|\n{numbers}\n"
    )
