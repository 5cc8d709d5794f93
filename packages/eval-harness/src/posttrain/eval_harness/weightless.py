"""A checkpoint as lm-eval's language model without its weights, for who lets others compute.

Tokenizer, chat template, context and end tokens are those of CheckpointLM, which tests hold; they come from the
checkpoint's small files, so that neither weights nor torch are needed.
"""

import logging
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.models.utils import has_bos_prefix, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from posttrain.data.chat import load_tokenizer
from posttrain.eval_harness.checkpoint_settings import end_tokens, read_settings
from posttrain.eval_harness.taskwise import TaskwiseLM

log = logging.getLogger(__name__)


class WeightlessLM(TaskwiseLM):
    """What HFLM does between text and token ids, done by the tokenizer alone."""

    max_gen_toks = 256
    """Of tasks that say nothing; HFLM's."""

    def __init__(self, checkpoint: str, batch_size: int, revision: str | None) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(checkpoint, revision)
        config, generation = read_settings(checkpoint, revision)
        self.batch_size = batch_size
        self.max_length = resolve_max_length(config, self.tokenizer)
        self.keep_account(end_tokens(self.eot_token_id, config, generation))

    @property
    def eot_token_id(self) -> int:
        """What ends a turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which all is scored."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """As lm-eval asks for it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's ids; a text that begins with the prefix gets no other."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **special))

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """The text of ids, or of one."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; without its system messages where the template takes none."""

        def rendered(messages: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        try:
            return rendered(chat_history)
        except TemplateError:
            log.warning("the chat template refuses the conversation; system messages are left out")
            return rendered([message for message in chat_history if message["role"] != "system"])

    def _rolling(self, requests: list[Any]) -> list[float]:
        windows: list[Any] = []
        of: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self._longest, context_len=1)
            windows += [(None, *make_disjoint_window(window)) for window in cut]
            of += [number] * (len(windows) - len(of))
        totals = [0.0] * len(requests)
        for number, (likelihood, _) in zip(of, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += likelihood
        return totals
