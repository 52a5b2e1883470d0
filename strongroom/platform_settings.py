"""The settings of each platform, and how a setting is written down. `config` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")


def setting(
    default: _T,
    text: str,
    *,
    unit: str = "",
    low: int | None = None,
    high: int | None = None,
    choices: tuple[str, ...] = (),
) -> _T:
    """A dataclass field that knows its documentation; typed as its value, as dataclasses want it."""
    metadata = {"text": text, "unit": unit, "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """`[simulated]`: the simulated TEE. It protects nothing from the host: for development and tests."""

    root_key: str = setting(
        "",
        "Ed25519 key (PKCS#8 PEM) that stands for the hardware vendor; made at the first start if it is "
        "missing. Empty: `sim-root.pem` in `state_dir`.",
        unit="path",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgx:
    """`[sgx]`: an enclave of Gramine's. The choice is attested, as the sealing class."""

    seal_to: str = setting(
        "measurement",
        "What stored models are bound to: exactly this enclave (MRENCLAVE), or every enclave of its signer "
        "(MRSIGNER), which survives updates and trusts whatever the signer signs.",
        choices=("measurement", "signer"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tdx:
    """`[tdx]`: a trust domain. TDX gives no key to seal with, so the sealing class is `operator`."""

    operator_key: str = setting(
        "",
        "File with 64 hex digits (`openssl rand -hex 32`), mode 0600, from which every sealing key is derived. "
        "It protects nothing from whoever reads it. Empty: `operator-key` in `state_dir`.",
        unit="path",
    )
    extend_rtmr3: bool = setting(
        False,
        "Whether the launcher extends RTMR3 with this code's measurement before it runs it, and the server starts only "
        "if its quote shows that (docs/spec/reference-values.md §7). Not the default, for it takes Linux 6.16 and the "
        "right to write root's files below /sys. With it, another build starts only after a restart of the TD.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snp:
    """`[snp]`: an SEV-SNP guest."""

    host_data: str = setting(
        "any",
        "What HOST_DATA, 32 bytes that the host gives at the launch, has to be: `measurement`, this code's own digest "
        "(`strongroom measure --platform snp` prints it), or the server does not start; `any`, whatever the host gave.",
        choices=("any", "measurement"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRelease:
    """`[key_release]`: a broker that keeps the sealing key of a platform that gives none (`tdx`, `nitro`; `simulated`
    for trials), and releases it to servers that pass the key owner's policy (docs/spec/key-release.md). The server
    connects to it once, at start. All three, or none: then the key is a file.
    """

    url: str = setting(
        "",
        "Where the broker is, https://host:port. It decides nothing: another one has another key. Empty: no broker.",
    )
    broker_key: str = setting(
        "",
        "The broker's public key (Ed25519, 64 hex digits), as `strongroom keybroker serve` prints it. Attested, with "
        "`name`: whoever runs that broker can open the store.",
    )
    name: str = setting(
        "", "Which of the broker's keys: lower-case letters, digits, `.`, `_`, `-`; at most 64. Attested."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nitro:
    """`[nitro]`: an AWS Nitro enclave. It has no key to seal with and no disk, so the sealing class is `operator`."""

    operator_key: str = setting(
        "",
        "As for TDX. Not in the image, which the instance can read: fetch it at the start, for instance from KMS for "
        "this PCR0 (docs/platforms.md). Empty: `operator-key` in `state_dir`.",
        unit="path",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tpm:
    """`[tpm]`: a TPM 2.0. The PCRs are those that every quote shows, and that stored models are sealed to."""

    tcti: str = setting("device:/dev/tpmrm0", "The TPM, as libtss names it.")
    code_pcr: int = setting(
        13,
        "PCR for this code and the cap behind it; the launcher extends it, and only a reset of the machine clears it.",
        unit="PCR",
        low=8,
        high=15,
    )
    pcrs: tuple[int, ...] = setting(
        (0, 2, 4, 7, 8, 9, 11, 12),
        "PCRs that say what was started before: firmware, boot loader, kernel, image. A policy has to pin them.",
        unit="PCRs",
        low=0,
        high=15,
    )
    nv_index: int = setting(
        0x01805354,
        "NV index (owner's range) of the digests of the store in force: an older store is refused.",
        unit="NV index",
        low=0x01800000,
        high=0x01BFFFFF,
    )
