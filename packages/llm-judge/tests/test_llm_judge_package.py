"""The package can be imported alone and says the version that is installed."""

from importlib.metadata import version


def test_version_is_that_of_the_distribution():
    import posttrain.llm_judge

    assert posttrain.llm_judge.__version__ == version("posttrain-llm-judge")
