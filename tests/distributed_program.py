"""One process of `test_distributed.py`: a training step on this rank's share of a batch, written to a file.

torchrun --nproc_per_node 2 -m tests.distributed_program FOLDER
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from eden_hf import EdenForPreTraining

from .tiny import tiny_config

BATCH, GAMMA = 8, 0.3
#: Case: trunk, and how many of the batch's images each rank gets.
CASES = {
    "layernorm": ("vit", (4, 4)),
    "shared": ("resnet", (4, 4)),
    "shuffled": ("resnet", (4, 4)),
    "given": ("resnet", (4, 4)),  # the same, but the caller shuffles the key images and says how
    "uneven": ("vit", (5, 3)),
}


class SharedBatchNorm(nn.Module):
    """BatchNorm2d over the batch of all processes: what SyncBatchNorm does, which torch offers on GPUs only."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        mean = all_reduce(x.mean(dim=(0, 2, 3))) / dist.get_world_size()
        variance = all_reduce((x - mean[:, None, None]).square().mean(dim=(0, 2, 3))) / dist.get_world_size()
        scale = self.weight / (variance + self.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


class NothingRead(TorchDispatchMode):
    """Forbids to read a tensor's number, for which an accelerator would be waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Raise, or call."""
        assert function is not torch.ops.aten._local_scalar_dense.default, "a tensor is read within the step"
        return function(*args, **(kwargs or {}))


def make_model(case: str, shared: bool = False) -> EdenForPreTraining:
    """The model of a case, the same in every process; its teacher differs from its student."""
    torch.manual_seed(0)
    model = EdenForPreTraining(tiny_config(CASES[case][0], prune_threshold=GAMMA)).train()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    if shared:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, SharedBatchNorm(child))
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    """Two batches of query and key images [8, 3, 32, 48]."""
    generator = torch.Generator().manual_seed(7)
    return [tuple(torch.rand(2, BATCH, 3, 32, 48, generator=generator)) for _ in range(2)]


def main(folder: Path):
    """Run every case and write `<case>-<rank>.safetensors`."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    assert dist.get_world_size() == 2, "the launcher must start two processes"
    for case, (_, sizes) in CASES.items():
        model = make_model(case, shared=case == "shared")
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        torch.manual_seed(100 + rank)  # ranks differ; the shuffle must still be the same on both
        results = {}
        drawn = torch.Generator().manual_seed(100)  # rank 0's
        for step, (query, key) in enumerate(batches()):
            order = torch.randperm(BATCH, generator=drawn) if case == "given" else None
            key = key if order is None else key[order]
            with nullcontext() if order is None else NothingRead():
                output = parallel(query.split(sizes)[rank], key.split(sizes)[rank], key_order=order)
                parallel.zero_grad()
                output.loss.backward()
            results |= {f"loss{step}": output.loss.detach(), f"keys{step}": output.key_embeddings.contiguous()}
        results |= {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        results |= {f"state.{n}": t.contiguous() for n, t in model.state_dict().items()}
        save_file(results, folder / f"{case}-{rank}.safetensors")
    model.eval()
    if rank == 0:  # evaluation on one rank alone must not wait for the other
        model(*batches()[0])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
