"""BlindAI's Python client, by its own method names, over Strongroom: a snippet changes only its import.

    from strongroom.compat.blindai import BlindAIClient

    client = BlindAIClient()
    client.connect_server(addr="localhost", port=8443)
    client.attest_server(policy="policy.toml")
    model_id = client.upload_model("model.onnx")
    result = client.run_model(model_id, inputs)
    client.delete_model(model_id)

What is different, and why:
  - `connect_server` only notes the address. Nothing at all is sent before `attest_server`, and nothing but
    the question for evidence before it succeeded.
  - Models belong to whoever uploaded them. BlindAI has no word for that, so a key is made for this object
    where none is given: its models are private, and gone for everybody once the key is. Pass `key=` to keep
    them.
  - `simulation=True` is refused: what is accepted stands in the policy file, not in the calling code.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from pathlib import Path
from typing import Any, Self

from strongroom.attest.evidence import Verdict
from strongroom.client import DEFAULT_TIMEOUT_S, Client, connect
from strongroom.errors import AttestationRefused, InvalidRequest
from strongroom.inference import Array
from strongroom.sources import KeySource, ModelSource, PolicySource
from strongroom.tokens import new_key_pem

DEFAULT_PORT = 8443
"""Strongroom's own; BlindAI's servers listened on 50051 or 9924."""


class ModelId(str):
    """A model's id, `name/versions/N`; `.model_id` is itself, as BlindAI's upload response had it."""

    __slots__ = ()

    @property
    def model_id(self) -> str:
        """The id."""
        return str(self)


class BlindAIClient:
    """See the module."""

    def __init__(self, *, key: KeySource | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self._key = new_key_pem() if key is None else key
        self._timeout = timeout
        self._url: str | None = None
        self._client: Client | None = None
        self._latest: ModelId | None = None

    def connect_server(
        self,
        addr: str,
        port: int = DEFAULT_PORT,
        *,
        server_name: str | None = None,
        policy: PolicySource | None = None,
        certificate: str | None = None,
        simulation: bool = False,
    ) -> None:
        """Notes where the server is; with `policy` it is attested at once, as older BlindAI releases did.

        `server_name` and `certificate` are taken and not needed: the server is known by its evidence, which
        is bound to the key of this very connection.

        Raises:
            InvalidRequest: `simulation=True` (code `simulation_by_policy`), or no usable address
            (`url_invalid`). AttestationRefused, Unavailable: with `policy`, as `attest_server`.
        """
        del server_name, certificate
        if simulation:
            raise InvalidRequest(
                "simulation=True is not taken from code: accept simulated evidence with a policy of kind "
                "UNSAFE_SIMULATION (strongroom policy init)",
                code="simulation_by_policy",
            )
        self.close()
        self._url = _with_port(addr, port)
        if policy is not None:
            self.attest_server(policy=policy)

    def attest_server(self, policy: PolicySource) -> Verdict:
        """Attests the server; only from here on anything is sent to it. The verdict has every check.

        Raises:
            AttestationRefused: not a server that the policy accepts; carries the verdict.
            Unavailable: no server there.
            InvalidRequest: `connect_server` was not called (code `not_connected`).
        """
        if self._url is None:
            raise InvalidRequest("call connect_server first", code="not_connected")
        self._drop()
        self._client = connect(self._url, policy=policy, key=self._key, timeout=self._timeout)
        return self._client.attestation

    def upload_model(
        self, model: ModelSource, *, model_name: str | None = None, shape: Any = None, dtype: Any = None
    ) -> ModelId:
        """Uploads a model and returns its id. `shape` and `dtype` are read from the model itself.

        `model_name`: by default the file's name and something random, since names belong to keys and
        BlindAI's ids were random too. Under a name given twice, the second upload is the second version.

        Raises:
            AttestationRefused: before `attest_server` succeeded (code `not_attested`); nothing was sent.
        """
        del shape, dtype
        client = self._attested()
        name = model_name or _name_of(model)
        self._latest = ModelId(client.upload_model(model, name=name).id)
        return self._latest

    def run_model(self, model_id: Any = None, input_tensors: Any = None) -> Array | dict[str, Array]:
        """Runs a model: an array in gives its primary output, a dict of arrays gives a dict.

        `run_model(model_id, inputs)`; with inputs alone, the model uploaded last, as BlindAI's first release
        had it.

        Raises:
            AttestationRefused: before `attest_server` succeeded (code `not_attested`); nothing was sent.
            InvalidRequest: no model is named and none was uploaded (code `input_names`).
        """
        client = self._attested()
        if input_tensors is None:
            model_id, input_tensors = self._latest, model_id
        if model_id is None or input_tensors is None:
            raise InvalidRequest("run_model takes a model id and its inputs", code="input_names")
        result: Array | dict[str, Array] = client.run_model(str(model_id), input_tensors)
        return result

    def delete_model(self, model_id: str) -> None:
        """Deletes the model.

        Raises:
            AttestationRefused: before `attest_server` succeeded (code `not_attested`); nothing was sent.
        """
        self._attested().delete_model(str(model_id))

    def close(self) -> None:
        """Closes every connection; nothing more is sent before the next `attest_server`."""
        self._drop()
        self._url = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _attested(self) -> Client:
        if self._client is None:
            raise AttestationRefused(
                "the server was not attested: call attest_server(policy=...) first; nothing was sent",
                code="not_attested",
            )
        return self._client


BlindAiClient = BlindAIClient
"""The spelling of BlindAI's first releases."""


def _with_port(addr: str, port: int) -> str:
    try:
        return f"https://[{ipaddress.IPv6Address(addr)}]:{port}"
    except ValueError:
        url = addr if "://" in addr else f"https://{addr}"
    return url if re.search(r":\d+$", url) else f"{url}:{port}"


def _name_of(model: ModelSource) -> str:
    stem = Path(model).stem if isinstance(model, str | os.PathLike) else ""
    readable = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip(".-_")[:64]
    return f"{readable or 'model'}-{secrets.token_hex(6)}"
