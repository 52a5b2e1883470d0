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
from cases_entries import AUDITOR, DOMAIN, ENCLAVE, GUEST, release, vouched, vouching
from cases_sim import POLICY as SIMULATION
from cases_sim import ROOT
from tee import NOW, SGX, TDX5, Machine, Minted, Server, dcap, document, sim, snp, worlds
from tee import nitro as aws
from vector_model import ALONE, STRICT, Book, Channel, Vector, policy, registers
from worlds import NONCE, SECURITY, p256, spki

from strongroom.attest.batch import (
    MAX_BATCH,
    MAX_DEPTH,
    Inclusion,
    Single,
    Tree,
    batch_report_data,
    leaf_hash,
)
from strongroom.attest.evidence import boot_report_data, report_data
from strongroom.attest.keyset import SecurityConfiguration
from strongroom.attest.releases import ReferenceValue, sign_release
from strongroom.attest.strict import canonical

# fmt: off

SERVER, MALLORY = Server(), Server(name="mallory")
HARDWARE = replace(SECURITY, sealing="measurement", host_excluded=True)
GUARDED = Server(security=HARDWARE)
RECOVERY = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
"""The example of the age specification."""
OTHER_NONCE = hashlib.sha256(b"an earlier nonce").digest()


def channel(server: Server, *, leaf: bytes | None = None, keyset: bytes | None = None, nonce: bytes = NONCE,
            inclusion: Inclusion | Single = ALONE) -> Channel:
    """A connection to the server; what a vector wants wrong replaces a part of it."""
    return Channel(nonce=nonce, keyset=server.keyset_bytes if keyset is None else keyset,
                   leaf=server.leaf.der if leaf is None else leaf, inclusion=inclusion)


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
    _domains(book)
    _batches(book)
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
    refused("handover", "The server hands its models over by a policy, the client's names none.", accepting(),
            other(handover="ab" * 32))
    book.refuse("security-handover-other", "The client's policy names another hand-over policy than the server has.",
                shown(other(handover="ab" * 32)), "security.handover", "security_handover_refused",
                channel=channel(other(handover="ab" * 32)), policy=accepting(handover=["none", "ac" * 32]))
    book.accept("security-handover-named", "The client's policy names the server's hand-over policy and recovery key.",
                shown(other(handover="ab" * 32, recovery=RECOVERY)),
                channel=channel(other(handover="ab" * 32, recovery=RECOVERY)),
                policy=accepting(handover=["ab" * 32], recovery=[RECOVERY]))
    refused("recovery", "The server's store can be opened by the holder of a key, and the client's policy names none.",
            accepting(), other(recovery=RECOVERY))
    refused("key_release", "A broker keeps the key of the server's store, and the client's policy names none.",
            accepting(), other(key_release="ab" * 32 + "/models"))
    book.refuse("security-key-release-other", "The client's policy names another key of the server's broker.",
                shown(other(key_release="ab" * 32 + "/models")), "security.key_release", "security_key_release_refused",
                channel=channel(other(key_release="ab" * 32 + "/models")),
                policy=accepting(key_release=["none", "ab" * 32 + "/other"]))
    book.accept("security-key-release-named", "The client's policy names the server's broker and its key.",
                shown(other(key_release="ab" * 32 + "/models")),
                channel=channel(other(key_release="ab" * 32 + "/models")),
                policy=accepting(key_release=["ab" * 32 + "/models"]))
    book.section(331, to=339, twin="genuine", spec="§4")
    book.unusable("any-measurement", "A connection is to rest on the profile that accepts any code.", shown(SERVER),
                  "policy_appraise_only", channel=channel(SERVER))


