"""Our engine beside transformers `generate`: the same model, prompts, settings and machine, in alternating order.

Every sequence runs to its last token, sampling at temperature 1. Ours reports log-probabilities and `generate` does
not, which favours the peer. It measures no HTTP. It ends with one JSON object.

    python benchmarks/peers/generate.py [--checkpoint DIR] [--batch 64] [--group 1] [--threads 2] [--rounds 5]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from posttrain.data import nano
from posttrain.rollout.load import load_engine
from posttrain.rollout.sampling import Sampling


def prompts_of(vocabulary: int, count: int, length: int) -> list[list[int]]:
    """Random prompts of one length: `generate` then needs no padding, which favours the peer as well."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, vocabulary - 10, (count, length), generator=generator).tolist()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Prints tokens a second of both sides and their ratio, round by round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=nano.BASE)
    parser.add_argument("--batch", type=int, default=64, help="sequences in all")
    parser.add_argument("--group", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--prompt", type=int, default=40, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of a completion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    wish = parser.parse_args()

    torch.set_num_threads(wish.threads)
    engine = load_engine(wish.checkpoint, max_batch=max(256, wish.batch))
    prompts = prompts_of(engine.vocab_size, wish.batch // wish.group, wish.prompt)
    sampling = Sampling(max_tokens=wish.new, ignore_eos=True)

    def ours() -> None:
        engine.generate(prompts, sampling, n=wish.group)

    @torch.inference_mode()
    def peer() -> None:
        ids = torch.tensor(prompts).repeat_interleave(wish.group, dim=0)
        engine.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=wish.new,
            min_new_tokens=wish.new,
            pad_token_id=0,
        )

    tokens = len(prompts) * wish.group * wish.new
    ours()
    peer()
    rates: dict[str, list[float]] = {"ours": [], "generate": []}
    for number in range(wish.rounds):
        sides = [("ours", ours), ("generate", peer)]
        for name, work in sides if number % 2 == 0 else reversed(sides):
            rates[name].append(tokens / seconds(work))
        print(f"round {number}: ours {rates['ours'][-1]:,.0f} tok/s, generate {rates['generate'][-1]:,.0f} tok/s")
    ratios = [a / b for a, b in zip(rates["ours"], rates["generate"], strict=True)]
    result = {
        "batch": wish.batch,
        "group": wish.group,
        "threads": wish.threads,
        "ours_tokens_per_second": round(statistics.median(rates["ours"])),
        "generate_tokens_per_second": round(statistics.median(rates["generate"])),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
