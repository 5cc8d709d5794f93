"""A random checkpoint with the nano tokenizer, and a model that says what the test tells it to say."""

from itertools import islice

import pytest
import torch
from lm_eval.api.model import LM

torch.set_num_threads(1)


class ScriptedModel(LM):
    """Answers by functions of the item: `say(doc)` is its text, `prefer(doc, choice)` a log-likelihood."""

    def __init__(self, say=None, prefer=None) -> None:
        super().__init__()
        self.say, self.prefer = say, prefer
        self.finish_reasons: dict[tuple[str, int], str] = {}
        self.sample_reasons: dict[tuple[str, int], list[str]] = {}
        self.prompts_cut: dict[str, int] = {}
        self.max_length = 512
        self.prompts: list[str] = []

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "".join(f"<{m['role']}>{m['content']}" for m in chat_history)

    tokenizer_name = "scripted"

    def loglikelihood(self, requests):
        return [(self.prefer(request.doc, request.args[1]), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        for request in requests:
            self.finish_reasons[request.task_name, request.doc_id] = "stop"
            self.prompts.append(request.args[0])
        return [self.say(request.doc) for request in requests]


@pytest.fixture
def scripted(monkeypatch):
    """Makes evaluate() use a scripted model instead of loading the checkpoint."""
    from posttrain.eval_harness import evaluation

    def use(**script):
        model = ScriptedModel(**script)
        monkeypatch.setattr(evaluation, "_model", lambda *_: model)
        return model

    return use


@pytest.fixture
def nano_items(monkeypatch):
    """Replaces the nano tasks' items by the test's own."""
    from posttrain.eval_harness import nano_tasks

    def use(items):
        monkeypatch.setattr(nano_tasks, "evaluation_items", lambda task, split: items)

    return use


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A folder with a random Qwen2 of two layers, context 192, and a tokenizer of the nano kind."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from posttrain.data.nano.corpus import sft_conversations
    from posttrain.data.nano.tokenizer import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    texts = (m["content"] for c in islice(sft_conversations(0), 400) for m in c["messages"])
    save_tokenizer(train_tokenizer(texts), folder, 192)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=192,
        tie_word_embeddings=False,
        initializer_range=0.5,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)
