"""Asks PyTorch's DTensor which elements the ranks of layouts hold.

Reads a JSON list of {"mesh_shape", "ranks", "placements", "shape"} from standard input and writes a JSON list with one
object a layout: {"split": {rank: {"local_shape", "ids"}}, "order": the same, or null}. `split` is what distribute_tensor
gives; `order` what redistributing a replicated tensor gives, where the placements name a shard order. Placements:
S(d), SS(d,k), R.
"""

import json
import logging
import re
import sys
import warnings

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor._dtensor_spec import DTensorSpec  # noqa: E402
from torch.distributed.tensor.placement_types import _StridedShard  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402


def placement(text):
    kind, *numbers = re.findall(r"[A-Z]+|-?\d+", text)
    if kind == "S":
        return Shard(int(numbers[0]))
    if kind == "SS":
        return _StridedShard(int(numbers[0]), split_factor=int(numbers[1]))
    return Replicate()


def local(tensor):
    held = tensor.to_local()
    return {"local_shape": list(held.shape), "ids": held.flatten().tolist()}


def holdings(layout):
    """What this process's rank holds: by the split reading, and by the order reading or None."""
    mesh = DeviceMesh("cpu", torch.tensor(layout["ranks"]).view(layout["mesh_shape"]), _init_backend=False)
    ids = torch.arange(torch.Size(layout["shape"]).numel()).reshape(layout["shape"])
    placements = [placement(text) for text in layout["placements"]]
    split = distribute_tensor(ids, mesh, placements, src_data_rank=None)
    strided = any(isinstance(entry, _StridedShard) for entry in placements)
    if not strided:
        return local(split), local(split)
    if DTensorSpec._maybe_convert_StridedShard_to_shard_order(split.placements, mesh) is None:
        return local(split), None
    whole = distribute_tensor(ids, mesh, [Replicate()] * len(placements), src_data_rank=None)
    return local(split), local(whole.redistribute(mesh, placements))


def main():
    layouts = json.load(sys.stdin)
    answers = [{"split": {}, "order": {}} for _ in layouts]
    world = 1 + max(rank for layout in layouts for rank in layout["ranks"])
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        for layout, answer in zip(layouts, answers):
            if rank not in layout["ranks"]:
                continue
            split, order = holdings(layout)
            answer["split"][rank] = split
            if order is None:
                answer["order"] = None
            else:
                answer["order"][rank] = order
        dist.destroy_process_group()
    json.dump(answers, sys.stdout)


main()
