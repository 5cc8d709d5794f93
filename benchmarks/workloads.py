"""The work that benchmarks share: prompts, and what transformers does with them. Every run has the same, by seed.

Random ids serve where only sizes matter: nothing here trains a model or judges an answer.
"""

import torch
from transformers import PreTrainedModel


def random_prompts(vocabulary: int, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """`count` prompts of `length` random ids; the first and last ten ids, where control tokens lie, are left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocabulary - 10, (count, length), generator=generator).tolist()


@torch.inference_mode()
def generate(model: PreTrainedModel, prompts: list[list[int]], new: int, group: int = 1) -> torch.Tensor:
    """transformers' own `generate` at temperature 1, `group` samples of each prompt, exactly `new` tokens each.

    Prompts must be of one length. Gives Long[prompts * group, length + new].
    """
    ids = torch.tensor(prompts, device=model.device).repeat_interleave(group, dim=0)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
    )
