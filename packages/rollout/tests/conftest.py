"""Small random models of every family, both engines, a byte-level tokenizer and a checkpoint folder made of them."""

import asyncio
import hashlib

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from posttrain.data.chat import CHATML_TEMPLATE
from posttrain.rollout.native.build import NoKernel
from posttrain.rollout.native.kernel import load_kernel
from posttrain.rollout.native_engine import NativeEngine
from posttrain.rollout.torch_engine import TorchEngine

torch.set_num_threads(1)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = 2


@pytest.fixture(scope="session")
def tokenizer():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["hello world, what is two and two? the answer is four"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


CONFIGS = {
    Qwen2ForCausalLM: Qwen2Config,
    Qwen3ForCausalLM: Qwen3Config,
    LlamaForCausalLM: LlamaConfig,
    MistralForCausalLM: MistralConfig,
    GemmaForCausalLM: GemmaConfig,
}


def small_model(kind, vocab_size, seed=0, sharpness=4.0, tied=True):
    """A random model whose distributions are neither flat nor certain."""
    config_class = CONFIGS[kind]
    torch.manual_seed(seed)
    model = kind(
        config_class(
            vocab_size=vocab_size,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=128,
            tie_word_embeddings=tied,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(sharpness)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """`small_model` of the Qwen2 family, unless told otherwise, for the tokenizer."""
    return lambda kind=Qwen2ForCausalLM, **options: small_model(kind, len(tokenizer), **options)


@pytest.fixture(scope="session", params=list(CONFIGS), ids=[config.model_type for config in CONFIGS.values()])
def any_model(request, tokenizer):
    return small_model(request.param, len(tokenizer))


@pytest.fixture(scope="session")
def native_engine():
    """`NativeEngine` on one thread unless told otherwise, where it can be compiled."""
    try:
        load_kernel()
    except NoKernel as reason:
        pytest.skip(str(reason))
    return lambda model, ends, **options: NativeEngine(model, ends, **{"threads": 1, **options})


@pytest.fixture(params=["native", "torch"])
def make_engine(request):
    """Each engine by turns: `make_engine(model, end_ids)`."""
    return TorchEngine if request.param == "torch" else request.getfixturevalue("native_engine")


@pytest.fixture(scope="session")
def model(tokenizer):
    return small_model(Qwen2ForCausalLM, len(tokenizer))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("checkpoint")
    small_model(Qwen2ForCausalLM, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class AppClient:
    """Requests to a policy's application, without a server, each in an event loop of its own."""

    def __init__(self, policy):
        from posttrain.rollout.app import create_app, serve

        self.app = create_app()
        serve(self.app, policy)

    def send(self, method, path, **arguments):
        from posttrain.core.asgi import ServiceMiddleware

        async def once():
            transport = httpx.ASGITransport(ServiceMiddleware(self.app, api_key=""), client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(once())

    def complete(self, headers=None, **body):
        return self.send("POST", "/v1/completions", json={"model": "policy", **body}, headers=headers)

    def chat(self, **body):
        return self.send("POST", "/v1/chat/completions", json={"model": "policy", **body})

    def push(self, version, data, digest=None):
        digest = hashlib.sha256(data).hexdigest() if digest is None else digest
        return self.send("PUT", f"/v1/models/policy@{version}", content=data, headers={"X-Content-SHA256": digest})


@pytest.fixture(scope="session")
def app_client():
    return AppClient


@pytest.fixture
def policy(tokenizer, make_model):
    from posttrain.rollout.policy import Policy
    from posttrain.rollout.settings import PolicyServiceSettings
    from posttrain.rollout.torch_engine import TorchEngine

    engine = TorchEngine(make_model(), [END])
    policy = Policy(engine, tokenizer, PolicyServiceSettings(checkpoint="x", max_sequences=64))
    yield policy
    policy.close()


@pytest.fixture
def client(policy):
    return AppClient(policy)
