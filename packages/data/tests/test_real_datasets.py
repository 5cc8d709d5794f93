"""The real files, where they are present: complete, and split where they should be."""

from posttrain.data.chat import render_completion
from posttrain.data.sources import Source, load_conversations, load_pairs, load_prompts


def test_gsm8k_is_complete(real_data):
    assert len(load_conversations(Source(path="openai/gsm8k"), 0)) == 7_473
    assert len(load_prompts(Source(path="openai/gsm8k", split="test"), 0)) == 1_319


def test_every_gold_answer_of_gsm8k_is_a_number(real_data):
    for split in ("train", "test"):
        for row in load_prompts(Source(path="openai/gsm8k", split=split), 0):
            float(row["reference"]["gsm8k"].replace(",", ""))


def test_hh_rlhf_gives_a_pair_for_every_row(real_data):
    pairs = load_pairs(Source(path="Anthropic/hh-rlhf", config="harmless-base", split="test"), 0)
    assert len(pairs) == 2_312
    for pair in pairs:
        roles = [message["role"] for message in pair["prompt"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert pair["chosen"] != pair["rejected"]


def test_hh_rlhf_pairs_share_the_prompts_ids(real_data, tokenizer):
    source = Source(path="Anthropic/hh-rlhf", config="harmless-base", split="test", rows=50)
    for pair in load_pairs(source, 0):
        chosen = render_completion(tokenizer, pair["prompt"], pair["chosen"][0]["content"], finished=True)
        rejected = render_completion(tokenizer, pair["prompt"], pair["rejected"][0]["content"], finished=True)
        shared = len(render_completion(tokenizer, pair["prompt"], "", finished=False))
        assert chosen[:shared] == rejected[:shared]
        assert chosen != rejected
