"""Models of torch: what FSDP2, tensor parallelism and engines make of parameters, bit for bit."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from worlds import run_jobs

import tensorbus
from conftest import client_of

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Forked processes must not find threads of the parent's behind.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sides(_environment: None) -> Iterator[tensorbus.Agents]:
    with tensorbus.start_agents(
        sides={"trainer": range(4), "engine": range(4, 6)}, namespace="torch", flags=["--log", "error", "--drain", "1"]
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def _namespace(monkeypatch: pytest.MonkeyPatch, sides: tensorbus.Agents) -> None:
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "torch")


def values(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_layers() -> Any:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(10, 14), torch.nn.ReLU(), torch.nn.Linear(14, 7))


SHAPES = {"0.weight": (14, 10), "0.bias": (14,), "2.weight": (7, 14), "2.bias": (7,)}


def receive_whole(name: str, shapes: dict[str, tuple[int, ...]], **more: Any) -> dict[str, Any]:
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    with tensorbus.Weights(name, tensors, role="target", timeout=60, **more) as weights:
        weights.recv(timeout=60)
    return tensors


def equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def distributed(model: Any, name: str, **more: Any) -> dict[str, Any]:
    """Sends a model, after one step that every rank can follow; what it was, whole."""
    import torch.distributed as dist

    with tensorbus.Weights(name, model, role="source", timeout=60, **more) as weights:
        weights.send(timeout=60)
        whole = {
            key: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
            for key, value in model.state_dict().items()
        }
    dist.destroy_process_group()
    return whole


def test_fsdp_and_tensor_parallel_together() -> None:
    """Parameters outside of the tensor-parallel plan lie on sub-meshes: [0, 2] on two ranks, [1, 3] on the others."""

    def trainer(rank: int, size: int) -> Any:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        model = make_layers()
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel()})
        fully_shard(model, mesh=mesh["dp"])
        shared = tensorbus.share(model)
        assert not shared.copied, shared.copied
        return distributed(model, "2d")

    def engine(rank: int, size: int) -> Any:
        return receive_whole("2d", SHAPES)

    results = run_jobs((trainer, 4), (engine, 2))
    for taken in results["engine"]:
        equal(taken, results["trainer"][0])


def test_replicas_of_shards_to_shards() -> None:
    """HSDP in float32 to FSDP2 in bfloat16: a cast, and uneven parts on both sides."""

    def trainer(rank: int, size: int) -> Any:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        dist.init_process_group("gloo")
        model = make_layers()
        model[2].requires_grad_(False)
        fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))
        return distributed(model, "hsdp")

    def engine(rank: int, size: int) -> Any:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        dist.init_process_group("gloo")
        model = make_layers().bfloat16()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        tensorbus.share(model)
        with tensorbus.Weights("hsdp", model, role="target", timeout=60) as weights:
            assert weights.copied_bytes == 0
            weights.recv(timeout=60)
            whole = {key: value.full_tensor() for key, value in model.state_dict().items()}
        dist.destroy_process_group()
        return whole

    results = run_jobs((trainer, 4), (engine, 2))
    expected = {name: value.bfloat16() for name, value in results["trainer"][0].items()}
    for taken in results["engine"]:
        equal(taken, expected)


def together(*calls: Any) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def one_to_one(
    name: str, source: Any, target: Any, send: dict[str, Any] | None = None, take: dict[str, Any] | None = None
) -> Any:
    """Weights of a trainer of one rank and an engine of one, in this process."""
    left, right = client_of(0), client_of(4)
    return together(
        lambda: tensorbus.Weights(
            name, source, role="source", client=left, rank=0, world_size=1, timeout=20, **(send or {})
        ),
        lambda: tensorbus.Weights(
            name, target, role="target", client=right, rank=0, world_size=1, timeout=20, **(take or {})
        ),
    )


def round_of(source: tensorbus.Weights, target: tensorbus.Weights, version: int | None = None) -> int:
    _, number = together(lambda: source.send(version, timeout=20), lambda: target.recv(timeout=20))
    return int(number)


def test_stages_and_experts_are_a_side_together() -> None:
    """Ranks hold different tensors: the engine has the union."""
    parts = [
        {"embed": values(4, 6)},
        {"expert.0": values(3, seed=1), "shared": values(2)},
        {"expert.1": values(3, seed=2), "shared": values(2)},
    ]
    clients = [client_of(rank) for rank in range(3)]

    def layout(name: str, tensor: Any) -> Any:
        del tensor
        ranks = {"embed": (0,), "expert.0": (1,), "expert.1": (2,), "shared": (1, 2)}[name]
        return tensorbus.Mesh((len(ranks),), ranks=ranks), ["R"]

    def stage(rank: int) -> None:
        weights = tensorbus.Weights(
            "stages",
            parts[rank],
            role="source",
            client=clients[rank],
            rank=rank,
            world_size=3,
            layout=layout,
            timeout=20,
        )
        weights.send(timeout=20)
        weights.close()

    taken = {
        "embed": torch.zeros(4, 6),
        "expert.0": torch.zeros(3),
        "expert.1": torch.zeros(3),
        "shared": torch.zeros(2),
    }

    def engine() -> None:
        weights = tensorbus.Weights(
            "stages", taken, role="target", client=client_of(4), rank=0, world_size=1, timeout=20
        )
        weights.recv(timeout=20)
        weights.close()

    together(engine, *(lambda rank=rank: stage(rank) for rank in range(3)))
    equal(taken, {name: tensor for part in parts for name, tensor in part.items()})


class Tied(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.scale = torch.nn.Parameter(torch.tensor(2.5))
        self.register_buffer("steps", torch.tensor([7, 8]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def test_tied_scalar_and_buffers() -> None:
    """A source sends tied parameters under every name, so that it serves engines with and without ties."""
    torch.manual_seed(3)
    source = Tied()
    target = {
        "embed.weight": torch.zeros(5, 3),
        "head.weight": torch.zeros(5, 3),
        "scale": torch.zeros(()),
        "steps": torch.zeros(2, dtype=torch.int64),
    }
    weights = one_to_one("tied", source, target)
    round_of(*weights)
    assert torch.equal(target["head.weight"], source.embed.weight)
    assert target["scale"].item() == 2.5
    assert target["steps"].tolist() == [7, 8]
    for each in weights:
        each.close()
    other = Tied()
    weights = one_to_one("tied again", source, other, take={"match": "target"})
    round_of(*weights)
    assert torch.equal(other.head.weight, source.embed.weight)
    for each in weights:
        each.close()


def test_names_are_matched_and_renamed() -> None:
    source = {"a.weight": values(3), "a.extra": values(2)}
    target = {"model.a.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match="TB_BATCH_MISMATCH"):
        one_to_one("exact", source, target)
    weights = one_to_one(
        "renamed",
        source,
        target,
        send={"rename": lambda name: None if name == "a.extra" else f"model.{name}"},
    )
    round_of(*weights)
    assert torch.equal(target["model.a.weight"], source["a.weight"])
    for each in weights:
        each.close()


def test_parameters_that_others_take_the_place_of() -> None:
    torch.manual_seed(4)
    source, target = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    assert tensorbus.share(source).bytes == 60
    assert tensorbus.share(source).copied == {}
    weights = one_to_one("replaced", source, target)
    assert [each.copied_bytes for each in weights] == [0, 60]
    source.load_state_dict(
        {name: values(*value.shape, seed=9) for name, value in source.state_dict().items()}, assign=True
    )
    with pytest.warns(RuntimeWarning, match="lies no longer in shared memory"):
        round_of(*weights)
    assert torch.equal(target.weight, source.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        round_of(*weights)
    source.weight = torch.nn.Parameter(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"weight is float32\[5, 4\] now, and was registered as float32\[3, 4\]"):
        weights[0].send(timeout=5)
    for each in weights:
        each.close()


def test_a_model_that_has_changed() -> None:
    source = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    target = {name: torch.zeros_like(value) for name, value in source.state_dict().items()}
    weights = one_to_one("changed", source, target)
    round_of(*weights)
    source[1].register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(
        ValueError, match=r"1 has 3 parameters and 0 buffers, and had 2 and 0 \(TB_BATCH_MISMATCH\)"
    ) as failure:
        weights[0].send(timeout=5)
    assert any("refresh()" in note for note in vars(failure.value)["__notes__"])
    del source[1].scale
    # Another module under the same names: what was registered would be sent for ever.
    before = source[0]
    source[0] = torch.nn.Linear(4, 3)
    with pytest.raises(ValueError, match="0 is another module"):
        weights[0].send(timeout=5)
    source[0] = before
    gone = target.pop("1.bias")
    with pytest.raises(ValueError, match=r"1\.bias is gone"):
        weights[1].recv(timeout=5)
    target["1.bias"] = gone
    # A storage that was freed, as sharding wrappers do between uses.
    held = source[0].weight.detach().clone()
    source[0].weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"memory was freed or made smaller \(TB_REGION\)"):
        weights[0].send(timeout=5)
    source[0].weight.untyped_storage().resize_(held.nbytes)
    with torch.no_grad():
        source[0].weight.copy_(held)
    # Nothing of that has harmed the batch.
    assert round_of(*weights) == 2
    assert torch.equal(target["0.weight"], held)
    for each in weights:
        each.close()


def test_an_agent_of_another_side_is_told_by_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": torch.zeros(1)}
    monkeypatch.setenv("AGENT_RANK_OFFSET", "3")
    with pytest.raises(ConnectionError) as other:
        tensorbus.Weights("offset", tensors, role="target", rank=0, world_size=2, timeout=5)
    assert "agent 3 (RANK 0 + AGENT_RANK_OFFSET 3) is of side trainer; the agents of engine are 4-5" in str(other.value)
    monkeypatch.setenv("AGENT_RANK_OFFSET", "9")
    with pytest.raises(ConnectionError, match=r"no agent of rank 9 \(RANK 0 \+ AGENT_RANK_OFFSET 9\)") as none:
        tensorbus.Weights("offset", tensors, role="target", rank=0, world_size=2, timeout=0.3)
    notes = vars(none.value)["__notes__"]
    assert "AGENT_RANK_OFFSET is 9: do the agents begin there?" in notes
    assert none.value.__suppress_context__
    monkeypatch.setenv("AGENT_RANK_OFFSET", "4x")
    with pytest.raises(ValueError, match=r"AGENT_RANK_OFFSET must be a number from 0 on, not '4x' \(TB_ENVIRONMENT\)"):
        tensorbus.Weights("offset", tensors, role="target", rank=0, world_size=2, timeout=0.3)


def test_what_is_waited_for_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tensorbus.weights, "_SLOW", 0.05)
    with pytest.raises(TimeoutError) as failure:
        tensorbus.Weights(
            "lonely", {"w": values(1)}, role="source", client=client_of(3), rank=0, world_size=1, timeout=0.5
        )
    assert "waiting for all ranks of trainer, and for engine to come" in caplog.text
    assert any("waiting for all ranks" in note for note in vars(failure.value)["__notes__"])
    caplog.clear()
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "nobody")
    with pytest.raises(ConnectionError, match="no agent of rank 1"):
        tensorbus.Weights("lonely", {"w": values(1)}, role="source", rank=1, world_size=2, timeout=0.3)
    assert "tensorbus agents --side" in caplog.text


def test_one_deadline_bounds_the_search_for_an_agent_and_the_tie_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSOR_BUS_NAMESPACE", "nobody")
    left: list[float] = []
    monkeypatch.setattr(tensorbus.weights, "TensorBusClient", lambda *paths_and_left: left.append(paths_and_left[-1]))
    tensorbus.weights.find_client("engine", 0, 0.3)
    assert left == [0.0]


def test_versions_are_told_and_grow() -> None:
    source, target = {"w": values(3)}, {"w": torch.zeros(3)}
    weights = one_to_one("versions", source, target)
    assert round_of(*weights) == 1
    assert round_of(weights[0], weights[1], 700) == 700
    assert round_of(weights[0], weights[1], 2**40) == 2**40
    with pytest.raises(TypeError, match=r"a version is a whole number, such as the training step, not 3\.5"):
        weights[0].send(3.5)
    with pytest.raises(ValueError, match=r"from 0 to 2\^64 - 1, not -1"):
        weights[0].send(-1)
    for each in weights:
        each.close()


def test_pending_says_which_version_waits() -> None:
    source, target = {"w": values(3)}, {"w": torch.zeros(3)}
    weights = one_to_one("pending", source, target)

    def pending_after(version: int | None) -> int | None:
        assert weights[1].pending() is None
        sent = weights[0].send(version, wait=False, timeout=20)
        deadline = time.monotonic() + 10
        found: int | None = None
        while (found := weights[1].pending()) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        taken = weights[1].recv(timeout=20)
        sent.acquire(20)
        assert taken == found
        return found

    assert [pending_after(version) for version in (None, 41, 2**63, None)] == [1, 41, 2**63, 4]
    for each in weights:
        each.close()


def test_a_copy_in_the_type_that_travels() -> None:
    source, target = {"w": values(100)}, {"w": torch.zeros(100, dtype=torch.bfloat16)}
    weights = one_to_one("cast", source, target, send={"dtype": torch.bfloat16})
    assert weights[0].copied_bytes == 200
    round_of(*weights)
    assert torch.equal(target["w"], source["w"].bfloat16())
    for each in weights:
        each.close()


def test_a_partial_target_that_only_one_side_has_is_left_out() -> None:
    """Integers of numpy count the bytes of a bucket, and a layout is any iterable of two."""
    source, target = {"w": values(6)}, {"w": torch.zeros(6), "sums": torch.zeros(6)}
    mesh = tensorbus.Mesh((1,))
    sums = {"layout": lambda name, tensor: iter((mesh, ["P(sum)" if name == "sums" else "R"])), "match": "common"}
    size = np.int64(1 << 20)
    weights = one_to_one("left-out", source, target, {"bucket_size": size}, {**sums, "bucket_size": size})
    round_of(*weights)
    assert torch.equal(target["w"], source["w"])
    for each in weights:
        each.close()
    # One that the source has is refused by the agents.
    weights = one_to_one("taken", {"sums": values(6)}, {"sums": torch.zeros(6)}, take=sums)
    for round_ in (weights[0].send, weights[1].recv):
        with pytest.raises(ValueError, match=r"Partial.*TB_PARTIAL_TARGET"):
            round_(timeout=20)
    for each in weights:
        each.close()


def test_for_asyncio() -> None:
    source, target = {"w": values(6)}, {"w": torch.zeros(6)}
    weights = one_to_one("async", source, target)

    async def both() -> int:
        _, number = await asyncio.gather(weights[0].asend(timeout=20), weights[1].arecv(timeout=20))
        return int(number)

    for number in (1, 2):
        source["w"] += 1
        assert asyncio.run(both()) == number
        assert torch.equal(target["w"], source["w"])
    for each in weights:
        each.close()


def _lies(*layout: Any) -> dict[str, Any]:
    return {"role": "source", "layout": lambda name, tensor: layout}


REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    (r"not a placement: 'X\(0\)'; there are R, S\(dim\)", _lies(tensorbus.Mesh((1,)), ["X(0)"]), ["The tensor is w"]),
    (r"w has 2 dimensions, and its placement S\(5\) cuts dimension 5", _lies(tensorbus.Mesh((1,)), ["S(5)"]), []),
    (r"not the text 'S\(0\)'", _lies(tensorbus.Mesh((1,)), "S(0)"), ["The tensor is w"]),
    ("a placement is one of torch's, or text, not 0", _lies(tensorbus.Mesh((1,)), [0]), ["The tensor is w"]),
    ("2 placements for a mesh of 1 dimensions", _lies(tensorbus.Mesh((1,)), ["R", "R"]), ["The tensor is w"]),
    (r"layout gives \(mesh, placements\) or .* gave \(Mesh", _lies(tensorbus.Mesh((1,))), []),
    (
        "has ranks 1, and not this one, 0, which has the tensor",
        {**_lies(tensorbus.Mesh((1,), ranks=(1,)), ["R"]), "world_size": 2},
        ["rename gives None"],
    ),
    (
        "a Partial can only be sent",
        {**_lies(tensorbus.Mesh((1,)), ["P(sum)"]), "role": "target"},
        ["Receive into Replicate or Shard"],
    ),
    ('commit is "direct" or "staged"', {"role": "source", "commit": "later"}, []),
    (r"layout gives \(mesh, placements\) or .* gave None", {"role": "source", "layout": lambda *_: None}, []),
    ("bucket_size is a number of bytes, not -1", {"role": "source", "bucket_size": -1}, []),
    ("bucket_size is a number of bytes, not True", {"role": "source", "bucket_size": True}, []),
    ("bucket_size is a number of bytes, not 2.5", {"role": "source", "bucket_size": 2.5}, []),
]


def test_what_is_refused_says_why() -> None:
    lora = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="belongs to an adapter of PEFT"):
        tensorbus.Weights("lora", lora, role="source", client=client_of(0), rank=0, world_size=1)
    with pytest.raises(ValueError, match="meta device"):
        tensorbus.Weights(
            "meta", torch.nn.Linear(2, 2, device="meta"), role="source", client=client_of(1), rank=0, world_size=1
        )
    with pytest.raises(
        tensorbus.TensorBusError, match=r"rank and world_size are not known: .* no RANK and no WORLD_SIZE"
    ) as unknown:
        tensorbus.Weights("nobody", {"w": torch.zeros(1)}, role="source")
    assert isinstance(unknown.value, ValueError)
    assert unknown.value.code == "TB_ENVIRONMENT"
    with pytest.raises(ValueError, match=r"rank 2 is not in a job of 2 \(TB_ENVIRONMENT\)"):
        tensorbus.Weights("nobody", {"w": torch.zeros(1)}, role="source", rank=2, world_size=2)
    with pytest.raises(ValueError, match="the mesh of w has ranks 0-3, and side trainer has 2 in all: 0-1"):
        tensorbus.Weights(
            "wide",
            {"w": torch.zeros(1)},
            role="source",
            client=client_of(0),
            rank=0,
            world_size=2,
            layout=lambda name, tensor: (tensorbus.Mesh((4,)), ["S(0)"]),
        )
    with pytest.raises(ValueError, match="role is"):
        tensorbus.Weights("role", {}, role="sender")
    frozen = torch.zeros(3).numpy()
    frozen.flags.writeable = False
    for unfit, why in ((torch.zeros(1, 3).expand(2, 3), "share memory, as expand makes"), (frozen, "is read-only")):
        with pytest.raises(ValueError, match=f"w .*{why}.*: nothing can be received into it"), client_of(4) as client:
            tensorbus.Weights("unfit", {"w": unfit}, role="target", client=client, rank=0, world_size=1)
    # What is wrong on this side alone is said at once: nobody is waited for, whose absence would be the error then.
    for wrong, more, says in REFUSED:
        with pytest.raises((ValueError, TypeError), match=wrong) as refused, client_of(1) as client:
            tensorbus.Weights("wrong", {"w": torch.zeros(2, 2)}, client=client, rank=0, **{"world_size": 1, **more})
        notes = vars(refused.value).get("__notes__", [])
        assert all(any(part in note for note in notes) for part in says)
    module = torch.nn.Linear(2, 2)
    module(torch.zeros(2)).sum().backward()
    with pytest.raises(RuntimeError, match="has a gradient"):
        tensorbus.share(module)
