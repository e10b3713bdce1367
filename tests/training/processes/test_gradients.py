import pytest
import torch
from torch import distributed as dist
from torch import nn

from densewalk.core import distributed
from densewalk.training.processes.gradients import GradientAverager, buckets_of
from tests.fixtures.processes import in_processes


class Net(nn.Module):
    """Layers in use, one that only process 0 uses, one that nobody uses, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.first, self.sometimes, self.never, self.last = (nn.Linear(6, 6) for _ in range(4))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x):
        x = self.frozen(self.first(x)).relu()
        x = self.first(x)  # twice in one graph
        if distributed.rank() == 0:
            x = x + self.sometimes(x)
        return self.last(x).square().mean()


def gradients(parts, bucket_bytes):
    """The averaged gradients, and each process's own."""
    torch.manual_seed(0)
    net = Net()
    batch = torch.randn(2, parts, 3, 6)[distributed.rank()]
    averager = GradientAverager(net.parameters(), bucket_bytes)
    found = []
    for _ in range(2):  # a second step as the first one
        net.zero_grad(set_to_none=True)
        for part in batch[:-1]:
            (net(part) / parts).backward()
        with averager:
            (net(batch[-1]) / parts).backward()
        found.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
    net.zero_grad(set_to_none=True)
    for part in batch:
        (net(part) / parts).backward()
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters() if p.requires_grad]
    for p in own:
        dist.all_reduce(p)
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    return same, [g.tolist() for g in found[0]], [(p / 2).tolist() for p in own]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("bucket_bytes", [1, 200, 2**20])
def test_gradients_are_means_over_processes_to_the_last_bit(tmp_path, parts, bucket_bytes):
    one, two = in_processes(gradients, 2, tmp_path, parts, bucket_bytes)
    assert one[0]
    assert one[1] == one[2] == two[1] == two[2]
    assert any(value for row in one[1][2] for value in row), "what one process alone uses has a gradient"
    assert not any(value for row in one[1][4] for value in row), "what nobody uses has none"


def test_buckets_are_full_of_one_dtype_and_without_frozen_parameters():
    params = [
        nn.Parameter(torch.zeros(n, dtype=d)) for n, d in [(4, torch.float32), (4, torch.float32), (9, torch.float32), (1, torch.float64)]
    ]
    params.insert(1, nn.Parameter(torch.zeros(3), requires_grad=False))
    assert [[p.numel() for p in bucket] for bucket in buckets_of(params, 32)] == [[4, 4], [9], [1]]
