"""What the entries of a policy file can say, format by format: member -> rule, rule -> member, claims -> draft.

Rules of this file:

1. `ENTRIES` is the one list of members: what is read, written, drafted, explained and documented comes from it.
2. A required group has no default. An optional one that is left out is a rule that is not there, and `lint` can say so;
   none of them is "skip this check".
3. What only kind development may leave open is not here but in `policy` (`unsafe_...`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from strongroom.attest.evidence import Claims
from strongroom.attest.facts import (
    AZURE_SETTINGS,
    DATE,
    HEX,
    INTEGER,
    MASKED,
    PARTS,
    TCB_WHICH,
    TEXT,
    VERSION,
    AtLeast,
    Events,
    Fact,
    NotMigratable,
    OneOf,
    Register,
    Settings,
    SigningKey,
    TcbVersion,
)
from strongroom.attest.pck import CONFIGURATION
from strongroom.attest.releases import Released
from strongroom.attest.requirements import (
    Advisories,
    Code,
    Expires,
    MaxAge,
    MinSvn,
    Root,
    Roots,
    Rule,
    Tcb,
    require,
)
from strongroom.attest.snp_report import PLATFORM_BITS, POLICY_BITS, TCB_PARTS

INITIAL_EVIDENCE_AGE = 300
"""Seconds: `max_evidence_age_s` in files that `policy init` writes; servers make evidence anew for every
nonce.
"""
STRING, STRINGS, NUMBER, NUMBERS, TIME, TABLE = "string", "strings", "integer", "integers", "time", "table"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an entry: its name, the type of its value, and what it means, for a person."""

    name: str
    type: str
    means: str


@dataclass(frozen=True, slots=True)
class Group:
    """Members that belong together and the rules that they make. `draft` returns the members' values that accept
    exactly what the claims show; nothing where the group should be left out. Of a group that is not `together` each
    member may stand alone.
    """

    members: tuple[Member, ...]
    required: bool
    make: Callable[[Mapping[str, Any]], tuple[Rule, ...]]
    draft: Callable[[Claims], dict[str, Any]]
    together: bool = True


def _nothing(_: Claims) -> dict[str, Any]:
    return {}


def _one(
    member: Member, make: Callable[[Any], Rule], *, required: bool, draft: Callable[[Claims], Any] | None
) -> Group:
    """A group of one member and one rule."""
    return Group(
        (member,),
        required,
        lambda values: (make(values[member.name]),),
        (lambda claims: {member.name: draft(claims)}) if draft else _nothing,
    )


# Code ---------------------------------------------------------------------------------------------

_MEASUREMENTS: Final = Member("measurements", STRINGS, "builds of the code that are accepted")
_SIGNERS: Final = Member("signers", STRINGS, "signers whose builds are accepted unseen")
_PRODUCTS: Final = Member("products", NUMBERS, "product numbers of those signers")


def _code(values: Mapping[str, Any]) -> tuple[Rule, ...]:
    signers = values.get("signers", ())
    # Where the format has no products, its claims say 0.
    products = values.get("products", (0,) if signers else ())
    return (Code(values["measurements"], signers, products),)


def _code_group(*members: Member, drafted: bool = True) -> Group:
    def draft(claims: Claims) -> dict[str, Any]:
        lists: dict[str, Any] = {m.name: () for m in members}
        return lists | {"measurements": (claims.measurement,)} if drafted else {}

    return Group(members, False, _code, draft)


_RELEASE: Final = Group(
    (
        Member(
            "release_keys", STRINGS, "Ed25519 public keys (raw, hex) whose signed release manifests count"
        ),
        Member("release_product", STRING, "the product that the manifest must be about"),
        Member("min_release_svn", NUMBER, "lowest security version of the release"),
    ),
    False,
    lambda values: (Released(values["release_keys"], values["release_product"], values["min_release_svn"]),),
    _nothing,
)
_EXPIRES: Final = _one(
    Member("expires", TIME, "from then on this entry accepts nothing: the end of a release in a roll-out"),
    Expires,
    required=False,
    draft=None,
)
_MIN_SVN: Final = _one(
    Member("min_svn", NUMBER, "lowest security version of the code"),
    MinSvn,
    required=True,
    draft=lambda claims: claims.svn,
)
_AGE: Final = _one(
    Member("max_evidence_age_s", NUMBER, "seconds: oldest evidence, by its own clock"),
    MaxAge,
    required=True,
    draft=lambda _: INITIAL_EVIDENCE_AGE,
)

