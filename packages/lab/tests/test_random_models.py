"""`random:NAME`: real architecture, weights that depend on the name alone, and the count of a shape's parameters."""

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.core.errors import RequestError
from posttrain.core.files import read_json
from posttrain.data import nano
from posttrain.lab.model_shapes import KNOWN, shape_of
from posttrain.lab.models import resolve_model
from posttrain.lab.random_models import TINY, random_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_random_model_is_a_qwen2_with_the_chat_template_of_nano_and_a_context_for_real_recipes():
    folder = random_model("random:qwen2-tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.config.max_position_embeddings >= 2048
    tokenizer, own = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(nano.BASE)
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == model.config.eos_token_id
    assert len(tokenizer) < model.config.vocab_size, "some rows belong to no token, as in Qwen2.5"


def test_weights_depend_on_the_name_alone():
    first = resolve_model("random:qwen2-tiny")
    assert first.revision is None
    shutil.rmtree(first.folder)
    assert resolve_model("random:qwen2-tiny").digest == first.digest


def test_model_is_made_once_and_leaves_nothing_half_made_behind():
    folder = random_model("random:qwen2-tiny")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert (random_model("random:qwen2-tiny") / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir() if path.suffix == ".tmp"] == []


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(RequestError, match=r"no random model 'qwen2-tinny' \(did you mean 'qwen2-tiny'\?\)"):
        resolve_model("random:qwen2-tinny")


@pytest.mark.parametrize(
    ("name", "all_parameters", "without_embeddings"),
    # 0.49B and 0.36B, 1.54B and 1.31B, 7.61B and 6.53B on the models' cards.
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768, 357_898_112),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304, 1_310_340_608),
        ("Qwen/Qwen2.5-7B", 7_615_616_512, 6_525_621_760),
    ],
)
def test_parameters_are_those_of_the_published_models(name, all_parameters, without_embeddings):
    shape = shape_of(KNOWN[name], name)
    assert (shape.parameters, shape.parameters - shape.embedding_parameters) == (all_parameters, without_embeddings)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        {**TINY, "tie_word_embeddings": False, "num_key_value_heads": 4},
        {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "head_dim": 16},
        {"model_type": "mistral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100},
    ],
    ids=["qwen2", "qwen2 untied", "llama", "mistral"],
)  # fmt: skip
def test_count_is_that_of_the_model_that_transformers_makes(config):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert shape_of(config, "here").parameters == sum(p.numel() for p in model.parameters())


def test_lora_parameters_are_counted_by_hand():
    """Two layers of 64 with queries of 64, keys and values of 32, MLP of 192; rank 8."""
    shape = shape_of(TINY, "here")
    assert shape.lora_parameters(8, ("q_proj",)) == 2 * 8 * (64 + 64)
    assert shape.lora_parameters(8, ("k_proj", "down_proj")) == 2 * 8 * ((64 + 32) + (192 + 64))


def test_kind_of_model_that_is_not_counted_is_refused():
    with pytest.raises(RequestError, match=r"there: models of type 'mamba' are not counted \(only qwen2"):
        shape_of({"model_type": "mamba"}, "there")
    with pytest.raises(RequestError, match="config.json has no 'hidden_size'"):
        shape_of({"model_type": "qwen2"}, "there")


def test_config_of_the_folder_says_the_shape():
    folder = random_model("random:qwen2-tiny")
    assert shape_of(read_json(folder / "config.json"), "here") == shape_of(TINY, "here")


def test_answers_end_after_a_dozen_tokens_so_that_there_are_finished_ones_to_compare():
    folder = random_model("random:qwen2-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(0, 1000, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ends = model(ids).logits.softmax(-1)[:, :, tokenizer.eos_token_id]
    assert 1 / 40 < ends.mean() < 1 / 4
    assert ends.min() > 1 / 400
