"""The vendors' services without a network: addresses, and how answers become documents or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import quote

import pytest
from fake_amd import Machine, intermediate_der, root_der
from fake_intel import EVERY, NOW, PROCESSOR, SGX, TDX4, Intel
from fake_services import amd_answers, intel_answers, vcek_target
from fake_x509 import UNTIL, pem, revocation_list, rsa_key
from recorded import ABSENT, EVIDENCE

from strongroom.attest.collateral import parse_collateral
from strongroom.attest.needs import DcapCollateral, SnpChain, SnpRevocationList, Vcek
from strongroom.attest.services import (
    KDS,
    PCS,
    ROOT_LIST,
    Reply,
    assemble,
    check_document,
    plans,
    read_chain_header,
    read_list,
    read_signed,
    valid_until,
)
from strongroom.attest.snp_report import tcb_parts
from strongroom.errors import MalformedInput

CHAIN = pem(intermediate_der("Milan", "VCEK")) + pem(root_der("Milan"))
LIST = revocation_list("ARK-Milan", rsa_key("ark"))
LEAF = Machine().leaf_der
MILAN_CHAIN, MILAN_LIST = SnpChain("Milan", "VCEK"), SnpRevocationList("Milan", "VCEK")


def need_of(thing: Intel | Machine) -> DcapCollateral | Vcek:
    """The need for a platform's collateral, or a chip's certificate."""
    if isinstance(thing, Intel):
        return DcapCollateral(
            thing.format, thing.fmspc, "processor" if thing.authority == PROCESSOR else "platform"
        )
    from fake_amd import TCB

    return Vcek((thing.product,), thing.hardware_id, tcb_parts(TCB[thing.product], thing.product))


def replies(vendor: Intel, *, pccs: bool = False, **members: str) -> list[Reply]:
    """The answers of a service, in the order of the questions."""
    answers = intel_answers(vendor, pccs=pccs, members=members)
    (plan,) = plans(need_of(vendor))
    found = [answers[question.path] for question in plan]
    return [Reply(body, {k.lower(): v for k, v in headers.items()}) for body, headers in found]


def refused(call: Callable[[], object]) -> str:
    """The code of a refusal."""
    with pytest.raises(MalformedInput) as caught:
        call()
    assert caught.value.message.startswith("the answer")
    return caught.value.code


# --- addresses ----------------------------------------------------------------------------------------------


def test_the_addresses_at_intel() -> None:
    """API version 4; the quoting enclave's identity and TCB info are those of the TEE, lists those of both."""
    (plan,) = plans(DcapCollateral("tdx", bytes.fromhex("b0c06f000000"), "processor"))
    assert [(q.service, q.path) for q in plan] == [
        (PCS, "/tdx/certification/v4/tcb?fmspc=B0C06F000000"),
        (PCS, "/tdx/certification/v4/qe/identity"),
        (PCS, "/sgx/certification/v4/pckcrl?ca=processor&encoding=der"),
        (ROOT_LIST, "/sgx/certification/v4/rootcacrl"),
    ]
    (plan,) = plans(DcapCollateral("sgx", bytes(6), "platform"))
    assert plan[0].path == "/sgx/certification/v4/tcb?fmspc=000000000000"


