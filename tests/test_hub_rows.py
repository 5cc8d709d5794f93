"""The rows that stand in for published datasets are what their script writes."""

from pathlib import Path

from tests.fixtures import make_hub


def test_the_committed_rows_are_those_of_the_script(monkeypatch, tmp_path):
    committed = make_hub.HUB
    monkeypatch.setattr(make_hub, "HUB", tmp_path)
    make_hub.main()

    def contents(folder: Path):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jsonl")}

    assert contents(tmp_path) == contents(committed)