# Facts --------------------------------------------------------------------------------------------


def _listed(
    member: str,
    detail: str,
    kind: str,
    sizes: tuple[int, ...],
    code: str,
    means: str,
    *,
    required: bool = False,
) -> Group:
    """A member that lists the values that the fact may have."""
    fact = Fact(member, detail, kind, sizes, f"{means[0].upper()}{means[1:]}: a named one", code, means)
    types = NUMBERS if kind == INTEGER else STRINGS
    draft = (lambda claims: (_shown(claims, fact),)) if required else None
    return _one(Member(member, types, means), lambda some: OneOf(fact, some), required=required, draft=draft)


def _least(
    member: str,
    detail: str,
    kind: str,
    sizes: tuple[int, ...],
    code: str,
    means: str,
    *,
    required: bool = False,
) -> Group:
    """A member that names the least value of the fact."""
    fact = Fact(member, detail, kind, sizes, f"{means[0].upper()}{means[1:]}: not lower", code, means)
    types = NUMBER if kind == INTEGER else STRING
    draft = (lambda claims: _shown(claims, fact)) if required else None
    return _one(
        Member(member, types, means), lambda least: AtLeast(fact, least), required=required, draft=draft
    )


def _shown(claims: Claims, fact: Fact) -> str | int:
    """The fact's value in the claims, as a policy file spells it; nothing that a file accepts where there is none."""
    got = claims.fact(fact.detail) or ""
    return int(got) if fact.kind == INTEGER and got.isdecimal() else got


def _settings(known: tuple[str, ...]) -> Group:
    return Group(
        (
            Member("require_settings", STRINGS, "settings of guest and platform that must be on"),
            Member("refuse_settings", STRINGS, "settings of guest and platform that must be off"),
        ),
        False,
        lambda values: (Settings(values["require_settings"], values["refuse_settings"], known),),
        _nothing,
    )


_ID, _OLD = "identity_not_accepted", "platform_tcb_too_low"
_CHIP: Final = "chip_not_accepted"

# Registers ----------------------------------------------------------------------------------------


def _registers(names: tuple[str, ...], drafted: tuple[str, ...], *, logged: bool) -> Group:
    """The tables `registers` (name -> values) and, for formats with logs, `events` (name -> require, allow); each
    register in one of them.
    """
    known = ", ".join(names)

    def make(values: Mapping[str, Any]) -> tuple[Rule, ...]:
        fixed, logged = values.get("registers", {}), values.get("events", {})
        for name in (*fixed, *logged):
            require(name in names, f"registers, events: expected names out of {known}", code="policy_invalid")
        both = sorted(set(fixed) & set(logged))
        require(not both, f"{', '.join(both)}: by its value or by its events, not both")
        rules: list[Rule] = [Register(name, _strings(f"registers.{name}", fixed[name])) for name in fixed]
        for name, lists in logged.items():
            where = f"events.{name}"
            fits = isinstance(lists, Mapping) and set(lists) == {"require", "allow"}
            require(fits, f"{where}: expected the lists require and allow", code="policy_missing_member")
            rules.append(
                Events(
                    name,
                    _strings(f"{where}.require", lists["require"]),
                    _strings(f"{where}.allow", lists["allow"]),
                )
            )
        return tuple(rules)

    def draft(claims: Claims) -> dict[str, Any]:
        shown = {name: (value,) for name in drafted if (value := claims.fact(name))}
        return {"registers": shown} if shown else {}

    by_value = Member("registers", TABLE, "measurement registers and the values that each may have")
    by_log = Member("events", TABLE, "registers by the digests in their event log: require and allow")
    members = (by_value, by_log) if logged else (by_value,)
    return Group(members, False, make, draft, together=False)


def _strings(where: str, value: object) -> tuple[str, ...]:
    fits = isinstance(value, list | tuple) and all(type(v) is str for v in value)
    require(fits, f"{where}: expected an array of strings")
    assert isinstance(value, list | tuple)  # noqa: S101  # what was just checked, for the type checker
    return tuple(value)


