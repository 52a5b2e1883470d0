"""Batches: tree and proofs against RFC 6962 written down once more, and `attest.verify` of answers in a batch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import fake_aws
import fake_tpm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import NONCE, NOW, Server, policy

from strongroom import attest
from strongroom.attest import evidence as evidence_module
from strongroom.attest.batch import (
    MAX_BATCH,
    Inclusion,
    Single,
    Tree,
    batch_report_data,
    check_inclusion,
    leaf_hash,
    root_of,
)
from strongroom.attest.evidence import (
    NOT_MADE,
    Attested,
    Check,
    Evidence,
    EvidenceAnswer,
    boot_report_data,
    encode_answer,
    parse_answer,
    report_data,
)
from strongroom.attest.keyset import encode_keyset
from strongroom.attest.nitro import examine_nitro
from strongroom.attest.tpm import examine_tpm
from strongroom.errors import CODES, AttestationRefused, MalformedInput

SERVER = Server()
KEYSET = SERVER.keyset_bytes


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of the parts, joined."""
    return hashlib.sha256(b"".join(parts)).digest()


def nonce(number: int) -> bytes:
    """Another client's nonce."""
    return sha256(b"nonce", number.to_bytes(4, "big"))


# RFC 6962 section 2.1, word for word: a recursion with a split at the largest power of two below n. The package builds
# the same tree from below, so the two have no line in common.


def mth(leaves: tuple[bytes, ...]) -> bytes:
    """MTH of leaves that are hashed already."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\x01", mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """PATH(m, D[n]) of section 2.1.1."""
    if len(leaves) == 1:
        return ()
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    if m < k:
        return (*path(m, leaves[:k]), mth(leaves[k:]))
    return (*path(m - k, leaves[k:]), mth(leaves[:k]))


# The tree

CT_LEAVES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
CT_ROOTS = {
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
"""Roots that implementations of Certificate Transparency test themselves with, over the leaves above. The first again:
`(printf '\\1'; (printf '\\0' | openssl sha256 -binary); (printf '\\0\\0' | openssl sha256 -binary)) | openssl sha256`
"""


@pytest.mark.parametrize("size", CT_ROOTS)
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    """The tree is the one that others' implementations of RFC 6962 build."""
    leaves = tuple(sha256(b"\x00", bytes.fromhex(data)) for data in CT_LEAVES[:size])
    assert Tree(leaves).root.hex() == CT_ROOTS[size]
    assert mth(leaves).hex() == CT_ROOTS[size]


def test_trees_are_those_of_the_rfc() -> None:
    """Root and every proof, for every size up to 66 and some beyond."""
    leaves = tuple(leaf_hash(nonce=nonce(at), keyset_bytes=KEYSET) for at in range(200))
    for size in [*range(2, 67), 100, 127, 128, 129, 199, 200]:
        tree = Tree(leaves[:size])
        assert tree.root == mth(leaves[:size])
        for index in range(size):
            assert tree.inclusion(index) == Inclusion(index, size, path(index, leaves[:size]))


def test_the_leaf_is_as_specified() -> None:
    """SHA-256(0x00 || nonce || SHA-256(keyset)): a leaf for one keyset is none for another."""
    assert leaf_hash(nonce=NONCE, keyset_bytes=b"{}") == sha256(b"\x00", NONCE, sha256(b"{}"))
    assert leaf_hash(nonce=NONCE, keyset_bytes=b"{}") != leaf_hash(nonce=NONCE, keyset_bytes=b"{} ")


