"""`strongroom measure`: every reference value of a release, for one platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from strongroom.calls import printable
from strongroom.errors import Failure, InvalidConfig, InvalidRequest
from strongroom.terminal import mark_simulated, note_simulated, show_json

if TYPE_CHECKING:
    from strongroom.attest.reference import Reference
    from strongroom.config import Config
    from strongroom.measure import Measurement

_F = TypeVar("_F", bound=Callable[..., Any])
VMMS: Final = ("qemu", "ec2", "gce")
PLATFORMS: Final = ("sgx", "tdx", "snp", "nitro", "tpm", "simulated")
_ARTEFACTS: Final[Mapping[str, tuple[str, ...]]] = {
    "sgx": ("sigstruct",),
    "tdx": ("firmware", "event_log", "page_order"),
    "snp": ("firmware", "kernel", "initrd", "cmdline", "vcpus", "vcpu_type", "vmm", "guest_features"),
    "nitro": ("eif_json",),
    "tpm": ("event_log",),
    "simulated": (),
}
"""Platform -> the options that say something about it; others beside it are refused."""
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "sgx": ("sigstruct",),
    "tdx": ("firmware", "page_order"),
    "snp": ("firmware", "vcpus", "vcpu_type", "vmm", "guest_features"),
    "nitro": ("eif_json",),
}
"""Of them those without which nothing can be computed. None has a default: a guess would be a value that no evidence
has, or that of another machine.
"""


def _file(*names: str, text: str) -> Callable[[_F], _F]:
    return click.option(*names, type=click.Path(path_type=Path), metavar="FILE", help=text)


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="The server's configuration file (docs/configuration.md).",
)  # fmt: skip
@click.option(
    "--platform", type=click.Choice(PLATFORMS), help="The platform; else that of the configuration."
)
@_file("--sigstruct", text="sgx: the enclave's SIGSTRUCT (gramine-sgx-sign writes NAME.sig).")
@_file("--firmware", text="tdx, snp: the guest's firmware (OVMF).")
@_file("--kernel", text="snp: the kernel whose digest the firmware checks; with --initrd and --cmdline.")
@_file("--initrd", text="snp: the initrd.")
@click.option("--cmdline", metavar="TEXT", help="snp: the kernel's command line.")
@click.option("--vcpus", type=click.IntRange(1, 1024), help="snp: number of virtual processors.")
@click.option("--vcpu-type", metavar="NAME", help="snp: kind of processor, as QEMU names it (EPYC-Milan).")
@click.option("--vmm", type=click.Choice(VMMS), help="snp: who starts the guest.")
@click.option("--guest-features", metavar="HEX", help="snp: SEV_FEATURES; 1 for SNP alone.")
@_file("--event-log", text="tdx, tpm: the event log of a start that you examined (CCEL, or TCG2).")
@click.option("--page-order", type=click.Choice(("page", "section")),
              help="tdx: whether the VMM measures page by page (Linux 6.16) or section by section.")  # fmt: skip
@_file("--eif-json", text="nitro: what nitro-cli build-enclave printed.")
@click.option("--policy", "as_policy", is_flag=True, help="Print the entry of a policy file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def measure(
    config_path: Path | None, platform: str | None, as_policy: bool, as_json: bool, **artefacts: Any
) -> None:
    """Print what evidence of a server with this configuration will state; works without a server.

    First this code's own digest, which covers package, dependencies and configuration. For the simulated TEE that is
    what its evidence states, and where the simulated root key of that configuration exists, says which root it is:
    `policy init` wants both. On a TPM it also says what the code's register will hold; for TDX and SEV-SNP, where the
    configuration has the launcher extend RTMR3 or the server compare HOST_DATA, that value.

    Other hardware states what the hardware measured, which follows from what the release's build made: name it. What
    is printed as JSON is what `release sign --measured` takes.
    """
    from strongroom.config import load_config
    from strongroom.platforms import resolve

    settings = load_config(config_path)
    if platform is not None:
        settings = replace(settings, platform=platform)
    name = resolve(settings.platform)
    given = {option: value for option, value in artefacts.items() if value is not None}
    _check_options(name, given)
    if name == "simulated":
        mark_simulated()
    measured = _measured(settings, name)
    reference = _reference(name, settings, measured, given)
    if as_policy:
        _show_policy(reference, name)
        return
    root = _simulated_root(settings.root_key_path) if name == "simulated" else None
    if as_json:
        show_json({"platform": name, "root": root, **_document(name, measured, reference)})
        return
    _show(name, measured, reference, root)


def _check_options(name: str, given: Mapping[str, Any]) -> None:
    """Options of another platform would do nothing, and some without others say too little."""
    if strange := sorted(set(given) - set(_ARTEFACTS[name])):
        raise click.UsageError(f"--{_dashed(strange[0])} says nothing about the platform {name}")
    if given and (missing := [n for n in _NEEDED.get(name, ()) if n not in given]):
        raise click.UsageError(f"{name} also needs " + ", ".join(f"--{_dashed(n)}" for n in missing))
    if ("initrd" in given or "cmdline" in given) and "kernel" not in given:
        raise click.UsageError("--initrd and --cmdline go with --kernel")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _measured(settings: Config, name: str) -> Measurement | None:
    """This code's digest; None where evidence does not state it and the server's dependencies are not here."""
    from strongroom.boot import planned_measurement

    try:
        return planned_measurement(settings)
    except Failure:
        if name in _NEEDED:
            return None
        raise


def _reference(
    name: str, settings: Config, measured: Measurement | None, given: Mapping[str, Any]
) -> Reference:
    from strongroom.attest import reference
    from strongroom.measure import SECURITY_VERSION

    if name == "simulated" and measured is not None:
        return reference.sim_reference(measured.digest, svn=SECURITY_VERSION)
    if name == "tpm" and measured is not None:
        from strongroom.tee.tpm import reference_value

        return reference.tpm_reference(
            _bytes(given["event_log"]) if "event_log" in given else None,
            pcrs=settings.tpm.pcrs,
            code_pcr=settings.tpm.code_pcr,
            code_value=reference_value(measured.digest),
        )
    launched = _launched(name, settings, measured)
    if not given:
        wanted = ", ".join(f"--{_dashed(n)}" for n in _NEEDED[name])
        return reference.Reference(
            value=None, facts=launched, notes=(f"evidence states what the hardware measured: give {wanted}",)
        )
    if name == "sgx":
        return reference.sgx_reference(_bytes(given["sigstruct"]))
    if name == "nitro":
        return reference.nitro_reference(_bytes(given["eif_json"]))
    held = "".join(value for _, value in launched)
    if name == "tdx":
        log = _bytes(given["event_log"]) if "event_log" in given else None
        return reference.tdx_reference(
            _bytes(given["firmware"]), log, order=given["page_order"], launched=held
        )
    return reference.snp_reference(_launch_digest(given), with_kernel="kernel" in given, host_data=held)


def _launched(name: str, settings: Config, measured: Measurement | None) -> tuple[tuple[str, str], ...]:
    """What evidence says of this code's own digest, where the settings want it there: the launcher's event in RTMR3,
    or HOST_DATA, which the host has to be told.

    Raises:
        Failure: the settings want that, and the digest cannot be had here (code `start_refused`).
    """
    wanted = {"tdx": settings.tdx.extend_rtmr3, "snp": settings.snp.host_data == "measurement"}
    if not wanted.get(name, False):
        return ()
    if measured is None:
        raise Failure(
            "the settings want this code's digest in the evidence: install strongroom with the extra server",
            code="start_refused",
        )
    if name == "snp":
        return (("host_data", measured.digest),)
    from strongroom.tee.rtmr import reference_value

    return (("rtmr3", reference_value(measured.digest)),)


def _launch_digest(given: Mapping[str, Any]) -> str:
    from strongroom.launch_digest import Launch, launch_digest, vcpu_types

    if given["vcpu_type"] not in (known := vcpu_types()):
        raise click.UsageError(f"--vcpu-type: expected one of {', '.join(known)}")
    try:
        features = int(given["guest_features"], 16)
    except ValueError:
        features = -1
    if not 0 <= features < 1 << 64:
        raise click.UsageError("--guest-features: expected a number of 64 bits in hex")
    return launch_digest(
        Launch(
            firmware=given["firmware"],
            kernel=given.get("kernel"),
            initrd=given.get("initrd"),
            cmdline=given.get("cmdline", ""),
            vcpus=given["vcpus"],
            vcpu_type=given["vcpu_type"],
            vmm=given["vmm"],
            guest_features=features,
        )
    )


def _bytes(path: Path) -> bytes:
    from strongroom.attest.firmware import MAX_IMAGE

    try:
        with path.open("rb") as file:
            return file.read(MAX_IMAGE + 1)
    except OSError as exc:
        raise InvalidRequest(f"{path} cannot be read", code="input_unreadable") from exc


def _simulated_root(path: Path) -> str | None:
    """The name of the root key in a file, None where there is none that we may read."""
    from strongroom.attester import load_or_create_root, root_digest

    try:
        return root_digest(load_or_create_root(path)) if path.exists() else None
    except (OSError, InvalidConfig):
        click.echo(f"the simulated root key in {path} cannot be used", err=True)
        return None


# --- what is printed ----------------------------------------------------------------------------------------


def _document(name: str, measured: Measurement | None, reference: Reference) -> dict[str, Any]:
    value = reference.value
    listed = [] if value is None else [
        {"format": value.format, "measurement": value.measurement, "registers": dict(value.registers)}
    ]  # fmt: skip
    return {
        "measurement": None if measured is None else measured.digest,
        "simulated": name == "simulated",
        "registers": _registers(reference),
        "reference_values": listed,
        "facts": dict(reference.facts),
        "notes": list(reference.notes),
        "document": None if measured is None else measured.document,
    }


def _registers(reference: Reference) -> dict[str, str]:
    """Those of the value; without one, those that are known."""
    if reference.value is not None:
        return dict(reference.value.registers)
    return {n: v for n, v in reference.facts if n.startswith(("pcr", "rtmr"))}


def _show(name: str, measured: Measurement | None, reference: Reference, root: str | None) -> None:
    if measured is None:
        click.echo("this code's own digest: the server's dependencies are not installed here", err=True)
    else:
        click.echo(measured.digest)
    value = reference.value
    if value is not None and name in _NEEDED:
        click.echo(f"{value.format:<18}{value.measurement}")
    registers = _registers(reference)
    for register, held in registers.items():
        click.echo(f"{register} {held}", err=name not in _NEEDED)
    for fact, text in reference.facts:
        if fact not in registers:
            click.echo(f"{fact:<18}{printable(text)}")
    for note in reference.notes:
        click.secho(f"note: {note}", fg="yellow", err=True)
    if root is not None:
        click.echo(f"simulated root {root}", err=True)
    note_simulated(name == "simulated")


def _show_policy(reference: Reference, name: str) -> None:
    from strongroom.attest.policy import render_entry

    if reference.value is None:
        raise InvalidRequest(
            f"no entry for {name}: {'; '.join(reference.notes)}", code="reference_incomplete"
        )
    host_data = dict(reference.facts).get("host_data", "")
    click.echo(render_entry(reference.value, svn=reference.svn, host_data=host_data), nl=False)
    for note in reference.notes:
        click.secho(f"note: {note}", fg="yellow", err=True)
    note_simulated(name == "simulated")
