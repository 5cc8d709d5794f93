"""Our engine beside transformers `generate`, in one process: the same model, prompts, settings and machine.

Every sequence runs to its last token, sampling at temperature 1. Ours reports log-probabilities and `generate` does
not, which favours the peer; prompts have one length, so it needs no padding, which favours it as well. No HTTP here:
that is `policy_endpoint.py`. It ends with one JSON object.

    python -m benchmarks.peers.generate [--checkpoint DIR] [--batch 64] [--group 1] [--threads 2] [--rounds 7]
"""

import argparse
import os
from pathlib import Path

import torch

from benchmarks.side_by_side import alternate, report
from benchmarks.workloads import fastest_threads, generate, on_threads, random_prompts
from posttrain.data import nano
from posttrain.rollout.load import load_engine
from posttrain.rollout.sampling import Sampling
from posttrain.trainers.models import load_policy


def main() -> None:
    """Prints tokens a second of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=nano.BASE)
    parser.add_argument("--batch", type=int, default=64, help="sequences in all")
    parser.add_argument("--group", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--prompt", type=int, default=40, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of a completion")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    wish = parser.parse_args()

    torch.set_num_threads(wish.threads)
    model, engine = load_policy(wish.checkpoint).eval(), load_engine(wish.checkpoint, max_batch=max(256, wish.batch))
    prompts = random_prompts(engine.vocab_size, wish.batch // wish.group, wish.prompt)
    sampling = Sampling(max_tokens=wish.new, ignore_eos=True)

    def peer() -> object:
        return generate(model, prompts, wish.new, wish.group)

    peer_threads = fastest_threads(peer)
    rates = alternate(
        {
            "ours": on_threads(wish.threads, lambda: engine.generate(prompts, sampling, n=wish.group)),
            "generate": on_threads(peer_threads, peer),
        },
        wish.rounds,
        work=len(prompts) * wish.group * wish.new,
    )
    report(
        "generate",
        rates,
        "generate",
        "tokens/s",
        batch=wish.batch,
        group=wish.group,
        prompt=wish.prompt,
        new=wish.new,
        threads=wish.threads,
        peer_threads=peer_threads,
    )


if __name__ == "__main__":
    main()
