"""The committed record: what it holds, that its table can be rebuilt from it, and how a row leaves it."""

import gzip
import json
from dataclasses import replace

import pytest

from packages.lab.tests.published_rows import (
    DESCRIBED,
    content,
    evaluations,
    four_rows,
    judged_rows,
    row,
    scores,
    table_of,
)
from posttrain.core.errors import RequestError
from posttrain.data.nano.corpus import evaluation_clusters
from posttrain.lab.cells import as_json
from posttrain.lab.published_metrics import merge_metrics
from posttrain.lab.record import publish_table, read_row, retract
from posttrain.lab.table import TableRow, build_table


@pytest.fixture
def rows():
    return four_rows()


@pytest.fixture
def published(tmp_path, rows):
    picture = tmp_path / "comparison-tasks.png"
    picture.write_bytes(b"png")
    publish_table(tmp_path / "results", "nano", table_of(*rows), DESCRIBED, [picture])
    merge_metrics(tmp_path / "results", evaluations(*rows), ["posttrain compare"])
    return tmp_path / "results"


def test_the_table_is_published_with_its_picture_and_items(published, rows):
    plain = json.loads((published / "nano.json").read_text())
    assert plain["rows"] == json.loads(json.dumps(as_json(table_of(*rows))))["rows"]
    assert "posttrain compare" in (published / "nano.md").read_text()
    assert (published / "nano-tasks.png").read_bytes() == b"png"
    assert len(list((published / "items" / "nano").glob("*.jsonl.gz"))) == 4


def test_publishing_the_same_again_changes_no_byte(published, rows, tmp_path):
    before = content(published)
    publish_table(published, "nano", table_of(*rows), DESCRIBED, [tmp_path / "comparison-tasks.png"])
    merge_metrics(published, evaluations(*rows), ["posttrain compare"])
    assert content(published) == before


class TestEvidenceThatWouldVanish:
    """What a published row holds cannot be lost by publishing less."""

    def refused(self, published, table, told: str) -> None:
        before = content(published)
        with pytest.raises(RequestError, match=told) as error:
            publish_table(published, "nano", table, DESCRIBED, [])
        assert "\n" not in str(error.value)
        assert content(published) == before

    def test_rows(self, published, rows):
        told = r"holds dpo \(cccccccc\), which would vanish; .*retract cccccccc"
        self.refused(published, table_of(rows[0], rows[1], rows[3]), told)

    def test_seeds_are_named_with_the_row_and_all_that_it_needs(self, published, rows):
        told = (
            r"nano.json holds seed 1 of base \(aaaaaaaa\), which would vanish; publish with --seeds 0,1, "
            r"or take the row out first: posttrain results retract aaaaaaaa --why"
        )
        self.refused(published, table_of(*(row(each.name, {0: 10}) for each in rows)), told)

    def test_seeds_of_one_row_are_told_though_it_has_others(self, published, rows):
        other = [*rows[:2], row("dpo", {2: 20, 3: 20}), rows[3]]
        table = build_table(other, ["acc"], ["acc"], "acc", check=False, partial=True)
        told = r"seeds 0, 1 of dpo \(cccccccc\), which would vanish; publish with --seeds 0,1,2,3, or"
        self.refused(published, table, told)

    def test_columns(self, published, rows):
        more = [replace(each, scores={**each.scores, "mc2": scores({0: 5, 1: 5})}) for each in rows]
        publish_table(published, "nano", table_of(*more, columns=("acc", "mc2")), DESCRIBED, [])
        told = r"column 'mc2' of base \(aaaaaaaa\), which would vanish; publish with a recipe that has it"
        self.refused(published, table_of(*rows), told)
        one = [*more[:3], replace(more[3], scores=rows[3].scores)]
        self.refused(published, table_of(*one, columns=("acc", "mc2")), r"column 'mc2' of ppo \(dddddddd\)")

    def test_values(self, published, rows):
        fewer = [replace(each, scores={"acc": scores({0: 5, 1: 5}, n=30)}) for each in rows]
        self.refused(published, table_of(*fewer), r"holds 20 values in column 'acc' of base \(aaaaaaaa\)")

    def test_by_more_seeds_and_columns_nothing_does(self, published, rows):
        more = [row(each.name, {0: 5, 1: 6, 2: 7}) for each in rows]
        more = [replace(each, scores={**each.scores, "mc2": scores({0: 5})}) for each in more]
        publish_table(published, "nano", table_of(*more, columns=("acc", "mc2")), DESCRIBED, [])
        assert "| dpo (3 seeds) |" in (published / "nano.md").read_text()


