"""Claims about the checkpoint as lm-eval's model: the numbers of stock HFLM, honest ends, stated truncation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from posttrain.core.errors import RequestError
from posttrain.eval_harness.column_cache import ColumnCache
from posttrain.eval_harness.decoding import decode
from posttrain.eval_harness.model import CheckpointLM
from posttrain.eval_harness.passes import computes_in_parts
from posttrain.eval_harness.quiet import quiet

TEXTS = ["Tom has 3 apples.", "Say 2 + 2.", "Why?", "Nina has 17 toys. She sells 6 of them. How many are left?"] * 3


@pytest.fixture(scope="module")
def ours(tiny_checkpoint):
    with quiet():
        return CheckpointLM(tiny_checkpoint, 5, "cpu", torch.float32, None)


def generation(prompts, **settings):
    settings = {"until": [], "do_sample": False, "max_gen_toks": 24} | settings
    return [
        Instance("generate_until", {}, (prompt, settings), 0, metadata=("t", number, 1))
        for number, prompt in enumerate(prompts)
    ]


def test_answers_and_likelihoods_equal_stock_hflm(ours):
    stock = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=5)
    # The prompt's length varies the answers; a stop string that occurs in some of them cuts there.
    free = ours.generate_until(generation(TEXTS))
    stop = next(text for text in free if len(text) > 8)[4:6]
    for until in ([], [stop]):
        requests = generation(TEXTS, until=until)
        with quiet():
            assert ours.generate_until(requests) == stock.generate_until(requests)
    pairs = [Instance("loglikelihood", {}, (text, choice), 0) for text in TEXTS for choice in (" yes", " no at all")]
    with quiet():
        assert_scores_agree(ours.loglikelihood(pairs), stock.loglikelihood(pairs))


def assert_scores_agree(ours, stock):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-4, rel=1e-5)


def test_texts_that_share_a_long_beginning_score_and_answer_as_stock(ours):
    stock = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=5)
    primer = "Anna has 3 apples. Tom takes 2 of them. " * 3
    texts = [primer + text for text in TEXTS[:4]]
    # One, several and very many tokens after one context; one of them twice; one context is cut on the left.
    pairs = [(text, choice) for text in texts for choice in (" no", " no", " no at all", " maybe 17 toys")]
    pairs += [(texts[0] + "word " * 60, " no at all"), ("", "Why?")]
    asked = [Instance("loglikelihood", {}, pair, 0, metadata=("t", n, 1)) for n, pair in enumerate(pairs)]
    with quiet():
        assert_scores_agree(ours.loglikelihood(asked), stock.loglikelihood(asked))
        requests = generation([*texts, texts[0] + "word " * 60])
        assert ours.generate_until(requests) == stock.generate_until(requests)
        whole = [Instance("loglikelihood_rolling", {}, (text * 3,), 0, metadata=("t", 0, 1)) for text in texts]
        assert ours.loglikelihood_rolling(whole) == pytest.approx(stock.loglikelihood_rolling(whole), rel=1e-5)


def test_greedy_is_true_of_exactly_what_greedy_decoding_gives(ours):
    context = ours.tok_encode(TEXTS[0])
    (said,) = decode(ours.model, ColumnCache(0), [context], 5, [], lambda rows: [False] * len(rows))
    other = [*said[:-1], (said[-1] + 1) % 1000]
    scores = ours._loglikelihood_tokens([(("", ""), context, tokens) for tokens in (said, other, said[:2])])
    assert [greedy for _, greedy in scores] == [True, False, True]


def test_architecture_with_a_window_is_left_to_stock():
    from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    shape = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    assert computes_in_parts(Qwen2ForCausalLM(Qwen2Config(**shape)).eval())
    assert computes_in_parts(MistralForCausalLM(MistralConfig(**shape, sliding_window=None)).eval())
    assert not computes_in_parts(MistralForCausalLM(MistralConfig(**shape, sliding_window=8)).eval())


def test_architecture_whose_positions_are_not_told_is_left_to_stock():
    from transformers import BloomConfig, BloomForCausalLM

    assert not computes_in_parts(BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)))


def test_architecture_that_refuses_our_mask_or_turns_by_length_is_left_to_stock():
    from transformers import FalconConfig, FalconForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert not computes_in_parts(FalconForCausalLM(FalconConfig(**shape, alibi=True)).eval())
    llama = {**shape, "intermediate_size": 16, "max_position_embeddings": 64}
    for kind, shares in (("linear", True), ("dynamic", False)):
        torch.manual_seed(0)
        config = LlamaConfig(**llama, rope_scaling={"rope_type": kind, "factor": 4.0})
        assert computes_in_parts(LlamaForCausalLM(config).eval()) is shares


def test_without_sharing_answers_and_likelihoods_are_the_same(ours, monkeypatch):
    asked = [Instance("loglikelihood", {}, (text, " no at all"), 0, metadata=("t", 0, 1)) for text in TEXTS]
    shared = ours.loglikelihood(asked), ours.generate_until(generation(TEXTS))
    monkeypatch.setattr(ours, "in_parts", False)
    assert ours.generate_until(generation(TEXTS)) == shared[1]
    assert_scores_agree(shared[0], ours.loglikelihood(asked))


def test_stop_string_cuts_the_text_and_the_reason_is_stop(ours):
    free = ours.generate_until(generation(TEXTS[:1]))[0]
    assert ours.finish_reasons["t", 0] == "length"
    cut = ours.generate_until(generation(TEXTS[:1], until=[free[5:8]]))[0]
    assert cut == free[: free.index(free[5:8])]
    assert ours.finish_reasons["t", 0] == "stop"


def test_text_ends_at_the_end_token_whatever_follows(ours, monkeypatch):
    hello = ours.tok_encode("hello")
    tail = [*hello, ours.tokenizer.eos_token_id, *ours.tok_encode(" and more")]
    monkeypatch.setattr(ours, "_decode", lambda prompts, *_: [tail] * len(prompts))
    assert ours.generate_until(generation(["a", "b"])) == ["hello", "hello"]
    assert ours.finish_reasons["t", 1] == "stop"


def test_checkpoints_own_sampling_settings_do_not_enter_and_its_end_tokens_stay(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    settings = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 0.7, "eos_token_id": 7}
    (Path(copy) / "generation_config.json").write_text(json.dumps(settings))
    model = CheckpointLM(str(copy), 5, "cpu", torch.float32, None)
    assert model.model.generation_config.repetition_penalty in (None, 1.0)
    assert model.end_tokens == {7, model.tokenizer.eos_token_id}


def test_order_of_requests_changes_neither_answers_nor_their_places(ours):
    forward = ours.generate_until(generation(TEXTS))
    backward = ours.generate_until(generation(TEXTS[::-1]))
    assert backward == forward[::-1]


def test_long_prompt_keeps_its_end_and_is_counted(ours):
    ours.prompts_cut.clear()
    long = "word " * 400 + "Why?"
    ids = ours.tok_encode(long)[-(192 - 24) :]
    assert ours.generate_until(generation([long])) == ours.generate_until(generation([ours.tok_decode(ids)]))
    assert ours.prompts_cut == {"t": 1}


def test_no_room_for_the_prompt_is_one_clear_line(ours):
    with pytest.raises(RequestError, match=r"generates up to 192 tokens .* context is 192.*--max-gen-toks"):
        ours.generate_until(generation(["Why?"], max_gen_toks=192))


def test_answer_longer_than_the_context_is_refused(ours):
    with pytest.raises(RequestError, match="context is 192"):
        ours.loglikelihood([Instance("loglikelihood", {}, ("Why?", " because" * 300), 0)])


def test_pickled_weights_are_refused(tiny_checkpoint, tmp_path):
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(RequestError, match="cannot load a model"):
        CheckpointLM(str(copy), 5, "cpu", torch.float32, None)
