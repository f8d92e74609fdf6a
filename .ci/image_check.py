"""Build docker/Dockerfile with buildah and restore a picture in the image; no registry and no daemon are needed.

    python .ci/image_check.py [--dockerfile FILE] [--extras LIST] [--folder FOLDER]

The base is a Debian made by debootstrap. Needs root, buildah and debootstrap (apt-get install buildah debootstrap), two
GB below --folder, and a few minutes. Skips with a reason, and status 0, where they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "examples/osprey_small.jpg"
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
GB_FREE = 6
NO_NETWORK = (
    "Temporary failure in name resolution", "Failed to establish a new connection", "Connection refused",
    "Network is unreachable", "Read timed out", "No matching distribution found", "CERTIFICATE_VERIFY_FAILED",
)  # fmt: skip
"""What pip and apt say where the index cannot be reached."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dockerfile", type=Path, default=ROOT / "docker/Dockerfile")
    parser.add_argument("--extras", help="instead of those of the Dockerfile")
    parser.add_argument("--folder", type=Path, help="work below it (default: the folder for temporary files)")
    args = parser.parse_args()
    reason = missing(args.folder)
    if reason is not None:
        print(f"image check skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="restort-image-") as folder:
        store = Store(Path(folder))
        return check(store, Path(folder), args.dockerfile, args.extras)


def missing(folder: Path | None) -> str | None:
    """Return why the check cannot be made here, None where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "it needs root, for debootstrap and for the image's own users"
    if tools_missing() and not (install() and not tools_missing()):
        return f"{tools_missing()[0]} is not installed; apt-get install buildah debootstrap"
    if not Path(CERTIFICATES).exists():
        return f"{CERTIFICATES} is missing; apt-get install ca-certificates"
    free = shutil.disk_usage(folder or tempfile.gettempdir()).free / 1e9
    return None if free > GB_FREE else f"it needs {GB_FREE} GB, and {free:.1f} are free"


def tools_missing() -> list[str]:
    return [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]


def install() -> bool:
    """Install the tools on a machine for continuous integration, and only there."""
    if os.environ.get("CI") != "true" or shutil.which("apt-get") is None:
        return False
    update, install = ["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends"]
    return all(
        subprocess.run(command, capture_output=True).returncode == 0
        for command in (update, [*install, "buildah", "debootstrap"])
    )


class Store:
    """Images and containers below a folder, apart from any others of this machine."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--storage-driver", "vfs", "--root", folder / "images", "--runroot", folder / "run"]

    def buildah(self, *arguments: str | Path) -> str:
        return run("buildah", *self._options, *arguments)

    def in_image(self, container: str, data: Path, *arguments: str | Path) -> str:
        """Run the entrypoint of the image as its own user, with `data` at /data."""
        return run(*self.command(container, data, *arguments))

    def command(self, container: str, data: Path, *arguments: str | Path) -> list[str]:
        """Return the command line that does so."""
        config = json.loads(self.buildah("inspect", "--type", "container", container))["Docker"]["config"]
        mount = f"{data}:/data"
        command = [
            "buildah", *self._options, "run", "--isolation", "chroot", "--user", config["User"], "--volume", mount,
            container, "--", *config["Entrypoint"], *arguments,
        ]  # fmt: skip
        return list(map(str, command))


def check(store: Store, folder: Path, dockerfile: Path, extras: str | None) -> int:
    base = folder / "base"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", SUITE, base, MIRROR], capture_output=True, text=True
    )
    if made.returncode:
        print(
            f"image check skipped: debootstrap cannot make a base here: {made.stdout.strip().splitlines()[-1:]}"
        )
        return 0
    try:
        container = store.buildah("from", "scratch").strip()
        store.buildah("add", "--quiet", container, base, "/")
        store.buildah("commit", "--quiet", "--rm", container, "restort-base")
    except SystemExit as failure:  # a machine that forbids mounts or namespaces
        print(f"image check skipped: buildah cannot keep an image here: {str(failure).splitlines()[-1:]}")
        return 0
    shutil.rmtree(base)
    # For machines whose package index has a certificate or an address of their own.
    (folder / "pip.conf").write_text(f"[global]\ncert = /host.crt\n{index_url()}")
    trusted = [f"--volume={CERTIFICATES}:/host.crt:ro", f"--volume={folder / 'pip.conf'}:/etc/pip.conf:ro"]
    chosen = [] if extras is None else [f"--build-arg=EXTRAS={extras}"]
    build = (
        "build", "--isolation", "chroot", "--format", "docker", "--build-arg=BASE=localhost/restort-base",
        *chosen, *trusted, "--file", dockerfile, "--tag", "restort", ROOT,
    )  # fmt: skip
    try:
        store.buildah(*build)
    except SystemExit as failure:
        if not any(words in str(failure) for words in NO_NETWORK):
            raise
        print("image check skipped: the packages of the image cannot be fetched here")
        return 0
    image = json.loads(store.buildah("inspect", "--type", "image", "restort"))["Docker"]
    config = image["config"]
    assert config["User"] == "10001:10001" and config["Entrypoint"] == ["restort"], config
    shell, healthy = config["Healthcheck"]["Test"]
    assert shell == "CMD-SHELL" and "/healthz" in healthy, config
    assert not config.get("Volumes"), config

    container = store.buildah("from", "restort").strip()
    data = folder / "data"
    data.mkdir()
    shutil.copy(PICTURE, data / "in.jpg")
    data.chmod(0o777)
    print(store.in_image(container, data, "--version").strip())
    doctor = store.in_image(container, data, "doctor", "--json")
    print(f"doctor: {len(json.loads(doctor))} parts of a report")
    print(store.in_image(container, data, "upscale", "in.jpg", "-o", "out.png", "--offline"), end="")
    made = (data / "out.png").stat()
    assert made.st_uid == 10001, f"out.png belongs to {made.st_uid}"
    if extras is None:
        print(served(store, container, data))
    packages = run("du", "-sm", Path(store.buildah("mount", container).strip(), "opt/restort")).split()[0]
    print(f"out.png: {made.st_size:,} bytes; the programs: {packages} MB; ok")
    return 0


def served(store: Store, container: str, data: Path) -> str:
    """Start `restort serve` in the container, send it a picture, and stop it."""
    port = "8777"
    command = store.command(container, data, "serve", "--port", port, "--model", "elan-light-x4", "--offline")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as server:
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
                    break
                except OSError:
                    time.sleep(1)
            headers = {"Content-Type": "image/jpeg"}
            address = f"http://127.0.0.1:{port}/v1/restore?task=upscale&model=elan-light-x4"
            request = urllib.request.Request(address, PICTURE.read_bytes(), headers, method="POST")
            answer = urllib.request.urlopen(request, timeout=300).read()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    assert answer.startswith(b"\x89PNG"), answer[:100]
    return f"serve: {len(answer):,} bytes of PNG"


def index_url() -> str:
    """Return a line of pip's configuration with the package index of this machine; '' for the usual one."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(command, capture_output=True, text=True)
    return "" if found.returncode else f"index-url = {found.stdout.strip()}\n"


def run(*command: str | Path) -> str:
    """Run a command and return what it prints; exit with its error where it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