def test_retracting_makes_the_table_anew_from_the_items_of_the_others(published, rows):
    assert retract(published, "cccc", "its data had leaked") == ["nano"]
    plain = json.loads((published / "nano.json").read_text())
    expected = json.loads(json.dumps(as_json(table_of(rows[0], rows[1], rows[3]))))
    assert {key: plain[key] for key in ("rows", "standings", "verdicts")} == {
        key: expected[key] for key in ("rows", "standings", "verdicts")
    }
    differences = [(each["after"], each["before"], each["columns"]) for each in plain["differences"]]
    assert differences == [(each["after"], each["before"], each["columns"]) for each in expected["differences"]]
    assert plain["retracted"] == [{"method": "dpo", "config_hash": "cccccccc" * 8, "why": "its data had leaked"}]
    page = (published / "nano.md").read_text()
    assert "- dpo (cccccccc): its data had leaked" in page
    assert "dpo − sft" not in page
    assert not (published / "nano-tasks.png").exists()
    marks = {each["method"]: each.get("retracted") for each in json.loads((published / "metrics.json").read_text())}
    assert marks == {"base": None, "sft": None, "ppo": None, "dpo": "its data had leaked"}
    assert not list((published / "items").rglob("cccc*"))


def test_footnote_of_a_retracted_row_goes_with_it(published, rows):
    noted = [replace(rows[2], footnotes=("seeds is [0]",)), replace(rows[3], footnotes=("seeds is [0]", "limit is 5"))]
    publish_table(published, "nano", table_of(*rows[:2], *noted), DESCRIBED, [])
    assert "## Marked\n\n- dpo, ppo: seeds is [0]\n- ppo: limit is 5\n" in (published / "nano.md").read_text()
    retract(published, "dddd", "it was made by mistake")
    assert "## Marked\n\n- dpo: seeds is [0]\n\n" in (published / "nano.md").read_text()
    retract(published, "cccc", "so was this")
    assert "## Marked" not in (published / "nano.md").read_text()
    assert json.loads((published / "nano.json").read_text())["footnotes"] == []


def test_page_says_what_the_comparison_took_and_goes_on_saying_it(published, rows):
    took = {"seconds": 793.0, "sentence": "Done in 13:13, 2 at a time: 12 stages and 10 evaluations."}
    publish_table(published, "nano", table_of(*rows), {**DESCRIBED, "took": took}, [])
    retract(published, "cccc", "its data had leaked")
    assert "    posttrain compare\n\nDone in 13:13, 2 at a time: " in (published / "nano.md").read_text()
    assert json.loads((published / "nano.json").read_text())["took"] == took


def test_rows_of_others_stand_beside_ours_marked_and_go_on_standing_there(published, rows):
    (published / "published").mkdir()
    (published / "published" / "lab.yaml").write_text(
        "title: A table\nsource: a lab\ntasks: {t: {n: 101, metric: task/acc}}\n"
        "rows: [{name: theirs, accuracies: {t: 0.5}}, {name: other, accuracies: {t: 0.4}}]\n"
        "claims: [{method: theirs, over: other}]\n"
    )
    publish_table(published, "nano", table_of(*rows), {**DESCRIBED, "with_published": {"task/acc": "acc"}}, [])
    retract(published, "cccccccc", "too long")
    page, record = (published / "nano.md").read_text(), json.loads((published / "nano.json").read_text())
    assert "theirs (published, not measured here)" in page
    assert "0.5000 ± 0.0500" in page, "√(.25 / 100)"
    assert [row["method"] for row in record["published"][0]["rows"]] == ["theirs", "other"]
    assert "theirs" not in {row["method"] for row in record["rows"]}


def test_what_was_retracted_stays_said_when_the_rest_is_published_again(published, rows):
    retract(published, "cccc", "its data had leaked")
    publish_table(published, "nano", table_of(rows[0], rows[1], rows[3]), DESCRIBED, [])
    assert "its data had leaked" in (published / "nano.md").read_text()


@pytest.mark.parametrize(
    ("config_hash", "why", "message"),
    [
        ("cccc", " ", "--why needs the reason"),
        ("ffff", "x", r"no published row has a config_hash that begins with 'ffff' \(there are: aaaaaaaa, "),
        ("", "x", "4 published rows have"),
    ],
)
def test_wrong_retractions_are_told(published, config_hash, why, message):
    with pytest.raises(RequestError, match=message):
        retract(published, config_hash, why)