def test_the_specifications_example_is_true() -> None:
    """The three nonces of docs/spec/evidence.md §2.5."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "spec" / "evidence.md").read_text(encoding="utf-8")
    leaves = tuple(leaf_hash(nonce=bytes(range(at, at + 32)), keyset_bytes=b"{}") for at in (0, 32, 64))
    tree = Tree(leaves)
    for value in (tree.root, batch_report_data(root=tree.root), tree.inclusion(2).path[0]):
        assert f"{value.hex()}" in text
    for leaf in leaves:
        assert f"`{leaf.hex()[:8]}`" in text


def test_report_data_of_a_batch_has_a_label_of_its_own() -> None:
    """SHA-512(label, 0, root), and no other purpose's value for the same bytes."""
    root = sha256(b"root")
    made = batch_report_data(root=root)
    assert made == hashlib.sha512(b"strongroom evidence batch v1" + bytes(1) + root).digest()
    others = {label for name, label in vars(evidence_module).items() if name.startswith("_LABEL")}
    assert len(others) == 3
    assert made not in {hashlib.sha512(label + bytes(1) + root).digest() for label in others}


@pytest.mark.parametrize("count", [0, 1])
def test_one_nonce_is_no_batch(count: int) -> None:
    """It is asked and answered in the plain form: one question has one form."""
    with pytest.raises(MalformedInput) as caught:
        Tree((sha256(b""),) * count)
    assert caught.value.code == "inclusion_malformed"


@pytest.mark.parametrize("index", [-1, 5, MAX_BATCH])
def test_there_is_no_proof_of_a_leaf_that_is_not_there(index: int) -> None:
    """Places go from 0 to size - 1; Python's own would count from the end."""
    with pytest.raises(MalformedInput):
        Tree(tuple(map(nonce, range(5)))).inclusion(index)


@pytest.mark.parametrize("short", [b"", NONCE[:31], NONCE + b"\x00"])
def test_nonces_and_roots_of_another_size_are_refused(short: bytes) -> None:
    """With another size the same bytes could be cut elsewhere."""
    with pytest.raises(MalformedInput) as caught:
        leaf_hash(nonce=short, keyset_bytes=KEYSET)
    assert caught.value.code == "nonce_malformed"
    with pytest.raises(MalformedInput) as caught:
        batch_report_data(root=short)
    assert caught.value.code == "inclusion_malformed"


