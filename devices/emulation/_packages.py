"""Debian's packages for arm64, by apt itself, with a state of its own: nothing of the system's is changed.

The sources, their keys and the proxy are this system's own; the architecture is arm64, and no package counts as installed.
"""

import os
import re
from pathlib import Path

from edge_sd.devices.emulation._tools import run_tool
from edge_sd.errors import InstallationError

# A board that is reached by ssh and runs Python; no systemd. The tools are what scripts on a small Linux can count on.
PACKAGES = (
    "base-files", "bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "gzip", "hostname", "libc-bin", "libgcc-s1",
    "libstdc++6", "mawk", "openssh-server", "openssh-sftp-server", "procps", "python3", "rsync", "sed", "tar", "usr-is-merged",
    "util-linux",
    "systemd-", "libnss-systemd-",
)  # fmt: skip
# Depends on the newest kernel for virtual machines.
_KERNEL = "linux-image-cloud-arm64"
_DEPENDS = re.compile(r"Depends: (linux-image-[a-z0-9.+~-]*-cloud-arm64)\b")
_HINT = "are Debian's package sources set up and reachable? apt-get update"


class Apt:
    """apt for arm64.

    Args:
        folder: an empty one for its state and what it downloads.
        log: takes the words of its programs.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder, self._log = folder, log
        for name in ("state/lists/partial", "cache/archives/partial", "parts", "kernel"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        self._write_config()

    def update(self) -> None:
        """Fetch the lists of packages. A source that fails is seen when a package is not found."""
        try:
            self._run("apt-get", "-q", "update")
        except InstallationError:
            if not any((self._folder / "state" / "lists").glob("*Packages*")):
                raise

    def system(self) -> list[Path]:
        """Download what the board's system is made of."""
        self._run("apt-get", "-q", "-y", "--no-install-recommends", "--download-only", "install", *PACKAGES)
        return sorted((self._folder / "cache" / "archives").glob("*.deb"))

    def kernel(self) -> Path:
        """Download the newest kernel, without what would install it."""
        found = _DEPENDS.search(self._run("apt-cache", "depends", _KERNEL))
        if found is None:
            raise InstallationError(
                f"the board cannot be made: the package sources have no {_KERNEL}", "the sources of Debian 12 or newer have it"
            )
        self._run("apt-get", "-q", "download", found[1], folder=self._folder / "kernel")
        return next((self._folder / "kernel").glob("*.deb"))

    def _run(self, *arguments: str, folder: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        environment["DEBIAN_FRONTEND"] = "noninteractive"
        return run_tool(arguments, self._log, hint=_HINT, environment=environment, folder=folder)

    def _write_config(self) -> None:
        """How this system fetches (proxy, certificates), without its hooks; then what makes it another machine's apt."""
        lines = run_tool(["apt-config", "dump"], self._log, hint=_HINT).splitlines()
        fetching = [line for line in lines if line.startswith("Acquire::") and not line.startswith("Acquire::IndexTargets")]
        settings = {
            "Dir::Etc::parts": self._folder / "parts",
            "Dir::Etc::main": "/dev/null",
            "Dir::State": self._folder / "state",
            "Dir::State::status": self._folder / "status",
            "Dir::Cache": self._folder / "cache",
            "APT::Architecture": "arm64",
            "APT::Sandbox::User": "",
            "APT::Keep-Downloaded-Packages": "true",
            "Acquire::Languages": "none",
        }
        own = [*(f'{name} "{value}";' for name, value in settings.items()), 'APT::Architectures {"arm64";};']
        (self._folder / "apt.conf").write_text("\n".join([*fetching, *own]) + "\n")