RTMRS: Final = tuple(f"rtmr{i}" for i in range(4))
PCRS: Final = tuple(f"pcr{i}" for i in range(24) if i not in (16, 23))
"""PCRs that mean something: 16 and 23 can be reset by anybody."""
_NITRO_PCRS: Final = tuple(f"pcr{i}" for i in range(32))

# Vendors ------------------------------------------------------------------------------------------

_INTEL: Final = (
    _one(
        Member("tcb_statuses", STRINGS, "what the vendor may say of the platform"),
        Tcb,
        required=True,
        draft=lambda claims: (claims.tcb_status,),
    ),
    _one(
        Member("accepted_advisories", STRINGS, "advisories that may apply to the platform"),
        Advisories,
        required=True,
        draft=lambda claims: claims.advisories,
    ),
    _least(
        "min_evaluation", "eval_data_number", INTEGER, (), "evaluation_too_old",
        "lowest evaluation data number of the collateral (older collateral knows fewer holes)", required=True,
    ),
    _least("min_tcb_date", "tcb_date", DATE, (), _OLD, "earliest date of the platform's TCB level"),
    _least(
        "min_components", "pck_components", PARTS, (16,), _OLD,
        "lowest SVN of each of the 16 SGX TCB components (microcode among them)",
    ),
    _least("min_pce_svn", "pce_svn", INTEGER, (), _OLD, "lowest SVN of the provisioning enclave"),
    _least("min_qe_svn", "qe_svn", INTEGER, (), _OLD, "lowest SVN of the quoting enclave"),
    _listed("chips", "ppid", HEX, (16,), _CHIP, "platforms that are accepted, by PPID"),
    _listed("fmspcs", "fmspc", HEX, (6,), _CHIP, "kinds of platform that are accepted, by FMSPC"),
)  # fmt: skip
_INTEL_SETTINGS: Final = tuple(CONFIGURATION.values())


def _tcb_table(member: str, *, required: bool) -> Group:
    means = {
        "min_tcb": "lowest reported TCB version, part by part, of each accepted product",
        "min_committed_tcb": "lowest TCB version that the platform has committed to, of each product",
        "min_launch_tcb": "lowest TCB version at the guest's launch, of each product",
    }[member]

    def make(values: Mapping[str, Any]) -> tuple[Rule, ...]:
        least = []
        for product, parts in values[member].items():
            require(product in TCB_PARTS, f"{member}: expected products out of {', '.join(TCB_PARTS)}")
            names = tuple(name for name, _ in TCB_PARTS[product])
            fits = isinstance(parts, Mapping) and set(parts) == set(names)
            wanted = f"{member}.{product}: expected {', '.join(names)}"
            require(fits, wanted, code="policy_missing_member")
            least.append((product, tuple((name, parts[name]) for name in names)))
        return (TcbVersion(member, tuple(least)),)

    def draft(claims: Claims) -> dict[str, Any]:
        product, prefix = claims.fact("product") or "", TCB_WHICH[member][0]
        parts = {name: int(claims.fact(f"{prefix}.{name}") or 0) for name, _ in TCB_PARTS.get(product, ())}
        return {member: {product: parts}} if parts else {}

    return Group((Member(member, TABLE, means),), required, make, draft if required else _nothing)