MALFORMED = {
    "no leaf": Inclusion(0, 0, ()),
    "one leaf": Inclusion(0, 1, ()),
    "negative size": Inclusion(0, -2, ()),
    "too deep": Inclusion(0, MAX_BATCH + 1, (b"h" * 32,) * 21),
    "far too deep": Inclusion(0, 1 << 4000, (b"h" * 32,) * 4000),
    "place behind the end": Inclusion(7, 7, Tree(tuple(map(nonce, range(7)))).inclusion(6).path),
    "place before the beginning": Inclusion(-1, 7, Tree(tuple(map(nonce, range(7)))).inclusion(6).path),
    "no hashes": Inclusion(0, 7, ()),
    "one hash too few": Inclusion(0, 7, (b"h" * 32,) * 2),
    "one hash too many": Inclusion(0, 7, (b"h" * 32,) * 4),
    "a short way's proof too long": Inclusion(6, 7, (b"h" * 32,) * 3),
    "a hash too short": Inclusion(0, 7, (b"h" * 32, b"h" * 32, b"h" * 31)),
    "a hash too long": Inclusion(0, 7, (b"h" * 32, b"h" * 33, b"h" * 32)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_proof_leads_nowhere(name: str) -> None:
    """Size, place and hashes that do not go together are refused before anything is hashed."""
    for attempt in (
        lambda one: check_inclusion(one),
        lambda one: root_of(one, nonce=NONCE, keyset_bytes=KEYSET),
    ):
        with pytest.raises(MalformedInput) as caught:
            attempt(MALFORMED[name])
        assert caught.value.code == "inclusion_malformed"


def test_the_deepest_tree_has_a_proof_of_20_hashes() -> None:
    """2**20 leaves; the bound itself is accepted."""
    check_inclusion(Inclusion(MAX_BATCH - 1, MAX_BATCH, (b"h" * 32,) * 20))


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(size=st.integers(2, 200), data=st.data())
def test_every_leaf_verifies_and_no_altered_proof_does(size: int, data: st.DataObject) -> None:
    """Any size, any leaf: the proof leads to the root. With another nonce, keyset or hash, one hash more or less, or
    hashes in another order it does not; nor with another place or size, unless these say the very same: every hash
    on the side where it was.
    """
    nonces = tuple(map(nonce, range(size)))
    tree = Tree(tuple(leaf_hash(nonce=one, keyset_bytes=KEYSET) for one in nonces))
    index = data.draw(st.integers(0, size - 1))
    proof = tree.inclusion(index)

    def leads(changed: Inclusion, *, asked: bytes = nonces[index], keyset: bytes = KEYSET) -> bool:
        try:
            return root_of(changed, nonce=asked, keyset_bytes=keyset) == tree.root
        except MalformedInput as refused:
            assert refused.code == "inclusion_malformed"
            return False

    assert leads(proof)
    other = data.draw(st.integers(0, size).filter(lambda at: at != index))
    assert not leads(proof, asked=nonce(other))
    assert not leads(proof, keyset=KEYSET + b" ")
    at = data.draw(st.integers(0, len(proof.path) - 1))
    bit = data.draw(st.integers(0, 255))
    flipped = bytes(a ^ b for a, b in zip(proof.path[at], (1 << bit).to_bytes(32, "big"), strict=True))
    hashes = proof.path
    assert not leads(replace(proof, path=(*hashes[:at], flipped, *hashes[at + 1 :])))
    assert not leads(replace(proof, path=(*hashes[:at], *hashes[at + 1 :])))
    assert not leads(replace(proof, path=(*hashes[:at], hashes[at], *hashes[at:])))
    assert not leads(replace(proof, path=hashes[::-1])) or len(hashes) == 1
    moved = replace(
        proof, index=data.draw(st.integers(-1, 2 * size)), size=data.draw(st.integers(0, 2 * size))
    )
    assert leads(moved) == (_sides(moved) == _sides(proof))
    moved = replace(proof, index=data.draw(st.integers(0, size - 1)))
    assert leads(moved) == (moved == proof)


def _sides(proof: Inclusion) -> list[str] | None:
    """From the leaf up, on which side each hash is; after the recursion of the RFC. None: there is no such proof."""
    index, size, sides = proof.index, proof.size, []
    if not 0 <= index < size or size < 2:
        return None
    while size > 1:
        k = 1 << ((size - 1).bit_length() - 1)
        sides.append("right" if index < k else "left")
        index, size = (index, k) if index < k else (index - k, size - k)
    return sides[::-1] if len(sides) == len(proof.path) else None


# The answer on the wire

TREE = Tree(tuple(leaf_hash(nonce=NONCE if at == 4 else nonce(at), keyset_bytes=KEYSET) for at in range(7)))
PROOF = TREE.inclusion(4)
ANSWER = EvidenceAnswer(Evidence("sim", b"evidence", (("crl", b"x"),)), b"keyset", PROOF)


def _answer(**batch: Any) -> bytes:
    value = json.loads(encode_answer(ANSWER))
    value["batch"] = {k: v for k, v in (value["batch"] | batch).items() if v is not ...}
    return json.dumps(value).encode()


def test_an_answer_in_a_batch_is_read_as_it_was_written() -> None:
    """The proof survives the wire, and the rest is the plain answer's."""
    assert parse_answer(encode_answer(ANSWER)) == ANSWER
    assert parse_answer(_answer()) == ANSWER
    value = json.loads(encode_answer(ANSWER))
    assert value.pop("batch") == {"index": 4, "size": 7, "path": [one.hex() for one in PROOF.path]}
    assert value == json.loads(encode_answer(replace(ANSWER, inclusion=Single())))


def test_an_answer_without_a_batch_is_the_plain_one() -> None:
    """What servers answered before there were batches is read as before."""
    plain = encode_answer(replace(ANSWER, inclusion=Single()))
    assert b"batch" not in plain
    assert parse_answer(plain).inclusion == Single()


HASH = "ab" * 32


@pytest.mark.parametrize(
    "data",
    [
        _answer(extra=1),
        _answer(index=...),
        _answer(size=...),
        _answer(path=...),
        _answer(index=True),
        _answer(index="4"),
        _answer(index=-1),
        _answer(index=7),
        _answer(size=1, index=0),
        _answer(size=0),
        _answer(size=MAX_BATCH + 1),
        _answer(size=None),
        _answer(path=HASH),
        _answer(path=[HASH] * 21),
        _answer(path=[HASH.upper()]),
        _answer(path=[HASH[:-2]]),
        _answer(path=[HASH + "ab"]),
        _answer(path=[HASH + "\n"]),
        _answer(path=["０" * 64]),
        _answer(path=[None]),
        _answer(path=[[HASH]]),
        json.dumps(json.loads(_answer()) | {"batch": None}).encode(),
        json.dumps(json.loads(_answer()) | {"batch": []}).encode(),
        json.dumps(json.loads(_answer()) | {"Batch": {}}).encode(),
        _answer().replace(b'"index": 4', b'"index": 4.0'),
        _answer().replace(b'"index": 4', b'"index": 5, "index": 4'),
        encode_answer(ANSWER)[:-1] + b"," + encode_answer(ANSWER)[1:].split(b',"endorsements"')[0] + b"}",
    ],
    ids=range(27),
)
def test_a_malformed_batch_is_refused(data: bytes) -> None:
    """One fault each: members unknown, missing or there twice, wrong types, bounds and spellings, a null."""
    with pytest.raises(MalformedInput) as caught:
        parse_answer(data)
    assert caught.value.code == "answer_malformed"


# Verification


def checks(
    inclusion: Inclusion | Single,
    *,
    report: bytes,
    server: Server = SERVER,
    asked: bytes = NONCE,
) -> tuple[Attested | None, dict[str, Check]]:
    """What `verify` makes of evidence that carries `report`, and its checks by id."""
    server = server.forge(report_data=report)
    return _verify(server.evidence, inclusion, server=server, asked=asked, now=NOW)


def _verify(
    evidence: Evidence, inclusion: Inclusion | Single, *, server: Server, asked: bytes, now: datetime
) -> tuple[Attested | None, dict[str, Check]]:
    try:
        proof = attest.verify(
            evidence,
            policy(),
            nonce=asked,
            keyset_bytes=server.keyset_bytes,
            inclusion=inclusion,
            channel=server.leaf,
            endorsements=evidence.endorsements,
            now=now,
        )
    except AttestationRefused as refusal:
        assert refusal.verdict is not None
        assert refusal.code == refusal.verdict.failures[0].code
        assert all(one.code in CODES for one in refusal.verdict.failures)
        return None, {one.id: one for one in refusal.verdict.checks}
    return proof, {one.id: one for one in proof.verdict.checks}


def failures(inclusion: Inclusion | Single, *, report: bytes, **more: Any) -> list[tuple[str, str]]:
    """(id, code) of what failed."""
    proof, made = checks(inclusion, report=report, **more)
    failed = [(one.id, one.code) for one in made.values() if not one.passed]
    assert bool(failed) == (proof is None)
    return failed


REPORT = batch_report_data(root=TREE.root)
MISMATCH = [("evidence.report_data", "report_data_mismatch")]


def test_a_nonce_in_a_batch_is_answered() -> None:
    """The proof leads from our own nonce and the received keyset to what the evidence carries: `Attested`."""
    proof, made = checks(PROOF, report=REPORT)
    assert type(proof) is Attested
    assert made["evidence.inclusion"].got == f"place 4 of 7, root {TREE.root.hex()}"


def test_clients_with_other_keysets_share_a_batch() -> None:
    """Connections of two key epochs: each proof holds for its own keyset, and for no other."""
    other = replace(SERVER, name="the next epoch")
    tree = Tree(
        (
            leaf_hash(nonce=NONCE, keyset_bytes=KEYSET),
            leaf_hash(nonce=NONCE, keyset_bytes=other.keyset_bytes),
        )
    )
    report = batch_report_data(root=tree.root)
    assert failures(tree.inclusion(0), report=report) == []
    assert failures(tree.inclusion(1), report=report, server=other) == []
    assert failures(tree.inclusion(1), report=report) == MISMATCH
    assert failures(tree.inclusion(0), report=report, server=other) == MISMATCH


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_proof_is_refused(name: str) -> None:
    """Its own code first; what could not be compared has failed, and the other checks are made."""
    proof, made = checks(MALFORMED[name], report=REPORT)
    assert proof is None
    failed = {one.id: one for one in made.values() if not one.passed}
    assert [one.code for one in failed.values()] == ["inclusion_malformed", "report_data_mismatch"]
    assert failed["evidence.report_data"].got == NOT_MADE + "the inclusion proof is malformed"
    assert made["evidence.report_data_present"].passed
    assert made["channel.spki"].passed


def test_the_proof_of_another_nonce_is_refused() -> None:
    """Genuine evidence of a batch that our nonce is in, with each neighbour's proof."""
    for at in set(range(7)) - {4}:
        assert failures(TREE.inclusion(at), report=REPORT) == MISMATCH


def test_a_batch_without_our_nonce_is_refused() -> None:
    """An old batch with a proof of its own: the answer to somebody else."""
    assert failures(PROOF, report=REPORT, asked=nonce(4)) == MISMATCH
    old = Tree(tuple(leaf_hash(nonce=nonce(at), keyset_bytes=KEYSET) for at in range(7)))
    assert failures(old.inclusion(4), report=batch_report_data(root=old.root)) == MISMATCH


def test_a_keyset_swapped_beside_a_proof_is_refused() -> None:
    """The keyset of whoever sits in between is in no leaf of the genuine server's tree."""
    attacker = Server(name="attacker")
    shown = SERVER.forge(keyset=encode_keyset(attacker.keyset), report_data=REPORT)
    shown = replace(shown, name="attacker")  # the connection ends there, too
    _, made = _verify(shown.evidence, PROOF, server=shown, asked=NONCE, now=NOW)
    assert [(one.id, one.code) for one in made.values() if not one.passed] == MISMATCH


def test_every_altered_hash_of_a_proof_is_refused() -> None:
    """One bit in each byte of each hash."""
    for at, one in enumerate(PROOF.path):
        for byte in range(32):
            changed = one[:byte] + bytes([one[byte] ^ 0x80]) + one[byte + 1 :]
            altered = replace(PROOF, path=(*PROOF.path[:at], changed, *PROOF.path[at + 1 :]))
            assert failures(altered, report=REPORT) == MISMATCH


@pytest.mark.parametrize("index", [0, 1, 2, 3, 5])
def test_another_place_in_the_same_tree_is_refused(index: int) -> None:
    """As many hashes, on other sides."""
    assert failures(replace(PROOF, index=index), report=REPORT) == MISMATCH


def test_place_and_size_are_not_signed_and_say_nothing_else() -> None:
    """§2.5.5: another size with every hash on the same side leads to the same root, for the same nonce and keyset."""
    assert failures(replace(PROOF, size=8), report=REPORT) == []
    assert failures(replace(PROOF, size=8), report=REPORT, asked=nonce(4)) == MISMATCH
    assert failures(replace(PROOF, size=6), report=REPORT) == [
        ("evidence.inclusion", "inclusion_malformed"),
        ("evidence.report_data", "report_data_mismatch"),
    ]


def test_evidence_of_a_batch_is_no_plain_answer_and_the_reverse() -> None:
    """The labels differ, so neither form can be passed off as the other."""
    assert failures(Single(), report=REPORT) == MISMATCH
    plain = report_data(nonce=NONCE, keyset_bytes=KEYSET)
    assert failures(Single(), report=plain) == []
    assert failures(PROOF, report=plain) == MISMATCH


@pytest.mark.parametrize("label", [b"strongroom evidence v1", b"strongroom ratls v1", b""])
def test_a_root_under_another_label_is_refused(label: bytes) -> None:
    """The right root, hashed for another purpose."""
    assert failures(PROOF, report=hashlib.sha512(label + bytes(1) + TREE.root).digest()) == MISMATCH


def test_a_bare_root_is_refused() -> None:
    """Evidence that carries the root itself, filled up: not report data that our code makes."""
    assert failures(PROOF, report=TREE.root + bytes(32)) == MISMATCH


def test_boot_evidence_with_a_proof_is_told_apart() -> None:
    """Evidence out of the certificate answers no nonce, whatever stands beside it."""
    boot = boot_report_data(spki=SERVER.keyset.key("tls").spki)
    assert failures(PROOF, report=boot) == [("evidence.report_data", "report_data_other_label")]


def test_a_node_is_not_taken_for_a_leaf() -> None:
    """Second preimage: a nonce and a keyset whose bytes are those under an inner node. Without the prefixes the node's
    hash would be their leaf, and the shortened proof would hold.
    """
    secret = (leaf_hash(nonce=nonce(0), keyset_bytes=KEYSET), leaf_hash(nonce=nonce(1), keyset_bytes=KEYSET))
    right = b"\x00" + nonce(1) + sha256(KEYSET)  # what the right one of the two is the hash of
    assert sha256(right) == secret[1]
    tree = Tree((*secret, nonce(2), nonce(3)))
    inner = sha256(b"\x01", *secret)
    shortened = Inclusion(0, 2, tree.inclusion(0).path[1:])
    assert sha256(b"\x01", inner, *shortened.path) == tree.root  # the attack is set up as it should be
    report = batch_report_data(root=tree.root)
    server = SERVER.forge(keyset=right)
    _, made = _verify(
        server.forge(report_data=report).evidence, shortened, server=server, asked=secret[0], now=NOW
    )
    assert made["evidence.report_data"].code == "report_data_mismatch"


def test_a_leaf_is_not_taken_for_a_node() -> None:
    """The reverse: somebody asks the genuine server with our leaf as his nonce, and shows us the proof of his leaf,
    made longer by the keyset's digest. Without the prefixes his leaf would be the node over ours.
    """
    ours = leaf_hash(nonce=NONCE, keyset_bytes=KEYSET)
    his = leaf_hash(nonce=ours, keyset_bytes=KEYSET)
    assert his == sha256(b"\x00", ours, sha256(KEYSET))
    tree = Tree((his, nonce(2)))
    longer = Inclusion(0, 4, (sha256(KEYSET), *tree.inclusion(0).path))
    assert failures(longer, report=batch_report_data(root=tree.root)) == MISMATCH


def test_what_is_neither_form_is_a_fault_of_the_caller() -> None:
    """No value means that the question is left open."""
    for nothing in (None, (), False, Inclusion):
        with pytest.raises(TypeError, match="inclusion"):
            checks(nothing, report=REPORT)  # type: ignore[arg-type]


def test_a_nonce_of_another_size_is_the_callers_fault() -> None:
    """In a batch as without: it is our own nonce."""
    for inclusion in (PROOF, Single()):
        with pytest.raises(MalformedInput) as caught:
            checks(inclusion, report=REPORT, asked=NONCE[:31])
        assert caught.value.code == "nonce_malformed"


def test_evidence_that_did_not_verify_answers_nothing() -> None:
    """With a good proof, and with a bad one: every check is there, and those that had nothing left have failed."""
    spoiled = replace(SERVER.forge(report_data=REPORT).evidence, data=b"{}")
    for inclusion in (PROOF, MALFORMED["no hashes"]):
        proof, made = _verify(spoiled, inclusion, server=SERVER, asked=NONCE, now=NOW)
        assert proof is None
        assert {"evidence.report_data", "evidence.report_data_present"} <= {
            one.id for one in made.values() if one.got.startswith(NOT_MADE)
        }


# Formats that carry less or more than report data


def _nitro(
    monkeypatch: pytest.MonkeyPatch, inclusion: Inclusion | Single, **shown: bytes
) -> dict[str, Check]:
    def examine(data: bytes, **arguments: Any) -> Any:
        return examine_nitro(data, **(arguments | {"roots": (fake_aws.ROOT,)}))

    monkeypatch.setitem(attest.VERIFIERS, "nitro", examine)
    document = fake_aws.mint(**shown)
    _, made = _verify(
        Evidence("nitro", document, ()), inclusion, server=SERVER, asked=NONCE, now=fake_aws.NOW
    )
    return made


def test_a_nitro_document_of_a_batch_carries_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its nonce: there is one document for many nonces."""
    made = _nitro(monkeypatch, PROOF, user_data=REPORT, nonce=TREE.root)
    assert made["evidence.report_data"].passed
    assert made["nitro.nonce"].passed
    assert made["nitro.nonce"].expected == TREE.root.hex()


@pytest.mark.parametrize(
    ("inclusion", "shown"),
    [
        (PROOF, {"user_data": REPORT, "nonce": NONCE}),
        (PROOF, {"user_data": REPORT, "nonce": b""}),
        (PROOF, {"user_data": REPORT, "nonce": None}),
        (PROOF, {"user_data": REPORT, "nonce": TREE.root[:31]}),
        (MALFORMED["no hashes"], {"user_data": REPORT, "nonce": TREE.root}),
        (MALFORMED["no hashes"], {"user_data": REPORT, "nonce": None}),
        (Single(), {"user_data": report_data(nonce=NONCE, keyset_bytes=KEYSET), "nonce": TREE.root}),
    ],
)
def test_a_nitro_document_with_another_nonce_is_refused(
    monkeypatch: pytest.MonkeyPatch, inclusion: Inclusion | Single, shown: dict[str, bytes]
) -> None:
    """The client's own in a batch, none, a part of the root, or the root where there is no batch."""
    made = _nitro(monkeypatch, inclusion, **shown)
    assert made["nitro.nonce"].code == "nitro_nonce_mismatch"


def test_a_tpm_carries_a_digest_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qualifying data is the SHA-256 of the batch's report data, as of every other."""
    made = _tpm(monkeypatch, hashlib.sha256(REPORT).digest())
    assert made["evidence.report_data"].passed
    assert made["evidence.report_data_present"].passed


@pytest.mark.parametrize(
    "qualifying", [REPORT[:32], TREE.root, hashlib.sha256(TREE.root).digest(), bytes(32)]
)
def test_another_digest_in_a_tpms_quote_is_refused(
    monkeypatch: pytest.MonkeyPatch, qualifying: bytes
) -> None:
    """A part of the report data, the root, its digest, nothing."""
    assert _tpm(monkeypatch, qualifying)["evidence.report_data"].code == "report_data_mismatch"


def _tpm(monkeypatch: pytest.MonkeyPatch, qualifying: bytes) -> dict[str, Check]:
    tpm = fake_tpm.Tpm(qualifying=qualifying)

    def examine(data: bytes, **arguments: Any) -> Any:
        return examine_tpm(data, **(arguments | {"roots": (fake_tpm.ROOT_DIGEST, tpm.ak_digest)}))

    monkeypatch.setitem(attest.VERIFIERS, "tpm", examine)
    _, made = _verify(Evidence("tpm", tpm.document, ()), PROOF, server=SERVER, asked=NONCE, now=fake_tpm.NOW)
    return made
