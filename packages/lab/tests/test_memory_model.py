"""The bytes that training takes: by hand, and against what torch's allocator measured of real steps on a CPU."""

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from posttrain.data import nano
from posttrain.data.tokenizer import load_tokenizer
from posttrain.lab.memory_model import (
    NF4,
    Training,
    activation_bytes,
    block_bytes_a_token,
    cast_bytes,
    gradient_bytes,
    head_bytes,
    kept_bytes,
    kv_cache_bytes,
    optimizer_bytes,
    scoring_bytes,
    step_bytes,
    trained_parameters,
    weight_bytes,
)
from posttrain.lab.model_shapes import KNOWN, ModelShape, shape_of
from posttrain.trainers.adapters import add_adapter
from posttrain.trainers.demonstrations import Demonstrations
from posttrain.trainers.model_settings import LINEAR_LAYERS, Adapter
from posttrain.trainers.optimizers import build_optimizer
from posttrain.trainers.pair_logps import pair_layout, pair_logps, pair_rows
from posttrain.trainers.sft import held_out_loss
from posttrain.trainers.token_logprobs import token_logprobs

CONFIG: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True,
}  # fmt: skip
SHAPE = shape_of(CONFIG, "here")
QWEN = shape_of(KNOWN["Qwen/Qwen2.5-0.5B"], "here")
LORA = {"adapter": "lora", "rank": 8, "targets": LINEAR_LAYERS, "mask_bytes": 4}
WAYS = {
    "full fp32": Training(),
    "full bf16": Training(bf16=True),
    "full fp32 with entropy": Training(entropy=True),
    "full fp32 with checkpointing": Training(checkpointing=True),
    "lora fp32": Training(**LORA),
    "lora fp32 with dropout": Training(**LORA, dropout=0.05),
    "lora bf16 with dropout": Training(**LORA, dropout=0.05, bf16=True),
    "lora bf16 with dropout and checkpointing": Training(**LORA, dropout=0.05, bf16=True, checkpointing=True),
}

PACKED = ("full fp32", "lora bf16 with dropout", "lora bf16 with dropout and checkpointing")


def by_hand(**sizes: int) -> ModelShape:
    """One block: h 8, q 8, k 4, f 16, two heads, a vocabulary of 10."""
    return ModelShape(10, 8, 16, sizes.get("layers", 1), 2, 1, 4, True, True)


def test_a_block_keeps_by_hand_what_autograd_keeps():
    """fp32: 4 · (4·8 + 2 for the norms, 2·8 inputs, 2·8 + 2·4 for attention, 4·16 for the MLP) + 4 · 2 heads."""
    assert block_bytes_a_token(by_hand(), Training()) == 4 * (34 + 16 + 24 + 64) + 8
    # bf16: norms and log-sums stay fp32, five copies of inputs, all else 2 bytes.
    assert block_bytes_a_token(by_hand(), Training(bf16=True)) == 4 * 34 + 8 + 2 * (5 * 8 + 24 + 64)
    # LoRA of rank 2 on q with dropout, on a GPU: no inputs of frozen matrices; one of q's, its mask, 2 numbers of A.
    how = Training("lora", 2, ("q_proj",), dropout=0.1)
    assert block_bytes_a_token(by_hand(), how) == 4 * (18 + 24 + 48 + 8 + 2) + 8 + 8


def test_checkpointing_keeps_each_block_s_input_and_one_block():
    block = block_bytes_a_token(by_hand(), Training())
    again = Training(checkpointing=True)
    assert kept_bytes(by_hand(layers=3), again, tokens=5) == 5 * 3 * 4 * 8
    assert kept_bytes(by_hand(layers=3), Training(), tokens=5) == 5 * 3 * block
    # One position's logits are small: the backward pass of a block, with 2 · 16 gradients a token, is what counts.
    assert activation_bytes(by_hand(layers=3), again, tokens=5, positions=1) == 5 * (3 * 4 * 8 + block + 4 * 2 * 16)
    assert activation_bytes(by_hand(layers=3), Training(), 5, 1) == 5 * (3 * block + 4 * 2 * 16)


