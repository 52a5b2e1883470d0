"""Vectors of what an entry of each format can say (docs/policy-entries.md): each member met, and not met.

Rules of this file:

1. One vector per format states every member that its entries have, with exactly what the fakes mint; a refusal
   changes one value in the policy, or one fact in the evidence, and nothing else.
2. Where a fact is what an attacker or an accident changes, the evidence is changed and the policy is the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from cases_azure import CLOUD, TDX, machine
from cases_snp import crl
from cases_tpm import TPM
from fake_amd import AMD, PRODUCTS, TCB
from fake_azure import VTPM
from fake_intel import PROCESSOR, SGX_BODY, TD_BODY
from fake_x509 import integer
from tee import NOW, SGX, TDX5, Intel, Machine, Minted, dcap, document, quoted, snp
from tee import nitro as aws
from tee import tpm as fake
from vector_model import EVALUATION, LENT, Book, policy, registers, tcb, td_launch
from worlds import ed25519

from strongroom.attest.releases import ReferenceValue, Release, sign_release

# fmt: off

ENCLAVE, DOMAIN, GUEST = SGX_BODY["mr_enclave"].hex(), TD_BODY["mr_td"].hex(), bytes(range(48)).hex()
NONE = "NotReported"
BADRAM = ("CVE-2024-21944", "AMD-SB-3015")
MICROCODE = ("CVE-2024-56161", "AMD-SB-3019")
OTHER_16, OTHER_32, OTHER_48, OTHER_64 = ("cd" * size for size in (16, 32, 48, 64))
_TCB, _ID, _CHIP = "platform_tcb_too_low", "identity_not_accepted", "chip_not_accepted"
_ATTRIBUTES, _REGISTER, _EVENT = "attributes_not_accepted", "register_not_accepted", "event_not_accepted"


def named(text: str, size: int = 48) -> bytes:
    """An identity: a digest of its name."""
    return hashlib.sha384(text.encode()).digest()[:size]


def pcr_measurement(values: Mapping[int, bytes]) -> str:
    """The measurement of a TPM's PCRs (docs/spec/tpm.md §4.1), written down a second time."""
    text = b"".join(bytes([i]) + values[i] for i in sorted(values) if i not in (16, 23))
    return hashlib.sha256(b"strongroom tpm measurement v1\0\0\x0b" + text).hexdigest()


def azure_measurement(launch: str) -> str:
    """The measurement of a paravisor, by its launch measurement, and the guest (docs/spec/azure.md §4.1)."""
    text = f"{launch} {pcr_measurement(VTPM.pcrs)}".encode()
    return hashlib.sha256(b"strongroom azure measurement v1\0" + text).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of `format` that states `members`, and evidence that meets it; `status`: the vendor's word for it."""

    book: Book
    format: str
    members: Mapping[str, Any]
    minted: Minted
    status: str
    prefix: str = ""

    def text(self, **changes: Any) -> str:
        """The policy, with members of the entry changed."""
        return policy((self.format, dict(self.members) | changes), kind="production")

    def accept(self, name: str, title: str, minted: Minted | None = None, **changes: Any) -> None:
        """Accepted."""
        self.book.accept(f"{self.prefix or self.format}-{name}", title, minted or self.minted,
                         policy=self.text(**changes), tcb_status=self.status)

    def refuse(self, name: str, title: str, check: str, code: str, minted: Minted | None = None, *,
               also: tuple[str, ...] = (), refs: tuple[str, ...] = (), twin: str = "", **changes: Any) -> None:
        """Refused by one check of the entry (`also`: with others)."""
        more = {"twin": twin} if twin else {}
        self.book.refuse(f"{self.prefix or self.format}-{name}", title, minted or self.minted, f"policy.{check}", code,
                         also=tuple(f"policy.{c}" for c in also), policy=self.text(**changes), refs=refs,
                         tcb_status=self.status, **more)


def add(book: Book) -> None:
    """Format by format, then what all have in common: an end, and releases."""
    _sgx(book)
    _tdx(book)
    _snp(book)
    _tpm(book)
    _nitro(book)
    _azure_snp(book)
    _azure_tdx(book)
    _expiry(book)
    _releases(book)
    _unusable(book)


# Intel --------------------------------------------------------------------------------------------

INTEL: dict[str, Any] = {
    "min_tcb_date": "2026-09-01",
    "min_components": "05" * 16,
    "min_pce_svn": 5,
    "min_qe_svn": 8,
    "chips": [hashlib.md5(SGX.name.encode(), usedforsecurity=False).hexdigest()],
    "fmspcs": [SGX.fmspc.hex()],
    "require_settings": ["dynamic_platform", "smt_enabled"],
    "refuse_settings": [],
}
"""What entries can say of the fakes' platform."""


def _intel(entry: Entry) -> None:
    """The platform's members, each not met."""
    entry.refuse("evaluation", "The policy asks for the next TCB evaluation: older collateral knows fewer holes.",
                 "evaluation", "evaluation_too_old", min_evaluation=EVALUATION + 1)
    entry.refuse("tcb-date", "The platform's TCB level is a day older than the earliest.", "tcb_date", _TCB,
                 min_tcb_date="2026-09-02")
    entry.refuse("component", "One of the 16 components is too low, and all others are higher than asked for.",
                 "components", _TCB, min_components="04" * 15 + "06")
    entry.refuse("first-component", "The first component is too low, and all others higher: as one number, read from "
                 "the other end they would do.", "components", _TCB, min_components="06" + "04" * 15)
    entry.refuse("pce-svn", "The provisioning enclave is too old.", "pce_svn", _TCB, min_pce_svn=6)
    entry.refuse("qe-svn", "The quoting enclave is too old.", "qe_svn", _TCB, min_qe_svn=9)
    entry.refuse("another-platform", "Another platform is named.", "ppid", _CHIP, chips=[OTHER_16])
    entry.refuse("another-kind-of-platform", "Another kind of platform is named.", "fmspc", _CHIP,
                 fmspcs=["aabbccddeefe"])
    entry.refuse("setting-on", "Hyper-threading is on, and the policy refuses it.", "settings", "setting_not_accepted",
                 require_settings=[], refuse_settings=["smt_enabled"])


