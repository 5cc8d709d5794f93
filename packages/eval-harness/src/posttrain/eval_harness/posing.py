"""How items are put to a model: what departs from the standard evaluation, and so belongs to a result's key."""

import re
from dataclasses import dataclass

from posttrain.core.errors import RequestError
from posttrain.eval_harness.samples import Samples

FEW_SHOT_SEED = 1234
"""lm-eval's own default, so that few-shot examples are those of its reports."""


@dataclass(frozen=True)
class Posing:
    """The settings that change what a model reads or how much it may answer."""

    few_shot: int | None = None
    """Examples in the prompt; None takes each task's own number, a task that fixes 0 keeps it."""
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool | None = None
    """Examples as turns of the conversation; None does so exactly with the chat template."""
    few_shot_seed: int = FEW_SHOT_SEED
    """Which examples are drawn, where a task draws them."""
    max_gen_toks: int | None = None
    """Replaces the tasks' number of new tokens."""
    dtype: str | None = None
    """The precision that is computed in; None is float32 on a CPU and the saved one on a GPU."""

    def __post_init__(self) -> None:
        if self.few_shot is not None and self.few_shot < 0:
            raise RequestError(f"--few-shot {self.few_shot} is negative; give 0 or more")
        if self.max_gen_toks is not None and self.max_gen_toks < 1:
            raise RequestError(f"--max-gen-toks {self.max_gen_toks} generates nothing; give 1 or more")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise RequestError("--fewshot-as-multiturn makes turns of a conversation; it needs the chat template")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise RequestError(f"--dtype {self.dtype} is none of float32, bfloat16, float16")

    @property
    def as_turns(self) -> bool:
        """Whether examples are turns of the conversation."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

    def label(self, backend: str, samples: Samples | None = None) -> str:
        """The backend part of a result's key: its name, and what departs from the standard evaluation."""
        parts = [backend]
        if not self.apply_chat_template:
            parts.append("no chat template")
        elif not self.as_turns:
            parts.append("few-shot in one turn")
        if self.few_shot_seed != FEW_SHOT_SEED:
            parts.append(f"few-shot seed {self.few_shot_seed}")
        if self.max_gen_toks is not None:
            parts.append(f"max_gen_toks {self.max_gen_toks}")
        if self.dtype is not None:
            parts.append(self.dtype)
        if samples is not None:
            parts.append(samples.label)
        return ", ".join(parts)

    def folder(self, label: str, limit: int | None) -> str:
        """A name for the folder of item files: another one for whatever makes another result under this `label`.

        `hf` is the standard evaluation, `hf-5-shot-limit-20` one of five examples and the first 20 items.
        """
        parts = [label]
        if self.few_shot is not None:
            parts.append(f"{self.few_shot}-shot")
        if limit is not None:
            parts.append(f"limit {limit}")
        return re.sub(r"[^\w.]+", "-", " ".join(parts))
