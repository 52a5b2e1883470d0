"""Vectors of connections: evidence, the nonce that was asked with, the keyset, and the certificate that was shown
(docs/spec/evidence.md §4, docs/spec/channel.md §3).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cases_dcap import PINNED_ROOTS, RELAYED, SKIPPED_SNP, SKIPPED_TDX, STALE
from cases_policy import ENCLAVE, GUEST
from cases_sim import POLICY as SIMULATION
from cases_sim import ROOT
from tee import NOW, SGX, Machine, Minted, Server, dcap, document, sim, snp, worlds
from tee import nitro as aws
from vector_model import STRICT, Book, Channel, Vector, policy
from worlds import NONCE, SECURITY, p256, spki

from strongroom.attest.evidence import boot_report_data, report_data
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.strict import canonical

# fmt: off

SERVER, MALLORY = Server(), Server(name="mallory")
HARDWARE = replace(SECURITY, sealing="measurement", host_excluded=True)
GUARDED = Server(security=HARDWARE)
OTHER_NONCE = hashlib.sha256(b"an earlier nonce").digest()


def channel(server: Server, *, leaf: bytes | None = None, keyset: bytes | None = None, nonce: bytes = NONCE) -> Channel:
    """A connection to the server; what a vector wants wrong replaces a part of it."""
    return Channel(nonce=nonce, keyset=server.keyset_bytes if keyset is None else keyset,
                   leaf=server.leaf.der if leaf is None else leaf)


def shown(server: Server) -> Minted:
    """The server's simulated evidence."""
    return sim(server=server)


def data(server: Server = GUARDED, nonce: bytes = NONCE) -> bytes:
    """The report data that answers."""
    return report_data(nonce=nonce, keyset_bytes=server.keyset_bytes)


def cases() -> Iterator[Vector]:
    """Accepted, then refused in the order of the steps."""
    book = Book("connection", document="docs/spec/evidence.md")
    sgx = policy(("sgx", {"measurements": [ENCLAVE]}), kind="production")
    guest = policy(("snp", {"measurements": [GUEST]}), kind="production")
    image = policy(("nitro", {"measurements": [aws.PCR0.hex()]}), kind="production")
    book.section(1, to=19, spec="§4")
    none = {"tcb_status": "NotReported"}
    book.accept("genuine", "A simulated server answers on a connection that ends there.", shown(SERVER),
                policy=SIMULATION, channel=channel(SERVER), **none)
    quote = dcap(SGX.but(body={"report_data": data()}))
    book.accept("sgx", "An enclave answers on a connection that ends there.", quote, policy=sgx,
                channel=channel(GUARDED), tcb_status="UpToDate")
    report = snp(Machine(fields={0x50: data()}))
    book.accept("snp", "A guest answers on a connection that ends there.", report, policy=guest,
                channel=channel(GUARDED), **none)
    book.accept("nitro", "An enclave of AWS answers on a connection that ends there.",
                document(aws.mint(user_data=data(), nonce=NONCE)).but(report_data=data()), policy=image,
                channel=channel(GUARDED), **none)
    _answers(book, sgx, guest, image)
    _channels(book)
    _configurations(book)
    yield from book.done()


