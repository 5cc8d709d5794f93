"""Lists of seeds as people write them."""

from posttrain.core.errors import RequestError


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` to numbers; RequestError for anything else or a seed named twice."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise RequestError(f"--seeds takes numbers separated by commas, not '{text}'")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) != len(seeds):
        raise RequestError(f"--seeds {text} names a seed twice")
    return seeds