def _sgx(book: Book) -> None:
    book.section(301, to=349, twin="sgx-every-member", document="docs/policy-entries.md", spec="§[[sgx]]")
    family, product = named("the family", 16), named("the extended product", 16)
    body = {"config_svn": b"\x03\0", "isv_family_id": family, "isv_ext_prod_id": product}
    vendor = SGX.but(body=body)
    entry = Entry(book=book, format="sgx", minted=dcap(vendor), status="UpToDate", members=INTEL | {
        "measurements": [ENCLAVE],
        "min_svn": 3,
        "attributes": ["0500000000000000"],
        "xfrm": ["e700000000000000"],
        "misc_select": ["00000000"],
        "config_ids": [bytes(range(64)).hex()],
        "min_config_svn": 3,
        "family_ids": [family.hex()],
        "ext_product_ids": [product.hex()],
    })
    entry.accept("every-member", "Everything that an entry can say of an enclave and its platform is so.")
    masks = {"attributes": ["0400000000000000/1400000000000000"], "xfrm": ["0300000000000000/0300000000000000"],
             "misc_select": ["ff000000/00ffffff"]}
    entry.accept("masks", "Attributes are compared under masks: 64-bit, without the provisioning key; what a mask "
                 "leaves out is no matter.", **masks)
    processor = dcap(vendor.but(authority=PROCESSOR))
    unsettled: dict[str, Any] = {"require_settings": None, "refuse_settings": None}
    entry.accept("no-settings", "A platform of one package states no settings, and none is asked for.", processor,
                 **unsettled)
    _intel(entry)
    older = {"tcbEvaluationDataNumber": EVALUATION - 1}
    entry.refuse("older-collateral", "The collateral is of the evaluation before, and still in its time: who hands it "
                 "out hides what was found since.", "evaluation", "evaluation_too_old",
                 dcap(vendor.but(tcb_info=older, qe_identity=older)))
    entry.refuse("setting-not-stated", "A platform of one package states no settings: the required one is not on.",
                 "settings", "setting_not_accepted", processor, twin="sgx-no-settings")
    entry.refuse("setting-not-stated-off", "A platform of one package states no settings: the refused one is not off.",
                 "settings", "setting_not_accepted", processor, require_settings=[], refuse_settings=["cached_keys"],
                 twin="sgx-no-settings")
    entry.refuse("attributes", "Other attributes are named.", "attributes", _ATTRIBUTES,
                 attributes=["0400000000000000"])
    provisioning = dcap(vendor.but(body={"attributes": bytes.fromhex("1500000000000000e700000000000000")}))
    entry.refuse("attributes-masked", "The enclave has the provisioning key, a bit that the mask has.", "attributes",
                 _ATTRIBUTES, provisioning, twin="sgx-masks", **masks)
    entry.refuse("xfrm", "Another XFRM is named.", "xfrm", _ATTRIBUTES, xfrm=["0700000000000000"])
    entry.refuse("xfrm-masked", "A bit under the mask differs.", "xfrm", _ATTRIBUTES,
                 xfrm=["0000000000000000/0300000000000000"])
    entry.refuse("misc-select", "Another MISCSELECT is named.", "misc_select", _ATTRIBUTES, misc_select=["01000000"])
    entry.refuse("misc-select-masked", "A bit under the mask differs.", "misc_select", _ATTRIBUTES,
                 misc_select=["01000000/01000000"])
    entry.refuse("config-id", "Another CONFIGID is named.", "config_id", _ID, config_ids=[OTHER_64])
    entry.refuse("config-svn", "CONFIGSVN is below the minimum.", "config_svn", "svn_too_low", min_config_svn=4)
    entry.refuse("family", "Another ISVFAMILYID is named.", "isv_family_id", _ID, family_ids=[OTHER_16])
    entry.refuse("extended-product", "Another ISVEXTPRODID is named.", "isv_ext_prod_id", _ID,
                 ext_product_ids=[OTHER_16])


TD_EVENTS = ((1, 0x8000000B, b"TD HOB"), (2, 0x80000003, b"boot loader"), (3, 0x0D, b"kernel"), (3, 0x0D, b"initrd"))
"""A short start of a trust domain; a log's register 1 is RTMR0."""


def digest(event: bytes) -> str:
    """What a policy names of an event in RTMRs."""
    return hashlib.sha384(event).hexdigest()


def extended(events: tuple[tuple[int, int, bytes], ...]) -> dict[str, bytes]:
    """RTMR0 to RTMR3 after the events, computed here and not by the code under test."""
    values = [bytes(48)] * 4
    for index, _, data in events:
        values[index - 1] = hashlib.sha384(values[index - 1] + hashlib.sha384(data).digest()).digest()
    return {f"rtmr{i}": value for i, value in enumerate(values)}


def started(vendor: Intel, events: tuple[tuple[int, int, bytes], ...] = TD_EVENTS, *,
            log: tuple[tuple[int, int, bytes], ...] | None = None) -> Minted:
    """A trust domain that started so, with its log (or another that is shown in its place)."""
    made = dcap(vendor.but(body=extended(events)))
    shown = fake.event_log(events if log is None else log, banks=(fake.SHA384,), first=1)
    return made.but(endorsements=(*made.endorsements, ("ccel.bin", shown)))


def _tdx(book: Book) -> None:
    book.section(351, to=399, twin="tdx-every-member", document="docs/policy-entries.md", spec="§[[tdx]]")
    owned = {name: named(name) for name in ("mr_config_id", "mr_owner", "mr_owner_config")}
    vendor = TDX5.but(body=owned)
    entry = Entry(book=book, format="tdx", minted=dcap(vendor), status="UpToDate", members=INTEL | {
        "measurements": [DOMAIN],
        "min_tee_tcb_svn": TD_BODY["tee_tcb_svn"].hex(),
        "mr_seams": [TD_BODY["mr_seam"].hex()],
        "td_attributes": ["0000001000000000"],
        "xfam": ["e718060000000000"],
        "mr_config_ids": [owned["mr_config_id"].hex()],
        "mr_owners": [owned["mr_owner"].hex()],
        "mr_owner_configs": [owned["mr_owner_config"].hex()],
    })
    entry.accept("every-member", "Everything that an entry can say of a trust domain and its platform is so.")
    masks = {"td_attributes": ["0000001000000000/ff00001000000000"], "xfam": ["0300000000000000/0300000000000000"]}
    entry.accept("masks", "Attributes are compared under masks; what a mask leaves out is no matter.", **masks)
    entry.accept("one-of-several", "Of several values of a register one is there: old and new release of a roll-out.",
                 registers=registers(rtmr3=[OTHER_48, TD_BODY["rtmr3"].hex()]))
    _intel(entry)
    entry.refuse("tee-tcb-svn", "A part of TEE_TCB_SVN is too low, and the first is higher than asked for.",
                 "tee_tcb_svn", _TCB, min_tee_tcb_svn="040106" + "00" * 13)
    entry.refuse("module", "Another TDX module is named.", "mr_seam", _ID, mr_seams=[OTHER_48])
    entry.refuse("attributes", "Other TDATTRIBUTES are named.", "td_attributes", _ATTRIBUTES,
                 td_attributes=["0000000000000000"])
    keys = dcap(vendor.but(body={"td_attributes": bytes.fromhex("0000009000000000")}))
    entry.refuse("attributes-masked", "A bit under the mask differs: the domain has KL, and the mask asks.",
                 "td_attributes", _ATTRIBUTES, keys, twin="tdx-masks",
                 **(masks | {"td_attributes": ["0000001000000000/ff0000f000000000"]}))
    entry.refuse("xfam", "Another XFAM is named.", "xfam", _ATTRIBUTES, xfam=["e718020000000000"])
    entry.refuse("xfam-masked", "A bit under the mask differs.", "xfam", _ATTRIBUTES,
                 xfam=["0000000000000000/0300000000000000"])
    entry.refuse("config-id", "Another MRCONFIGID is named.", "mr_config_id", _ID, mr_config_ids=[OTHER_48])
    entry.refuse("owner", "Another MROWNER is named.", "mr_owner", _ID, mr_owners=[OTHER_48])
    entry.refuse("owner-config", "Another MROWNERCONFIG is named.", "mr_owner_config", _ID,
                 mr_owner_configs=[OTHER_48])
    _td_events(book)


