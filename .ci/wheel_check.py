"""Build the wheel, install it into an empty virtual environment, restore a picture there, and check sizes.

    python .ci/wheel_check.py [--keep FOLDER]

Limits: WHEEL_MB for the file, INSTALL_MB for site-packages as `du -sm` counts it, without pip. Needs access to a
package index, and about a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "examples/coffee_noisy.jpg"
WHEEL_MB = 30.0  # 10**6 bytes
INSTALL_MB = 300.0  # 2**20 bytes, blocks of 4 KiB as on disk


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in FOLDER and leave it there")
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True)
        return check(args.keep.resolve())
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder))


def check(folder: Path) -> int:
    """Return the exit status: 0 where both sizes are within their limits and a picture was restored."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    wheel_mb = wheel.stat().st_size / 1e6
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    sizes = {
        path.name: size_on_disk(path) / 2**20
        for path in packages.iterdir()
        if not path.name.startswith(("pip", "setuptools"))
    }
    # In an empty folder, so that nothing of the clone can be imported or read.
    run(python, "-m", "restort", "denoise", PICTURE, "-o", folder / "restored.png", "--offline", cwd=folder)
    restored = (folder / "restored.png").stat().st_size
    print(f"{wheel.name}: {wheel_mb:.1f} MB (limit {WHEEL_MB:g})")
    print(f"installed: {sum(sizes.values()):.0f} MiB (limit {INSTALL_MB:g}), the largest:")
    for name in sorted(sizes, key=lambda name: -sizes[name])[:8]:
        print(f"  {sizes[name]:6.1f}  {name}")
    print(f"restored {PICTURE.name}: {restored:,} bytes")
    failed = wheel_mb > WHEEL_MB or sum(sizes.values()) > INSTALL_MB
    print("FAILED: over a limit" if failed else "ok")
    return int(failed)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without PYTHONPATH and return what it prints; exit with its error where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file or folder in whole blocks of 4 KiB, as `du` counts them."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)


if __name__ == "__main__":
    sys.exit(main())
