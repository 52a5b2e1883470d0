"""The data plane: what this server does for a caller, and in which order it checks. Front ends only convert.

Rules
  - The order of checks is written here and nowhere else. Every operation on models goes

        authenticate -> authorise -> limits -> digest -> admit -> commit

    1. authenticate: the caller's token, bound to the keyset of *this connection's* key epoch; for a changing
       call also to its method, target and body digest. Nothing of a body has been read yet.
    2. authorise: `access.check`, before anything is decrypted. A private model does not exist for others.
    3. limits: places, rates, quotas; then the body, counted as it arrives.
    4. digest: what arrived is what the caller said, or what would run is what the caller expects.
    5. admit: the model is proven (`admission`, in a process of its own), the tensors fit it (`inputs.check_inputs`).
       Where less precision is asked for, that is made of what was admitted (`preparation`), and proven again.
    6. commit: the store's record is replaced; only then does the caller get an answer.

    Steps that an operation does not have are left out, none is moved. (The one exception is `predict`, whose
    body names the model. Steps 4 and 5 of an upload are carried out by `proof`.)
  - The event loop never waits for a disk or a computation: both happen in threads of bounded lanes, but for what
    takes less than handing it to a thread (`runner.SMALL`). Evidence
    has a lane of its own: a crowd asking for evidence does not slow down admitted traffic, nor the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal, TypeVar

from strongroom.access import ANONYMOUS, ANONYMOUS_OWNER, not_found
from strongroom.access import Action as AccessAction
from strongroom.access import check as check_access
from strongroom.admission import Admit
from strongroom.batcher import Attests, Batcher
from strongroom.batching import with_batching
from strongroom.dealings import Body, Call, Clocks, Epoch, Intent, Question, ServiceLimits, View
from strongroom.errors import AccessRefused, Conflict, InvalidRequest, NotFound
from strongroom.expectations import check_expected, shown
from strongroom.formats import detect
from strongroom.jobs import engine
from strongroom.models.report import report_of_model
from strongroom.names import check_name
from strongroom.oip import InferRequest
from strongroom.parts import Arriving
from strongroom.preparation import Prepare, Waiting
from strongroom.proof import Prove, write
from strongroom.quotas import Quotas
from strongroom.reduction import Reduction
from strongroom.runner import SMALL, Encode, Runner
from strongroom.store import ModelVersion, Store, Upload
from strongroom.tokens import Action, NonceBook, Principal, check_token
from strongroom.traffic import Arrival, Budget, Lane, Rate, Slots, Whole, caller_of, collect, pieces
from strongroom.turns import Turn

__all__ = ["Call", "Clocks", "Epoch", "Question", "Service", "ServiceLimits", "View"]

ERASURE: Final = "not_against_host_copies"
"""What deleting promises: a host that kept an old copy of the store can bring the model back."""
DEFAULT_SEED_NAME: Final = "iris-classifier"
"""Name of a model uploaded through `/model/upload` without `?name=`."""
MAX_CREDENTIAL: Final = 4096
"""Bytes of a request for credential activation; one takes about 800."""

_EMPTY: Final = hashlib.sha256(b"").hexdigest()
"""Digest of the body of a changing call without one."""

_T = TypeVar("_T")


class Service:
    """The data plane of one server. Belongs to one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        runner: Runner,
        attester: Attests,
        activate: Callable[[bytes, bytes], bytes],
        nonces: NonceBook,
        preloaded: tuple[ModelVersion, ...],
        anonymous_upload: bool,
        simulated: bool,
        limits: ServiceLimits,
        clocks: Clocks,
        admit: Admit,
        prepare: Prepare,
    ) -> None:
        self.limits = limits
        self.simulated = simulated
        self.nonces = nonces
        self.stages_of = runner.stages
        self._store = store
        self._runner = runner
        self._activate = activate
        self._preloaded = {model.name: model for model in preloaded}
        self._anonymous_upload = anonymous_upload
        self._clocks = clocks
        self._prove = Prove(admit=admit, prepare=prepare)
        places, uploads = limits.concurrent_requests, limits.quotas.concurrent_uploads
        self._slots = Slots(total=places, per_caller=limits.concurrent_requests_per_caller, code="overloaded")
        stored, forms = store.models, store.form_bytes
        self._quotas = Quotas(limits.quotas, stored=stored, forms=forms, clock=clocks.monotonic)
        room = limits.body_bytes_in_flight  # half of it for one caller, but any one request that may come
        self._budget = Budget(total=room, per_caller=max(room // 2, limits.request_bytes))
        # Making less precision takes minutes: other uploads have at least half of the places meanwhile.
        self._preparing = Slots(
            total=max(1, uploads // 2),
            per_caller=limits.quotas.concurrent_uploads_per_caller,
            code="uploads_busy",
        )
        self._evidence_rate = Rate(
            per_minute=limits.evidence_per_minute, clock=clocks.monotonic, code="evidence_rate"
        )
        self._evidence = Batcher(
            attester, waiting=limits.evidence_waiting, batch=limits.evidence_batch, now=clocks.now
        )
        self._activation = Lane("activate", workers=1, waiting=limits.evidence_waiting, code="evidence_busy")
        # One thread more than uploads, so that deleting never waits for a long admission.
        self._disk = Lane("disk", workers=uploads + 1, waiting=places, code="overloaded")
        # Admission holds a model in memory several times over, so there is one at a time.
        self._admission = Lane("admit", workers=1, waiting=places, code="overloaded")
        # What is made of a model takes longer, and nobody else's upload is to wait for it.
        self._preparation = Lane("prepare", workers=1, waiting=places, code="overloaded")
        self._parsing = Lane("parse", workers=1, waiting=places, code="overloaded", wait_s=limits.queue_s)
        self._committing = asyncio.Lock()
        self._last_seed: dict[str, str] = {}

    def close(self) -> None:
        """Ends the threads, after the work that is under way."""
        for part in (
            self._evidence,
            self._activation,
            self._parsing,
            self._admission,
            self._preparation,
            self._disk,
            self._runner,
        ):
            part.close()

    # Attestation: unauthenticated, so it has a rate and a lane; only the nonce is the caller's choice.

    async def evidence(self, call: Call, *, nonce: bytes) -> bytes:
        """The encoded answer of `GET /v1/evidence` for `nonce` (32 bytes) and this connection's keyset.

        Raises:
            Unavailable: codes `evidence_rate` or `evidence_busy`.
            Failure: the TEE gave no evidence.
        """
        self._evidence_rate.take(call.address)
        return await self._evidence.answer(nonce, keyset_bytes=call.epoch.keyset_bytes)

    async def activate(
        self, call: Call, *, body: Body, parse: Callable[[bytes], tuple[bytes, bytes]]
    ) -> bytes:
        """The secret of a credential that was made for this server's TPM (docs/spec/tpm.md §7). It has the rate of
        evidence, and a line of its own.

        Raises:
            NotFound: the platform is no TPM (code `activation_unsupported`).
            InvalidRequest: the credential is for others. MalformedInput, Unavailable: see `parse` and `evidence`.
        """
        self._evidence_rate.take(call.address)
        arrival, data = self._arrival(MAX_CREDENTIAL), b""
        async for chunk in body:
            arrival.take(len(chunk))
            data += chunk
        secret: bytes = await self._activation.run(self._activate, *parse(data))
        return secret

    # Looking

    async def models(self, call: Call, *, encode: Callable[[tuple[View, ...]], _T]) -> _T:
        """Every model version that this caller may see, preloaded ones first, as `encode` puts it.

        Raises:
            AccessRefused: the token does not pass (codes `auth_...`).
            Unavailable: too many such requests are waiting (code `overloaded`).
        """
        principal = self._authenticate(call)

        def collect() -> _T:
            found = (*self._preloaded.values(), *self._store.models())
            return encode(
                tuple(self._view(model, principal) for model in found if self._may_see(principal, model))
            )

        turn = Turn(caller_of(principal, call.address), "")
        return await self._parsing.run_for(turn, collect)  # thousands of models take a while to write out

    async def model(self, call: Call, *, name: str, version: int | None) -> View:
        """One model version, the latest where `version` is None.

        Raises:
            AccessRefused: the token does not pass (codes `auth_...`).
            NotFound: no such model, or not for this caller.
        """
        principal = self._authenticate(call)
        return self._view(self._authorised("read", principal, name, version), principal)

    async def admission(self, call: Call, *, name: str, version: int | None) -> bytes:
        """The admission report of a model, signed by this connection's receipt key (docs/spec/admission.md §10.3).

        Raises:
            AccessRefused, NotFound: as `model`.
        """
        principal = self._authenticate(call)
        model = shown(self._authorised("read", principal, name, version), principal)
        stages = self._runner.stages(model)
        return report_of_model(model, key=call.epoch.receipt_key, engine=engine(), stages=stages)

    async def versions(self, call: Call, *, name: str) -> tuple[int, ...]:
        """The version numbers of a model that this caller may see, oldest first.

        Raises:
            AccessRefused: the token does not pass (codes `auth_...`).
        """
        principal = self._authenticate(call)
        if name in self._preloaded:
            return (self._preloaded[name].version,)
        return tuple(m.version for m in self._store.versions(name) if self._may_see(principal, m))

    # Changing

    async def upload(
        self,
        call: Call,
        *,
        name: str,
        access: str,
        format: str | None,
        sha256: str | None,
        body: Body,
        reduction: Reduction | None = None,
        partition: str = "auto",
        batching: bool = False,
    ) -> View:
        """Takes a model: a new, immutable version of `name`. `sha256` (hex) is what the caller means to send.

        `format` None finds it out from the bytes. `sha256` None is for callers without a key only: a key's
        token is bound to it. `reduction`: the precision that is to be made of it; its part stands in the body, in
        front of the model, and `sha256` is of both. `batching`: one caller's requests may share a run (`batching`);
        `partition`: whether it is cut into stages (docs/partitioning.md).

        Raises:
            AccessRefused, Conflict, LimitExceeded, Unavailable, InvalidRequest, MalformedInput,
            AdmissionRefused: what each step refuses, with its own code.
        """
        check_name(name, length=self.limits.name_length)
        principal = self._authenticate_change(call, sha256)
        intent = Intent(
            principal=principal,
            name=name,
            access=access,
            format=format,
            sha256=sha256,
            reduction=reduction,
            partition=partition,
            batching=batching,
        )
        self._authorise_upload(intent)
        caller = caller_of(principal, call.address)
        keys = (principal.id, call.address) if principal else (call.address,)
        with self._slots.hold(caller):
            with (
                self._preparing.hold(caller) if reduction is not None else contextlib.nullcontext(),
                self._quotas.upload(caller=caller, keys=keys, owner=intent.owner) as take,
                self._budget.account(caller) as hold,
            ):
                part = reduction.part if reduction is not None else None
                arriving = Arriving(part, most=self.limits.calibration_bytes)
                try:
                    model = await self._receive(intent, body, arriving, take, hold)
                finally:
                    arriving.erase()
            # In no place of uploads: forms are made one after the other, and take as long as models make them.
            await self._runner.prepare(model)
            return self._view(model, principal)

    async def upload_seed(self, call: Call, *, name: str, sha256: str | None, body: Body) -> View:
        """`POST /model/upload`: an upload whose format is found out; private with a key, public without.

        Raises:
            As `upload`.
        """
        access = "private" if call.token else "public"
        view = await self.upload(call, name=name, access=access, format=None, sha256=sha256, body=body)
        self._last_seed[view.model.owner] = name
        return view

    async def delete(self, call: Call, *, name: str, version: int | None) -> tuple[ModelVersion, ...]:
        """Deletes one version, or with None all versions of a name; returns what is gone.

        Raises:
            AccessRefused, NotFound, Unavailable: what each step refuses, with its own code.
        """
        principal = self._authenticate_change(call, _EMPTY)
        self._authorise_change("delete", principal, name, version)
        caller = caller_of(principal, call.address)
        with self._slots.hold(caller):
            gone = await self._disk.run_for(Turn(caller, ""), self._store.delete, name, version)
            for model in gone:
                await self._runner.unload(model)
        return gone

    async def load(self, call: Call, *, name: str, version: int | None) -> View:
        """Loads a model into memory, so that its next run starts warm.

        Raises:
            AccessRefused, NotFound, Unavailable: what each step refuses, with its own code.
        """
        principal = self._authenticate_change(call, _EMPTY)
        model = self._authorise_change("load", principal, name, version)
        with self._slots.hold(caller_of(principal, call.address)):
            await self._runner.load(model)
        return self._view(model, principal)

    async def unload(self, call: Call, *, name: str, version: int | None) -> View:
        """Drops a model from memory; runs under way go on.

        Raises:
            AccessRefused, NotFound, Unavailable: what each step refuses, with its own code.
        """
        principal = self._authenticate_change(call, _EMPTY)
        model = self._authorise_change("unload", principal, name, version)
        with self._slots.hold(caller_of(principal, call.address)):
            await self._runner.unload(model)
        return self._view(model, principal)

    # Running

    async def infer(
        self,
        call: Call,
        *,
        name: str,
        version: int | None,
        expect_sha256: str | None,
        body: Body | Whole,
        decode: Callable[[bytes | bytearray, ModelVersion], InferRequest],
        encode: Encode,
        precision: tuple[str, ...] = (),
    ) -> tuple[ModelVersion, bytes]:
        """Runs a model on what `decode` makes of the body; `encode` makes the answer. Both run in a thread,
        unless what they are given is small. `precision`: those that the caller takes an answer of, () for all.

        Raises:
            AccessRefused, NotFound, Conflict, LimitExceeded, Unavailable, InvalidRequest, MalformedInput:
            what each step refuses, with its own code.
        """
        principal = self._authenticate(call)
        model = self._authorised("run", principal, name, version)
        caller = caller_of(principal, call.address)
        with self._slots.hold(caller), self._budget.account(caller) as take:
            data = await self._collect(body, take)
            check_expected(model, expect_sha256, precision)
            answer = await self._runner.run(
                model,
                size=len(data),
                caller=caller,
                principal=principal.id if principal else None,
                decode=lambda model: decode(data, model),
                encode=encode,
            )
        return model, answer

    async def predict(
        self,
        call: Call,
        *,
        name: str | None,
        body: Body | Whole,
        parse: Callable[[bytes | bytearray], Question],
        precision: tuple[str, ...] = (),
    ) -> tuple[ModelVersion, bytes]:
        """`POST /model/predict`: the body itself may name the model, so it is read before access is decided.

        `name` is what `?name=` says; `precision` as `infer` has it.

        Raises:
            As `infer`.
        """
        principal = self._authenticate(call)
        caller = caller_of(principal, call.address)
        with self._slots.hold(caller), self._budget.account(caller) as take:
            data = await self._collect(body, take)
            if len(data) <= SMALL:
                question = parse(data)
            else:
                question = await self._parsing.run_for(Turn(caller, ""), parse, data)
            if name is not None and question.name is not None:
                raise InvalidRequest(
                    "the model is named in the query and in the body", code="parameter_invalid"
                )
            name = name or question.name or self._seed_name(principal)
            model = self._authorised("run", principal, name, question.version)
            check_expected(model, None, precision)
            answer = await self._runner.run(
                model,
                size=len(data),
                caller=caller,
                principal=principal.id if principal else None,
                decode=question.to_request,
                encode=question.encode,
            )
        return model, answer

    # Step 1: authenticate

    def _authenticate(self, call: Call, action: Action | None = None) -> Principal | None:
        if call.token is None:
            return ANONYMOUS
        return check_token(
            call.token,
            keyset_digest=call.epoch.keyset_digest,
            nonces=self.nonces,
            now=int(self._clocks.now().timestamp()),
            action=action,
        )

    def _authenticate_change(self, call: Call, sha256: str | None) -> Principal | None:
        if call.token is not None and sha256 is None:
            raise InvalidRequest("state the SHA-256 of the body in Content-Digest", code="digest_required")
        return self._authenticate(call, Action(call.method, call.target, sha256 or ""))

    # Step 2: authorise

    def _check(self, action: AccessAction, principal: Principal | None, *, owner: str, access: str) -> None:
        check_access(
            action,
            principal=principal,
            owner=owner,
            access=access,
            anonymous_upload=self._anonymous_upload,
        )

    def _may_see(self, principal: Principal | None, model: ModelVersion) -> bool:
        try:
            self._check("read", principal, owner=model.owner, access=model.access)
        except NotFound:
            return False
        return True

    def _authorised(
        self, action: AccessAction, principal: Principal | None, name: str, version: int | None
    ) -> ModelVersion:
        model = self._preloaded.get(name)
        if model is None:
            try:
                model = self._store.get(name, version)
            except NotFound:
                # The store's own words would tell an absent model from one that this caller may not see.
                raise not_found() from None
        elif version not in (None, model.version):
            raise not_found()
        self._check(action, principal, owner=model.owner, access=model.access)
        return model

    def _authorise_change(
        self,
        action: Literal["delete", "load", "unload"],
        principal: Principal | None,
        name: str,
        version: int | None,
    ) -> ModelVersion:
        if name in self._preloaded:
            raise AccessRefused("the model is part of this server", code="model_reserved")
        return self._authorised(action, principal, name, version)

    def _authorise_upload(self, intent: Intent) -> None:
        if intent.access not in ("private", "public"):
            raise InvalidRequest("access: expected private or public", code="access_invalid")
        if intent.name in self._preloaded:
            raise AccessRefused("the name belongs to a model of this server", code="model_reserved")
        owner = self._store.owner_of(intent.name)
        action: AccessAction = "create" if owner is None else "replace"
        self._check(
            action, intent.principal, owner=intent.owner if owner is None else owner, access=intent.access
        )

    # Step 3: limits

    def _arrival(self, limit: int) -> Arrival:
        return Arrival(limit=limit, rate=self.limits.body_rate, clock=self._clocks.monotonic)

    async def _collect(self, body: Body | Whole, take: Callable[[int], None]) -> bytes | bytearray:
        return await collect(body, self._arrival(self.limits.request_bytes), take)

    async def _receive(
        self,
        intent: Intent,
        body: Body,
        arriving: Arriving,
        take: Callable[[int], None],
        hold: Callable[[int], None],
    ) -> ModelVersion:
        """Steps 3 to 6 of an upload: streams it into the store, proves it, commits it. `take` counts to the quotas,
        `hold` to the memory.
        """
        upload: Upload | None = None
        turn = Turn(intent.owner, "")
        arrival = self._arrival(self.limits.model_bytes + arriving.size)

        def count(size: int) -> None:
            arrival.take(size)
            take(size)
            hold(size)

        try:
            async for piece in pieces(arriving.model(body, count), arrival, take):
                if upload is None:
                    upload, format = await self._begin(intent, piece)
                await self._disk.run_for(turn, write, upload, arriving, piece)
            if upload is None:
                raise InvalidRequest("expected a model, got zero bytes", code="body_empty")
            waiting, lane = Waiting(), self._admission if intent.reduction is None else self._preparation
            info, canonical_sha256 = await lane.run_until(
                waiting.give_up, turn, self._prove, upload, arriving, format=format, said=intent.sha256,
                reduction=intent.reduction, limits=self.limits.admission, waiting=waiting,
            )  # fmt: skip
            if intent.batching:
                info = with_batching(info)
            # One commit at a time; what may have changed since the first byte is checked again.
            async with self._committing:
                self._authorise_upload(intent)
                self._quotas.check(intent.owner, more=0)
                info = replace(info, partition=intent.partition)
                return await self._disk.run_for(
                    turn, upload.commit, info=info, canonical_sha256=canonical_sha256
                )
        finally:
            if upload is not None:
                await self._disk.run(upload.abort)

    async def _begin(self, intent: Intent, head: bytearray) -> tuple[Upload, str]:
        """Looks at the first bytes before it takes the rest: most mistakes show there."""
        detected = detect(head)
        if intent.format not in (None, detected):
            raise Conflict(
                f"declared as {intent.format}, but the bytes are {detected}", code="format_mismatch"
            )
        upload = await self._disk.run(
            self._store.begin,
            name=intent.name,
            owner=intent.owner,
            access=intent.access,
            format=detected,
            max_bytes=self.limits.model_bytes,
            keep_free=self.limits.disk_free_bytes,
        )
        return upload, detected

    # Small things

    def _view(self, model: ModelVersion, principal: Principal | None) -> View:
        return View(
            model=shown(model, principal),
            loaded=self._runner.is_loaded(model),
            stages=self._runner.stages(model),
        )

    def _seed_name(self, principal: Principal | None) -> str:
        """The model that `/model/predict` means where its body names none.

        The caller's last one through `/model/upload`, else the last one without a key. After a restart the
        newest of theirs in the store stands for the last.
        """
        owners = (principal.id, ANONYMOUS_OWNER) if principal else (ANONYMOUS_OWNER,)
        for owner in owners:
            mine = [model for model in self._store.models() if model.owner == owner]
            if any(model.name == self._last_seed.get(owner) for model in mine):
                return self._last_seed[owner]
            if mine:
                return max(mine, key=lambda model: (model.created, model.version)).name
        return DEFAULT_SEED_NAME
