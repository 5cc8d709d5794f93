"""`posttrain serve policy`: refuses what cannot be served in one line, then becomes BentoML's server.

Nothing heavy is imported here; the server process imports torch itself.
"""

import os
import sys
from typing import Annotated

import typer

from posttrain.core.keys import warn_without_key
from posttrain.core.serving import serve_in_foreground

SERVICE = "posttrain.rollout.service:PolicyService"


def serve_policy(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, Hub id or nano; its weights are version 0.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback it needs POSTTRAIN_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8001,
    name: Annotated[str, typer.Option(help="The model's name in requests.")] = "policy",
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences generated together.")] = 256,
    threads: Annotated[int, typer.Option(min=0, help="Threads of a forward pass; 0 is one for each core.")] = 0,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest weights file that may be pushed, MiB.")] = 16384,
    engine: Annotated[
        str, typer.Option(help="What generates: auto, native, torch, or vllm (in the environment that has it).")
    ] = "auto",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of any other setting, e.g. vllm.sleep=true.")
    ] = None,
) -> None:
    """Serve a language model over HTTP: OpenAI's completions and chat, and weights by version."""
    from posttrain.core.config import apply_overrides, validate
    from posttrain.core.files import user_path
    from posttrain.data import nano
    from posttrain.rollout.checkpoint import refuse_unservable
    from posttrain.rollout.settings import ENVIRONMENT, PolicyServiceSettings
    from posttrain.rollout.vllm_environment import refuse_without_vllm

    # As in recipes, `nano` is the base that comes with posttrain-data.
    folder = nano.BASE if checkpoint == "nano" else user_path(checkpoint)
    # A Hub id is `name` or `owner/name`; whatever else, or whatever exists, is meant as a folder.
    if folder.exists() or folder.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") > 1:
        refuse_unservable(folder)
        checkpoint = str(folder.resolve())
    mapping = {
        "checkpoint": checkpoint,
        "name": name,
        "max_batch": max_batch,
        "threads": threads,
        "max_upload_mb": max_upload_mb,
        "engine": engine,
    }
    settings = validate(PolicyServiceSettings, apply_overrides(mapping, overrides or []), "serve policy")
    if settings.engine == "vllm":
        refuse_without_vllm(settings.vllm)
    warn_without_key(host)
    print(f"policy service on http://{host}:{port}: {name} ({checkpoint})", file=sys.stderr)
    environment = {
        ENVIRONMENT: settings.model_dump_json(),
        # Waiting threads that spin make two threads ten times slower than one wherever another process wants the cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    serve_in_foreground(SERVICE, host=host, port=port, environment=environment, extra="posttrain-rollout[service]")