def test_clusters_that_a_task_named_are_kept_and_those_of_generated_items_follow_from_their_ids(tmp_path):
    generated = evaluation_clusters("test")
    ids = tuple(f"nano-mc2-test-{n}" for n in range(40))
    own = replace(scores({0: 10, 1: 12}), shared={f"i{n}": f"passage {n // 4}" for n in range(40)})
    nano = replace(own, items=ids * 2, shared={item: generated[item] for item in ids})
    rows = [
        TableRow(name, digest * 8, (0, 1), {"acc": own, "mc2": nano})
        for name, digest in (("base", "aaaaaaaa"), ("sft", "bbbbbbbb"), ("dpo", "cccccccc"))
    ]
    table = build_table(rows, ["acc", "mc2"], ["acc", "mc2"], "acc", check=False)
    publish_table(tmp_path, "nano", table, DESCRIBED, [])
    retract(tmp_path, "cccc", "gone")
    plain = json.loads((tmp_path / "nano.json").read_text())
    assert plain["differences"][0]["columns"]["acc"]["clusters"] == 10
    assert plain["differences"][0]["columns"]["mc2"]["clusters"] == len(set(nano.shared.values())) < 40
    packed = gzip.decompress((tmp_path / "items" / "nano" / "aaaaaaaaaaaa.jsonl.gz").read_bytes()).decode()
    lines = {line["column"]: line for line in map(json.loads, packed.splitlines())}
    assert lines["acc"]["clusters"] == own.shared
    assert "clusters" not in lines["mc2"]


class TestJudged:
    """What judges said is published with its preferences, and is evidence like any other."""

    @pytest.fixture
    def published(self, tmp_path):
        publish_table(tmp_path, "nano", table_of(*judged_rows()), DESCRIBED, [])
        return tmp_path

    def test_rates_stand_in_the_record_with_who_judged(self, published):
        plain = json.loads((published / "nano.json").read_text())
        assert plain["judge"]["judges"] == ["rm", "verifier"]
        assert plain["judge"]["identities"] == {"rm": {"0": "f0", "1": "f1"}, "verifier": {"0": "1", "1": "1"}}
        rm = plain["rows"][2]["judge"]["rm"]
        assert (rm["value"], rm["judged_by"]["1"]) == (49 / 80, {"identity": "f1", "record": "rm-1"})
        assert "## Judged against sft on nano_instructions" in (published / "nano.md").read_text()

    def test_preferences_can_be_read_back(self, published):
        plain = json.loads((published / "nano.json").read_text())
        read = [read_row(published, "nano", each) for each in plain["rows"]]
        assert [each.judged for each in read] == [each.judged for each in judged_rows()]
        assert [each.judged_by for each in read] == [each.judged_by for each in judged_rows()]
        assert [set(each.scores) for each in read] == [{"acc"}] * 4

    def test_record_that_nobody_judged_may_be_published_judged(self, tmp_path):
        publish_table(tmp_path, "nano", table_of(*four_rows()), DESCRIBED, [])
        plain = json.loads((tmp_path / "nano.json").read_text())
        del plain["judge"]  # as releases before the judges wrote it
        (tmp_path / "nano.json").write_text(json.dumps(plain))
        publish_table(tmp_path, "nano", table_of(*judged_rows()), DESCRIBED, [])
        assert json.loads((tmp_path / "nano.json").read_text())["judge"] is not None

    def test_record_of_before_the_judges_can_lose_a_row(self, tmp_path):
        publish_table(tmp_path, "nano", table_of(*four_rows()), DESCRIBED, [])
        plain = json.loads((tmp_path / "nano.json").read_text())
        del plain["judge"]
        (tmp_path / "nano.json").write_text(json.dumps(plain))
        assert retract(tmp_path, "cccc", "a leak") == ["nano"]
        assert json.loads((tmp_path / "nano.json").read_text())["judge"] is None

    def test_retracting_a_row_makes_the_rates_of_the_others_anew(self, published):
        retract(published, "cccc", "a leak")
        plain = json.loads((published / "nano.json").read_text())
        rows = judged_rows()
        expected = json.loads(json.dumps(as_json(table_of(rows[0], rows[1], rows[3]))))
        assert (plain["judge"], plain["rows"]) == (expected["judge"], expected["rows"])
        assert plain["rows"][2]["judge"]["rm"]["corrected_p"] < 1e-4

    def test_retracting_the_sft_policy_takes_the_rates_over_it_with_it(self, published):
        retract(published, "bbbb", "a leak")
        plain = json.loads((published / "nano.json").read_text())
        assert plain["judge"] is None
        assert [each["judge"] for each in plain["rows"]] == [None] * 3

    @pytest.mark.parametrize(
        ("judged", "told"),
        [
            (
                {},
                r"holds 80 preferences of judge rm for dpo \(cccccccc\), which would vanish; judge its answers first: ",
            ),
            ({"rm": scores({0: 25, 1: 24})}, "holds 80 preferences of judge verifier for dpo"),
            (
                {"rm": scores({0: 25, 1: 24}, n=30), "verifier": scores({0: 1, 1: 1})},
                "holds 20 preferences of judge rm",
            ),
        ],
        ids=["all", "a judge", "items"],
    )
    def test_losing_them_is_refused(self, published, judged, told):
        before, rows = content(published), judged_rows()
        rows[2] = replace(rows[2], judged=judged)
        with pytest.raises(RequestError, match=told) as error:
            publish_table(published, "nano", table_of(*rows), DESCRIBED, [])
        assert "\n" not in str(error.value)
        assert content(published) == before