def _answers(book: Book, sgx: str, guest: str, image: str) -> None:
    book.section(101, to=149, twin="genuine", policy=SIMULATION, spec="§4 step 4.2", tcb_status="NotReported")
    answers = ("evidence.report_data", "report_data_mismatch")
    missing = ("evidence.report_data_present", "report_data_missing")
    both = (answers[0],)
    old = Server(nonce=OTHER_NONCE)
    book.refuse("stale-answer", "The evidence answers an earlier nonce; everything beside it is fresh.", shown(old),
                *answers, channel=channel(SERVER), refs=STALE)
    book.refuse("other-keyset", "The evidence answers for another keyset.", shown(SERVER), *answers,
                channel=channel(SERVER, keyset=replace(SERVER, not_after=SERVER.not_after + 1).keyset_bytes))
    boot = SERVER.forge(report_data=boot_report_data(spki=spki(p256("server tls"))))
    book.refuse("boot-time-evidence", "The evidence is that of the certificate, which answers no nonce.", shown(boot),
                "evidence.report_data", "report_data_other_label", channel=channel(SERVER))
    book.refuse("report-data-of-zeros", "The evidence carries zeros.", shown(SERVER.forge(report_data=bytes(64))),
                *missing, also=both, channel=channel(SERVER), spec="§4 step 4.1", refs=SKIPPED_SNP)
    half = data(SERVER)[:32] + bytes(32)
    book.refuse("report-data-half", "The first half of the report data is right.",
                shown(SERVER.forge(report_data=half)), *answers, channel=channel(SERVER))
    stapled = shown(SERVER).but(endorsements=(("vcek.der", b"0"),))
    book.refuse("endorsement", "A document is stapled to a format that has none.", stapled, "evidence.form",
                "evidence_malformed", channel=channel(SERVER), spec="§5.1", tcb_status="", grade=STRICT)
    book.section(151, to=169, twin="snp", tcb_status="NotReported", spec="§4 step 4", policy=guest)
    book.refuse("snp-no-report-data", "The guest gave no report data: a verifier that compares only what is there "
                "accepts anybody's.", snp(Machine(fields={0x50: bytes(64)})), *missing, also=both,
                channel=channel(GUARDED), refs=SKIPPED_SNP)
    book.refuse("snp-stale-answer", "The report answers an earlier nonce.",
                snp(Machine(fields={0x50: data(nonce=OTHER_NONCE)})), *answers, channel=channel(GUARDED), refs=STALE)
    book.section(171, to=189, twin="nitro", tcb_status="NotReported", spec="§4 step 4", policy=image)
    book.refuse("nitro-user-data-absent", "The document has no user data.",
                document(aws.mint(user_data=None, nonce=NONCE)), *missing, also=both, channel=channel(GUARDED),
                refs=SKIPPED_SNP)
    book.refuse("nitro-user-data-short", "The user data are the first 32 bytes of the report data.",
                document(aws.mint(user_data=data()[:32], nonce=NONCE)), *missing, also=both, channel=channel(GUARDED))
    book.refuse("nitro-nonce-absent", "The user data answer, and the document's own nonce is missing.",
                document(aws.mint(user_data=data(), nonce=None)), "nitro.nonce", "nitro_nonce_mismatch",
                channel=channel(GUARDED), document="docs/spec/nitro.md", spec="§5.2", refs=SKIPPED_SNP)
    book.section(191, to=209, twin="sgx", tcb_status="UpToDate", spec="§4 step 4", policy=sgx)
    book.refuse("sgx-any-report-data", "The quote's report data answer nothing: the value that a session expects "
                "has to reach the comparison.", dcap(), *answers, channel=channel(GUARDED), refs=SKIPPED_TDX)
    # Roots: of simulation the policy's, of hardware the pins; a quote that nobody vouches for answers nothing.
    untrusted = dcap(SGX.but(body={"report_data": data()})).but(roots={"sgx": PINNED_ROOTS}, anchors=())
    book.refuse("sgx-another-vendor", "The quote answers, under a root that is not Intel's.", untrusted, "pck.root",
                "root_not_accepted", channel=channel(GUARDED), tcb_status="", spec="§4 step 3.4")