def test_head_counts_where_it_is_more_than_a_block_s_backward_pass():
    head = head_bytes(QWEN, Training(), 1000)
    assert activation_bytes(QWEN, Training(), 1000, 1000) == kept_bytes(QWEN, Training(), 1000) + head


def test_weights_gradients_and_moments_of_qwen_by_hand():
    """494,032,768 parameters: 1.84 GiB in fp32, as much again for gradients, twice for AdamW's moments."""
    full = Training()
    assert weight_bytes(QWEN, full) == gradient_bytes(QWEN, full) == 4 * 494_032_768
    assert optimizer_bytes(QWEN, full) == 8 * 494_032_768
    # r 16 on all seven: 24 blocks · 16 · (2·(896 + 896) + 2·(896 + 128) + 3·(896 + 4864)) = 8.8M
    lora = Training("lora", 16, LINEAR_LAYERS, bf16=True)
    assert trained_parameters(QWEN, lora) == 24 * 16 * (2 * 1792 + 2 * 1024 + 3 * 5760) == 8_798_208
    assert weight_bytes(QWEN, lora) == 2 * 494_032_768 + 4 * 8_798_208
    # QLoRA: 4.127 bits a weight of the blocks (357,826,560 of them), fp32 for the rest.
    assert pytest.approx(4.127, abs=1e-3) == 8 * NF4
    assert weight_bytes(QWEN, Training("qlora", 16, LINEAR_LAYERS, bf16=True)) == pytest.approx(
        0.5158691 * 357_826_560 + 4 * (494_032_768 - 357_826_560) + 4 * 8_798_208, rel=1e-6
    )


def test_logits_and_cache_of_qwen_by_hand():
    """A position's logits: 151,936 numbers, with their gradient 1.2 MB. A token's cache: 2 · 24 · 128 numbers."""
    assert head_bytes(QWEN, Training(), 1) == 8 * 151_936
    assert head_bytes(QWEN, Training(bf16=True), 1) == 10 * 151_936
    assert kv_cache_bytes(QWEN, 1) == 4 * 6144


def test_tiled_head_of_sft_has_one_tile_of_logits_by_hand():
    """4,096 positions and 32,768 words in bf16 are a quarter of a GiB, where all logits would be 5.8 GiB."""
    tile, hidden, own = 2 * 4096 * 32_768, 4 * 4096 * 896, 4 * 151_936 * 896
    lora = Training("lora", 16, LINEAR_LAYERS, bf16=True, tiled_head=True)
    assert head_bytes(QWEN, lora, 4096) == tile + hidden
    assert head_bytes(QWEN, lora, 8192) == tile + 2 * hidden, "more positions take turns"
    assert head_bytes(QWEN, Training(bf16=True, tiled_head=True), 4096) == tile + hidden + own


def test_head_that_qlora_leaves_in_fp32_has_a_bf16_copy_unless_it_is_tiled():
    how = {"adapter": "qlora", "rank": 16, "targets": LINEAR_LAYERS, "bf16": True}
    assert cast_bytes(QWEN, Training(**how)) == 2 * (8_798_208 + 151_936 * 896)
    assert cast_bytes(QWEN, Training(**how, tiled_head=True)) == 2 * 8_798_208


def test_muon_keeps_one_moment_of_the_blocks_matrices():
    saved = optimizer_bytes(SHAPE, Training()) - optimizer_bytes(SHAPE, Training(muon=True))
    assert saved == 4 * SHAPE.linear_parameters


def trained_model(how: Training) -> Any:
    torch.manual_seed(0)
    frozen = torch.bfloat16 if how.bf16 and how.adapter == "lora" else torch.float32
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=frozen)
    if how.adapter == "lora":
        add_adapter(model, Adapter(r=how.rank, dropout=how.dropout), seed=0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if how.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def step(model: Any, ids: torch.Tensor, how: Training) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=how.bf16):
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    logprobs, entropy = token_logprobs(logits, ids.flatten(), with_entropy=how.entropy)
    del logits
    loss = -logprobs.mean() if entropy is None else -logprobs.mean() - 0.1 * entropy.mean()
    loss.backward()


