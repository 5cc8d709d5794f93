"""FLOPs and seconds by hand: a shape of one block, a card of round numbers."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.lab.gpus import GPUS, Gpu, find_gpu
from posttrain.lab.memory_model import Training
from posttrain.lab.model_shapes import KNOWN, ModelShape, shape_of
from posttrain.lab.time_model import compute_seconds, decode_seconds, forward_flops, training_flops

BLOCK = ModelShape(10, 8, 16, 1, 2, 1, 4, True, True)
"""Linear weights 8·8 + 2·8·4 + 8·8 + 3·8·16 = 576, head 80: N = 656."""
CARD = Gpu("card", 1.0, 100, 10, 1000)


def test_forward_and_training_of_a_token():
    assert BLOCK.matmul_parameters == 656
    assert forward_flops(BLOCK, 5) == 2 * 656 + 4 * 8 * 5
    assert training_flops(BLOCK, Training(), 5) == 3 * (2 * 656 + 160), "6 N, and three times attention's"
    lora = Training("lora", 2, ("q_proj",))
    assert training_flops(BLOCK, lora, 5) == 3 * (2 * 656 + 160) - 2 * 656 + 6 * 32, "r 2 on 8 + 8: 32 weights"
    again = Training(checkpointing=True)
    assert training_flops(BLOCK, again, 5) == training_flops(BLOCK, Training(), 5) + 2 * 576 + 160


def test_qwen_takes_the_six_flops_a_parameter_of_the_rule():
    shape = shape_of(KNOWN["Qwen/Qwen2.5-0.5B"], "here")
    assert training_flops(shape, Training(), 0) == pytest.approx(6 * 494e6, rel=1e-3)


def test_seconds_are_those_of_the_precision_s_peak_at_the_utilisation():
    """30 TFLOP at 30 % of 100 TFLOP/s: a second; at 30 % of 10: ten."""
    assert compute_seconds(30e12, CARD, bf16=True) == pytest.approx(1.0)
    assert compute_seconds(30e12, CARD, bf16=False) == pytest.approx(10.0)


def test_decoding_reads_the_weights_for_each_token_of_a_round():
    """One sequence, no prompt: 4 · 656 bytes and a cache of 4 · 2 · 4 · 5 over 600 GB/s, ten times."""
    slow = decode_seconds(BLOCK, CARD, 1, 0, 10, batch=4, width=4, launch=0)
    assert slow == pytest.approx(10 * (4 * 656 + 160) / 600e9)
    # Five sequences, four at a time, are two rounds; where starting kernels takes longest, that counts.
    assert decode_seconds(BLOCK, CARD, 5, 0, 10, batch=4, width=4, launch=1e-3) == pytest.approx(2 * 10 * 1e-3)


def test_card_is_found_by_name_and_a_wrong_one_suggests_the_nearest():
    assert find_gpu("L4") is GPUS["l4"]
    assert GPUS["l4"].memory < 24e9, "what programs get of 24 GB"
    with pytest.raises(RequestError, match=r"--gpu a10o: unknown card \(did you mean 'a10'"):
        find_gpu("a10o")