def _td_events(book: Book) -> None:
    book.section(401, to=419, twin="tdx-events", document="docs/policy-entries.md", spec="§[[tdx]]")
    values = {name: [value.hex()] for name, value in extended(TD_EVENTS).items() if name != "rtmr2"}
    events = {"rtmr2": {"require": [digest(b"kernel")], "allow": [digest(b"initrd")]}}
    entry = Entry(book=book, format="tdx", minted=started(TDX5), status="UpToDate",
                  members={"measurements": [DOMAIN], "registers": values, "events": events})
    entry.accept("events", "RTMR2 is named by the events behind it, the other registers by their values; the log "
                 "gives all four.")
    check = ("register.rtmr2", _EVENT)
    fixed = TD_EVENTS[:2]
    entry.accept("events-allowed-one-missing", "An event that is only allowed is not there.",
                 started(TDX5, (*fixed, (3, 0x0D, b"kernel"))))
    entry.refuse("events-required-missing", "The required event is not in the log, which gives the registers.", *check,
                 started(TDX5, (*fixed, (3, 0x0D, b"initrd"))))
    entry.refuse("events-unknown", "An event is there that nobody named, and the log gives the registers.", *check,
                 started(TDX5, (*TD_EVENTS, (3, 0x0D, b"rootkit"))))
    elsewhere = (*fixed, (3, 0x0D, b"initrd"), (4, 0x0D, b"kernel"))
    entry.refuse("events-of-another-register", "The required event stands in another register, whose value is named.",
                 *check, started(TDX5, elsewhere), registers=values | {"rtmr3": [extended(elsewhere)["rtmr3"].hex()]})
    entry.refuse("events-without-a-log", "No log came with the quote: its register says nothing about events.", *check,
                 dcap(TDX5.but(body=extended(TD_EVENTS))))
    forged = started(TDX5, (*TD_EVENTS, (3, 0x0D, b"rootkit")), log=TD_EVENTS)
    book.refuse("tdx-events-of-another-start", "The log names known events only, and does not give RTMR2: its words "
                "count for nothing.", forged, "tdx.event_log", "event_log_mismatch", also=("policy.register.rtmr2",),
                policy=entry.text(), tcb_status="UpToDate")


# AMD ----------------------------------------------------------------------------------------------

AMD_MEMBERS: dict[str, Any] = {
    "min_committed_tcb": {"Milan": tcb("Milan")},
    "min_launch_tcb": {"Milan": tcb("Milan")},
    "min_firmware": "1.55.40",
    "chips": [bytes(range(1, 65)).hex()],
    "require_settings": ["platform.alias_check_complete", "policy.smt"],
    "refuse_settings": ["platform.tsme", "policy.single_socket"],
}
"""What entries can say of the fakes' chip."""


def lower(at: int, *, by: int = 1) -> bytes:
    """Milan's TCB version with the byte at `at` lower than it is."""
    made = bytearray(TCB["Milan"])
    made[at] -= by
    return bytes(made)


def _amd(entry: Entry, machine_of: Any) -> None:
    """The chip's members, each not met; `machine_of` mints evidence of a guest with fields of its report changed."""
    entry.refuse("committed-tcb", "The platform may go back to SNP firmware 7, and 8 is the least.", "committed_tcb",
                 _TCB, machine_of({0x1E0: lower(6)}))
    entry.refuse("launch-tcb", "The guest was launched on microcode 114, before the platform was mended.",
                 "launch_tcb", _TCB, machine_of({0x1F0: lower(7)}))
    entry.refuse("firmware", "The platform may go back to firmware 1.55.39.", "firmware", "firmware_too_old",
                 machine_of({0x1EC: bytes([39, 55, 1])}))
    entry.refuse("another-chip", "Another chip is named.", "chip_id", _CHIP, chips=[OTHER_64])
    entry.refuse("alias-check-incomplete", "The firmware did not look for memory modules that lie about their size.",
                 "settings", "setting_not_accepted", machine_of({0x40: b"\x05"}), refs=BADRAM)
    entry.refuse("setting-on", "The guest is bound to one socket, and the policy refuses that.", "settings",
                 "setting_not_accepted", machine_of({0x08: (0x3001F | 1 << 20).to_bytes(8, "little")}))
    entry.refuse("migration-agent", "A migration agent, which the host chooses, may take the guest's memory.",
                 "migration", "migration_refused", machine_of({0x08: (0x3001F | 1 << 18).to_bytes(8, "little")}))


