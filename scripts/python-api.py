"""Writes docs/python-api.md from the docstrings of the Python package; with --check, says whether it is so."""

from __future__ import annotations

import inspect
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "python-api.md"
sys.path.insert(0, str(ROOT / "python" / "src"))

import tensorbus  # noqa: E402

SECTIONS = {
    "Models": ["Weights", "split_fused", "empty", "share", "Shared", "Mesh", "preset_parts", "PresetParts", "Part"],
    "Agents": [
        "start_agents",
        "Agents",
        "bootstrap_client",
        "BootstrapInfo",
        "Bootstrapped",
        "BusPaths",
        "default_paths",
    ],
    "The client": ["TensorBusClient", "BatchHandler", "Semaphore", "generate_semaphore_name"],
    "Commands": ["InitPair", "RegisterTensors", "Transfer", "QueryStatus", "CleanupBatch"],
    "Exceptions": [
        "TensorBusError",
        "ArgumentError",
        "AgentError",
        "DeadlineError",
        "OperationError",
        "QueueFullError",
    ],
}
PLAIN = ["__version__", "logger"]


def signature_of(name: str, thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    text = re.sub(r"<factory>|<object object[^>]*>", "…", text)
    # Annotations are text, and stand in quotes; defaults that are text keep theirs.
    return name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def text_of(thing: object) -> str:
    doc = inspect.cleandoc(inspect.getdoc(thing) or "")
    doc = doc.replace("``", "`")
    out, section = [], None
    for line in doc.split("\n"):
        heading = re.fullmatch(r"(Args|Raises|Returns|Attributes):", line)
        if heading:
            section = heading[1]
            out += ["", f"**{section}**", ""]
        elif section and re.match(r"    \S+: ", line) and section != "Returns":
            name, rest = line.strip().split(": ", 1)
            out.append(f"- `{name}`: {rest}")
        elif section:
            out.append(f"  {line.strip()}" if line.strip() else "")
        else:
            out.append(line)
    return "\n".join(out).strip()


def members_of(owner: type) -> list[str]:
    lines: list[str] = []
    for name, member in vars(owner).items():
        if name.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            lines += [f"#### `{owner.__name__}.{name}`", "", text_of(member), ""]
        elif inspect.isfunction(member):
            lines += [f"#### `{owner.__name__}.{signature_of(name, member)}`", "", text_of(member), ""]
    return lines


def page() -> str:
    listed = {name for names in SECTIONS.values() for name in names}
    missing = set(tensorbus.__all__) - listed - set(PLAIN)
    if missing:
        raise SystemExit(f"names that no section has: {sorted(missing)}")
    lines = [
        "# Python API",
        "",
        "Made from the docstrings by `scripts/python-api.py`. [python.md](python.md) is the guide.",
        "",
    ]
    for section, names in SECTIONS.items():
        lines += [f"## {section}", ""]
        for name in names:
            thing = getattr(tensorbus, name, None)
            if thing is None:
                continue
            lines += [f"### `{signature_of(name, thing)}`", "", text_of(thing), ""]
            if inspect.isclass(thing):
                lines += members_of(thing)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    made = page()
    if "--check" not in sys.argv:
        PAGE.write_text(made)
        return 0
    if PAGE.read_text() == made:
        return 0
    print("docs/python-api.md differs from the docstrings: run python3 scripts/python-api.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
