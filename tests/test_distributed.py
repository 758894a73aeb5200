"""Two processes equal one on the same global batch: a real launch, rank 1 looked at as well as rank 0."""

import pytest
import torch
from safetensors.torch import load_file

from .distributed_program import BATCH, CASES, batches, make_model
from .launching import torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes wrote, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(2, "-m", "tests.distributed_program", str(folder))
    return {case: [load_file(folder / f"{case}-{rank}.safetensors") for rank in range(2)] for case in CASES}


def one_process(case):
    """The same two steps in this process."""
    model, results = make_model(case), {}
    for step, (query, key) in enumerate(batches()):
        output = model(query, key)
        model.zero_grad()
        output.loss.backward()
        results |= {f"loss{step}": output.loss.detach(), f"keys{step}": output.key_embeddings}
    results |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return results | {f"state.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("case", ["layernorm", "shared"])
def test_two_processes_equal_one(ranks, case):
    expected = one_process(case)
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    for step in range(2):
        losses = torch.stack([results[f"loss{step}"] for results in ranks[case]])
        torch.testing.assert_close(losses.mean(), expected[f"loss{step}"], **tolerance)
        keys = torch.cat([results[f"keys{step}"] for results in ranks[case]])
        torch.testing.assert_close(keys, expected[f"keys{step}"], **tolerance)
    gradients = [name for name in expected if name.startswith("grad.")]
    assert len(gradients) > 10
    for results in ranks[case]:
        for name in gradients:
            torch.testing.assert_close(results[name], expected[name], rtol=1e-3, atol=1e-5)
        for name in ("state.memory_bank", "state.bank_ptr"):
            torch.testing.assert_close(results[name], expected[name], **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_banks_teachers_and_gradients_are_the_same_on_all_ranks(ranks, case):
    first, second = ranks[case]
    assert first.keys() == second.keys()
    same = [n for n in first if n.startswith("grad.") or ("memory_bank" in n or "bank_ptr" in n or "teacher" in n)]
    for name in (name for name in same if "running_" not in name):
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["loss0"], second["loss0"])  # each rank saw other images


@pytest.mark.parametrize("case", CASES)
def test_keys_enter_the_bank_in_rank_order(ranks, case):
    for results in ranks[case]:
        for step in range(2):
            stored = results["state.memory_bank"][step * BATCH : (step + 1) * BATCH]
            torch.testing.assert_close(stored, torch.cat([r[f"keys{step}"] for r in ranks[case]]))
        assert results["state.bank_ptr"].tolist() == [2 * BATCH]


def test_keys_that_the_caller_shuffled_give_the_same_to_the_last_bit(ranks):
    for inside, given in zip(ranks["shuffled"], ranks["given"], strict=True):
        assert [name for name in inside if not torch.equal(inside[name], given[name])] == []


def test_plain_batchnorm_sees_a_shuffled_key_batch(ranks):
    """The keys are those of the two halves of the permutation that rank 0 drew, put back in order."""
    teacher_model = make_model("shuffled")
    torch.manual_seed(100)  # rank 0's
    order = torch.randperm(BATCH)
    assert order[:4].sort().values.tolist() != [0, 1, 2, 3]
    teacher_model.update_teacher()
    _, key = batches()[0]
    expected = torch.empty(BATCH, 8)
    for half in order.chunk(2):
        expected[half] = teacher_model.teacher(key[half])
    torch.testing.assert_close(torch.cat([r["keys0"] for r in ranks["shuffled"]]), expected)
    unshuffled = torch.cat([make_model("shuffled").teacher(part) for part in key.chunk(2)])
    assert (unshuffled - expected).abs().max() > 1e-3
