"""Lays the package out as the library `kernels` loads it from a repository of the Hub: python hub/build.py FOLDER

The folder gets build/torch-cuda and build/torch-cpu, each the whole package with its metadata.json. A process may load several
versions of a kernel, and rnn_triton itself beside them, so the operators of each build are in a namespace of its own.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("cuda", "cpu")  # CPU tensors run torch's own operators
MAJOR = 1  # version of the repository's branch, v1


def main(out: Path) -> None:
    version = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[0]
    package = ROOT / "rnn_triton"
    files = {path.relative_to(package): path.read_bytes() for path in sorted(package.rglob("*")) if path.suffix in (".py", ".json")}
    files |= {Path("kernels", path.name): path.read_bytes() for path in sorted((ROOT / "kernels").glob("*.py"))}  # rglob follows no link
    digest = hashlib.sha256(b"\0".join(str(name).encode() + b"\0" + text for name, text in sorted(files.items()))).hexdigest()[:8]
    for backend in BACKENDS:
        name = f"_rnn_triton_{backend}_{version.replace('.', '_')}_{digest}"
        folder = out / "build" / f"torch-{backend}"
        shutil.rmtree(folder, ignore_errors=True)
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(re.sub(rb"rnn_triton::|(?<=torch\.ops\.)rnn_triton\b", lambda found: _renamed(found, name), text))
        metadata = {
            "id": name, "name": "rnn-triton", "version": MAJOR, "license": "MIT", "python-depends": [], "backend": {"type": backend},
        }  # fmt: skip
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    shutil.copy(ROOT / "hub" / "README.md", out)
    print(f"{out}: {', '.join(f'build/torch-{backend}' for backend in BACKENDS)}, of {version}, {digest}")


def _renamed(found: re.Match[bytes], name: str) -> bytes:
    return found.group().replace(b"rnn_triton", name.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