_AMD: Final = (
    _listed(
        "vmpls", "vmpl", INTEGER, (), "vmpl_not_accepted",
        "privilege levels (VMPL) from which the report may be asked for", required=True,
    ),
    Group(
        (
            Member("signing_keys", STRINGS, "kinds of key that may sign: VCEK (the chip's), VLEK (lent to a cloud)"),
            Member("csp_ids", STRINGS, "clouds whose lent keys count, as their certificates name them"),
        ),
        True,
        lambda values: (SigningKey(values["signing_keys"], values["csp_ids"]),),
        lambda claims: {
            "signing_keys": (claims.fact("signing_key") or "",),
            "csp_ids": (csp,) if (csp := claims.fact("csp_id")) else (),
        },
    ),
    _tcb_table("min_tcb", required=True),
    _tcb_table("min_committed_tcb", required=False),
    _tcb_table("min_launch_tcb", required=False),
    _least(
        "min_firmware", "firmware.committed", VERSION, (), "firmware_too_old",
        "lowest firmware version that the platform has committed to, as 1.55.22",
    ),
    _listed("chips", "chip_id", HEX, (64,), _CHIP, "chips that are accepted, by CHIP_ID"),
    _listed(
        "revocation", "revocation", TEXT, (), "revocation_not_checked",
        'whether AMD\'s revocation list was looked at: ["checked"] demands it',
    ),
)  # fmt: skip
_AMD_SETTINGS: Final = (
    *(f"policy.{n}" for n, _ in POLICY_BITS if n not in ("debug", "migrate_ma")),
    *(f"platform.{n}" for n, _ in PLATFORM_BITS),
)
_AZURE_SETTINGS: Final = tuple(f"azure.{n}" for n in AZURE_SETTINGS.values())
_SNP_GUEST: Final = (
    _least("min_abi", "policy.abi", VERSION, (), "firmware_too_old", "lowest ABI that the guest's policy asks for"),
    _listed("host_data", "host_data", HEX, (32,), "host_data_not_accepted", "data that the host gave at the launch"),
    _listed("family_ids", "family_id", HEX, (16,), _ID, "families of the guest's image"),
    _listed("image_ids", "image_id", HEX, (16,), _ID, "the guest's images"),
    _listed("id_keys", "id_key_digest", HEX, (48,), _ID, "digests of keys that signed the launch's identity"),
    _listed("author_keys", "author_key_digest", HEX, (48,), _ID, "digests of keys that vouch for those"),
)  # fmt: skip
_AZURE: Final = (
    _code_group(_MEASUREMENTS, drafted=False),
    _registers(PCRS, PCRS[:16], logged=True),
    _listed("vm_ids", "azure.vm_id", TEXT, (), _ID, "machines that are accepted, by vmUniqueId"),
    _listed("user_data", "azure.user_data", HEX, (64,), "host_data_not_accepted", "user data of the machine"),
)  # fmt: skip


def _tee(tee: str) -> Group:
    """Azure's entries say which hardware: what else they can say depends on it."""
    fact = Fact("tee", "azure.tee", TEXT, (), "The hardware is of the named kind", "tee_not_accepted",
                "hardware under the machine")  # fmt: skip
    member = Member("tee", STRING, "hardware under the machine: snp or tdx")
    return _one(
        member,
        lambda value: OneOf(fact, (value,)),
        required=True,
        draft=lambda claims: claims.fact("azure.tee"),
    )


def _launch(size: int) -> Group:
    return _listed(
        "launch_measurements", "azure.launch_measurement", HEX, (size,), "measurement_not_accepted",
        "launch measurements of the paravisor (of a TD followed by RTMR0 to RTMR3)", required=True,
    )  # fmt: skip


