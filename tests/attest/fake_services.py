"""Services on this machine that stand for Intel's PCS, a PCCS and AMD's KDS, with the documents of the fake vendors;
and the same misbehaving in any way.

`Service(answer)` serves `answer(target)`: the bytes of a whole HTTP answer, or an iterator of them for one that drips.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote

from fake_amd import TCB, Machine, intermediate_der, root_der
from fake_intel import Intel
from fake_x509 import pem, revocation_list, rsa_key

from strongroom.attest.snp_report import tcb_parts

Answer = Callable[[str], "bytes | Iterable[bytes]"]


def ok(body: bytes, headers: dict[str, str] | None = None, *, status: str = "200 OK") -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


NOT_FOUND = ok(b"no such thing", status="404 Not Found")


class Service:
    """See the module. `targets`: what was asked for, in order; `heads`: the requests as they came."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.targets: list[str] = []
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (data := connection.recv(4096)):
                    return
                head += data
            self.heads.append(head.decode())
            target = head.split(b" ")[1].decode()
            self.targets.append(target)
            answered = self.answer(target)
            for chunk in (answered,) if isinstance(answered, bytes) else answered:
                connection.sendall(chunk)
                if self._stopped.is_set():
                    return

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def drip(head: bytes, chunk: bytes, *, pause_s: float, times: int) -> Iterator[bytes]:
    """An answer that comes bit by bit."""
    yield head
    waiting = threading.Event()
    for _ in range(times):
        waiting.wait(pause_s)
        yield chunk


# --- Intel --------------------------------------------------------------------------------------------------


def intel_answers(
    vendor: Intel, *, pccs: bool = True, members: dict[str, str] | None = None
) -> dict[str, tuple[bytes, dict[str, str]]]:
    """What PCS (or a PCCS, with lists in hex) answers about the vendor's platform: target -> body and headers."""
    authority = "platform" if "Platform" in vendor.authority else "processor"
    found = vendor.members | (members or {})
    return bundle_answers(found, vendor.format, vendor.fmspc.hex(), authority, pccs=pccs)


def bundle_answers(
    m: dict[str, str], tee: str, fmspc: str, authority: str, *, pccs: bool = True
) -> dict[str, tuple[bytes, dict[str, str]]]:
    """The same for the members of a bundle."""
    lists = {
        name: m[name].encode() if pccs else bytes.fromhex(m[name]) for name in ("pck_crl", "root_ca_crl")
    }

    def signed(member: str, name: str) -> bytes:
        return f'{{"{member}":{m[name]},"signature":"{m[name + "_signature"]}"}}'.encode()

    return {
        f"/{tee}/certification/v4/tcb?fmspc={fmspc.upper()}": (
            signed("tcbInfo", "tcb_info"),
            {"TCB-Info-Issuer-Chain": quote(m["tcb_info_issuer_chain"])},
        ),
        f"/{tee}/certification/v4/qe/identity": (
            signed("enclaveIdentity", "qe_identity"),
            {"SGX-Enclave-Identity-Issuer-Chain": quote(m["qe_identity_issuer_chain"])},
        ),
        f"/sgx/certification/v4/pckcrl?ca={authority}&encoding=der": (
            lists["pck_crl"],
            {"SGX-PCK-CRL-Issuer-Chain": quote(m["pck_crl_issuer_chain"])},
        ),
        "/sgx/certification/v4/rootcacrl": (lists["root_ca_crl"], {}),
    }


# --- AMD ----------------------------------------------------------------------------------------------------


def vcek_target(machine: Machine) -> str:
    """Where KDS has the machine's VCEK."""
    parts = tcb_parts(TCB[machine.product], machine.product)
    query = "&".join(f"{name}SPL={value:02d}" for name, value in parts)
    return f"/vcek/v1/{machine.product}/{machine.hardware_id.hex()}?{query}"


@functools.cache
def _issuers(product: str) -> dict[str, tuple[bytes, dict[str, str]]]:
    found: dict[str, tuple[bytes, dict[str, str]]] = {}
    for kind in ("VCEK", "VLEK"):
        chain = pem(intermediate_der(product, kind)) + pem(root_der(product))
        found[f"/{kind.lower()}/v1/{product}/cert_chain"] = (chain, {})
        crl = revocation_list(f"ARK-{product}", rsa_key("ark"))
        found[f"/{kind.lower()}/v1/{product}/crl"] = (crl, {})
    return found


def amd_answers(machine: Machine) -> dict[str, tuple[bytes, dict[str, str]]]:
    """What KDS answers about the machine: target -> body and headers."""
    leaf = {vcek_target(machine): (machine.leaf_der, dict[str, str]())} if machine.kind == "VCEK" else {}
    return leaf | _issuers(machine.product)


def serve(answers: dict[str, tuple[bytes, dict[str, str]]], **changed: bytes | Iterable[bytes]) -> Service:
    """A service that answers so; `changed`: a part of a target, without what is no letter -> another answer for it."""

    def answer(target: str) -> bytes | Iterable[bytes]:
        plain = "".join(c for c in target if c.isalpha())
        for part, other in changed.items():
            if part in plain:
                return other
        return ok(*answers[target]) if target in answers else NOT_FOUND

    return Service(answer)
