"""The shape of a decoder, from its config.json alone: how many parameters it has, and of which kind.

Counts the dense Llama family (RMS norms, rotary positions, gated MLP, grouped queries), of which Qwen2 is one; a model
of another kind is refused rather than counted wrong. No weights are read and none are needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.core.errors import RequestError


class ShapeNotKnown(RequestError):
    """No config.json is at hand, or it is of a kind that is not counted."""


QKV_BIAS = {"qwen2": True, "llama": False, "mistral": False}
"""Counted families, and whether their query, key and value projections have a bias unless their config says so."""

KNOWN: Mapping[str, Mapping[str, Any]] = {
    name: {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "dtype": "bfloat16",
    }
    for name, hidden, intermediate, layers, heads, kv_heads, vocabulary, tied, context in (
        ("Qwen/Qwen2.5-0.5B", 896, 4864, 24, 14, 2, 151_936, True, 32_768),
        ("Qwen/Qwen2.5-1.5B", 1536, 8960, 28, 12, 2, 151_936, True, 131_072),
        ("Qwen/Qwen2.5-7B", 3584, 18_944, 28, 28, 4, 152_064, False, 131_072),
    )
}
"""What the published config.json of models says that recipes name, for a machine that has none of their files."""


@dataclass(frozen=True)
class ModelShape:
    """What sizes follow from."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tied: bool
    """Whether input and output embeddings are one matrix."""
    qkv_bias: bool

    @property
    def query_size(self) -> int:
        """Numbers of all heads' queries of a token."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers of all heads' keys of a token, and as many of values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights of the blocks' seven linear layers, which LoRA adapts and 4-bit loading quantises."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def embedding_parameters(self) -> int:
        """The input embedding, and the output's where that is another matrix."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)

    @property
    def body_parameters(self) -> int:
        """All but the output embedding: what a critic or a reward model has, without its head."""
        return self.parameters - (0 if self.tied else self.vocab_size * self.hidden_size)

    @property
    def parameters(self) -> int:
        """All of them: linear layers, their biases, two norms a block and one after them, embeddings."""
        biases = self.query_size + 2 * self.kv_size if self.qkv_bias else 0
        vectors = self.num_hidden_layers * (biases + 2 * self.hidden_size) + self.hidden_size
        return self.linear_parameters + vectors + self.embedding_parameters

    @property
    def matmul_parameters(self) -> int:
        """Weights that a token is multiplied with, the output head included: N of the 6·N rule for FLOPs."""
        return self.linear_parameters + self.vocab_size * self.hidden_size

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of LoRA's A [rank, in] and B [out, rank] on the named projections of every block (Hu et al. 2021).

        RequestError for a name that is none of the seven.
        """
        hidden, query, kv, mlp = self.hidden_size, self.query_size, self.kv_size, self.intermediate_size
        sizes = {
            "q_proj": hidden + query,
            "k_proj": hidden + kv,
            "v_proj": hidden + kv,
            "o_proj": query + hidden,
            "gate_proj": hidden + mlp,
            "up_proj": hidden + mlp,
            "down_proj": mlp + hidden,
        }
        unknown = [name for name in targets if name not in sizes]
        if unknown:
            raise RequestError(f"adapter.target_modules: '{unknown[0]}' is none of {', '.join(sizes)}")
        return self.num_hidden_layers * rank * sum(sizes[name] for name in targets)


def shape_of(config: Mapping[str, Any], where: str) -> ModelShape:
    """The shape that a config.json describes; ShapeNotKnown, which starts with `where`, for a kind that is not counted
    or a field that is missing."""
    kind = config.get("model_type")
    if kind not in QKV_BIAS:
        raise ShapeNotKnown(f"{where}: models of type '{kind}' are not counted (only {', '.join(QKV_BIAS)} are)")
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return ModelShape(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            tied=config.get("tie_word_embeddings", False),
            qkv_bias=config.get("attention_bias", QKV_BIAS[kind]),
        )
    except KeyError as missing:
        raise ShapeNotKnown(f"{where}: config.json has no {missing}; it is of no model that can be counted") from None