ENTRIES: Final[dict[str, tuple[Group, ...]]] = {
    "sim": (
        _one(
            Member("root", STRING, "SHA-256 of the public key (DER SPKI) of the root that signs the evidence"),
            Root,
            required=True,
            draft=lambda claims: claims.root,
        ),
        _code_group(_MEASUREMENTS),
        _RELEASE,
        _EXPIRES,
        _MIN_SVN,
        _AGE,
    ),
    "sgx": (
        _code_group(_MEASUREMENTS, _SIGNERS, _PRODUCTS),
        _RELEASE,
        _EXPIRES,
        _MIN_SVN,
        *_INTEL,
        _settings(_INTEL_SETTINGS),
        _listed(
            "attributes", "attributes", MASKED, (8,), "attributes_not_accepted",
            "the enclave's ATTRIBUTES (flags; perhaps with a mask, VALUE/MASK)",
        ),
        _listed("xfrm", "xfrm", MASKED, (8,), "attributes_not_accepted", "the enclave's XFRM (perhaps with a mask)"),
        _listed("misc_select", "misc_select", MASKED, (4,), "attributes_not_accepted", "the enclave's MISCSELECT"),
        _listed("config_ids", "config_id", HEX, (64,), _ID, "configurations of the enclave, by CONFIGID"),
        _least("min_config_svn", "config_svn", INTEGER, (), "svn_too_low", "lowest CONFIGSVN"),
        _listed("family_ids", "isv_family_id", HEX, (16,), _ID, "families of the enclave, by ISVFAMILYID"),
        _listed("ext_product_ids", "isv_ext_prod_id", HEX, (16,), _ID, "products of the enclave, by ISVEXTPRODID"),
    ),
    "tdx": (
        _code_group(_MEASUREMENTS),
        _registers(RTMRS, RTMRS, logged=True),
        _RELEASE,
        _EXPIRES,
        *_INTEL,
        _settings(_INTEL_SETTINGS),
        _least(
            "min_tee_tcb_svn", "tee_tcb_svn", PARTS, (16,), _OLD, "lowest part of each of the 16 of TEE_TCB_SVN",
        ),
        _listed("mr_seams", "mr_seam", HEX, (48,), _ID, "TDX modules, by MRSEAM"),
        _listed(
            "td_attributes", "td_attributes", MASKED, (8,), "attributes_not_accepted",
            "TDATTRIBUTES (perhaps with a mask, VALUE/MASK)",
        ),
        _listed("xfam", "xfam", MASKED, (8,), "attributes_not_accepted", "XFAM (perhaps with a mask)"),
        _listed("mr_config_ids", "mr_config_id", HEX, (48,), _ID, "configurations of the TD, by MRCONFIGID"),
        _listed("mr_owners", "mr_owner", HEX, (48,), _ID, "owners of the TD, by MROWNER"),
        _listed("mr_owner_configs", "mr_owner_config", HEX, (48,), _ID, "the owner's configuration, by MROWNERCONFIG"),
    ),
    "snp": (
        _code_group(_MEASUREMENTS, _SIGNERS), _RELEASE, _EXPIRES, _MIN_SVN,
        *_AMD, _settings(_AMD_SETTINGS), *_SNP_GUEST,
    ),
    "tpm": (
        _one(
            Member("roots", STRINGS, "SHA-256 of root certificates (DER) of TPM makers, or of public areas of "
                   "attestation keys"),
            Roots,
            required=True,
            draft=lambda claims: (claims.root,),
        ),
        _code_group(_MEASUREMENTS, drafted=False),
        _registers(PCRS, PCRS[:16], logged=True),
        _RELEASE,
        _EXPIRES,
    ),
    "nitro": (
        _code_group(_MEASUREMENTS, _SIGNERS),
        _registers(_NITRO_PCRS, (), logged=False),
        _RELEASE,
        _EXPIRES,
        _AGE,
    ),
    "azure-snp": (
        _tee("snp"), _launch(48), *_AZURE, _RELEASE, _EXPIRES, *_AMD,
        _settings((*_AZURE_SETTINGS, *_AMD_SETTINGS)),
    ),
    "azure-tdx": (
        _tee("tdx"), _launch(240), *_AZURE, _RELEASE, _EXPIRES, *_INTEL,
        _settings((*_AZURE_SETTINGS, *_INTEL_SETTINGS)),
    ),
}  # fmt: skip
"""Format -> the groups of its entries, in the order in which they are written. Azure's depend on the hardware."""

MEMBER_MEANS: Final[dict[str, str]] = {
    member.name: member.means for groups in ENTRIES.values() for group in groups for member in group.members
}
"""Member -> what it means, for comments in files and for `lint`; where formats differ, of the last."""


def groups_of(name: str, tee: object) -> tuple[Group, ...]:
    """The groups for entries [[`name`]]; of Azure those for the hardware `tee` ("snp" or "tdx").

    Raises:
        InvalidPolicy: code `policy_invalid`, another hardware.
    """
    if name != "azure":
        return ENTRIES[name]
    require(tee in ("snp", "tdx"), 'azure.tee: expected "snp" or "tdx"')
    return ENTRIES[f"azure-{tee}"]


def drafted(claims: Claims) -> tuple[Rule, ...]:
    """The rules of an entry that accepts exactly what the claims show, as far as its required members say.

    Raises:
        InvalidPolicy: what was shown is nothing that an entry may accept.
    """
    rules: list[Rule] = []
    for group in groups_of(claims.format, claims.fact("azure.tee")):
        if values := group.draft(claims):
            rules += group.make(values)
    if claims.fact("policy.migrate_ma") == "0":
        rules.append(NotMigratable())
    return tuple(rules)