def _channels(book: Book) -> None:
    book.section(211, to=249, twin="genuine", policy=SIMULATION, tcb_status="NotReported", spec="§4 step 5.3")
    spki_ = ("channel.spki", "channel_key_mismatch")
    relayed = channel(SERVER, leaf=MALLORY.leaf.der)
    book.refuse("CVE-2026-33697-relayed", "Genuine evidence and keyset, fresh, on a connection that ends at the "
                "attacker's certificate.", shown(SERVER), *spki_, channel=relayed, refs=RELAYED)
    book.refuse("CVE-2026-33697-another-genuine-server", "The connection ends at one genuine server, evidence and "
                "keyset are another's.", shown(Server(name="second")), *spki_,
                channel=channel(Server(name="second"), leaf=SERVER.leaf.der), refs=RELAYED)
    forged = json.loads(SERVER.keyset_bytes)
    forged["keys"][0]["spki"] = json.loads(MALLORY.keyset_bytes)["keys"][0]["spki"]
    book.refuse("CVE-2026-33697-keyset-replaced", "The attacker put its own key into the keyset: the evidence "
                "answers for the genuine one.", shown(SERVER), "evidence.report_data", "report_data_mismatch",
                channel=channel(SERVER, keyset=canonical(forged), leaf=MALLORY.leaf.der), refs=RELAYED,
                spec="§4 step 4.2")
    book.refuse("leaf-malformed", "The connection shows something that is no certificate.", shown(SERVER),
                "channel.spki", "leaf_malformed", channel=channel(SERVER, leaf=b"0"))
    ed25519 = worlds.leaf(worlds.ed25519("server tls")).der
    book.refuse("leaf-of-another-kind", "The certificate's key is an Ed25519 key of the same name.", shown(SERVER),
                *spki_, channel=channel(SERVER, leaf=ed25519))
    book.section(251, to=289, twin="genuine", policy=SIMULATION, tcb_status="NotReported", spec="§3")

    def keyset(name: str, title: str, made: bytes, code: str, **more: Any) -> None:
        server = SERVER.forge(keyset=made)
        book.refuse(name, title, shown(server), "keyset.form", code, channel=channel(server, leaf=SERVER.leaf.der),
                    **more)

    genuine = SERVER.keyset_bytes

    def changed(**members: Any) -> bytes:
        return canonical(json.loads(genuine) | members)

    keys = json.loads(genuine)["keys"]
    keyset("keyset-member-twice", "The end of the epoch is in the keyset twice.",
           genuine.replace(b'"not_after":', b'"not_after":1,"not_after":', 1), "keyset_duplicate_member")
    keyset("keyset-not-canonical", "A space follows the keyset.", genuine + b" ", "keyset_not_canonical", grade=STRICT)
    keyset("keyset-binding-unknown", "The keyset asks for a binding that is not known.", changed(binding="exporter"),
           "keyset_binding_unknown")
    keyset("keyset-two-tls-keys", "The keyset has two keys for TLS: which one counts?",
           changed(keys=[keys[0], keys[0]]), "keyset_malformed")
    keyset("keyset-security-missing", "The keyset states no security configuration.",
           canonical({k: v for k, v in json.loads(genuine).items() if k != "security"}), "keyset_malformed")
    past = Server(not_after=int(NOW.timestamp()))
    book.refuse("keyset-expired", "The keyset's epoch ended this very second.", shown(past), "keyset.expiry",
                "keyset_expired", channel=channel(past), spec="§4 step 5.2")


def _configurations(book: Book) -> None:
    book.section(301, to=329, twin="genuine", tcb_status="NotReported", spec="§3.3")

    def accepting(**security: Any) -> str:
        return policy(("sim", {"root": ROOT, "measurements": [worlds.MEASUREMENT]}), kind="UNSAFE_SIMULATION",
                      security=security)

    def refused(field: str, title: str, text: str, server: Server = SERVER, also: tuple[str, ...] = ()) -> None:
        book.refuse(f"security-{field.replace('_', '-')}", title, shown(server), f"security.{field}",
                    f"security_{field}_refused", channel=channel(server), policy=text, also=also)

    def other(**fields: Any) -> Server:
        changed: SecurityConfiguration = replace(SECURITY, **fields)
        return Server(security=changed)

    refused("sealing", "The models' keys are bound to a secret of the operator's, and the policy does not accept that.",
            accepting(), other(sealing="operator"))
    refused("host_excluded", "The policy asks for an excluded host, and the server claims none.",
            accepting(host_excluded=[True]))
    refused("isolation", "The server runs everything in one process, and the policy asks for more.",
            accepting(isolation=["request"]))
    refused("sandbox", "A sandbox layer is missing that the policy asks for.", accepting(sandbox=["no_network"]))
    refused("anonymous_upload", "The server takes models from anybody.", accepting(), other(anonymous_upload=True))
    refused("verify_on_load", "The server checks less of a stored model than the policy asks for.",
            accepting(verify_on_load=["sha256"]))
    lying = other(host_excluded=True)
    book.refuse("security-contradicts-evidence", "The configuration says that the host is excluded, the evidence is "
                "simulated.", shown(lying), "security.consistent", "security_contradicts_evidence",
                channel=channel(lying), policy=accepting(host_excluded=[True]), spec="§4 step 6")
    book.section(331, to=339, twin="genuine", spec="§4")
    book.unusable("any-measurement", "A connection is to rest on the profile that accepts any code.", shown(SERVER),
                  "policy_appraise_only", channel=channel(SERVER))