def _snp(book: Book) -> None:
    book.section(421, to=489, twin="snp-every-member", document="docs/policy-entries.md", spec="§[[snp]]")
    keys = {0xE0: named("identity key"), 0x110: named("author key"), 0x48: b"\x01"}

    def guest(fields: Mapping[int, bytes]) -> Minted:
        return snp(Machine(fields=keys | dict(fields)))

    entry = Entry(book=book, format="snp", minted=guest({}), status=NONE, members=AMD_MEMBERS | {
        "measurements": [GUEST],
        "min_svn": 7,
        "min_abi": "0.31",
        "host_data": [b"host data".ljust(32, b"\0").hex()],
        "family_ids": [b"family".ljust(16, b"\0").hex()],
        "image_ids": [b"image".ljust(16, b"\0").hex()],
        "id_keys": [keys[0xE0].hex()],
        "author_keys": [keys[0x110].hex()],
    })
    entry.accept("every-member", "Everything that an entry can say of a guest and its chip is so.")
    entry.accept("signer", "The key that vouches for the guest's signer is named, and no measurement.",
                 measurements=[], signers=[keys[0x110].hex()])
    entry.accept("vmpl-1", "VMPL 1 is named beside 0: a guest below an SVSM.", guest({0x30: b"\x01"}), vmpls=[0, 1])
    _amd(entry, guest)
    for part, least in tcb("Milan").items():
        others = dict.fromkeys(tcb("Milan"), 0)
        entry.refuse(f"tcb-{part}", f"The reported TCB is too low in one of four parts, {part}.", "tcb_version", _TCB,
                     min_tcb={"Milan": others | {part: least + 1}})
    entry.refuse("tcb-of-another-product", "Versions are named of Genoa and Turin: this is Milan.", "tcb_version",
                 _TCB, min_tcb={p: tcb(p) for p in PRODUCTS if p != "Milan"})
    entry.refuse("committed-tcb-of-another-product", "Committed versions are named of Genoa alone.", "committed_tcb",
                 _TCB, min_committed_tcb={"Genoa": tcb("Genoa")})
    entry.refuse("vmpl", "The report was asked for at VMPL 1: by less than the guest's kernel.", "vmpl",
                 "vmpl_not_accepted", guest({0x30: b"\x01"}))
    entry.refuse("abi", "The guest's policy asks for an older ABI than the policy.", "abi", "firmware_too_old",
                 min_abi="0.32")
    entry.refuse("host-data", "The host gave other data at the launch.", "host_data", "host_data_not_accepted",
                 guest({0xC0: bytes(32)}))
    entry.refuse("family", "Another family is named.", "family_id", _ID, family_ids=[OTHER_16])
    entry.refuse("image", "Another image is named.", "image_id", _ID, image_ids=[OTHER_16])
    entry.refuse("identity-key", "Nobody signed the launch's identity.", "id_key_digest", _ID,
                 guest({0xE0: bytes(48)}))
    entry.refuse("author-key", "Nobody vouches for the identity key.", "author_key_digest", _ID,
                 guest({0x110: bytes(48), 0x48: b"\0"}))
    entry.refuse("another-signer", "Another signer is named, and no measurement.", "measurement",
                 "measurement_not_accepted", measurements=[], signers=[OTHER_48], twin="snp-signer")
    _snp_products(book)
    _snp_keys(book)
    _snp_revocation(book)


def _snp_revocation(book: Book) -> None:
    """The demand that AMD's list was looked at."""
    book.section(525, to=529, twin="snp-revocation", document="docs/policy-entries.md", spec="§[[snp]]")
    made = snp()
    listed = made.but(endorsements=(*made.endorsements, ("ark.crl", crl(serials=[5]))))
    members = {"measurements": [GUEST], "revocation": ["checked"]}
    entry = Entry(book=book, format="snp", minted=listed, status=NONE, members=members)
    entry.accept("revocation", "The policy demands a look at the root's revocation list, and one came along.")
    entry.refuse("revocation-withheld", "The policy demands it, and whoever served the certificates left the list out.",
                 "revocation", "revocation_not_checked", made)


def _snp_products(book: Book) -> None:
    """TCB versions of the other products, and the microcode that takes no forged patches."""
    book.section(491, to=509, twin="genoa-microcode", document="docs/policy-entries.md", spec="§[[snp]]")
    every = {"measurements": [GUEST], "min_tcb": {p: tcb(p) for p in PRODUCTS}}
    genoa = Entry(book=book, format="snp", prefix="genoa", minted=snp(Machine(product="Genoa")), status=NONE,
                  members=every)
    genoa.accept("microcode", "Genoa's microcode is 0x54, the first that takes no forged patches; each product has "
                 "versions of its own.")
    old = bytearray(TCB["Genoa"])
    old[7] = 0x53
    before = Machine(product="Genoa", fields={0x180: bytes(old)}, leaf_extensions={AMD + "3.8": integer(0x53)})
    genoa.refuse("microcode-before-the-fix", "The certified microcode is 0x53: patches that the host forged may run.",
                 "tcb_version", _TCB, snp(before), refs=MICROCODE)
    turin = replace(genoa, prefix="turin", minted=snp(Machine(product="Turin")))
    turin.accept("tcb", "Turin's TCB versions have a part more, FMC.")
    turin.refuse("tcb-fmc", "Turin's FMC is too low, the part that other products do not have.", "tcb_version", _TCB,
                 min_tcb={"Turin": tcb("Turin", fmc=2)}, twin="turin-tcb")


def _snp_keys(book: Book) -> None:
    """Keys that sign, and migration by its unsafe name."""
    book.section(511, to=524, twin="snp-lent-key", document="docs/policy-entries.md", spec="§[[snp]]")
    lent = snp(Machine(kind="VLEK"))
    entry = Entry(book=book, format="snp", minted=lent, status=NONE, members={"measurements": [GUEST]} | LENT)
    entry.accept("lent-key", "A key signed that is lent to a named cloud.")
    entry.accept("both-keys", "Both kinds of key are named; the chip's own signed.", snp(),
                 signing_keys=["VCEK", "VLEK"])
    check = ("signing_key", "signing_key_not_accepted")
    entry.refuse("lent-key-not-named", "A lent key signed, and the policy names chips' own.", *check,
                 signing_keys=["VCEK"], csp_ids=[])
    entry.refuse("lent-key-of-another-cloud", "The lent key is another cloud's.", *check,
                 csp_ids=["CN=cc-test-2.cloud.example"])
    entry.refuse("lent-key-of-a-longer-name", "The named cloud's name is only the beginning of this one's.", *check,
                 csp_ids=["CN=cc-test-1.cloud"])
    entry.refuse("chip-key-not-named", "The chip's own key signed, and the policy names lent ones.", *check, snp(),
                 twin="snp-both-keys")
    agent = snp(Machine(fields={0x08: (0x3001F | 1 << 18).to_bytes(8, "little")}))
    book.accept("snp-migration-accepted", "A development policy accepts migration by its unsafe name.", agent,
                policy=policy(("snp", {"measurements": [GUEST], "unsafe_accept_migration": True})),
                claims={"host_excluded": False}, tcb_status=NONE)
    book.refuse("snp-migration-not-accepted", "A development policy accepts debugging, which is not migration.", agent,
                "policy.migration", "migration_refused",
                policy=policy(("snp", {"measurements": [GUEST], "unsafe_accept_debug": True})), tcb_status=NONE,
                twin="snp-migration-accepted")


