"""What is wrong with a pretrained Qwen2.5 as it is published, on a small random one made here, and that SFT from it
with an adapter is right all the same: it learns to stop, only the assistant is learnt, and the checkpoint is whole.

How 4-bit weights are merged is test_adapters.py's and test_offline_adapters.py's.
"""

import copy
import json

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.chat import render_prompt
from posttrain.data.sources import Source
from posttrain.data.tokenizer import load_tokenizer
from posttrain.trainers import sft
from posttrain.trainers.demonstrations import IGNORED, demonstrations
from posttrain.trainers.models import load_policy
from posttrain.trainers.stage import StageInputs, run_stage

STOCK_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML as Qwen2.5 has it: without generation markers."""
END, PAD = "<|im_end|>", "<|endoftext|>"
CONVERSATIONS = [
    {"id": str(n), "messages": [{"role": "user", "content": f"say {n % 4}"}, {"role": "assistant", "content": "ok"}]}
    for n in range(32)
]


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_tokenizer):
    """A folder as Qwen/Qwen2.5-0.5B's: pad = eos = <|endoftext|>, the stock template, more rows than tokens."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = PAD
    tokenizer.chat_template = STOCK_TEMPLATE
    model = Qwen2ForCausalLM(config)
    end = tokenizer.convert_tokens_to_ids(PAD)
    model.config.eos_token_id = model.config.bos_token_id = end
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(published, tmp_path_factory):
    """The checkpoint of SFT with an adapter on conversations that end in one word."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CONVERSATIONS))
    inputs = StageInputs(
        RunDirectory(folder / "run"), 0, published, source=Source(path=str(folder / "rows.jsonl")), threads=1
    )
    settings = sft.Settings(
        adapter={"r": 8, "alpha": 32, "dropout": 0}, epochs=20, batch_size=8, max_length=64, lr=2e-2, held_out=0.25
    )
    run_stage("sft", settings, inputs, StageIdentity("sft", 1, {}, 0))
    return inputs.run.checkpoint


def test_published_padding_is_the_end_token_and_no_turn_ends_with_it(published):
    raw = AutoTokenizer.from_pretrained(published)
    assert raw.eos_token_id == raw.pad_token_id
    ids = raw.apply_chat_template(CONVERSATIONS[0]["messages"], return_dict=False)
    assert raw.eos_token_id not in ids
    ours = load_tokenizer(published)
    assert (ours.eos_token, ours.pad_token) == (END, PAD)


def test_the_published_template_masks_everything_in_silence_and_ours_the_question_only(published):
    raw = AutoTokenizer.from_pretrained(published)
    rendered = raw.apply_chat_template(
        CONVERSATIONS[0]["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    assert set(rendered["assistant_masks"]) == {0}
    tokenizer = load_tokenizer(published)
    (row,) = demonstrations(tokenizer, CONVERSATIONS[:1], 64).rows
    spoken = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(spoken) == f"ok{END}"


def test_an_answer_cut_at_the_limit_does_not_end_in_an_end_token(published):
    tokenizer = load_tokenizer(published)
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "a long answer " * 9}]
    (row,) = demonstrations(tokenizer, [{"id": "0", "messages": messages}], 64).rows
    assert len(row["input_ids"]) == 64
    assert tokenizer.eos_token_id not in row["labels"]
    assert row["labels"][-1] == row["input_ids"][-1] != tokenizer.pad_token_id


@torch.no_grad()
def test_sft_learns_to_stop(published, tuned):
    """Greedy generation ends by itself after the answer, by the ids that the checkpoint's own configuration says."""
    tokenizer = load_tokenizer(tuned)
    prompt = torch.tensor([render_prompt(tokenizer, CONVERSATIONS[1]["messages"][:1])])
    before, after = (
        load_policy(folder).eval().generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
        for folder in (published, tuned)
    )
    assert len(before) == 12
    assert tokenizer.decode(after) == f"ok{END}"


def test_the_checkpoint_brings_its_tokenizer_ready_for_any_program(tuned, published):
    plain = AutoTokenizer.from_pretrained(tuned)
    assert (plain.eos_token, plain.pad_token) == (END, PAD)
    assert "generation" in plain.chat_template
    assert plain.get_vocab() == AutoTokenizer.from_pretrained(published).get_vocab()
    model = load_policy(tuned)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == plain.eos_token_id
    assert model.config.pad_token_id == plain.pad_token_id
    assert model.config.vocab_size == 272
