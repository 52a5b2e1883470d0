"""`make demo-tpm`: a server on a TPM, with every refusal actually happening. Plays all parties on one machine.

The TPM is Debian's swtpm, a program: it shows the protocol and protects nothing, for its state is a plain file. On a
machine with a TPM the same settings name `device:/dev/tpmrm0`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import software_tpm

ROOT = Path(__file__).resolve().parent.parent
READY = "strongroom: serving on "


def say(text: str = "") -> None:
    """Prints a line at once."""
    print(text, flush=True)


class Machine:
    """A machine with a TPM: `on` is what switching it off and on does."""

    def __init__(self, folder: Path, tpm: software_tpm.SoftwareTpm) -> None:
        self.folder, self.tpm = folder, tpm

    def serve(self, *, expect: str = "") -> tuple[subprocess.Popen[str], str]:
        """Starts the server; with `expect` it must refuse to start with that code."""
        config = self.folder / "strongroom.toml"
        config.write_text(
            f'platform = "tpm"\nbind = "127.0.0.1:0"\nstate_dir = "{self.folder / "state"}"\n\n'
            f'[tpm]\ntcti = "{self.tpm.tcti}"\n'
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "strongroom.launch", "--config", str(config)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        for line in process.stdout or ():
            say(f"   {line.rstrip()}")
            if line.startswith(READY) and not expect:
                return process, line.removeprefix(READY).split()[0]
        process.wait(60)
        if not expect or f"[{expect}]" not in line:
            raise SystemExit("the server did not do what it should have done")
        return process, ""


def command(*words: object, expect: int = 0) -> None:
    """Runs `strongroom` and shows the end of what it says."""
    shown_words = [Path(w).name if os.sep in w and "://" not in w else w for w in map(str, words)]
    say(f"   $ strongroom {' '.join(shown_words)}")
    done = subprocess.run(
        [sys.executable, "-m", "strongroom.cli", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    lines = (done.stdout + done.stderr).strip().splitlines()
    shown = [line for line in lines if re.match(r"FAIL|REFUSED|ACCEPTED|wrote|  \w", line)] or lines
    for line in shown[-6:]:
        say(f"   {line[:150]}")
    say(f"   exit code {done.returncode}")
    if done.returncode != expect:
        raise SystemExit(f"expected exit code {expect}\n{done.stdout}\n{done.stderr}")


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and waits."""
    process.terminate()
    process.wait(60)


def main() -> int:
    """The story."""
    if why := software_tpm.missing():
        say(f"make demo-tpm cannot run here: {why}")
        return 1
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with tempfile.TemporaryDirectory(prefix="strongroom-tpm-") as temporary:
        folder = Path(temporary)
        with software_tpm.software_tpm(folder / "tpm") as tpm:
            _story(folder, Machine(folder, tpm))
    return 0


def _story(folder: Path, machine: Machine) -> None:
    policy, key, tpm = folder / "policy.toml", folder / "owner.pem", machine.tpm
    say("A software TPM: it shows the protocol, and protects nothing (its state is a plain file).")
    say(
        "\n1. The launcher tells the TPM which code will run; the server gets its sealing root, and caps the register"
    )
    server, url = machine.serve()
    say("\n2. A production policy refuses it: a TPM measures a start, it does not hide memory from the host")
    command("verify", url, "--policy", "production", expect=10)
    say(
        "\n3. The data owner ties the server's key to that very TPM, once, and writes a policy that names the key"
    )
    command("tpm", "enrol", url, "--root", tpm.root, "--chain", tpm.issuer, "--out", policy)
    command("verify", url, "--policy", policy)
    command("keygen", key)
    to = ("--url", url, "--policy", policy, "--key", key)
    command("upload", ROOT / "examples" / "iris_model.json", "--name", "iris", *to)
    kept = shutil.copytree(folder / "state" / "store", folder / "kept")
    command("delete", "iris", *to)
    stop(server)
    say("\n4. Whoever starts behind the server gets nothing, be it the same code: the register is capped")
    machine.serve(expect="tpm_unseal_refused")
    say("\n5. The machine is reset. The host puts the older store back, in which the model was not deleted")
    newest = (folder / "state" / "store").rename(folder / "newest")
    kept.rename(folder / "state" / "store")
    tpm.reset()
    machine.serve(expect="store_rolled_back")
    say("\n6. The newest store, after another reset: it opens, and the same policy accepts the server")
    shutil.rmtree(folder / "state" / "store")
    newest.rename(folder / "state" / "store")
    tpm.reset()
    server, url = machine.serve()
    command("verify", url, "--policy", policy)
    stop(server)


if __name__ == "__main__":
    sys.exit(main())
