"""What the options of `posttrain eval` mean together: the posing, the samples, the table of stages."""

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from posttrain.core.errors import RequestError
from posttrain.eval_harness.posing import Posing
from posttrain.eval_harness.presets import Preset
from posttrain.eval_harness.samples import Samples
from posttrain.eval_harness.stage_table import read_stages, stage_table


def posed(
    preset: Preset | None,
    few_shot: int | None,
    chat_template: bool | None,
    fewshot_as_multiturn: bool | None,
    few_shot_seed: int | None,
    max_gen_toks: int | None,
    dtype: str | None,
    device: str | None,
    here: bool = True,
) -> Posing:
    """The preset's posing, or the standard one, with what the options say in its place.

    `here`: whether this process computes; a preset's precision is not for a service, which has its own.
    """
    base = preset.posing if preset else Posing()
    if base.dtype is not None and dtype is None and not (here and _on_gpu(device)):
        base = replace(base, dtype=None)
    said = {
        "few_shot": few_shot,
        "apply_chat_template": chat_template,
        "fewshot_as_multiturn": fewshot_as_multiturn,
        "few_shot_seed": few_shot_seed,
        "max_gen_toks": max_gen_toks,
        "dtype": dtype,
    }
    return replace(base, **{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]


def sampled(n: int | None, temperature: float, pass_at: str, maj_at: str, seed: int) -> Samples | None:
    """What `--samples` and its companions ask for; None without it."""
    if n is None:
        if maj_at or pass_at != "1" or temperature != 1.0:
            raise RequestError(
                "--temperature, --pass-at and --maj-at are about samples; give their number by --samples"
            )
        return None
    return Samples(n, temperature, _sizes("--pass-at", pass_at), _sizes("--maj-at", maj_at), seed)


def refuse_half_a_stage(evaluated: str | None, append: Path | None, stage: str | None, table: bool) -> None:
    """RequestError unless what is given of checkpoint, `--append`, `--stage` and `--table` makes sense together."""
    if evaluated is None and not (append and table):
        raise RequestError("name a CHECKPOINT to evaluate (or --append FILE --table, to print a table of stages)")
    if append is None and (stage is not None or table):
        raise RequestError(
            f"--{'stage' if stage is not None else 'table'} is about a table of stages; name it by --append"
        )
    if append is not None and evaluated is not None and not stage:
        raise RequestError("--append adds a row for a stage; name it by --stage, for example --stage sft")
    if append is not None and append.exists():
        read_stages(append)  # another file is told before the work


def print_stages(path: Path, console: Console, as_json: bool) -> None:
    """The table of stages, or with `as_json` its rows."""
    rows = read_stages(path)
    console.print(stage_table(rows))
    if as_json:
        print(json.dumps({"stages": rows}, ensure_ascii=False))


def _sizes(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise RequestError(f"{option} takes numbers, comma-separated, not '{text}'") from None


def _on_gpu(device: str | None) -> bool:
    if device is not None:
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()