def _domains(book: Book) -> None:
    book.section(351, to=379, twin="tdx", tcb_status="UpToDate", document="docs/policy-entries.md", spec="§[[tdx]]")

    def domain(**changes: list[str] | None) -> str:
        return policy(("tdx", {"measurements": [DOMAIN], "registers": registers(**changes)}), kind="production")

    quote = dcap(TDX5.but(body={"report_data": data()}))
    book.accept("tdx", "A trust domain answers on a connection that ends there; its four registers are named.", quote,
                policy=domain(), channel=channel(GUARDED))
    for i in range(4):
        book.refuse(f"tdx-another-rtmr{i}", f"The trust domain answers, and RTMR{i} is another.", quote,
                    f"policy.register.rtmr{i}", "register_not_accepted", channel=channel(GUARDED),
                    policy=domain(**{f"rtmr{i}": ["cd" * 48]}))
    book.section(381, to=389, twin="release", document="docs/spec/release.md", spec="§3", tcb_status="NotReported")
    by_release = policy(("sim", {"root": ROOT, "measurements": None} | vouching()), kind="UNSAFE_SIMULATION")
    good, other = (sign_release(release(ReferenceValue("sim", measurement, ())), (AUDITOR,))
                   for measurement in (worlds.MEASUREMENT, worlds.OTHER_MEASUREMENT))
    book.accept("release", "A named key vouches for the server's code, in a manifest stapled to its evidence.",
                vouched(shown(SERVER), good), policy=by_release, channel=channel(SERVER))
    book.refuse("release-of-another-build", "The stapled manifest is about another build.",
                vouched(shown(SERVER), other), "policy.release", "release_not_accepted", policy=by_release,
                channel=channel(SERVER))
    book.refuse("release-missing", "No manifest is stapled to the evidence.", shown(SERVER), "policy.release",
                "release_not_accepted", policy=by_release, channel=channel(SERVER))


def leaves(server: Server, mine: int = 4, size: int = 7) -> tuple[bytes, ...]:
    """The leaves of a batch, the client's own at `mine`."""
    nonces = [hashlib.sha256(f"nonce {at}".encode()).digest() for at in range(size)]
    nonces[mine] = NONCE
    return tuple(leaf_hash(nonce=nonce, keyset_bytes=server.keyset_bytes) for nonce in nonces)


def _batches(book: Book) -> None:
    book.section(401, to=449, twin="batch", tcb_status="NotReported", policy=SIMULATION, spec="§2.5")
    tree = Tree(leaves(SERVER))
    proof, root = tree.inclusion(4), tree.root
    answer = shown(SERVER.forge(report_data=batch_report_data(root=root)))

    def asked(inclusion: Inclusion | Single, server: Server = SERVER, **changes: Any) -> Channel:
        return channel(server, inclusion=inclusion, **changes)

    book.accept("batch", "The evidence answers seven nonces, of which the client's is the fifth.", answer,
                channel=asked(proof))
    last = Tree(leaves(SERVER, mine=6))
    book.accept("batch-last", "The client's nonce is the last of seven, where the way to the root is shorter.",
                shown(SERVER.forge(report_data=batch_report_data(root=last.root))), channel=asked(last.inclusion(6)))
    two = Tree(leaves(SERVER, mine=1, size=2))
    book.accept("batch-of-two", "The smallest batch.",
                shown(SERVER.forge(report_data=batch_report_data(root=two.root))), channel=asked(two.inclusion(1)))
    mismatch = ("evidence.report_data", "report_data_mismatch")
    book.refuse("batch-place-of-a-neighbour", "The proof is that of the nonce beside.", answer, *mismatch,
                channel=asked(tree.inclusion(5)))
    book.refuse("batch-place-moved", "The hashes are right, the place is the neighbour's.", answer, *mismatch,
                channel=asked(replace(proof, index=5)))
    book.refuse("batch-of-another-nonce", "The client asked with a nonce that is not in the batch.", answer, *mismatch,
                channel=asked(proof, nonce=OTHER_NONCE), refs=STALE)
    later = replace(SERVER, not_after=SERVER.not_after + 1)
    book.refuse("batch-of-another-keyset", "The nonce is in the batch, asked for another keyset.", answer, *mismatch,
                channel=asked(proof, keyset=later.keyset_bytes))
    book.refuse("batch-hash-changed", "One hash of the proof is another.", answer, *mismatch,
                channel=asked(replace(proof, path=(*proof.path[:-1], bytes(32)))))
    swapped = (proof.path[1], proof.path[0], *proof.path[2:])
    book.refuse("batch-hashes-swapped", "Two hashes of the proof are swapped.", answer, *mismatch,
                channel=asked(replace(proof, path=swapped)))
    book.refuse("batch-of-an-earlier-time", "The evidence answers a batch without this nonce.",
                shown(SERVER.forge(report_data=batch_report_data(root=two.root))), *mismatch, channel=asked(proof),
                refs=STALE)
    book.refuse("batch-taken-for-one", "Evidence of a batch without its proof: it answers no nonce alone.", answer,
                *mismatch, channel=asked(ALONE))
    book.refuse("one-taken-for-a-batch", "Evidence that answers the nonce alone, with a proof: the two are told apart.",
                shown(SERVER), *mismatch, channel=asked(proof))
    bare = shown(SERVER.forge(report_data=report_data(nonce=root, keyset_bytes=SERVER.keyset_bytes)))
    book.refuse("batch-root-as-a-nonce", "The root was answered as if it were a nonce.", bare, *mismatch,
                channel=asked(proof))
    book.refuse("batch-root-unlabelled", "The report data are the root itself, twice.",
                shown(SERVER.forge(report_data=root + root)), *mismatch, channel=asked(proof))
    _malformed(book, answer, proof)
    _nitro_batches(book)