def test_the_addresses_at_amd() -> None:
    """Two digits a part, more where they are needed; Turin has another part, in front, and short identities."""
    milan = Machine()
    ((question,),) = plans(need_of(milan))
    assert question.service == KDS
    assert question.path == (
        f"/vcek/v1/Milan/{bytes(range(1, 65)).hex()}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"
    )
    ((question,),) = plans(need_of(Machine(product="Turin")))
    assert question.path == (
        "/vcek/v1/Turin/0102030405060708?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )
    paths = [
        "/vcek/v1/Genoa/cert_chain",
        "/vlek/v1/Genoa/cert_chain",
        "/vcek/v1/Turin/crl",
        "/vlek/v1/Milan/crl",
    ]
    needs = (
        SnpChain("Genoa", "VCEK"),
        SnpChain("Genoa", "VLEK"),
        SnpRevocationList("Turin", "VCEK"),
        SnpRevocationList("Milan", "VLEK"),
    )
    assert [plans(need)[0][0].path for need in needs] == paths


def test_a_chip_of_one_of_two_products_has_two_plans() -> None:
    """The second is for where the service does not know the first."""
    both = replace(need_of(Machine()), products=("Milan", "Genoa"))
    assert [plan[0].path.split("/")[3] for plan in plans(both)] == ["Milan", "Genoa"]


# --- Intel --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pccs", [False, True], ids=["pcs", "pccs"])
@pytest.mark.parametrize("vendor", EVERY, ids=lambda v: f"{v.format}{v.version}{v.td15}")
def test_answers_make_the_bundle(vendor: Intel, pccs: bool) -> None:
    """All nine documents, lists as DER or hex; the same as the one that is stapled."""
    made = assemble(need_of(vendor), tuple(replies(vendor, pccs=pccs)))
    assert json.loads(made) == vendor.members
    got, stapled = parse_collateral(made), parse_collateral(vendor.bundle)
    assert replace(got, text="") == replace(stapled, text="")


def test_the_header_of_version_3_is_taken() -> None:
    """Some caches have kept its name."""
    told = replies(SGX)
    told[0] = Reply(told[0].body, {"sgx-tcb-info-issuer-chain": told[0].headers["tcb-info-issuer-chain"]})
    assert json.loads(assemble(need_of(SGX), tuple(told))) == SGX.members


def test_white_space_around_the_document_is_not_in_it() -> None:
    """What is inside is signed, and stays as it is."""
    told = replies(SGX)
    info, signature = SGX.members["tcb_info"], SGX.members["tcb_info_signature"]
    body = f'\n{{ "tcbInfo" : {info} ,\r\n "signature": "{signature.upper()}" }}\n'
    told[0] = Reply(body.encode(), told[0].headers)
    assert json.loads(assemble(need_of(SGX), tuple(told))) == SGX.members


@pytest.mark.parametrize("at", [0, 1, 2])
def test_without_its_issuer_chain_an_answer_is_none(at: int) -> None:
    """And with a broken one."""
    told = replies(SGX)
    for headers in (
        {},
        dict.fromkeys(told[at].headers, ""),
        dict.fromkeys(told[at].headers, "x"),
        {name: value[:-60] for name, value in told[at].headers.items()},
        {name: value + "é" for name, value in told[at].headers.items()},
        {name: quote("-----BEGIN X-----\n-----END X-----\n") for name in told[at].headers},
        {name: value * 20 for name, value in told[at].headers.items()},
    ):
        changed = [*told[:at], Reply(told[at].body, headers), *told[at + 1 :]]
        assert refused(partial(assemble, need_of(SGX), tuple(changed))) == "fetch_malformed"


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"tcbInfo":',
        b"<html>",
        b"\x30\x00",
        b"3000",
        b"[" * 9000,
    ],
    ids=range(10),
)
def test_garbage_is_no_answer(at: int, body: bytes) -> None:
    """Whatever was asked for."""
    told = replies(SGX)
    changed = [*told[:at], Reply(body, told[at].headers), *told[at + 1 :]]
    assert refused(lambda: assemble(need_of(SGX), tuple(changed))) == "fetch_malformed"


@pytest.mark.parametrize(
    "text",
    [
        '{"signature":"%s","tcbInfo":{}}',
        '{"tcbInfo":{},"signature":"%s","more":1}',
        '{"tcbInfo":{},"signature":"%s"}x',
        '{"tcbInfo":[],"signature":"%s"}',
        '{"tcbInfo":"{}","signature":"%s"}',
        '{"tcbInfo":{}}',
        '{"other":{},"signature":"%s"}',
    ],
)
def test_an_answer_has_its_document_and_the_signature_and_nothing_else(text: str) -> None:
    """Two readers must not find two documents."""
    assert (
        refused(lambda: read_signed((text.replace("%s", "ab" * 64)).encode(), "tcbInfo")) == "fetch_malformed"
    )
    assert refused(lambda: read_signed(b'{"tcbInfo":{},"signature":"ab"}', "tcbInfo")) == "fetch_malformed"
    assert read_signed(b'{"tcbInfo":{},"signature":"%s"}' % (b"AB" * 64), "tcbInfo") == ("{}", "ab" * 64)


def test_what_is_signed_is_cut_out_not_written_again() -> None:
    """Escapes and order stay: the signature is over these very characters."""
    inside = '{"b":"\\u00e9","a":{"x":"}\\"{"}}'
    text, _ = read_signed(f'{{"tcbInfo":{inside},"signature":"{"00" * 64}"}}'.encode(), "tcbInfo")
    assert text == inside


