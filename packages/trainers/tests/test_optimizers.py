"""The combined optimiser equals its two parts, keeps its state bit for bit, and sorts parameters as it says."""

import copy
import pickle

import pytest
import torch
from torch import nn

from posttrain.trainers.optimizers import MuonAdamW, build_optimizer, split_parameters


class Toy(nn.Module):
    """Two blocks of one matrix and one norm, an embedding, a tied head and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}) for _ in range(2))
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.score = nn.Linear(8, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = hidden + layer["norm"](layer["proj"](hidden).relu())
        return self.lm_head(hidden).logsumexp(-1).mean() + self.score(hidden).square().mean()


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


def train(model: Toy, optimizer: torch.optim.Optimizer, steps: range, scheduler=None) -> None:
    for step in steps:
        loss = model(torch.tensor([[step % 11, 3, 5]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_only_matrices_of_layers_go_to_muon(model: Toy) -> None:
    matrices, others, vectors = split_parameters(model)
    assert [id(p) for p in matrices] == [id(layer["proj"].weight) for layer in model.layers]
    assert {id(p) for p in others} == {id(model.embed_tokens.weight), id(model.score.weight)}
    assert all(p.ndim == 1 for p in vectors)
    assert len(matrices) + len(others) + len(vectors) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out(model: Toy) -> None:
    model.layers[0].requires_grad_(False)
    optimizer = build_optimizer(model, "muon")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_combined_optimizer_equals_the_two_torch_optimizers(model: Toy) -> None:
    twin = copy.deepcopy(model)
    train(model, build_optimizer(model, "muon", lr=3e-3, muon_lr=0.02, betas=(0.9, 0.95), weight_decay=0.1), range(5))

    matrices, others, vectors = split_parameters(twin)
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95)
    )
    for step in range(5):
        muon.zero_grad()
        adamw.zero_grad()
        twin(torch.tensor([[step % 11, 3, 5]])).backward()
        muon.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_continued_from_saved_state_is_bit_identical(model: Toy, name, tmp_path) -> None:
    optimizer = build_optimizer(model, name)
    train(model, optimizer, range(3))
    resumed = copy.deepcopy(model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(model, optimizer, range(3, 7))

    optimizer = build_optimizer(resumed, name)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(resumed, optimizer, range(3, 7))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_pickled_optimizer_still_updates_its_own_parameters(model: Toy) -> None:
    model, optimizer = pickle.loads(pickle.dumps((model, build_optimizer(model, "muon"))))
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, range(1))
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_scheduler_scales_both_learning_rates(model: Toy) -> None:
    optimizer = build_optimizer(model, "muon", lr=4e-3, muon_lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    train(model, optimizer, range(2), scheduler)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.002, 0.002])


def test_accelerate_prepares_and_steps_it(model: Toy) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, "muon"))
    before = model.layers[0]["proj"].weight.detach().clone()
    accelerator.backward(prepared(torch.tensor([[1, 2]])))
    optimizer.step()
    assert not torch.equal(before, model.layers[0]["proj"].weight)


def test_norms_and_biases_are_not_decayed(model: Toy) -> None:
    for name in ("adamw", "muon"):
        for group in build_optimizer(model, name, weight_decay=0.3).param_groups:
            assert group["weight_decay"] == (0.0 if group["params"][0].ndim == 1 else 0.3)


def test_unknown_name_and_nothing_trainable_are_refused(model: Toy) -> None:
    with pytest.raises(ValueError, match="'sgd'"):
        build_optimizer(model, "sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to optimise"):
        build_optimizer(model.requires_grad_(False), "muon")
    with pytest.raises(ValueError, match="algorithm"):
        MuonAdamW([], [{"params": [nn.Parameter(torch.zeros(2))]}]).add_param_group({"params": []})
