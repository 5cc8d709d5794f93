"""Pushed weights are checked completely, named when wrong, and loaded bit by bit."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from posttrain.core.errors import RequestError
from posttrain.rollout.weights import load_weights, read_weights


@pytest.fixture
def tied(make_model):
    return make_model(seed=1)


def weights_of(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state.pop("lm_head.weight", None)
    return state


def written(tmp_path, tensors, metadata=None):
    path = tmp_path / "pushed.safetensors"
    save_file(tensors, path, metadata)
    return path


def full(path, model):
    """What a file without an adapter holds: nobody asks for a base."""
    return read_weights(path, model, base=None)


@pytest.mark.parametrize("with_head", [False, True])
def test_loaded_weights_are_the_pushed_ones(tmp_path, tied, make_model, with_head):
    other = make_model(seed=2)
    tensors = weights_of(other)
    if with_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    load_weights(tied, full(written(tmp_path, tensors), tied))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tied.state_dict()[name], tensor)
    assert tied.lm_head.weight.data_ptr() == tied.model.embed_tokens.weight.data_ptr()


def test_untied_head_must_be_there(tmp_path, make_model):
    model = make_model(LlamaForCausalLM, tied=False)
    with pytest.raises(RequestError, match=r"'lm_head\.weight' is missing"):
        full(written(tmp_path, weights_of(model)), model)


def test_bfloat16_is_taken_into_the_models_own_dtype(tmp_path, tied):
    tensors = {name: tensor.bfloat16() for name, tensor in weights_of(tied).items()}
    load_weights(tied, full(written(tmp_path, tensors), tied))
    assert tied.model.norm.weight.dtype == torch.float32
    assert torch.equal(tied.model.embed_tokens.weight, tensors["model.embed_tokens.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"'model\.norm\.weight' is missing"),
        (lambda t: t.update(value_head=torch.zeros(3)), "'value_head' is no parameter"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"'model\.norm\.weight' has shape \[3\].*\[64\]"),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), r"'model\.norm\.weight' holds a value that is not fin"),
        (lambda t: t["model.norm.weight"].fill_(float("inf")), r"'model\.norm\.weight' holds a value that is not fin"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.long)}), "holds int64"),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "this model ties them"),
    ],
)
def test_the_first_wrong_tensor_is_named(tmp_path, tied, change, message):
    tensors = weights_of(tied)
    change(tensors)
    with pytest.raises(RequestError, match=message):
        full(written(tmp_path, tensors), tied)


@pytest.mark.parametrize("body", [b"", b"junk", b"\x80\x04pickle" * 100, b"\xff" * 64])
def test_other_files_are_refused(tmp_path, tied, body):
    path = tmp_path / "junk"
    path.write_bytes(body)
    with pytest.raises(RequestError, match="not a safetensors file"):
        full(path, tied)
