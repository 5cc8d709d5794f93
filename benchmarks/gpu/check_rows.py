"""Rows for the check, each as long as asked, in the tokens of the model's own tokenizer: random digits, no meaning."""

import random
from pathlib import Path
from typing import Any

from benchmarks.gpu.check_plan import CheckSizes
from posttrain.core.errors import WorkError
from posttrain.core.files import write_jsonl
from posttrain.data.chat import load_tokenizer, render_prompt


def write_rows(folder: Path, model: Path, sizes: CheckSizes) -> None:
    """sft.jsonl, pairs.jsonl and prompts.jsonl in `folder`, for `sizes.steps` steps and what stages hold out."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = _Rows(model, sizes)
    count = sizes.batch * (sizes.steps + 1)
    write_jsonl(folder / "sft.jsonl", (rows.conversation(i) for i in range(count)))
    write_jsonl(folder / "pairs.jsonl", (rows.pair(i) for i in range(count)))
    write_jsonl(folder / "prompts.jsonl", (rows.prompt(i) for i in range(count)))


class _Rows:
    def __init__(self, model: Path, sizes: CheckSizes) -> None:
        self.tokenizer: Any = load_tokenizer(str(model))
        self.random = random.Random(0)
        self.prompt_length = sizes.length // 2
        self.answer_length = sizes.length - self.prompt_length
        overhead = len(render_prompt(self.tokenizer, [{"role": "user", "content": ""}]))
        self.question_digits = self.prompt_length - overhead
        if self.question_digits < 1:
            raise WorkError(f"a prompt of {self.prompt_length} tokens has no room beside the template's {overhead}")

    def digits(self, count: int) -> str:
        """Text of so many tokens: the tokenizer has each digit by itself."""
        text = "".join(self.random.choices("0123456789", k=count))
        if len(self.tokenizer(text)["input_ids"]) != count:
            raise WorkError("the model's tokenizer joins digits, and rows of a known length are made of them")
        return text

    def question(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.digits(self.question_digits)}]

    def answer(self) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": self.digits(self.answer_length - 1)}]  # and the end token

    def conversation(self, number: int) -> dict[str, Any]:
        return {"id": str(number), "messages": self.question() + self.answer()}

    def pair(self, number: int) -> dict[str, Any]:
        return {
            "id": str(number),
            "prompt": self.question(),
            "chosen": self.answer(),
            "rejected": self.answer(),
            "kind": "digits",
        }

    def prompt(self, number: int) -> dict[str, Any]:
        return {"id": str(number), "prompt": self.question(), "reference": {"answer": "7"}, "kind": "problem"}
