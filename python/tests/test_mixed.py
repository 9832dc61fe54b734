"""Both kinds of clients in one cluster: a side of Python and one of Node.js, either way round."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from test_client import both

import tensorbus
from conftest import client_of

HERE = pathlib.Path(__file__).resolve().parent
AGENTS = {"source": [0, 1], "target": [2, 3]}
SIDES = {"source": ("trainer", "engine", "send"), "target": ("engine", "trainer", "recv")}

# What each rank of the source and each of the target names in each round; and what all take, 0 for the round's number.
Round = tuple[list[int | None], list[int | None], int]
ROUNDS: list[Round] = [
    ([7, 7], [None, None], 7),
    ([None, None], [None, None], 0),
    # Both of the target: one that takes what comes could be done with 20, and close, and so could its source.
    ([20, 20], [21, 21], 21),
]
# In a staged round no rank is done before all are, so that ranks of one side may name two.
STAGED_ROUNDS: list[Round] = [
    ([5, None], [None, None], 5),
    ([6, 5], [None, None], 6),
    *ROUNDS[:2],
    ([20, 20], [21, None], 21),
]


@dataclass(frozen=True)
class Cut:
    """How a tensor lies on a side: over which of its ranks, and what each has of a dimension; all of it without one."""

    mesh: tuple[int, ...]
    placement: str
    sizes: tuple[int, ...] = ()

    def part(self, whole: Any, rank: int) -> Any:
        if not self.sizes:
            return whole
        ends = np.cumsum(self.sizes)[:-1]
        return np.split(whole, ends, int(self.placement[2]))[self.mesh.index(rank)]


def whole_of(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


EVERYWHERE = Cut((0, 1), "R")
WHOLES = {"embed": whole_of(5, 4), "norm": whole_of(4), "expert.0": whole_of(3), "expert.1": whole_of(2, 3) + 50}
WHOLES |= {"head": WHOLES["embed"], "optimizer": whole_of(1)}
CUTS = {
    # Uneven rows to columns cut by size; a type of its own; what one rank has alone; the same memory under two names.
    "source": {
        "embed": Cut((0, 1), "S(0)", (3, 2)),
        "norm": EVERYWHERE,
        "expert.0": Cut((0,), "R"),
        "expert.1": Cut((1,), "R"),
        "head": Cut((0, 1), "S(0)", (3, 2)),
        "optimizer": EVERYWHERE,
    },
    "target": {
        "embed": Cut((0, 1), "S(1;1,3)", (1, 3)),
        "norm": EVERYWHERE,
        "expert.0": EVERYWHERE,
        "expert.1": Cut((0, 1), "S(0)", (1, 1)),
        "head": Cut((1,), "R"),
    },
}
DTYPES = {("target", "norm"): "float64"}


def versions_of(of_round: Round, role: str) -> list[int | None]:
    return of_round[0] if role == "source" else of_round[1]


def parts_of(role: str, rank: int) -> dict[str, Any]:
    """What a rank holds before the first round: values, or zeros of another type."""
    held = {}
    for name, cut in CUTS[role].items():
        if rank in cut.mesh:
            part = cut.part(WHOLES[name], rank).astype(DTYPES.get((role, name), "float32"))
            held[name] = np.ascontiguousarray(part) * (role == "source")
    if role == "source":
        held["head"] = held["embed"]
    return held


def expected_after(role: str, rank: int, number: int) -> dict[str, list[float]]:
    held = {name: cut.part(WHOLES[name], rank) for name, cut in CUTS[role].items() if rank in cut.mesh}
    return {name: (part + 100 * number).ravel().tolist() for name, part in held.items()}


def node_side(name: str, role: str, commit: str, rounds: list[Round]) -> list[list[dict[str, Any]]]:
    node = shutil.which("node")
    assert node is not None
    local, remote, direction = SIDES[role]
    ranks = [
        [
            {
                "name": f"model.{tensor}",
                "shape": list(part.shape),
                "globalShape": list(WHOLES[tensor].shape),
                "dtype": str(part.dtype),
                "data": part.ravel().tolist(),
                "mesh": list(CUTS[role][tensor].mesh),
                "placements": [CUTS[role][tensor].placement],
                **({"sameAs": "model.embed"} if (role, tensor) == ("source", "head") else {}),
            }
            for tensor, part in parts_of(role, rank).items()
        ]
        for rank in (0, 1)
    ]
    side = {"name": name, "role": direction, "local": local, "remote": remote, "agents": AGENTS[role], "ranks": ranks}
    side |= {"match": "target", "commit": commit, "rounds": [versions_of(each, role) for each in rounds]}
    done = subprocess.run(
        [node, str(HERE / "node_side.mjs")],
        env={**os.environ, "SIDE": json.dumps(side)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: list[list[dict[str, Any]]] = json.loads(done.stdout)
    return told


def python_rank(name: str, role: str, rank: int, commit: str, rounds: list[Round]) -> list[dict[str, Any]]:
    held = parts_of(role, rank)
    weights = tensorbus.Weights(
        name,
        held,
        role=role,
        client=client_of(AGENTS[role][rank]),
        rank=rank,
        world_size=2,
        layout=lambda tensor, _: (
            tensorbus.Mesh((len(CUTS[role][tensor].mesh),), ranks=CUTS[role][tensor].mesh),
            [CUTS[role][tensor].placement],
            WHOLES[tensor].shape,
        ),
        rename=lambda tensor: f"model.{tensor}",
        commit=commit,
        timeout=30,
    )
    told = []
    for of_round in rounds:
        version, stale = take(weights, versions_of(of_round, role)[rank])
        values = {f"model.{tensor}": part.ravel().tolist() for tensor, part in held.items()}
        told.append({"version": version, "stale": stale, "held": values})
        if role == "source":
            for part in {id(part): part for part in held.values()}.values():
                part += 100
    weights.client.close()
    return told


def take(weights: tensorbus.Weights, version: int | None) -> tuple[int | None, list[int | None]]:
    """A round, and the version that it told; a rank that names an older one calls again with the one it is told."""
    stale: list[int | None] = []
    while True:
        try:
            if weights.role == "source":
                result = weights.send(version, timeout=30).result()
                return result.get("version"), stale
            if version is None:
                return weights.recv(timeout=30), stale
            result = weights.client.transfer(weights.name, "recv", True, 30, version=version).result()
            return int(result["version"]), stale
        except tensorbus.TensorBusError as error:
            if error.code != "TB_STALE_VERSION":
                raise
            stale.append(version)
            version = error.details["expected"]


@pytest.mark.parametrize(
    ("python", "commit", "rounds"), [("source", "staged", STAGED_ROUNDS), ("target", "direct", ROUNDS)]
)
def test_a_model_moves_between_python_and_node(
    agents: tensorbus.Agents, python: str, commit: str, rounds: list[Round]
) -> None:
    name, other = f"mixed-{python}", "target" if python == "source" else "source"
    *of_python, by_round = both(
        lambda: python_rank(name, python, 0, commit, rounds),
        lambda: python_rank(name, python, 1, commit, rounds),
        lambda: node_side(name, other, commit, rounds),
    )
    told = {python: of_python, other: [[each[rank] for each in by_round] for rank in (0, 1)]}
    for number, of_round in enumerate(rounds):
        version = of_round[2]
        for role in ("source", "target"):
            for rank in (0, 1):
                met = told[role][rank][number]
                own = versions_of(of_round, role)[rank]
                if role == "target":
                    assert met["version"] == version or (version == 0 and met["version"] > number)
                # A rank that names none takes what comes; a newer version may have ended the round that it was in.
                assert met["stale"] in ([[own]] if own is not None and own < version else [[], [None]])
                expected = expected_after(role, rank, number)
                assert met["held"] == {f"model.{tensor}": values for tensor, values in expected.items()}
