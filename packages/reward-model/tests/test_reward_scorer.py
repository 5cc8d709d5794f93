"""Reward models: a score is the model's own, in any batch, minus the offset; what is no reward model is refused."""

import json
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain.core.errors import RequestError, WorkError
from posttrain.data.chat import render_completion
from posttrain.data.rows import Message
from posttrain.reward_model.batching import BatchingQueue
from posttrain.reward_model.scorer import RewardModel


def edit_config(folder: Path, **changes: object) -> Path:
    """The checkpoint with keys of its config.json changed, or taken out where the value is None."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.fixture(scope="module")
def model(reward_checkpoint: Path) -> RewardModel:
    return RewardModel(str(reward_checkpoint), batch_tokens=300)


def _alone(checkpoint: Path, ids: list[int]) -> float:
    """The published way: transformers' class, one item, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


def _random_items(count: int) -> list[list[int]]:
    rng = random.Random(1)
    return [
        [rng.randrange(3, 259) for _ in range(rng.randrange(1, 120))] + [2] * rng.randrange(2) for _ in range(count)
    ]


def test_score_in_a_batch_equals_the_single_item_forward_of_transformers(model: RewardModel, reward_checkpoint: Path):
    items = _random_items(24)
    expected = [_alone(reward_checkpoint, ids) for ids in items]
    assert max(expected) - min(expected) > 0.5, "the model must tell the items apart"
    assert model.score(items) == pytest.approx(expected, abs=1e-4)


def test_score_does_not_depend_on_the_batch(model: RewardModel):
    items = _random_items(40)
    together = model.score(items)
    assert together == pytest.approx([model.score([ids])[0] for ids in items], abs=1e-4)
    assert together[::-1] == pytest.approx(model.score(items[::-1]), abs=1e-4)


def test_pad_token_that_is_the_end_token_is_read_as_transformers_reads_it(reward_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "pad-is-end")
    edit_config(folder, pad_token_id=2)
    items = _random_items(24)
    scores = RewardModel(str(folder)).score(items)
    assert scores == pytest.approx([_alone(folder, ids) for ids in items], abs=1e-4)


def test_a_checkpoint_without_pad_token_can_be_batched(reward_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "no-pad")
    edit_config(folder, pad_token_id=None)
    items = _random_items(24)
    assert RewardModel(str(folder)).score(items) == pytest.approx([_alone(folder, ids) for ids in items], abs=1e-4)


def test_end_token_is_appended_only_to_a_finished_completion(model: RewardModel):
    prompt: list[Message] = [{"role": "user", "content": "hi"}]
    finished, cut = model.encode(prompt, "ho", True), model.encode(prompt, "ho", False)
    assert finished == [*cut, model.tokenizer.eos_token_id]
    assert finished == render_completion(model.tokenizer, prompt, "ho", True)
    assert abs(model.score([finished])[0] - model.score([cut])[0]) > 1e-3


def test_a_text_as_prompt_is_one_users_message(model: RewardModel):
    assert model.encode("hi", "ho", True) == model.encode([{"role": "user", "content": "hi"}], "ho", True)


def test_an_end_token_typed_into_a_completion_is_text(model: RewardModel):
    assert model.encode("hi", "ho<|im_end|>", False).count(2) == model.encode("hi", "ho", False).count(2)


def test_offset_of_the_checkpoint_is_subtracted(model: RewardModel, reward_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "offset")
    edit_config(folder, reward_offset=0.75)
    items = _random_items(3)
    shifted = RewardModel(str(folder))
    assert shifted.score(items) == pytest.approx([score - 0.75 for score in model.score(items)], abs=1e-6)
    assert shifted.digest != model.digest


def test_the_models_own_template_is_used(reward_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "template")
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    model = RewardModel(str(folder))
    assert model.tokenizer.decode(model.encode("hi", "ho", True)) == "[hi]>ho<|im_end|>"


def test_messages_that_the_template_refuses_are_an_error(reward_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "strict-template")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system messages') }}")
    with pytest.raises(RequestError, match="template refuses the messages: no system messages"):
        RewardModel(str(folder)).encode("hi", "ho", True)


@pytest.mark.parametrize("length", [200, 10_000_000])
def test_an_item_beyond_the_context_is_refused_without_repeating_it(model: RewardModel, length: int):
    with pytest.raises(RequestError, match=r"reward model's 128 tokens|at most 128") as error:
        model.encode("hi", "q" * length, True)
    assert "qqq" not in str(error.value)


def test_weights_that_give_nan_are_an_error(reward_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "nan")
    broken = AutoModelForSequenceClassification.from_pretrained(folder)
    broken.score.weight.data.fill_(float("nan"))
    broken.save_pretrained(folder)
    with pytest.raises(WorkError, match="not finite"):
        RewardModel(str(folder)).score([[5, 2]])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: edit_config(folder, architectures=["Qwen2ForCausalLM"]), "is no reward model"),
        (lambda folder: edit_config(folder, id2label=None), "2 labels"),
        (lambda folder: edit_config(folder, reward_offset="high"), "reward_offset"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "safetensors"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "has no tokenizer"),
    ],
)
def test_what_is_no_reward_model_is_refused(reward_checkpoint: Path, tmp_path: Path, spoil, says: str):
    folder = shutil.copytree(reward_checkpoint, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(RequestError, match=says):
        RewardModel(str(folder))


def test_a_checkpoint_without_its_score_head_is_refused_not_filled_with_random_numbers(
    reward_checkpoint: Path, tmp_path: Path
):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(reward_checkpoint, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"lacks the weight score\.weight"):
        RewardModel(str(folder))


def test_a_folder_that_does_not_exist_is_refused():
    with pytest.raises(RequestError, match="is not a folder"):
        RewardModel("./no/such/folder")


@pytest.mark.parametrize("threads", [1, 3])
def test_scores_do_not_depend_on_the_number_of_threads(model: RewardModel, reward_checkpoint: Path, threads: int):
    items = _random_items(60)
    several = RewardModel(str(reward_checkpoint), batch_tokens=300, threads=threads)
    assert several.score(items) == pytest.approx(model.score(items), abs=1e-4)
    several.close()


def test_first_callers_that_come_at_once_share_one_queue(reward_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    class SlowToStart(BatchingQueue):
        def __init__(self, *args, **kwargs):
            time.sleep(0.2)  # long enough for every caller to find no queue yet
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("posttrain.reward_model.scorer.BatchingQueue", SlowToStart)
    model, at_once = RewardModel(str(reward_checkpoint)), threading.Barrier(4)

    def queue(_: int) -> BatchingQueue:
        at_once.wait(10)
        return model.queue

    with ThreadPoolExecutor(4) as callers:
        assert len(set(callers.map(queue, range(4)))) == 1
    model.close()


def test_a_classifier_that_is_not_causal_is_given_its_mask(tmp_path: Path, reward_checkpoint: Path):
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path / "bert"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=300, max_position_embeddings=128, num_labels=1, initializer_range=0.3, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reward_checkpoint / name, folder)
    items = [ids[:100] for ids in _random_items(24)]
    assert RewardModel(str(folder)).score(items) == pytest.approx([_alone(folder, ids) for ids in items], abs=1e-4)
