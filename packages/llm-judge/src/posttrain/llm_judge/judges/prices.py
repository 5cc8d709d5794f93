"""What a judge's tokens cost. Prices change and differ by contract, so none are built in: the user gives them.

By the million tokens, `--price-in 2.5 --price-out 10`, or in a YAML file for many models:

    gpt-4o: {input: 2.5, output: 10}
"""

from pathlib import Path

from pydantic import Field

from posttrain.core.config import Settings, read_yaml, validate
from posttrain.core.errors import RequestError

MILLION = 1_000_000


class Price(Settings):
    """Of one model, in any one currency, for a million tokens."""

    input: float = Field(ge=0)
    """Of prompts."""
    output: float = Field(ge=0)
    """Of answers, reasoning included."""

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Of one request. Discounts for cached prompts are not known here: the true bill may be lower."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / MILLION


def find_price(
    model: str, price_in: float | None = None, price_out: float | None = None, prices: Path | None = None
) -> Price | None:
    """The price given for `model`, directly or in a file; None where there is none. RequestError names what is
    wrong."""
    if (price_in is None) != (price_out is None):
        raise RequestError("--price-in and --price-out belong together; give both, per million tokens")
    if price_in is not None:
        return validate(Price, {"input": price_in, "output": price_out}, "--price-in and --price-out")
    if prices is None:
        return None
    table = read_yaml(prices)
    return validate(Price, table[model], f"{prices}, {model}") if model in table else None


def check_max_cost(max_cost: float | None, price: Price | None, model: str) -> None:
    """RequestError when money is limited and the model's price is not known: the limit could not be kept."""
    if max_cost is not None and price is None:
        raise RequestError(
            f"--max-cost needs the price of '{model}', which is not known; give --price-in and --price-out per million "
            "tokens, or --prices FILE with it"
        )