def _malformed(book: Book, answer: Minted, proof: Inclusion) -> None:
    """Proofs that are none, whatever the hashes; nothing is left to compare the report data with."""
    book.section(451, to=479, twin="batch", tcb_status="NotReported", policy=SIMULATION, spec="§4 step 4.1")
    for name, title, inclusion in (
        ("place-behind-the-end", "The place is the eighth of seven.", replace(proof, index=7)),
        ("place-negative", "The place is before the first.", replace(proof, index=-1)),
        ("size-of-none", "The batch has no nonce.", Inclusion(0, 0, ())),
        ("size-of-one", "The batch has one nonce: one alone has a form of its own.", Inclusion(0, 1, ())),
        ("too-deep", "The batch is larger than any.", Inclusion(0, MAX_BATCH + 1, (bytes(32),) * (MAX_DEPTH + 1))),
        ("size-negative", "The batch has fewer nonces than none.", replace(proof, size=-7)),
        ("hash-missing", "The last hash is missing.", replace(proof, path=proof.path[:-1])),
        ("hashes-missing", "There are no hashes: the leaf would be the root.", replace(proof, path=())),
        ("hash-too-many", "There is a hash too many.", replace(proof, path=(*proof.path, bytes(32)))),
        ("hash-short", "A hash is a byte short.", replace(proof, path=(*proof.path[:-1], proof.path[-1][:-1]))),
        ("hash-long", "A hash is a byte longer.", replace(proof, path=(*proof.path[:-1], proof.path[-1] + b"\0"))),
    ):
        book.refuse(f"batch-{name}", title, answer, "evidence.inclusion", "inclusion_malformed",
                    channel=channel(SERVER, inclusion=inclusion))


def _nitro_batches(book: Book) -> None:
    """Evidence of a batch that carries more than report data."""
    book.section(481, to=499, twin="nitro-batch", tcb_status="NotReported", spec="§4 step 4.4")
    image = policy(("nitro", {"measurements": [aws.PCR0.hex()]}), kind="production")
    tree = Tree(leaves(GUARDED))
    wanted, inclusion = batch_report_data(root=tree.root), tree.inclusion(4)
    more: dict[str, Any] = {"channel": channel(GUARDED, inclusion=inclusion), "policy": image}

    def answered(nonce: bytes | None) -> Minted:
        return document(aws.mint(user_data=wanted, nonce=nonce)).but(report_data=wanted)

    book.accept("nitro-batch", "A document of AWS answers a batch: its own nonce is the root.", answered(tree.root),
                **more)
    check = ("nitro.nonce", "nitro_nonce_mismatch")
    book.refuse("nitro-batch-with-one-nonce", "The document's own nonce is the client's, not the root.",
                answered(NONCE), *check, **more)
    book.refuse("nitro-batch-without-a-nonce", "The document has no nonce of its own.", answered(None), *check,
                refs=SKIPPED_SNP, **more)