# TPM, Nitro ---------------------------------------------------------------------------------------


def booted(events: tuple[tuple[int, int, bytes], ...] = fake.BOOT, *,
           log: tuple[tuple[int, int, bytes], ...] | None = None) -> Minted:
    """A machine that started so, and the log that its TPM's document shows; its key is the policy's to name."""
    shown = fake.event_log(events if log is None else log) if log != () else b""
    tpm = TPM.but(pcrs=fake.extended(events), members={"event_log": shown})
    return quoted(tpm).but(roots={}, anchors=())


def sha256(event: bytes) -> str:
    """What a policy names of an event in PCRs of the SHA-256 bank."""
    return hashlib.sha256(event).hexdigest()


PCRS = {f"pcr{i}": [TPM.pcrs[i].hex()] for i in (0, 4, 7)}
PCR_EVENTS = {"pcr4": {"require": [sha256(b"boot loader")], "allow": []},
              "pcr7": {"require": [sha256(b"SecureBoot=1")], "allow": [sha256(b"\0\0\0\0")]}}


def _other_pcrs(entry: Entry) -> None:
    """Each register that the entry names, by another value."""
    for name in entry.members["registers"]:
        changed = dict(entry.members["registers"]) | {name: [OTHER_32]}
        entry.refuse(f"another-{name}", f"Another value of {name.upper()} is named.", f"register.{name}", _REGISTER,
                     registers=changed)


def _tpm(book: Book) -> None:
    book.section(531, to=569, twin="tpm-registers", document="docs/policy-entries.md", spec="§[[tpm]]")
    entry = Entry(book=book, format="tpm", minted=booted(log=()), status=NONE,
                  members={"roots": [TPM.ak_digest], "registers": PCRS})
    entry.accept("registers", "Three registers are named by their values; no measurement of all.")
    _other_pcrs(entry)
    entry.refuse("register-not-quoted", "PCR11 is named by its value at rest, and the quote is not about it.",
                 "register.pcr11", _REGISTER, registers=PCRS | {"pcr11": ["00" * 32]})
    by_log = replace(entry, minted=booted(),
                     members={"roots": [TPM.ak_digest], "registers": {"pcr0": PCRS["pcr0"]}, "events": PCR_EVENTS})
    by_log.accept("events", "PCR4 and PCR7 are named by the events behind them.")
    check = ("register.pcr4", _EVENT)
    update = (fake.BOOT[0], (4, 0x80000003, b"another boot loader"), *fake.BOOT[2:])
    by_log.refuse("events-required-missing", "Another boot loader started; the log says so, and gives the registers.",
                  *check, booted(update), twin="tpm-events")
    by_log.refuse("events-unknown", "A second boot loader started that nobody named.", *check,
                  booted((*fake.BOOT, (4, 0x80000003, b"bootkit"))), twin="tpm-events")
    by_log.refuse("events-of-another-register", "The required event stands in PCR5.", *check,
                  booted((*fake.BOOT[:1], (5, 0x80000003, b"boot loader"), (4, 4, b"\0\0\0\0"), *fake.BOOT[2:])),
                  twin="tpm-events")
    by_log.refuse("events-secure-boot-off", "Secure boot is off; the log says so, and gives the registers.",
                  "register.pcr7", _EVENT,
                  booted((*fake.BOOT[:2], (7, 0x80000001, b"SecureBoot=0"), fake.BOOT[3])), twin="tpm-events")
    by_log.refuse("events-without-a-log", "No log is there: a register says nothing about events.", *check,
                  booted(log=()), also=("register.pcr7",), twin="tpm-events")
    forged = booted((*fake.BOOT, (4, 0x80000003, b"bootkit")), log=fake.BOOT)
    book.refuse("tpm-events-of-another-start", "The log names known events only, and does not give PCR4: its words "
                "count for nothing.", forged, "tpm.event_log", "event_log_mismatch", policy=by_log.text(),
                also=("policy.register.pcr4", "policy.register.pcr7"), tcb_status=NONE, twin="tpm-events")


def _nitro(book: Book) -> None:
    book.section(571, to=589, twin="nitro-registers", document="docs/policy-entries.md", spec="§[[nitro]]")
    pcrs = {0: aws.PCR0, 8: aws.PCR8} | {n: named(f"pcr{n}") for n in (1, 2, 3, 4)}
    stated = {f"pcr{n}": [pcrs[n].hex()] for n in (1, 2, 3, 4, 8)}

    def enclave(**changes: Any) -> Minted:
        values = {n: pcrs.get(n, bytes(48)) for n in range(16)} | {int(n[3:]): v for n, v in changes.items()}
        return document(aws.mint(pcrs=values))

    entry = Entry(book=book, format="nitro", minted=enclave(), status=NONE,
                  members={"measurements": [aws.PCR0.hex()], "registers": stated})
    entry.accept("registers", "The enclave's image is named, and kernel, application, role, instance and signer.")
    entry.accept("signer", "The key that signed the image is named, and no measurement.", measurements=[],
                 signers=[aws.PCR8.hex()], registers=None)
    for name, what in (("pcr1", "kernel"), ("pcr2", "application"), ("pcr3", "role of the instance"),
                       ("pcr4", "instance"), ("pcr8", "signer")):
        entry.refuse(f"another-{name}", f"Another {what} is named.", f"register.{name}", _REGISTER,
                     registers=stated | {name: [OTHER_48]})
    entry.refuse("register-absent", "PCR16 is named by its value at rest, and the document does not have it.",
                 "register.pcr16", _REGISTER, registers=stated | {"pcr16": ["00" * 48]})
    code = ("measurement", "measurement_not_accepted")
    signed: dict[str, Any] = {"measurements": [], "registers": None}
    entry.refuse("another-signer", "Another signer is named, and no measurement.", *code, twin="nitro-signer",
                 signers=[OTHER_48], **signed)
    entry.refuse("unsigned", "The image is not signed, and a signer of zeros is named: what is absent equals nothing.",
                 *code, enclave(pcr8=bytes(48)), twin="nitro-signer", signers=["00" * 48], **signed)


# Azure --------------------------------------------------------------------------------------------


_VM = "390cbcf5-6c67-4d9b-98ef-c3f1699cc8fc"
_PCR7_EVENTS = {"pcr7": PCR_EVENTS["pcr7"]}
_AZURE: dict[str, Any] = {
    "registers": {name: PCRS[name] for name in ("pcr0", "pcr4")},
    "events": _PCR7_EVENTS,
    "vm_ids": [_VM],
    "user_data": ["ab" * 64],
}
_SETTINGS = {"console-enabled": True, "secure-boot": True, "tpm-enabled": True, "vmUniqueId": _VM.upper()}


