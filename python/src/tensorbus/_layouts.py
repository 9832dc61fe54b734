"""Meshes and placements, PyTorch's or plain ones, as agents know them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .errors import make_error

_NUMBER = r"\s*(?:\w+\s*=)?\s*(-?\d+)\s*"
# The texts that agents read: theirs, and those that torch's placements print.
_PLACEMENT = re.compile(
    rf"\s*(?:(?:R|Replicate)\s*(?:\(\s*\))?|(?:S|Shard)\s*\({_NUMBER}(?:;[\d\s,]*)?\)|"
    rf"(?:SS|_?StridedShard)\s*\({_NUMBER},{_NUMBER}\)|(P|Partial)\s*(?:\([^();]*\))?)\s*"
)


@dataclass(frozen=True)
class Mesh:
    """An n-dimensional array of a job's ranks, for callers without a process group.

    Attributes:
        shape: Ranks in each dimension.
        dim_names: Names of the dimensions.
        ranks: The ranks, row-major; default 0, 1, 2, …
    """

    shape: tuple[int, ...]
    dim_names: tuple[str, ...] | None = None
    ranks: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "ranks", tuple(self.ranks) or tuple(range(prod(self.shape))))
        if self.dim_names is not None:
            object.__setattr__(self, "dim_names", tuple(self.dim_names))
        if len(self.ranks) != prod(self.shape) or len(set(self.ranks)) != len(self.ranks):
            raise make_error(
                "TB_MESH",
                f"a mesh of shape {self.shape} has other ranks than {self.ranks}",
                {"shape": self.shape},
            )


def to_mesh(mesh: Any) -> Mesh:
    """A ``Mesh`` of a torch ``DeviceMesh``, of a ``Mesh``, or of ``(shape, dim_names)``."""
    if isinstance(mesh, Mesh):
        return mesh
    if isinstance(mesh, tuple) and len(mesh) == 2 and isinstance(mesh[0], Sequence):
        return Mesh(tuple(mesh[0]), None if mesh[1] is None else tuple(mesh[1]))
    ranks = getattr(mesh, "mesh", None)
    if ranks is None or not hasattr(ranks, "tolist"):
        raise TypeError(f"a mesh is a DeviceMesh, a tensorbus.Mesh or (shape, dim_names), not {type(mesh).__name__}")
    names = getattr(mesh, "mesh_dim_names", None)
    flat = ranks.flatten().tolist()
    return Mesh(tuple(ranks.shape), None if names is None else tuple(names), tuple(int(rank) for rank in flat))


def placement_text(placement: Any) -> str:
    """``S(0)``, ``SS(0,2)``, ``R``, ``P(sum)`` of a placement of torch, or of text."""
    if isinstance(placement, str):
        return placement
    kind = type(placement).__name__
    if kind == "_StridedShard":
        return f"SS({placement.dim},{placement.split_factor})"
    if kind == "Shard":
        return f"S({placement.dim})"
    if kind == "Replicate":
        return "R"
    if kind in ("Partial", "_Partial"):
        return f"P({placement.reduce_op})"
    raise TypeError(f"a placement is one of torch's, or text, not {placement!r}")


def _read_placement(text: str) -> re.Match[str]:
    match = _PLACEMENT.fullmatch(text)
    if match is None:
        message = f"not a placement: {text!r}; there are R, S(dim), S(dim;sizes), SS(dim,splitFactor) and P(op)"
        raise make_error("TB_PLACEMENT", message, {"placement": text})
    return match


def cut_dimension(text: str) -> int | None:
    """The dimension that a placement cuts, if it cuts one."""
    match = _read_placement(text)
    found = match[1] or match[2]
    return None if found is None else int(found)


def is_partial(text: str) -> bool:
    """True for a placement whose ranks hold contributions to a sum."""
    return _read_placement(text)[4] is not None


def own_rank() -> int | None:
    """This process's rank in its job: that of ``torch.distributed`` if it runs, else ``RANK``."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    text = os.environ.get("RANK", "")
    return int(text) if text.isdigit() else None


def own_world_size() -> int | None:
    """The size of this process's job: that of ``torch.distributed`` if it runs, else ``WORLD_SIZE``."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    text = os.environ.get("WORLD_SIZE", "")
    return int(text) if text.isdigit() else None


def layout_message(
    mesh: Any, placements: Sequence[Any], offset: int, strided_shard: str | None = None
) -> dict[str, Any]:
    """A layout as a command has it. ``offset``: what is added to a rank of the job to get the rank of its agent."""
    plain = to_mesh(mesh)
    if isinstance(placements, str):
        raise TypeError(f"placements are a list, one for each dimension of the mesh, not the text {placements!r}")
    texts = [placement_text(placement) for placement in placements]
    for text in texts:
        _read_placement(text)
    if len(texts) != len(plain.shape):
        message = f"{len(texts)} placements for a mesh of {len(plain.shape)} dimensions"
        raise make_error("TB_PLACEMENT", message, {"placements": texts, "mesh": plain.shape})
    described: dict[str, Any] = {"shape": list(plain.shape), "ranks": [rank + offset for rank in plain.ranks]}
    if plain.dim_names is not None:
        described["dimNames"] = list(plain.dim_names)
    layout: dict[str, Any] = {"mesh": described, "placements": texts}
    if strided_shard is not None:
        layout["stridedShard"] = strided_shard
    return layout
