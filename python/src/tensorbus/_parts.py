"""How an engine or a trainer holds a model, as the presets of the command line say: views of its parameters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._agents import find_cli
from ._layouts import Mesh
from .errors import make_error

_SECONDS = 300.0
# What the command line says of an error of tensorbus.
_REFUSAL = re.compile(r"error: (?P<message>.*) \((?P<code>TB_[A-Z_]+)\)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A tensor that travels, as a view of a parameter of this rank.

    Attributes:
        parameter: The parameter's name in the engine.
        parameter_shape: Its shape on this rank.
        shape: That of the tensor on this rank.
        offset: Elements from the parameter's first to the tensor's first.
        strides: In elements.
        global_shape: Of the whole tensor.
        mesh: The ranks of the side that have some of it.
        placements: One for each dimension of the mesh.
    """

    parameter: str
    parameter_shape: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    global_shape: tuple[int, ...]
    mesh: Mesh
    placements: tuple[str, ...]


class PresetParts:
    """What ``preset_parts`` found out: the tensors that travel, by their names.

    Attributes:
        parts: Where each lies, in the order of the model.
        world_size: Ranks of the preset.
    """

    def __init__(self, parts: Mapping[str, Part], world_size: int) -> None:
        self.parts = dict(parts)
        self.world_size = world_size

    def views(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors that travel, as views of an engine's parameters: ``Weights`` sends and receives them in place.

        Args:
            parameters: Torch tensors or numpy arrays by the engine's names: ``dict(model.named_parameters())``.

        Raises:
            ValueError: A parameter is missing, or has another shape than the preset says, or is not contiguous.
        """
        return {name: _view(name, part, parameters) for name, part in self.parts.items()}

    def layout(self, name: str, tensor: Any) -> tuple[Mesh, Sequence[str], tuple[int, ...]]:
        """For ``Weights(layout=…)``: mesh, placements and whole shape of a tensor."""
        del tensor
        part = self.parts[name]
        return part.mesh, part.placements, part.global_shape


def _view(name: str, part: Part, parameters: Mapping[str, Any]) -> Any:
    parameter = parameters.get(part.parameter)
    if parameter is None:
        message = f"{name} lies in parameter {part.parameter}, and there is no such parameter"
        raise make_error("TB_TENSOR_MISSING", message, {"tensor": name, "parameter": part.parameter})
    if tuple(parameter.shape) != part.parameter_shape:
        message = (
            f"parameter {part.parameter} has the shape {list(parameter.shape)}, "
            f"and the preset says {list(part.parameter_shape)}"
        )
        raise make_error("TB_SHAPE", message, {"parameter": part.parameter})
    if hasattr(parameter, "as_strided"):
        plain = parameter.detach()
        _require_contiguous(part.parameter, plain.is_contiguous())
        return plain.as_strided(part.shape, part.strides, plain.storage_offset() + part.offset)
    import numpy

    _require_contiguous(part.parameter, parameter.flags.c_contiguous)
    strides = tuple(stride * parameter.itemsize for stride in part.strides)
    first = parameter.reshape(-1)[part.offset :]
    return numpy.lib.stride_tricks.as_strided(first, part.shape, strides, writeable=True)


def _require_contiguous(parameter: str, is_contiguous: bool) -> None:
    if not is_contiguous:
        raise make_error("TB_STRIDES", f"parameter {parameter} is not contiguous", {"parameter": parameter})


def preset_parts(
    config: Any,
    preset: str,
    *,
    rank: int,
    source: str | None = None,
    target: str | None = None,
    form: str = "checkpoint",
) -> PresetParts:
    """Which tensors travel between two presets, and where they lie in the parameters of one rank.

    Asks the command line of tensorbus (``TENSORBUS_CLI``, or ``tensorbus`` on PATH), which has the presets and the
    families of models.

    Args:
        config: A model's ``config.json``, a folder with one, its members as a mapping, or a config of transformers.
        preset: How this side holds it: ``"vllm:tp=2"``, ``"fsdp2:dp=4"``.
        rank: This process's rank in its job.
        source: The other side's preset, if this one is the target; default ``"hf:1"``, which has every tensor whole.
        target: The other side's preset, if this one is the source.
        form: Names and shapes of the model's tensors: ``"checkpoint"`` as published, ``"state_dict"`` as transformers 5
            holds them in memory.

    Raises:
        TensorBusError: There is no command line, or it refuses the model (``TB_MODEL_CONFIG``, ``TB_FILE``) or the
            preset (``TB_PRESET``): the message says why.
    """
    if source is not None and target is not None:
        raise ValueError("source and target are both given: the other side is one of them")
    with tempfile.TemporaryDirectory(prefix="tensorbus-model-") as folder:
        path = _config_path(config, folder)
        command = [*find_cli(), "layout", "--model", path, "--engine", preset]
        command += ["--rank", str(rank), "--form", form, "--json"]
        command += ["--target", target] if target is not None else ["--source", source or "hf:1"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as cause:
            message = f"{command[0]} has not answered for {_SECONDS:.0f} seconds"
            raise make_error("TB_TIMEOUT", message, {"command": command}) from cause
    if done.returncode != 0:
        # A file that was made for this says nothing to the caller.
        said = (
            done.stderr.strip()
            if isinstance(config, (str, os.PathLike))
            else done.stderr.strip().replace(path, "config")
        )
        refusal = _REFUSAL.fullmatch(said)
        if refusal is not None:
            raise make_error(refusal["code"], refusal["message"], {"preset": preset})
        raise make_error(
            "TB_PRESET", said or f"{command[0]} ended with exit code {done.returncode}", {"preset": preset}
        )
    return _read(json.loads(done.stdout))


def _config_path(config: Any, folder: str) -> str:
    if isinstance(config, (str, os.PathLike)):
        return os.fspath(config)
    members = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    path = os.path.join(folder, "config.json")
    with open(path, "w", encoding="utf-8") as file:
        # What is no JSON, such as a type of torch, has a text.
        json.dump(members, file, default=lambda value: str(value).removeprefix("torch."))
    return path


def _read(answer: Mapping[str, Any]) -> PresetParts:
    layouts = [
        (
            Mesh(tuple(layout["mesh"]["shape"]), ranks=tuple(layout["mesh"]["ranks"])),
            tuple(layout["placements"]),
        )
        for layout in answer["layouts"]
    ]
    parts = {}
    for view in answer["views"]:
        mesh, placements = layouts[view["layout"]]
        parts[view["tensor"]] = Part(
            view["parameter"],
            tuple(view["parameterShape"]),
            tuple(view["shape"]),
            view["offset"],
            tuple(view["strides"]),
            tuple(view["globalShape"]),
            mesh,
            placements,
        )
    return PresetParts(parts, answer["worldSize"])
