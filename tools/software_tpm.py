"""A software TPM (Debian's swtpm) for the tests and `make demo-tpm`: made, started, reset, ended by its process id.

`reset` is what switching a machine off and on is to its TPM: PCRs at zero, keys and NV memory as they were.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TSS2_LOG", "all+NONE")  # libtss prints every refusal to stderr otherwise

GET_CAPABILITY = (1).to_bytes(4)
"""A command of swtpm's control channel (swtpm_ioctls(3)); the answer has a result and the flags."""


def missing() -> str:
    """Why no software TPM can run here, "" where one can."""
    for program in ("swtpm", "swtpm_setup"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt install swtpm swtpm-tools)"
    if importlib.util.find_spec("tpm2_pytss") is None:
        return (
            "tpm2-pytss is not installed (apt install libtss2-dev libtss2-tcti-swtpm0 pkg-config; make test)"
        )
    return ""


class SoftwareTpm:
    """One TPM with an endorsement certificate of a CA of its own."""

    def __init__(self, folder: Path) -> None:
        self.state, self._ca = folder / "tpm", folder / "ca"
        self.state.mkdir(parents=True)
        self._ca.mkdir()
        (folder / "localca.conf").write_text(
            f"statedir = {self._ca}\nsigningkey = {self._ca}/signkey.pem\nissuercert = {self._ca}/issuercert.pem\n"
            f"certserial = {self._ca}/certserial\n"
        )
        (folder / "localca.options").write_text(
            "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n"
        )
        (folder / "setup.conf").write_text(
            "create_certs_tool = /usr/bin/swtpm_localca\n"
            f"create_certs_tool_config = {folder}/localca.conf\n"
            f"create_certs_tool_options = {folder}/localca.options\n"
        )
        setup = [
            "swtpm_setup", "--tpm2", "--tpmstate", str(self.state), "--create-ek-cert", "--pcr-banks", "sha256",
            "--config", str(folder / "setup.conf"),
        ]  # fmt: skip
        subprocess.run(setup, check=True, capture_output=True, timeout=60)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def tcti(self) -> str:
        """How libtss names it."""
        return f"swtpm:host=127.0.0.1,port={self._port}"

    @property
    def root(self) -> Path:
        """The CA's root certificate (PEM)."""
        return self._ca / "swtpm-localca-rootca-cert.pem"

    @property
    def issuer(self) -> Path:
        """The certificate (PEM) between root and endorsement certificate."""
        return self._ca / "issuercert.pem"

    def start(self) -> None:
        """Switches it on; on other ports where somebody was quicker."""
        for _ in range(5):
            self._port = _two_free_ports()
            words = [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}",
                "--server", f"type=tcp,port={self._port},bindaddr=127.0.0.1,disconnect",
                "--ctrl", f"type=tcp,port={self._port + 1},bindaddr=127.0.0.1",
                "--flags", "not-need-init,startup-clear",
            ]  # fmt: skip
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if self._listens(self._process):
                return
            self.stop()
        raise RuntimeError("swtpm does not listen")

    def _listens(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it answers: the control channel takes connections before the other is open, answers only after."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port + 1), 1) as probe,
            ):
                probe.sendall(GET_CAPABILITY)
                if probe.recv(64):
                    return process.poll() is None
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """Switches it off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def reset(self) -> None:
        """Off and on."""
        self.stop()
        self.start()


@contextlib.contextmanager
def software_tpm(folder: Path) -> Iterator[SoftwareTpm]:
    """A TPM that is switched off at the end."""
    tpm = SoftwareTpm(folder)
    try:
        yield tpm
    finally:
        tpm.stop()


def _two_free_ports() -> int:
    """The first of two neighbouring ports that nobody has: the control channel is the one above. Below the range from
    which systems take ports for outgoing connections, so that none of those comes in between.
    """
    while True:
        port = secrets.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
