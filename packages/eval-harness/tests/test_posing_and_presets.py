"""Claims about how items are posed, what of that is in a result's key, and the reference lab's preset."""

import itertools
import json

import pytest

from posttrain.core.cli import run
from posttrain.core.errors import RequestError
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.options import posed
from posttrain.eval_harness.posing import Posing
from posttrain.eval_harness.presets import PRESETS, preset

LAB = PRESETS["lab"]
PROBLEMS = [{"id": f"p{n}", "question": f"Item {n}?", "answer": f"#### 4{n}"} for n in range(6)]


def test_what_departs_from_the_standard_is_in_the_key_and_the_standard_is_not():
    assert Posing().label("hf") == Posing(fewshot_as_multiturn=True, few_shot=3).label("hf") == "hf"
    departures = [
        Posing(apply_chat_template=False),
        Posing(fewshot_as_multiturn=False),
        Posing(few_shot_seed=42),
        Posing(max_gen_toks=16),
        Posing(dtype="bfloat16"),
    ]
    labels = {posing.label(backend) for posing in departures for backend in ("hf", "service")}
    assert len(labels) == 2 * len(departures)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"few_shot": -1}, "--few-shot -1"),
        ({"fewshot_as_multiturn": True, "apply_chat_template": False}, "needs the chat template"),
        ({"dtype": "int8"}, "--dtype int8"),
    ],
)
def test_posings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(RequestError, match=complaint):
        Posing(**settings)


def test_examples_in_one_turn_are_one_message_of_the_user(scripted, nano_items):
    nano_items(PROBLEMS)
    prompts = {}
    for as_turns in (None, True, False):
        model = scripted(say=lambda doc: "")
        evaluate("unused", ["nano_problems_validation"], posing=Posing(few_shot=2, fewshot_as_multiturn=as_turns))
        prompts[as_turns] = model.prompts
    assert prompts[None] == prompts[True]
    assert all(prompt.count("<user>") == 3 for prompt in prompts[True])
    assert all(prompt.count("<user>") == 1 and prompt.count("####") == 2 for prompt in prompts[False])


def test_another_seed_draws_other_examples(scripted, nano_items):
    nano_items(PROBLEMS)
    prompts = []
    for seed in (1234, 42):
        model = scripted(say=lambda doc: "")
        evaluate("unused", ["nano_problems_validation"], posing=Posing(few_shot=2, few_shot_seed=seed))
        prompts.append(model.prompts)
    assert prompts[0] != prompts[1]


def test_lab_is_stock_lm_evals_defaults_in_bf16_at_seed_42():
    assert LAB.tasks == ("mmlu", "gsm8k", "truthfulqa_mc2", "ifeval")
    assert (LAB.posing.few_shot, LAB.posing.apply_chat_template, LAB.posing.few_shot_seed) == (None, False, 42)
    assert LAB.seed == 42
    assert {task for task, _ in LAB.columns.values()} == set(LAB.tasks)
    assert posed(LAB, None, None, None, None, None, None, "cuda") == LAB.posing
    on_cpu = posed(LAB, None, None, None, None, None, None, "cpu")
    assert on_cpu.label("hf") == "hf, no chat template, few-shot seed 42"


def test_a_services_precision_is_not_the_presets_and_not_to_be_chosen(tiny_checkpoint):
    assert posed(LAB, None, None, None, None, None, None, "cuda", here=False).dtype is None
    for backend in ("service", "vllm"):
        with pytest.raises(RequestError, match=f"--dtype float32 is for --backend hf; {backend}"):
            evaluate(
                tiny_checkpoint,
                ["nano_choice"],
                backend=backend,
                service_url="http://127.0.0.1:9",
                posing=Posing(dtype="float32"),
            )


def test_options_replace_what_a_preset_says():
    said = posed(LAB, 3, True, False, 7, 64, "float32", "cpu")
    assert said == Posing(3, True, False, 7, 64, "float32")


def test_unknown_preset_is_told_the_known():
    with pytest.raises(RequestError, match="unknown preset 'lap'.*'lab'"):
        preset("lap")


def test_command_shows_a_presets_columns_with_standard_errors(scripted, tiny_checkpoint, tmp_path, capfd, monkeypatch):
    """The columns of the tasks that were asked for, whatever else they report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path / "mirror"))
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(8)]
    for split in ("train", "test"):
        file = tmp_path / "mirror/openai/gsm8k/main" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = scripted(say=lambda doc: "#### 1")
    arguments = ["--preset", "lab", "--tasks", "gsm8k", "--device", "cpu", "--json"]
    assert run(["eval", tiny_checkpoint, *arguments]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert told["columns"] == {"GSM8K strict": told["results"][0]["metrics"]["exact_match,strict-match"]}
    assert told["columns"]["GSM8K strict"]["standard_error"] > 0
    assert told["results"][0]["backend"] == "hf, no chat template, few-shot seed 42"
    assert (told["results"][0]["few_shot"], told["results"][0]["n"]) == (5, 8)
    assert "GSM8K strict" in err
    assert "0.1250 ± 0.1250" in err
    assert all("<user>" not in prompt for prompt in itertools.islice(model.prompts, 3))