def measured_peak(work: Any) -> int:
    """Most bytes that torch's CPU allocator held at once beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_peak_of_a_step_is_within_a_fifth_of_what_is_said(how):
    """The second micro-batch of a step: gradients are there, so what comes on top is activations and logits."""
    model, ids = trained_model(how), torch.randint(0, 1000, (4, 128), generator=torch.Generator().manual_seed(1))
    step(model, ids, how)
    said = activation_bytes(SHAPE, how, ids.numel(), ids.numel())
    assert measured_peak(lambda: step(model, ids, how)) == pytest.approx(said, rel=0.2)


@pytest.mark.parametrize("how", [WAYS[name] for name in PACKED], ids=PACKED)
def test_peak_of_packed_pairs_is_within_a_fifth_of_what_is_said(how):
    """As preference and online methods read rows: a prompt once for its answers, logits of the answers alone."""
    model = trained_model(Training())
    layout = pair_layout(model)
    if how.adapter == "lora":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16 if how.bf16 else torch.float32)
        add_adapter(model, Adapter(r=how.rank, dropout=how.dropout), seed=0)
    if how.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    generator = torch.Generator().manual_seed(0)
    prompt, *answers = (torch.randint(0, 1000, (size,), generator=generator).tolist() for size in (40, 100, 100))
    rows = pair_rows(layout, [(prompt, *answers)] * 4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=how.bf16):
            found = pair_logps(model, rows)
        (found.rejected - found.chosen).mean().backward()

    step()
    said = activation_bytes(SHAPE, how, rows.inputs["input_ids"].numel(), len(rows.targets))
    assert measured_peak(step) == pytest.approx(said, rel=0.2)


def test_peak_of_trl_s_head_is_within_a_fifth_of_what_is_said():
    """On a CPU, where it is not what trains; the tile is the same."""
    how = Training(tiled_head=True)
    model, ids = trained_model(how), torch.randint(0, 1000, (4, 128), generator=torch.Generator().manual_seed(1))
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))

    def work() -> None:
        model(input_ids=ids, labels=ids, fused_lm_head=True).loss.backward()

    work()
    assert measured_peak(work) == pytest.approx(activation_bytes(SHAPE, how, ids.numel(), ids.numel()), rel=0.2)


def test_peak_of_held_out_demonstrations_is_within_a_fifth_of_what_is_said():
    model, tokenizer = trained_model(Training()), load_tokenizer(nano.BASE)
    ids = torch.randint(0, 1000, (8, 256), generator=torch.Generator().manual_seed(1)).tolist()
    data = Demonstrations([{"input_ids": row, "labels": row} for row in ids], 0, 0)
    held_out_loss(model, tokenizer, data, 8)
    said = scoring_bytes(SHAPE, Training(tiled_head=True), 8 * 256)
    assert measured_peak(lambda: held_out_loss(model, tokenizer, data, 8)) == pytest.approx(said, rel=0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("how", [WAYS["full fp32"], WAYS["lora bf16 with dropout"]], ids=["full", "lora"])
def test_weights_gradients_and_moments_are_those_of_the_model_and_its_optimiser(how, optimizer):
    how = Training(**{**vars(how), "muon": optimizer == "muon"})
    model = trained_model(how)
    made = build_optimizer(model, optimizer)
    step(model, torch.zeros(1, 4, dtype=torch.long), how)
    made.step()
    assert sum(p.nbytes for p in model.parameters()) == weight_bytes(SHAPE, how)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sum(gradient.nbytes for gradient in gradients) == gradient_bytes(SHAPE, how)
    moments = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    assert sum(value.nbytes for value in moments if value.ndim) == optimizer_bytes(SHAPE, how)


def test_fused_step_takes_nothing_on_top():
    assert step_bytes(QWEN, Training(), fused=True) == 0
    assert step_bytes(QWEN, Training(), fused=False) == gradient_bytes(QWEN, Training())
