"""Uploads: how often, how many bytes, how many at once; refused before a byte is taken, and while they arrive."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from plane import ALICE, BOB, World, linear_onnx, plane

from strongroom import disk
from strongroom.errors import Error, LimitExceeded, Unavailable
from strongroom.quotas import QuotaLimits, Quotas

SIZE = len(linear_onnx())


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


FORMS: dict[str, int] = {}
"""Bytes of prepared forms by owner."""


class Case(NamedTuple):
    """Quotas over a list of stored (owner, bytes) and a clock."""

    quotas: Quotas
    stored: list[Any]
    clock: Clock

    def store(self, owner: str, size: int) -> None:
        self.stored.append(SimpleNamespace(owner=owner, size=size))

    def upload(self, owner: str = "a", address: str = "192.0.2.1") -> Any:
        return self.quotas.upload(caller=owner, keys=(owner, address), owner=owner)


def case(**limits: int) -> Case:
    """Limits that a test does not name are out of reach."""
    wide = {**dict.fromkeys(QuotaLimits.__dataclass_fields__, 1 << 40), "one_owner": False}
    stored: list[Any] = []
    clock = Clock()
    made = QuotaLimits(**{**wide, **limits})
    return Case(Quotas(made, stored=lambda: tuple(stored), forms=lambda: FORMS, clock=clock), stored, clock)


def refusal(attempt: Any, *, count: int = 0) -> tuple[str, int]:
    """Code of the refusal and the seconds after which to come back (0: none said)."""
    with pytest.raises(Error) as caught, attempt as take:
        take(count)
    return caught.value.code, getattr(caught.value, "retry_after_s", 0)


def test_bytes_of_an_owner_are_bounded_as_they_arrive() -> None:
    """To the last byte, over what is stored and all that arrives; another owner has bytes of their own."""
    here = case(owner_bytes=100)
    here.store("a", 60)
    with here.upload() as first:
        first(30)
        with here.upload() as second:
            second(10)
            assert refusal(here.upload(), count=1)[0] == "owner_bytes_quota"
        with here.upload("b") as other:
            other(100)
    with here.upload() as again:  # what did not become a model counts no more
        again(40)


def test_bytes_of_the_server_are_bounded_as_they_arrive() -> None:
    """Two owners' uploads under way share what is left of the store."""
    here = case(store_bytes=100)
    here.store("a", 50)
    with here.upload("b") as first:
        first(50)
        assert refusal(here.upload("c"), count=1)[0] == "store_quota"


def test_a_full_owner_is_refused_before_a_byte() -> None:
    """As many versions, or bytes, as one owner may have: nothing of the next body is taken."""
    here = case(models_per_owner=1)
    here.store("a", 1)
    with pytest.raises(Error) as caught, here.upload():
        raise AssertionError("the body would be read")
    assert caught.value.code == "owner_quota"


def test_where_one_process_runs_all_models_they_are_one_owners() -> None:
    """Whoever is first; also of two that arrive at once the one that is stored second is refused, at its commit."""
    here = case(one_owner=True)
    with here.upload("a"), here.upload("b"):
        here.store("a", 1)
        here.quotas.check("a", more=0)
        with pytest.raises(LimitExceeded) as caught:
            here.quotas.check("b", more=0)
    assert caught.value.code == "one_owner"
    assert refusal(here.upload("b"))[0] == refusal(here.upload(""))[0] == "one_owner"
    with here.upload("a"):
        pass
    here.stored.clear()
    with here.upload("b"):
        pass


def test_where_models_have_processes_owners_do_not_matter() -> None:
    """The next owner is as welcome as the first."""
    here = case(one_owner=False)
    here.store("a", 1)
    with here.upload("b"), here.upload(""):
        pass


