"""What to change where a stage does not fit a card: the first of the usual steps, gentlest first, that is enough."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from posttrain.lab.forecast import StageForecast, forecast
from posttrain.lab.gpus import Gpu
from posttrain.lab.model_shapes import ModelShape
from posttrain.lab.recipe import Recipe
from posttrain.trainers.model_settings import Adapter
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.online_settings import OnlineSettings

FEWEST_TOKENS = 1024
"""Of a micro-batch of an online method, below which a single completion may not fit."""


def remedy(recipe: Recipe, found: StageForecast, shape: ModelShape, gpu: Gpu) -> list[str] | None:
    """Overrides for `--set` with which the stage fits; None where none of the steps is enough, or nothing trains."""
    settings: Any = found.stage.settings
    place = f"variants.{found.stage.name}" if found.stage.name in recipe.variants else found.stage.method
    for change in _steps(settings):
        stage = replace(found.stage, settings=settings.model_copy(update=change))
        if forecast(recipe, stage, shape, gpu, None).total <= gpu.memory:
            return [f"{place}.{key}={_said(value)}" for key, value in change.items()]
    return None


def _steps(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Each with all before it but the sizes, which change nothing in the result and so are tried anew each time."""
    if not isinstance(settings, OfflineSettings | OnlineSettings):
        return
    kept: dict[str, Any] = {}
    for step in _held(settings):
        kept |= step
        for size in _sizes(settings):
            if change := kept | size:
                yield change


def _held(settings: Any) -> Iterator[dict[str, Any]]:
    """How the model is held."""
    yield {}
    if not settings.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if settings.precision == "fp32":
        yield {"precision": "bf16"}
    if settings.adapter is None:
        yield {"adapter": Adapter(), **({"optimizer": "adamw"} if isinstance(settings, OfflineSettings) else {})}
    if isinstance(settings, OfflineSettings) and (settings.adapter is None or settings.adapter.kind == "lora"):
        yield {"adapter": (settings.adapter or Adapter()).model_copy(update={"kind": "qlora"})}


def _sizes(settings: Any) -> Iterator[dict[str, int]]:
    """How much is on the device at once, as it is and less."""
    yield {}
    if isinstance(settings, OnlineSettings):
        tokens = settings.micro_batch_tokens // 2
        while tokens >= FEWEST_TOKENS:
            yield {"micro_batch_tokens": tokens}
            tokens //= 2
    else:
        now = settings.micro_batch_size or settings.batch_size
        yield from ({"micro_batch_size": n} for n in range(now - 1, 0, -1) if settings.batch_size % n == 0)


def _said(value: Any) -> str:
    return value.kind if isinstance(value, Adapter) else str(value).lower() if isinstance(value, bool) else str(value)