def _azure(entry: Entry, cloud: Any) -> None:
    """What entries can say of a machine, whatever its hardware; `cloud` mints one with members changed."""
    entry.refuse("launch", "Another paravisor is named.", "azure_launch_measurement", "measurement_not_accepted",
                 launch_measurements=[entry.members["launch_measurements"][0][:-2] + "ee"])
    _other_pcrs(entry)
    entry.refuse("events-unknown", "An event is in the log that nobody named, and the log gives PCR7.",
                 "register.pcr7", _EVENT, cloud(fake.BOOT, (7, 4, b"another")))
    entry.refuse("another-machine", "Another machine is named.", "azure_vm_id", _ID, vm_ids=[_VM[:-1] + "d"])
    entry.refuse("user-data", "Other user data are named.", "azure_user_data", "host_data_not_accepted",
                 user_data=["ab" * 63 + "ac"])
    off = cloud(fake.BOOT, settings=_SETTINGS | {"secure-boot": False})
    entry.refuse("secure-boot-off", "Secure boot is off.", "settings", "setting_not_accepted", off)
    unsaid = cloud(fake.BOOT, settings={k: v for k, v in _SETTINGS.items() if k != "secure-boot"})
    entry.refuse("secure-boot-not-stated", "The machine does not say whether secure boot is on.", "settings",
                 "setting_not_accepted", unsaid)


def _cloud(usual: Any) -> Any:
    """Mints machines like `usual` that started so, and whose log says it."""

    def made(events: tuple[tuple[int, int, bytes], ...] = fake.BOOT, *more: tuple[int, int, bytes],
             settings: Mapping[str, Any] = _SETTINGS, fields: Mapping[int, bytes] | None = None) -> Minted:
        every = (*events, *more)
        changes: dict[str, Any] = {"vtpm": VTPM.but(pcrs=fake.extended(every)),
                                   "runtime": {"vm-configuration": dict(settings)}}
        if fields is not None:
            changes["snp"] = Machine(fields=fields)
        return machine(usual.but(**changes), event_log=fake.event_log(every))

    return made


def _azure_snp(book: Book) -> None:
    book.section(601, to=649, twin="azure-snp-every-member", document="docs/policy-entries.md", spec="§[[azure]]")
    cloud = _cloud(CLOUD)
    settings = ["azure.secure_boot", "azure.tpm_enabled", "platform.alias_check_complete"]
    entry = Entry(book=book, format="azure", prefix="azure-snp", minted=cloud(), status=NONE, members=_AZURE | {
        "tee": "snp",
        "launch_measurements": [GUEST],
        **AMD_MEMBERS,
        "require_settings": settings,
    })
    entry.accept("every-member", "Everything that an entry can say of a machine on SEV-SNP is so.")
    _azure(entry, cloud)
    _amd(entry, lambda fields: cloud(fields=fields))
    entry.refuse("vmpl", "VMPL 1 is named, and the paravisor asked at 0.", "vmpl", "vmpl_not_accepted", vmpls=[1])
    entry.refuse("signing-key", "The chip's own key signed, and the policy names lent ones.", "signing_key",
                 "signing_key_not_accepted", **LENT)
    entry.refuse("tcb-ucode", "The reported microcode is too old.", "tcb_version", _TCB,
                 min_tcb={"Milan": tcb("Milan", ucode=116)})
    simple = replace(entry, members={"tee": "snp", "registers": PCRS})
    simple.accept("no-more-than-needed", "What an entry must say, and no more.")
    also = ("azure_launch_measurement", "vmpl", "signing_key", "tcb_version", "migration")
    replace(simple, status="UpToDate").refuse(
        "tee", "The machine is on TDX, with the same start, and SEV-SNP is named.", "azure_tee", "tee_not_accepted",
        _cloud(TDX)(), also=also, twin="azure-snp-no-more-than-needed")


def _azure_tdx(book: Book) -> None:
    book.section(651, to=689, twin="azure-tdx-every-member", document="docs/policy-entries.md", spec="§[[azure]]")
    cloud = _cloud(TDX)
    entry = Entry(book=book, format="azure", prefix="azure-tdx", minted=cloud(), status="UpToDate",
                  members=_AZURE | INTEL | {
                      "tee": "tdx",
                      "launch_measurements": [td_launch()],
                      "require_settings": ["azure.secure_boot", "dynamic_platform"],
                  })
    entry.accept("every-member", "Everything that an entry can say of a machine on TDX is so.")
    _azure(entry, cloud)
    _intel(entry)
    entry.refuse("launch-of-another-rtmr0", "The trust domain is named, with another value of RTMR0.",
                 "azure_launch_measurement", "measurement_not_accepted",
                 launch_measurements=[DOMAIN + OTHER_48 + td_launch()[192:]])
    simple = replace(entry, members={"tee": "tdx", "registers": PCRS})
    simple.accept("no-more-than-needed", "What an entry must say, and no more.")
    measured: dict[str, Any] = {"measurements": [azure_measurement(td_launch())], "registers": None}
    simple.accept("measurement", "Paravisor, its registers and guest are named together.", **measured)
    simple.refuse("measurement-of-snp", "The guest is named above the paravisor on SEV-SNP.", "measurement",
                  "measurement_not_accepted", twin="azure-tdx-measurement",
                  **(measured | {"measurements": [azure_measurement(GUEST)]}))
    replace(simple, status=NONE).refuse(
        "tee", "The machine is on SEV-SNP, with the same start, and TDX is named.", "azure_tee", "tee_not_accepted",
        _cloud(CLOUD)(), also=("azure_launch_measurement", "tcb_status", "evaluation"),
        twin="azure-tdx-no-more-than-needed")


# Ends and releases --------------------------------------------------------------------------------


def _expiry(book: Book) -> None:
    book.section(701, to=709, twin="entry-ends-later", document="docs/policy-entries.md", spec="§[[snp]]")
    later = NOW + timedelta(seconds=1)
    old, new = {"measurements": [GUEST]}, {"measurements": [OTHER_48]}

    def entries(end: Any, *more: tuple[str, Mapping[str, Any]]) -> str:
        return policy(("snp", old | {"expires": end}), *more, kind="production")

    book.accept("entry-ends-later", "The entry is good for one second more.", snp(), policy=entries(later),
                tcb_status=NONE)
    book.accept("entry-of-a-roll-out", "The old release's entry has ended, the new one's has not, and this is the new.",
                snp(Machine(fields={0x90: bytes.fromhex(OTHER_48)})), policy=entries(NOW, ("snp", new)),
                tcb_status=NONE)
    ended = ("policy.reference_expires", "reference_values_expired")
    book.refuse("entry-ended", "The entry ended this very second.", snp(), *ended, policy=entries(NOW),
                tcb_status=NONE)
    book.refuse("entry-of-a-roll-out-ended", "The old release's entry has ended, and this is the old.", snp(), *ended,
                policy=entries(NOW, ("snp", new)), tcb_status=NONE, twin="entry-of-a-roll-out")