def test_bytes_of_prepared_forms_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To their owner, and to the server."""
    here = case(owner_bytes=100, store_bytes=150)
    here.store("a", 40)
    monkeypatch.setitem(FORMS, "a", 41)
    here.quotas.check("a", more=19)
    for owner, more, code in (("a", 20, "owner_bytes_quota"), ("b", 70, "store_quota")):
        with pytest.raises(LimitExceeded) as caught:
            here.quotas.check(owner, more=more)
        assert caught.value.code == code


def test_uploads_have_a_rate_by_principal_and_by_address() -> None:
    """Two a minute: another key from the same address wins nothing, nor the same key from another address."""
    here = case(uploads_per_minute=2)
    for _ in range(2):
        with here.upload():
            pass
    assert refusal(here.upload()) == ("upload_rate", 30)
    assert refusal(here.upload("b")) == ("upload_rate", 30)
    assert refusal(here.upload(address="192.0.2.2")) == ("upload_rate", 30)
    with here.upload("b", address="192.0.2.3"):
        pass
    here.clock.now += 30
    with here.upload():
        pass


def test_bytes_of_uploads_have_a_rate_that_is_paid_back() -> None:
    """The upload that overdraws it goes on; the next waits for as long as it would have taken."""
    here = case(upload_bytes_per_minute=60)
    with here.upload() as take:
        take(50)
        take(100)
    assert refusal(here.upload()) == ("upload_rate", 90)
    here.clock.now += 91
    with here.upload() as take:
        take(1)


def test_uploads_at_once_are_bounded_in_all_and_for_one_caller() -> None:
    """The second of one caller waits while another's goes on; the third in all waits."""
    here = case(concurrent_uploads=2, concurrent_uploads_per_caller=1)
    with here.upload():
        assert refusal(here.upload()) == ("caller_too_busy", 1)
        with here.upload("b"):
            assert refusal(here.upload("c")) == ("uploads_busy", 1)
    with here.upload():
        pass


async def _uploads(world: World, *names: str, key: Any = ALICE) -> list[Any]:
    return [await world.put(name, linear_onnx(), format="onnx", key=key) for name in names]


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ({"owner_bytes": 2 * SIZE - 1}, 507, "owner_bytes_quota"),
        ({"store_bytes": 2 * SIZE - 1}, 507, "store_quota"),
        ({"uploads_per_minute": 1}, 429, "upload_rate"),
        ({"upload_bytes_per_minute": SIZE // 2}, 429, "upload_rate"),
    ],
)
def test_what_a_caller_sees(tmp_path: Path, limits: dict[str, int], status: int, code: str) -> None:
    """The first upload passes; the second is refused with a code, a time to come back where it helps, and no trace."""
    with plane(tmp_path, limits=limits) as world:
        first, second = asyncio.run(_uploads(world, "m", "n"))
        assert first.status_code == 201
        assert (second.status_code, second.json()["code"]) == (status, code)
        assert (status == 429) == ("retry-after" in second.headers)
        assert len(world.store.models()) == 1


def test_a_body_is_not_taken_where_a_quota_is_used_up(tmp_path: Path) -> None:
    """The refusal comes before the first byte is asked for."""

    async def untouched() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with plane(tmp_path, limits={"models_per_owner": 1}) as world:
        asyncio.run(_uploads(world, "m"))
        call = world.call("PUT", "/v1/models/n", key=ALICE, body=b"x")
        with pytest.raises(Error) as caught:
            asyncio.run(
                world.service.upload(
                    call,
                    name="n",
                    access="private",
                    format="onnx",
                    sha256=hashlib.sha256(b"x").hexdigest(),
                    body=untouched(),
                )
            )
        assert caught.value.code == "owner_quota"


# Room on the disk


def test_room_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where uploads have filled the disk as far as they may: 507 and a time to come back; deleting still works."""
    with plane(tmp_path, limits={"disk_free_bytes": 1000}) as world:
        (first,) = asyncio.run(_uploads(world, "m"))
        assert first.status_code == 201
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=100))
        (second,) = asyncio.run(_uploads(world, "n", key=BOB))
        assert (second.status_code, second.json()["code"]) == (507, "disk_full")
        assert second.headers["retry-after"] == "60"
        gone = asyncio.run(world.request("DELETE", "/v1/models/m", key=ALICE))
        assert gone.status_code == 200
        monkeypatch.undo()
        assert asyncio.run(_uploads(world, "n", key=BOB))[0].status_code == 201


def test_room_is_looked_at_while_an_upload_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free at its beginning and no more at its second piece: given up, and its file removed."""
    free = iter([5000] * 2 + [0] * 100)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=next(free), f_frsize=1))
    with plane(tmp_path) as world:
        upload = world.store.begin(
            name="m", owner="", access="public", format="onnx", max_bytes=1 << 20, keep_free=1000
        )
        upload.write(b"x" * 100)
        with pytest.raises(Unavailable) as caught:
            upload.write(b"x" * 100)
        assert caught.value.code == "disk_full"
        assert list((tmp_path / "store" / "data").iterdir()) == []


def test_a_system_that_does_not_tell_refuses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library OS may have no statvfs; the disk itself then says when it is full."""

    def lacking(_: object) -> None:
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(os, "statvfs", lacking)
    disk.check_room(tmp_path, keep=1)


def test_nothing_is_asked_where_no_room_is_to_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """0 means: not looked at; one byte more than is free means: refused."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1))
    disk.check_room(tmp_path, keep=0)
    with pytest.raises(Unavailable):
        disk.check_room(tmp_path, keep=1)
