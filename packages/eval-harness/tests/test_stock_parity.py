"""Claims about the reference lab's four tasks: item by item what `lm_eval.simple_evaluate` finds with its `hf` backend.

Both read the same local rows, real ones where they are there and rows of our own in the Hub's columns everywhere; stock
loads the same checkpoint by itself. IFEval's sentence splitter is a stand-in that NLTK trains on the test's own text.
"""

import json
import os
from pathlib import Path

import nltk
import pytest
from lm_eval import evaluator
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

from posttrain.data.nano import BASE
from posttrain.eval_harness.catalog import mirrored_tasks
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.posing import Posing
from posttrain.eval_harness.presets import PRESETS
from posttrain.eval_harness.quiet import quiet

HERE = Path(__file__).resolve()
REAL = Path(os.environ.get("POSTTRAIN_DATA") or HERE.parents[4] / "shared" / "data")
TASKS = ["mmlu_anatomy", "gsm8k", "truthfulqa_mc2", "ifeval"]
LIMIT = 5

OWN = {
    "cais/mmlu/all": {
        split: [
            {
                "question": f"Which number comes after {n} in {subject}?",
                "subject": subject,
                "choices": [str(n + shift) for shift in (2, 1, 0, 7)],
                "answer": 1,
            }
            for subject in ("anatomy", "virology")
            for n in range(start, start + 6)
        ]
        for split, start in (("dev", 20), ("test", 0))
    },
    "openai/gsm8k/main": {
        split: [
            {"question": f"Tom has {n} apples and buys {n + 2}. How many has he?", "answer": f"#### {2 * n + 2}"}
            for n in range(start, start + 8)
        ]
        for split, start in (("train", 20), ("test", 0))
    },
    "truthfulqa/truthful_qa/multiple_choice": {
        "validation": [
            {
                "question": f"What lives in house {n}?",
                "mc1_targets": {"choices": ["A cat.", "A dog."], "labels": [1, 0]},
                "mc2_targets": {
                    "choices": ["A cat.", "A big cat.", f"Dog {n}.", "Nobody knows."],
                    "labels": [1, 1, 0, 0],
                },
            }
            for n in range(6)
        ]
    },
    "google/IFEval/default": {
        "train": [
            {
                "key": 100 + n,
                "prompt": f"Say something about {n} birds. Do not use any commas.",
                "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
                "kwargs": [{}, {"relation": "at least", "num_sentences": 1}],
            }
            for n in range(6)
        ]
    },
}


@pytest.fixture
def mirror(request, tmp_path, monkeypatch):
    """The four data sets under POSTTRAIN_DATA, and a sentence splitter."""
    root = REAL
    if request.param == "real" and not (REAL / "google/IFEval").is_dir():
        pytest.skip("POSTTRAIN_DATA holds no google/IFEval")
    if request.param == "own":
        root = tmp_path / "mirror"
        for place, splits in OWN.items():
            (root / place).mkdir(parents=True)
            for split, rows in splits.items():
                (root / place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("POSTTRAIN_DATA", str(root))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    trainer = PunktTrainer()
    trainer.train("A bird sings. It flies away. Nobody sees it. It comes back.", finalize=True)
    folder = tmp_path / "nltk/tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    save_punkt_params(trainer.get_params(), dir=str(folder))


def stock(posing):
    """simple_evaluate as anybody calls it, on tasks that read the mirror."""
    with quiet():
        return evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(BASE), "dtype": "float32"},
            tasks=TASKS,
            task_manager=mirrored_tasks(TASKS),
            num_fewshot=posing.few_shot,
            limit=LIMIT,
            batch_size=4,
            device="cpu",
            apply_chat_template=posing.apply_chat_template,
            fewshot_as_multiturn=posing.as_turns,
            fewshot_random_seed=posing.few_shot_seed,
            gen_kwargs={"max_gen_toks": posing.max_gen_toks},
            bootstrap_iters=0,
        )


def plain(score):
    """Truth values as item files have them."""
    return [float(part) for part in score] if isinstance(score, list) else float(score)


TURNS = Posing(few_shot=2, max_gen_toks=24)
ONE_TURN = Posing(few_shot=1, fewshot_as_multiturn=False, max_gen_toks=24, few_shot_seed=7)
NO_TEMPLATE = Posing(apply_chat_template=False, few_shot_seed=42, few_shot=2, max_gen_toks=24)


@pytest.mark.parametrize(
    ("mirror", "posing"),
    [
        pytest.param("own", TURNS, id="own rows, turns"),
        pytest.param("own", ONE_TURN, id="own rows, one turn", marks=pytest.mark.slow),
        pytest.param("own", NO_TEMPLATE, id="own rows, no template", marks=pytest.mark.slow),
        pytest.param("real", TURNS, id="real rows, turns", marks=pytest.mark.slow),
        pytest.param("real", ONE_TURN, id="real rows, one turn", marks=pytest.mark.slow),
        pytest.param("real", NO_TEMPLATE, id="real rows, no template"),
    ],
    indirect=["mirror"],
)
def test_every_item_is_what_stock_finds(mirror, posing):
    ours, theirs = evaluate(BASE, TASKS, posing=posing, limit=LIMIT, batch_size=4), stock(posing)
    for name in TASKS:
        result = ours[name]
        for metric, estimate in result.metrics.items():
            key = metric if "," in metric else f"{metric},none"
            samples = [s for s in theirs["samples"][name] if s["filter"] == key.partition(",")[2]]
            assert len(samples) == result.n == LIMIT
            expected = [plain(s[key.partition(",")[0]]) for s in samples]
            scores = [item["scores"][metric] for item in result.items]
            assert scores == [pytest.approx(score, abs=1e-5) for score in expected], (name, metric)
            assert estimate.value == pytest.approx(theirs["results"][name][key], abs=1e-5)
        headline = result.headline.partition(",")[2] or "none"
        samples = [s for s in theirs["samples"][name] if s["filter"] == headline]
        if "text" in result.items[0]:
            assert [item["text"] for item in result.items] == [s["resps"][0][0] for s in samples]
        else:
            likelihoods = [[response[0] for response in s["filtered_resps"]] for s in samples]
            assert [item["prediction"] for item in result.items] == [row.index(max(row)) for row in likelihoods]
        assert result.few_shot == theirs["n-shot"][name]


@pytest.mark.parametrize("mirror", ["own"], indirect=True)
def test_lab_preset_runs_all_four_and_fills_its_columns(mirror):
    lab = PRESETS["lab"]
    posing = Posing(apply_chat_template=False, few_shot_seed=42, max_gen_toks=8)
    tasks = ["mmlu_anatomy", *lab.tasks[1:]]
    result = evaluate(BASE, tasks, posing=posing, limit=2)
    assert list(lab.cells(result)) == list(lab.columns)[1:]
    assert [result[task].few_shot for task in tasks] == [0, 5, 0, 0]
    assert all(cell.standard_error is not None for cell in lab.cells(result).values())