AUDITOR, STRANGER = ed25519("auditor"), ed25519("stranger")
PRODUCT = "acme/strongroom"


def release(*values: ReferenceValue, **changes: Any) -> Release:
    """Release 1.4.0 of the product, with security version 3."""
    usual = Release(product=PRODUCT, version="1.4.0", security_version=3, issued=NOW - timedelta(days=1),
                    expires=NOW + timedelta(days=30), values=values)
    return replace(usual, **changes)


def vouched(minted: Minted, manifest: bytes) -> Minted:
    """The same with a release manifest stapled to it."""
    return minted.but(endorsements=(*minted.endorsements, ("release.json", manifest)))


def vouching(keys: tuple[Any, ...] = (AUDITOR,), product: str = PRODUCT, least: int = 3) -> dict[str, Any]:
    """The members of an entry that names who vouches."""
    named_keys = [key.public_key().public_bytes_raw().hex() for key in keys]
    return {"release_keys": named_keys, "release_product": product, "min_release_svn": least}


def _releases(book: Book) -> None:
    book.section(711, to=749, twin="release", document="docs/spec/release.md", spec="§3")
    guest, other = ReferenceValue("snp", GUEST, ()), ReferenceValue("snp", OTHER_48, ())
    nobody: dict[str, Any] = {"measurements": None, "signers": None}
    entry = Entry(book=book, format="snp", minted=snp(), status=NONE, members=nobody | vouching())

    def judged(name: str, title: str, manifest: bytes, **members: Any) -> None:
        text = entry.text(**members.pop("named", {}))
        book.refuse(name, title, vouched(snp(), manifest), "policy.release", "release_not_accepted", policy=text,
                    tcb_status=NONE, **members)

    good = release(other, guest)
    signed = sign_release(good, (AUDITOR,))
    book.accept("release", "The named key vouches for this build, in a manifest that came with the evidence.",
                vouched(snp(), signed), policy=entry.text(), tcb_status=NONE)
    book.accept("release-two-signatures", "A stranger signed, too.",
                vouched(snp(), sign_release(good, (STRANGER, AUDITOR))), policy=entry.text(), tcb_status=NONE)
    beside = snp().but(endorsements=(*snp().endorsements, ("older.json", sign_release(release(other), (AUDITOR,)))))
    book.accept("release-beside-others", "Of two manifests the second is about this build.", vouched(beside, signed),
                policy=entry.text(), tcb_status=NONE)
    book.accept("release-of-nitro", "A manifest comes with a document of a format that has no endorsements.",
                vouched(document(), sign_release(release(ReferenceValue("nitro", aws.PCR0.hex(), ())), (AUDITOR,))),
                policy=policy(("nitro", nobody | vouching()), kind="production"), tcb_status=NONE)
    book.refuse("release-missing", "No manifest came with the evidence.", snp(), "policy.release",
                "release_not_accepted", policy=entry.text(), tcb_status=NONE)
    judged("release-of-a-stranger", "A stranger signed the manifest.", sign_release(good, (STRANGER,)))
    mine, theirs = (key.public_key().public_bytes_raw().hex().encode() for key in (AUDITOR, STRANGER))
    judged("release-under-a-borrowed-name", "A stranger signed the manifest under the named key's name: names decide "
           "nothing.", sign_release(good, (STRANGER,)).replace(theirs, mine))
    judged("release-not-signed", "The manifest has no signature.",
           signed[: signed.index(b'"signatures":[') + 14] + b"]}")
    genuine, forged = (sign_release(release(value), (AUDITOR,)) for value in (other, guest))
    at = genuine.index(b'"signatures"')
    judged("release-changed", "The signature is that of another manifest of the same key.",
           forged[: forged.index(b'"signatures"')] + genuine[at:])
    judged("release-of-another-key", "The policy names another key.", signed, named=vouching((STRANGER,)))
    judged("release-expired", "The manifest ended this very second.", sign_release(replace(good, expires=NOW),
                                                                                  (AUDITOR,)))
    judged("release-from-the-future", "The manifest was issued later than clocks may differ.",
           sign_release(replace(good, issued=NOW + timedelta(days=1)), (AUDITOR,)))
    judged("release-of-another-product", "The manifest is about another product of the same vendor's.",
           sign_release(replace(good, product="acme/other"), (AUDITOR,)))
    judged("release-of-an-older-version", "The release's security version is below the minimum.",
           sign_release(replace(good, security_version=2), (AUDITOR,)))
    judged("release-of-another-build", "The manifest is about another build.", genuine)
    judged("release-of-another-format", "The build of this measurement is one for another kind of hardware.",
           sign_release(release(ReferenceValue("tdx", GUEST, _values({}))), (AUDITOR,)))
    _td_releases(book, nobody)


def _values(changes: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, changes.get(name, values[0])) for name, values in registers().items())


def _td_releases(book: Book, nobody: Mapping[str, Any]) -> None:
    """Reference values with registers."""
    book.section(751, to=759, twin="release-of-tdx", document="docs/spec/release.md", spec="§3")
    members = {"measurements": nobody["measurements"], "registers": None} | vouching()
    text = policy(("tdx", members), kind="production")
    up = {"policy": text, "tcb_status": "UpToDate"}

    def made(*values: ReferenceValue) -> Minted:
        return vouched(dcap(TDX5), sign_release(release(*values), (AUDITOR,)))

    whole = ReferenceValue("tdx", DOMAIN, _values({}))
    book.accept("release-of-tdx", "The manifest names the trust domain with all four registers.", made(whole), **up)
    check = ("policy.release", "release_not_accepted")
    changed = ReferenceValue("tdx", DOMAIN, _values({"rtmr2": OTHER_48}))
    book.refuse("release-of-tdx-another-register", "One of the four registers is another.", made(changed), *check, **up)
    halves = (changed, ReferenceValue("tdx", OTHER_48, _values({})))
    book.refuse("release-of-tdx-half-by-each-value", "The measurement is in one reference value, the registers in "
                "another: one has to match as a whole.", made(*halves), *check, **up)


# Files that cannot be used ------------------------------------------------------------------------