def test_collateral_for_something_else_is_refused_here() -> None:
    """Another FMSPC, another TEE, another authority's list."""
    other = Intel(fmspc=bytes(6))
    assert refused(lambda: assemble(need_of(SGX), tuple(replies(other)))) == "fetch_mismatch"
    assert refused(lambda: assemble(need_of(SGX), tuple(replies(TDX4)))) == "fetch_mismatch"
    mixed = [replies(SGX)[0], replies(TDX4)[1], *replies(SGX)[2:]]
    assert refused(lambda: assemble(need_of(SGX), tuple(mixed))) == "fetch_mismatch"
    lists = [*replies(SGX)[:2], *replies(Intel(authority=PROCESSOR))[2:]]
    assert refused(lambda: assemble(need_of(SGX), tuple(lists))) == "fetch_mismatch"
    swapped = [*replies(SGX)[:3], replies(SGX)[2]]
    assert refused(lambda: assemble(need_of(SGX), tuple(swapped))) == "fetch_mismatch"


def test_forged_collateral_is_not_noticed_here() -> None:
    """Nothing is verified: the verifier does that."""
    forged = SGX.but(signers={"tcb_info": "pck"})
    check_document(need_of(SGX), assemble(need_of(SGX), tuple(replies(forged))))


def test_lists_come_in_three_spellings() -> None:
    """DER, hex of either case, PEM."""
    der = SGX.crl("root")
    for body in (der, der.hex().encode(), der.hex().upper().encode() + b"\n", pem(der, "X509 CRL")):
        assert read_list(body) == der
    for body in (b"", b"abc", pem(der), pem(der, "X509 CRL") * 2, b"-----BEGIN X"):
        assert refused(lambda b=body: read_list(b)) == "fetch_malformed"  # type: ignore[misc]


def test_a_chain_in_a_header_gets_its_one_spelling() -> None:
    """Whatever its lines were, and with `+` as itself: only %20 is a space."""
    ders = [SGX.certificate("signing"), SGX.certificate("root")]
    text = b"".join(pem(d) for d in ders).decode()
    for value in (quote(text), quote(text, safe="+/= "), quote(text.replace("\n", "\r\n"))):
        made = read_chain_header({"x": value}, ("x",))
        assert made == SGX.members["tcb_info_issuer_chain"]
    assert read_chain_header({"y": quote(text)}, ("x", "y")) == made


@pytest.mark.parametrize("vendor", [SGX, TDX4], ids=["sgx", "tdx"])
def test_how_long_a_bundle_is_kept(vendor: Intel) -> None:
    """Until the first of four documents states the next one."""
    need = need_of(vendor)
    assert valid_until(need, vendor.bundle) == NOW + timedelta(days=27)
    info = vendor.but(tcb_info={"nextUpdate": "2026-11-24T00:00:00Z"})
    identity = vendor.but(qe_identity={"nextUpdate": "2026-11-25T00:00:00Z"})
    listed = vendor.but(crl_next_update={"ca": NOW + timedelta(days=2)})
    root = vendor.but(crl_next_update={"root": NOW + timedelta(days=3)})
    assert valid_until(need, info.bundle) == datetime(2026, 11, 24, tzinfo=UTC)
    assert valid_until(need, identity.bundle) == datetime(2026, 11, 25, tzinfo=UTC)
    assert valid_until(need, listed.bundle) == NOW + timedelta(days=2)
    assert valid_until(need, root.bundle) == NOW + timedelta(days=3)


@pytest.mark.skipif(not EVIDENCE.is_dir(), reason=ABSENT)
def test_genuine_bundles_come_out_of_the_answers_that_made_them() -> None:
    """All that were recorded: taken apart as a service answers, and put together again."""
    bundles = sorted(EVIDENCE.glob("dcap-collateral/*.json"))
    for path in bundles:
        members = json.loads(path.read_bytes())
        tee, fmspc, authority = path.name.split("-")[:3]
        need = DcapCollateral(tee, bytes.fromhex(fmspc), authority)
        texts = [
            f'{{"tcbInfo":{members["tcb_info"]},"signature":"{members["tcb_info_signature"]}"}}',
            f'{{"enclaveIdentity":{members["qe_identity"]},"signature":"{members["qe_identity_signature"]}"}}',
        ]
        made = assemble(
            need,
            (
                Reply(texts[0].encode(), {"tcb-info-issuer-chain": quote(members["tcb_info_issuer_chain"])}),
                Reply(
                    texts[1].encode(),
                    {"sgx-enclave-identity-issuer-chain": quote(members["qe_identity_issuer_chain"])},
                ),
                Reply(
                    bytes.fromhex(members["pck_crl"]),
                    {"sgx-pck-crl-issuer-chain": quote(members["pck_crl_issuer_chain"])},
                ),
                Reply(members["root_ca_crl"].encode(), {}),
            ),
        )
        got, genuine = parse_collateral(made), parse_collateral(path.read_bytes())
        assert replace(got, text="") == replace(genuine, text=""), path.name
        assert valid_until(need, made) is not None
    assert len(bundles) >= 12


