"""The real files, where they are present: complete, and split where they should be."""

import gzip
import shutil

import pytest

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


def test_hh_rlhf_is_read_as_the_hub_has_it_and_as_a_stream(real_data, tmp_path):
    mirrored = real_data / "Anthropic" / "hh-rlhf" / "harmless-base" / "test.jsonl"
    (tmp_path / "harmless-base").mkdir()
    with open(mirrored, "rb") as file, gzip.open(tmp_path / "harmless-base" / "test.jsonl.gz", "wb", 1) as zipped:
        shutil.copyfileobj(file, zipped)
    source = Source(path="Anthropic/hh-rlhf", config="harmless-base", split="test", rows=100)
    zipped_source = Source(path=str(tmp_path), format="hh-rlhf", split="test", rows=100)

    def answers(source):
        return [(row["prompt"], row["chosen"], row["rejected"]) for row in load_pairs(source, 7)]

    assert answers(zipped_source) == answers(source)
    streamed = answers(zipped_source.model_copy(update={"stream": True}))
    assert streamed == answers(source.model_copy(update={"stream": True}))
    assert streamed != answers(source)


def test_hh_rlhf_demonstrations_are_the_preferred_transcripts(real_data):
    source = Source(path="Anthropic/hh-rlhf", config="harmless-base", split="test", rows=200)
    pairs, conversations = load_pairs(source, 0), load_conversations(source, 0)
    assert [pair["prompt"] + pair["chosen"] for pair in pairs] == [row["messages"] for row in conversations]


def test_the_shards_of_gsm8k_are_all_of_it(real_data):
    parts = [load_prompts(Source(path="openai/gsm8k", split="test", shard=f"{n}/4"), 0) for n in range(4)]
    assert [len(part) for part in parts] == [330, 330, 330, 329]
    assert len({row["id"] for part in parts for row in part}) == 1_319


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (
            Source(
                path="cais/mmlu",
                split="test",
                columns={
                    "prompt": "{question}\nA. {choices.0}\nB. {choices.1}\nC. {choices.2}\nD. {choices.3}",
                    "reference": "answer",
                },
            ),
            14_042,
        ),
        (
            Source(
                path="truthfulqa/truthful_qa",
                split="validation",
                columns={"prompt": "question", "reference": "mc2_targets.labels"},
            ),
            813,
        ),
        (Source(path="google/IFEval", columns={"reference": "instruction_id_list"}), 541),
        (Source(path="lmsys/mt_bench", split="question", columns={"prompt": "turns.0"}), 80),
    ],
    ids=["mmlu", "truthfulqa", "ifeval", "mt_bench"],
)
def test_every_row_of_a_benchmark_is_a_prompt_by_its_columns(real_data, source, count):
    rows = load_prompts(source, 0)
    assert len(rows) == count
    assert all(row["prompt"][0]["content"].strip() for row in rows)


def test_a_subject_of_mmlu_can_be_taken(real_data):
    source = Source(path="cais/mmlu", split="test", columns={"prompt": "question"}, where={"subject": "astronomy"})
    assert len(load_prompts(source, 0)) == 152