def _unusable(book: Book) -> None:
    book.section(801, to=869, twin="snp-every-member", document="docs/policy.md", spec="§Rules")
    usable: dict[str, dict[str, Any]] = {
        "sgx": {"measurements": [ENCLAVE]},
        "tdx": {"measurements": [DOMAIN]},
        "snp": {"measurements": [GUEST]},
        "tpm": {"roots": [TPM.ak_digest], "registers": PCRS},
        "nitro": {"measurements": [aws.PCR0.hex()]},
        "azure": {"tee": "snp", "registers": PCRS},
    }
    invalid, missing, unknown = "policy_invalid", "policy_missing_member", "policy_unknown_member"
    weak, nothing = "policy_too_weak", "policy_accepts_nothing"

    def bad(name: str, title: str, format_: str, code: str = invalid, *, kind: str = "production",
            **changes: Any) -> None:
        book.unusable(name, title, snp(), code, policy=policy((format_, usable[format_] | changes), kind=kind))

    bad("tdx-register-missing", "An entry of TDX names three of the four registers.", "tdx", missing,
        registers=registers(rtmr1=None))
    bad("tdx-registers-missing", "An entry of TDX names MRTD alone, which is firmware.", "tdx", missing,
        registers=None)
    bad("tdx-signers", "An entry of TDX names a signer: trust domains have none.", "tdx", unknown, signers=[])
    bad("register-empty", "A register may have no value at all.", "tdx", nothing, registers=registers(rtmr1=[]))
    bad("register-unknown", "A register is named that TDX does not have.", "tdx",
        registers=registers() | {"rtmr4": [OTHER_48]})
    bad("register-anybody-resets", "A register is named that anybody can reset.", "tpm",
        registers=PCRS | {"pcr16": [OTHER_32]})
    two = {"rtmr2": {"require": [OTHER_48], "allow": []}}
    bad("register-twice", "A register is named by its value and by its events.", "tdx", events=two)
    rest = registers(rtmr2=None)
    bad("events-require-nothing", "No event is required: a start that measured nothing would do.", "tdx", nothing,
        registers=rest, events={"rtmr2": {"require": [], "allow": [OTHER_48]}})
    bad("events-allow-missing", "What else may be in the log is not said.", "tdx", missing, registers=rest,
        events={"rtmr2": {"require": [OTHER_48]}})
    bad("events-of-nitro", "Events are named of a format without logs.", "nitro", unknown,
        events={"pcr4": {"require": [OTHER_48], "allow": []}})
    bad("tpm-no-code", "An entry of a TPM names its root, and nothing of what started.", "tpm", missing,
        registers=None)
    bad("mask-of-zeros", "A mask compares no bit.", "sgx", weak, attributes=["0500000000000000/0000000000000000"])
    bad("mask-short", "A mask is shorter than its value.", "sgx", attributes=["0500000000000000/ff"])
    bad("chips-empty", "No chip is accepted.", "snp", nothing, chips=[])
    bad("evaluation-missing", "An entry does not say how old collateral may be.", "sgx", missing, min_evaluation=None)
    bad("components-short", "Of 16 components 15 are named.", "sgx", min_components="05" * 15)
    bad("settings-empty", "Settings are named, and none is required or refused.", "snp", nothing, require_settings=[],
        refuse_settings=[])
    bad("settings-half", "What must be off is not said.", "snp", missing, require_settings=["policy.smt"])
    bad("setting-unknown", "A setting is one that nobody knows.", "snp", require_settings=["platform.badram"],
        refuse_settings=[])
    bad("setting-debug", "Debugging is asked for as a setting: it has its own check, and unsafe name.", "snp",
        require_settings=["policy.debug"], refuse_settings=[])
    bad("setting-both-ways", "A setting must be on and off.", "snp", require_settings=["policy.smt"],
        refuse_settings=["policy.smt"])
    bad("vlek-without-cloud", "Lent keys count, and no cloud is named.", "snp", signing_keys=["VLEK"])
    bad("cloud-without-vlek", "A cloud is named whose keys do not count.", "snp", csp_ids=LENT["csp_ids"])
    bad("signing-keys-empty", "No kind of key may sign.", "snp", nothing, signing_keys=[])
    bad("vmpls-empty", "No privilege level may ask.", "snp", nothing, vmpls=[])
    parts = tcb("Milan")
    part = {name: value for name, value in parts.items() if name != "ucode"}
    bad("tcb-part-missing", "A part of a product's TCB version is not named: the microcode.", "snp", missing,
        min_tcb={"Milan": part})
    bad("tcb-part-of-another-product", "Milan's TCB version is given a part of Turin's.", "snp", missing,
        min_tcb={"Milan": parts | {"fmc": 1}})
    bad("tcb-part-too-large", "A part is larger than a byte.", "snp", min_tcb={"Milan": parts | {"ucode": 256}})
    bad("tcb-product-unknown", "A product is one that nobody knows.", "snp", min_tcb={"Rome": parts})
    bad("tcb-no-product", "No product is named.", "snp", nothing, min_tcb={})
    bad("snp-tcb-statuses", "An entry of SEV-SNP asks for a word of the vendor's: AMD says none.", "snp", unknown,
        tcb_statuses=["UpToDate"])
    bad("migration-unsaid", "A development policy does not say whether it accepts migration.", "snp", missing,
        kind="development", unsafe_accept_migration=None)
    bad("migration-in-production", "A production policy speaks of migration.", "snp", unknown,
        unsafe_accept_migration=False)
    bad("azure-tee-unknown", "The hardware is of another kind.", "azure", tee="sgx")
    bad("azure-launch-missing", "An entry of Azure names the guest, and not the paravisor above which it runs.",
        "azure", missing, launch_measurements=None)
    bad("azure-tdx-launch-short", "Of a trust domain MRTD alone is named.", "azure", tee="tdx",
        launch_measurements=[DOMAIN])
    bad("azure-of-the-other-hardware", "An entry for TDX speaks of privilege levels.", "azure", unknown, tee="tdx",
        vmpls=[0])
    bad("entry-expires-without-offset", "The end of an entry has no offset from UTC.", "snp",
        expires=NOW.replace(tzinfo=None))
    whole = vouching()
    bad("release-keys-empty", "Nobody's releases count.", "snp", nothing, **(whole | {"release_keys": []}))
    bad("release-version-missing", "The lowest security version of releases is not said.", "snp", missing,
        **(whole | {"min_release_svn": None}))
    bad("release-key-of-another-kind", "A release key is not 32 bytes.", "snp",
        **(whole | {"release_keys": [OTHER_48]}))