# --- AMD ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_answers_of_amd_are_the_documents(product: str) -> None:
    """The certificate as it came; of the chain its two certificates, in one spelling; the list as DER."""
    machine = Machine(product=product)
    leaf = machine.leaf_der
    assert assemble(need_of(machine), (Reply(leaf, {}),)) == leaf
    answers = amd_answers(machine)
    assert vcek_target(machine) in answers
    for kind in ("VCEK", "VLEK"):
        chain, crl = SnpChain(product, kind), SnpRevocationList(product, kind)
        body, _ = answers[plans(chain)[0][0].path]
        made = assemble(chain, (Reply(b"words\n" + body + pem(leaf), {}),))
        assert made.count(b"-----BEGIN CERTIFICATE-----") == 2
        check_document(chain, made)
        body, _ = answers[plans(crl)[0][0].path]
        assert assemble(crl, (Reply(body, {}),)) == body


@pytest.mark.parametrize(
    ("machine", "code"),
    [
        (Machine(product="Turin"), "fetch_mismatch"),
        (Machine(leaf_extensions={"1.3.6.1.4.1.3704.1.4": bytes(64)}), "fetch_mismatch"),
        (Machine(leaf_extensions={"1.3.6.1.4.1.3704.1.4": None}), "fetch_mismatch"),
        (Machine(leaf_extensions={"1.3.6.1.4.1.3704.1.3.8": b"\x02\x01\x05"}), "fetch_mismatch"),
        (Machine(leaf_extensions={"1.3.6.1.4.1.3704.1.3.8": None}), "fetch_mismatch"),
        (Machine(kind="VLEK"), "fetch_mismatch"),
        (Machine(leaf={"behind_body": b"\x05\x00"}), "fetch_malformed"),
    ],
    ids=["product", "chip", "no chip", "TCB", "no TCB", "VLEK", "malformed"],
)
def test_a_certificate_of_something_else_is_refused_here(machine: Machine, code: str) -> None:
    """So that no cache keeps it."""
    assert refused(lambda: assemble(need_of(Machine()), (Reply(machine.leaf_der, {}),))) == code


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"\x30\x00", pem(LEAF), LEAF[:-1], LEAF + b"\x00"], ids=range(6)
)
def test_garbage_is_no_certificate(body: bytes) -> None:
    """KDS answers in DER."""
    assert refused(lambda: assemble(need_of(Machine()), (Reply(body, {}),))) == "fetch_malformed"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "fetch_mismatch"),
        (b"garbage", "fetch_mismatch"),
        (pem(intermediate_der("Milan", "VCEK")), "fetch_mismatch"),
        (pem(intermediate_der("Milan", "VLEK")) + pem(root_der("Milan")), "fetch_mismatch"),
        (pem(intermediate_der("Genoa", "VCEK")) + pem(root_der("Genoa")), "fetch_mismatch"),
        (pem(b"\x30\x00"), "fetch_malformed"),
        (b"-----BEGIN CERTIFICATE-----\n", "fetch_malformed"),
        (b"".join(pem(Machine(leaf={"serial": i}).leaf_der) for i in range(33)), "fetch_malformed"),
    ],
    ids=range(8),
)
def test_a_chain_that_is_none(body: bytes, code: str) -> None:
    """Issuer and root by their names, or nothing."""
    assert refused(lambda: assemble(MILAN_CHAIN, (Reply(body, {}),))) == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "fetch_malformed"),
        (LEAF, "fetch_malformed"),
        (LIST[:-1], "fetch_malformed"),
        (revocation_list("ARK-Genoa", rsa_key("ark")), "fetch_mismatch"),
    ],
    ids=range(4),
)
def test_a_list_that_is_none(body: bytes, code: str) -> None:
    """Of the product's root, or nothing."""
    assert refused(lambda: assemble(MILAN_LIST, (Reply(body, {}),))) == code


def test_how_long_amds_documents_are_kept() -> None:
    """Certificates for ever; lists until the next one, and one that names none not at all."""
    assert valid_until(need_of(Machine()), LEAF) is None
    assert valid_until(MILAN_CHAIN, CHAIN) is None
    assert valid_until(MILAN_LIST, LIST) == UNTIL
    endless = revocation_list("ARK-Milan", rsa_key("ark"), next_update=None)
    assert refused(lambda: valid_until(MILAN_LIST, endless)) == "fetch_malformed"
