"""Every error that Strongroom raises, in one tree. Families answer *whose fault*; `code` is stable, for machines.

    Error
    ├── Refused                  the other side, or the data, did not pass a check: nothing was sent, run or changed
    │   ├── AttestationRefused   evidence, keyset, channel or policy; carries the whole verdict
    │   ├── AdmissionRefused     a model that this server will not run
    │   ├── AccessRefused        who is asking may not do this
    │   └── SealRefused          sealed data is not what was sealed, or not for this code
    ├── Unusable                 input that cannot be used as it is: the caller's to mend
    │   ├── MalformedInput       not the format it claims to be
    │   ├── InvalidPolicy        a policy file that says too little, too much or nothing
    │   ├── InvalidConfig        server configuration
    │   ├── InvalidRequest       tensors or parameters that do not fit the model
    │   ├── LimitExceeded        larger, longer or more than this server takes
    │   ├── NotFound             no such model, version or path (or not for this caller)
    │   └── Conflict             in contradiction with what is already there
    ├── Unavailable              try again later: overloaded, shutting down, connection lost
    └── Failure                  our fault

No class here knows HTTP: front ends map `code` and family to their own numbers (`rest.py`, `cli.py`).
Messages say what was expected and what came; never plaintext, tensor values, keys or a foreign exception's text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strongroom.attest.evidence import Verdict


class Error(Exception):
    """Root of every error raised on purpose by this package.

    `code` is a class-level default; a call site may pass a more precise one out of `CODES`.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if self.code not in CODES:
            raise AssertionError(f"error code {self.code!r} is not in strongroom.errors.CODES")

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return str(self.args[0])


class Refused(Error):
    """Something did not pass a check."""

    code = "refused"


class AttestationRefused(Refused):
    """The server's evidence, keyset or channel did not pass; `verdict` lists every check that was made."""

    code = "attestation_refused"

    def __init__(self, message: str, *, code: str | None = None, verdict: Verdict | None = None) -> None:
        super().__init__(message, code=code)
        self.verdict = verdict


class AdmissionRefused(Refused):
    """The model is readable but will not be run here."""

    code = "admission_refused"


class AccessRefused(Refused):
    """The principal may not do this, or did not prove who it is."""

    code = "access_refused"


class SealRefused(Refused):
    """Sealed data failed authentication, or was sealed for other code."""

    code = "seal_refused"


class Unusable(Error):
    """Input that cannot be used as it is."""

    code = "unusable"


class MalformedInput(Unusable):
    """Bytes that are not the format they claim to be."""

    code = "malformed_input"


class InvalidPolicy(Unusable):
    """A policy that cannot be applied."""

    code = "policy_invalid"


class InvalidConfig(Unusable):
    """A server or client setting that cannot be applied."""

    code = "config_invalid"


class InvalidRequest(Unusable):
    """A request that does not fit the model or the protocol."""

    code = "request_invalid"


class LimitExceeded(Unusable):
    """More than the configured limit."""

    code = "limit_exceeded"


class NotFound(Unusable):
    """No such thing, or not visible to this caller."""

    code = "not_found"


class Conflict(Unusable):
    """Contradicts what is already there or what was declared."""

    code = "conflict"


class Unavailable(Error):
    """Not now: try again after `retry_after_s` seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Failure(Error):
    """A fault of this software or its machine, not of the caller."""

    code = "internal_error"


def walk(root: type[Error] = Error) -> Iterator[type[Error]]:
    """Yields every class of the tree, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from walk(child)


def check_member(condition: bool, message: str, kind: type[Error] = MalformedInput, **kwargs: Any) -> None:
    """Raises `kind(message)` unless `condition`; for strict parsers, where the happy path should stay readable."""
    if not condition:
        raise kind(message, **kwargs)


# code -> one line for the reference (docs/errors.md is made from this; a test compares).
CODES: dict[str, str] = {
    # families
    "error": "An error without a more precise code.",
    "refused": "A check did not pass.",
    "attestation_refused": "The server's attestation did not pass.",
    "admission_refused": "The model will not be run by this server.",
    "access_refused": "The caller may not do this.",
    "seal_refused": "Sealed data did not authenticate.",
    "unusable": "The input cannot be used as it is.",
    "malformed_input": "The bytes are not the format they claim to be.",
    "policy_invalid": "The policy file cannot be applied as written.",
    "config_invalid": "A configuration setting is unknown, missing or out of range.",
    "request_invalid": "The request does not fit the protocol or the model.",
    "limit_exceeded": "Something is larger, longer or more numerous than the limit.",
    "not_found": "There is no such model, version or path, or it is not visible to this caller.",
    "conflict": "The request contradicts what is already there or what was declared.",
    "unavailable": "The service cannot do this now; try again later.",
    "internal_error": "A fault of the software or its machine.",
    # model metadata
    "model_info_malformed": "Stored model metadata does not have the form that this release writes.",
    # XGBoost models: JSON and UBJSON
    "tree_not_json": "The model is not JSON text in UTF-8.",
    "tree_not_ubjson": "The model is not UBJSON as XGBoost writes it.",
    "tree_truncated": "A length or count in the model goes beyond the end of its data.",
    "tree_duplicate_member": "An object in the model names a member twice.",
    "tree_number_too_long": "A number in the model has more digits than are read.",
    "tree_array_type": "An array in the model holds something else than the numbers that belong there.",
    "tree_too_deep": "The model nests deeper than the limit.",
    "tree_too_many_values": "The model has more values than the limit.",
    "tree_member_missing": "A required member is missing from the model.",
    "tree_member_type": "A member of the model has the wrong type.",
    "tree_member_number": "A parameter of the model is not a whole number written as a string.",
    "tree_member_unknown": "The model has a member that is not known here, and that might change what it means.",
    # XGBoost models: what they say
    "xgboost_version_unsupported": "The model was written by an XGBoost whose files are not known here.",
    "xgboost_booster_unsupported": "The model's booster is none of gbtree, dart and gblinear.",
    "xgboost_objective_unsupported": "The model's objective is not one whose predictions are known here.",
    "xgboost_outputs": "The model contradicts itself on the number of classes or targets.",
    "xgboost_base_score": "base_score is not one finite number, or one for each output, in the objective's range.",
    "xgboost_untrained": "The model has not one boosting iteration.",
    "xgboost_feature_count": "The model has no features.",
    "xgboost_feature_names": "Feature names are not one for each feature, different and printable.",
    "xgboost_feature_types": "Feature types are not one for each feature, of the known kinds.",
    "xgboost_linear_weights": "A linear model has not one finite weight for each feature, bias and output.",
    "xgboost_tree_count": "num_trees is not the number of trees.",
    "xgboost_tree_id": "A tree's id is not its place in the list.",
    "xgboost_tree_info": "tree_info does not name an output for each tree, and a tree for each output.",
    "xgboost_iteration_indptr": "iteration_indptr does not cut the trees into iterations.",
    "xgboost_weight_drop": "DART's weights are not one finite number for each tree.",
    "xgboost_tree_size": "An array of a tree has not one entry for each node.",
    "xgboost_tree_child": "A node's children are not later nodes of its tree, or only one of them is there.",
    "xgboost_tree_shared_child": "Two parents have the same child.",
    "xgboost_tree_unreachable": "A node has no parent, and is not marked as removed.",
    "xgboost_tree_parent": "The list of parents contradicts the lists of children.",
    "xgboost_tree_depth": "A tree is deeper than the engine may be given.",
    "xgboost_split_feature": "A split is on a feature that does not exist.",
    "xgboost_split_flag": "A split's type or default direction is not 0 or 1.",
    "xgboost_threshold": "A split's threshold is not finite.",
    "xgboost_categories": "Category sets do not fit their nodes, overlap, or are out of range or order.",
    "xgboost_leaf_value": "A leaf's value is not finite, or not after DART's weight.",
    "xgboost_leaf_vector": "Vector leaves do not fit the outputs, or their vectors the leaves.",
    "model_metadata_too_large": "The model's names, tensors and notes together take more bytes than the limit.",
    "model_too_large": "The model has more bytes than the limit.",
    "xgboost_too_many_trees": "The model has more trees than the limit.",
    "xgboost_too_many_nodes": "The model's trees have more nodes than the limit.",
    "xgboost_too_many_categories": "The model's category sets have more members than the limit.",
    "xgboost_too_many_features": "The model has more features than the limit.",
    "xgboost_too_many_outputs": "The model has more classes or targets than the limit.",
    # configuration
    "config_malformed": "The configuration file is not valid TOML.",
    "config_out_of_range": "A setting has a value that it cannot take.",
    "config_preload": "A preloaded model is named wrongly, twice or without a path.",
    "config_unknown_setting": "The configuration file or the environment names a setting that does not exist.",
    "config_unreadable": "The configuration file cannot be read, or is far too long.",
    "config_wrong_type": "A setting has a value of the wrong type.",
    # service, front end and start of the server
    "access_invalid": "The access of an uploaded model is neither private nor public.",
    "bind_failed": "The server cannot listen on the address and port it is told to.",
    "body_empty": "An upload without a byte.",
    "body_too_large": "The body is longer than this server takes.",
    "body_too_slow": "The body arrived too slowly.",
    "caller_too_busy": "This caller has as many requests under way as one caller may have.",
    "digest_malformed": "The Content-Digest header is not one SHA-256 in RFC 9530's form.",
    "digest_required": "An upload states the SHA-256 of its body in the Content-Digest header.",
    "evidence_busy": "As many evidence requests are waiting as may wait.",
    "evidence_rate": "This address asks for evidence more often than it may.",
    "format_required": "An upload states its format in the Strongroom-Format header.",
    "media_type_unsupported": "The Content-Type or Accept header names nothing that is understood here.",
    "method_not_allowed": "The path exists, but not with this method.",
    "model_digest_mismatch": "The model that would run is not the one whose digest the caller expects.",
    "model_name_invalid": "A model's name is empty, too long or has other characters than letters, digits, '._-'.",
    "model_reserved": "The name belongs to a model that is part of this server.",
    "model_version_invalid": "A model's version is not a positive decimal number.",
    "not_acceptable": "The Accept header names no form in which the result can be sent.",
    "output_unknown": "A requested output is not one of the model's.",
    "overloaded": "As many requests are under way as this server takes.",
    "owner_record_full": "The owner's models take as many bytes of the store's record as one owner may have.",
    "owner_quota": "The owner has as many model versions as one owner may have.",
    "parameter_invalid": "A query parameter is unknown, repeated or malformed.",
    "predict_invalid": "The body of /model/predict is not an object with features (and perhaps model_id).",
    "predict_unsuitable": "The model does not take one matrix of numbers, so /model/predict cannot serve it.",
    "preload_changed": "A preloaded model's file is no longer the one that was measured at start.",
    "preload_unreadable": "A preloaded model's file cannot be read.",
    "response_too_large": "The result is longer than this server sends.",
    "start_refused": "The server's own evidence does not verify, or a needed part is missing: it does not start.",
    "store_quota": "The store holds as many models, or as many bytes, as it may.",
    "upload_digest_mismatch": "The body that arrived does not have the digest that the caller stated.",
    "uploads_busy": "As many uploads are under way as this server takes.",
    # attestation: the evidence
    "evidence_format_unsupported": "This version cannot verify evidence of this format.",
    "evidence_wrong_label": "The evidence was signed for another purpose.",
    "evidence_signature_invalid": "The evidence's signature does not verify.",
    "evidence_from_future": "The evidence's clock is more than five minutes ahead of the verifier's.",
    "evidence_stale": "The evidence is older than the policy allows.",
    "root_not_accepted": "The evidence is signed under a root that the policy does not name.",
    "report_data_missing": "The evidence carries no report data, or too little of it.",
    "report_data_mismatch": "The evidence answers another nonce, or speaks of another keyset.",
    "report_data_other_label": "The evidence was made for a certificate at start, and answers no nonce.",
    "keyset_expired": "The keyset's epoch has ended.",
    "channel_key_mismatch": "The connection ends at another key than the keyset's: somebody stands in between.",
    # attestation: the policy's appraisal
    "simulation_refused": "The evidence is SIMULATED, and the policy is not of the kind UNSAFE_SIMULATION.",
    "evidence_format_not_accepted": "The policy does not name this evidence format.",
    "policy_expired": "The policy itself has expired.",
    "measurement_not_accepted": "The server runs code that the policy does not name.",
    "svn_too_low": "The code's security version is lower than the policy allows.",
    "tcb_status_not_accepted": "The platform's TCB status is not one that the policy accepts.",
    "advisory_not_accepted": "A security advisory applies to the platform that the policy does not accept.",
    "debug_platform": "The TEE is in debug mode: its host can read its memory.",
    "security_sealing_refused": "The policy does not accept what the stored models' keys are bound to.",
    "security_host_excluded_refused": "The policy does not accept whether the host can read the memory.",
    "security_isolation_refused": "The policy does not accept what shares a process.",
    "security_sandbox_refused": "A sandbox layer that the policy requires did not take hold.",
    "security_admission_refused": "The policy does not accept how models are examined.",
    "security_anonymous_upload_refused": "The policy does not accept whether uploads without a key are taken.",
    "security_verify_on_load_refused": "The policy does not accept what is checked when a model is loaded.",
    "security_logging_refused": "The policy does not accept what may reach a log.",
    "security_contradicts_evidence": "The configuration claims more than this kind of evidence can show.",
    # attestation: policy files
    "policy_empty": "The policy file is empty.",
    "policy_unknown_member": "The policy file has a member that this version does not know.",
    "policy_missing_member": "The policy file lacks a member.",
    "policy_mixes_simulation": "Simulation stands beside something else, or in a policy of another kind.",
    "policy_too_weak": "The policy's kind cannot accept what the file asks it to.",
    "policy_accepts_nothing": "Nothing can meet this policy, entry or list.",
    "policy_unknown_name": "No embedded policy goes by this name.",
    # measurement and attester
    "measurement_impossible": "A dependency is missing, or a file of the code cannot be measured.",
    "root_key_missing": "There is a store, but not the simulated root key that it was sealed under.",
    "root_key_unusable": "The simulated root key's file is no such key, or others can read it.",
    # attestation: documents
    "answer_malformed": "The evidence answer is not the strict JSON that it should be.",
    "evidence_malformed": "The evidence is not of the form that its format prescribes.",
    "keyset_malformed": "The keyset is not of the form that it should be.",
    "keyset_duplicate_member": "The keyset names a member twice, so two readers could see two keysets.",
    "keyset_not_canonical": "The keyset's bytes are not the one spelling (RFC 8785) of what they say.",
    "keyset_binding_unknown": "The keyset is bound to the connection in a way that this version does not know.",
    "leaf_malformed": "The server's certificate cannot be read.",
    "nonce_malformed": "The nonce is not 32 bytes, or not 64 lower-case hex characters.",
    # channel (docs/spec/channel.md)
    "tls_version": "The connection is not TLS 1.3.",
    "tls_session_reused": "The TLS session was resumed, so no certificate was proven on this connection.",
    "leaf_missing": "The other side presented no certificate.",
    "leaf_unsupported": "The certificate's key is not ECDSA P-256.",
    "leaf_unknown": "The certificate's key is not one that was verified; nothing was sent.",
    "leaf_unchecked": "Data was about to be sent before the handshake had been checked.",
    "ratls_extension": "The certificate's attestation extension is missing or malformed.",
    "ratls_key_mismatch": "The certificate's attestation extension speaks of another key.",
    # callers (docs/spec/channel.md, part 5)
    "auth_required": "This needs a caller with a key; none was presented.",
    "auth_too_long": "The caller's token is longer than any genuine one.",
    "auth_malformed": "The caller's token is not three base64url parts of strict JSON.",
    "auth_algorithm": "The caller's token names another algorithm than EdDSA.",
    "auth_type": "The caller's token is of another type than strongroom+jwt.",
    "auth_key": "The caller's token does not carry exactly one Ed25519 public key.",
    "auth_signature": "The caller's token is not signed by the key it carries.",
    "auth_claims": "The caller's token lacks a claim, or has one that is unknown or of the wrong type.",
    "auth_wrong_server": "The caller's token was made for another server.",
    "auth_lifetime": "The caller's token claims a lifetime longer than allowed, or none.",
    "auth_future": "The caller's token was issued in the future.",
    "auth_expired": "The caller's token has expired.",
    "auth_nonce_required": "The caller's token carries no server nonce.",
    "auth_nonce_stale": "The server nonce in the caller's token is too old or not from this server; take the new one.",
    "auth_action_required": "A changing call needs a token made for exactly this call.",
    "auth_action_mismatch": "The caller's token was made for another method or path.",
    "auth_body_mismatch": "The caller's token was made for another body.",
    "auth_replayed": "The caller's token was already used for a changing call.",
    "auth_busy": "Too many changing calls are being remembered; try again later.",
    "key_malformed": "The key file is not an unencrypted PKCS#8 PEM key.",
    "key_encrypted": "The key file is encrypted; an unencrypted one is needed.",
    "key_not_ed25519": "The key is not an Ed25519 key.",
    "not_owner": "Only the owner of the model may do this.",
    "name_taken": "The name belongs to another principal.",
    "anonymous_private": "A model uploaded without a key can only be public.",
    # HTTP edge (docs/spec/channel.md, part 6)
    "http_malformed": "The bytes are not a well-formed HTTP/1.1 request.",
    "http_version": "The request is not HTTP/1.1.",
    "http_method": "The request's method is not one this server knows.",
    "http_target": "The request target is not an absolute path in plain ASCII.",
    "http_target_too_long": "The request target is longer than the limit.",
    "http_head_too_large": "The request's head is larger than the limit.",
    "http_too_many_headers": "The request has more header fields than the limit.",
    "http_host": "The request does not have exactly one well-formed Host field.",
    "http_transfer_encoding": "The only transfer coding taken is a single `chunked`.",
    "http_content_length": "Content-Length is not one plain number, or stands beside Transfer-Encoding.",
    "http_duplicate_header": "A header field that may stand once stands twice.",
    "http_trailers": "Trailer fields are not taken.",
    "http_chunk_overhead": "The chunked body is mostly framing.",
    "http_body_unexpected": "The request has a body where none has a meaning.",
    "http_upgrade": "Protocol upgrades are not taken.",
    "http_expect": "The only expectation taken is 100-continue.",
    "http_head_timeout": "The request's head did not arrive in time.",
    "http_body_timeout": "The request's body stopped, or came too slowly.",
    "http_connection_cap": "The server has as many connections as it takes; try again later.",
    "httptools_missing": "The server does not start without the httptools parser.",
    # model formats, tensors on the wire
    "npy_dtype": "An array's dtype is none of the protocol's.",
    "npy_header_too_long": "The header of a .npy file is longer than is read.",
    "npy_length": "The data of a .npy file is not as long as its header declares.",
    "npy_malformed": "The bytes are not a .npy file.",
    "npy_pickle": "A .npy file holds pickled objects, which are never read.",
    "npy_strings_uneven": "One string is so much longer than the others that .npy would multiply the size.",
    "npy_structured": "A .npy file holds a structured array.",
    "npy_value": "An array holds a value that its dtype does not have, or that .npy would change.",
    "npz_duplicate_member": "A .npz archive names a member twice.",
    "npz_malformed": "The bytes are not a .npz archive as numpy writes it.",
    "npz_member_name": "The name of a member of a .npz archive is not that of an array.",
    "npz_method_unsupported": "A member of a .npz archive is encrypted, or neither stored nor deflated.",
    "npz_ratio": "A member of a .npz archive is compressed beyond the limit.",
    "format_not_accepted": "The bytes are a known format that is not run here (a pickle, a Keras archive ...).",
    "format_unknown": "The bytes are empty or no model format that is recognised.",
    "oip_bf16": "A tensor is BF16, which is not served.",
    "oip_bytes_not_text": "A BYTES element is not text, so JSON cannot carry it.",
    "oip_data_shape": "The data of a tensor does not have as many elements, or not the nesting, that its shape says.",
    "oip_datatype": "A tensor's datatype is none of the Open Inference Protocol's.",
    "oip_duplicate_member": "A JSON object names a member twice.",
    "oip_duplicate_tensor": "A request or response names a tensor twice.",
    "oip_extension_unsupported": "The request uses a protocol extension that is not served here.",
    "oip_id_type": "The id of a request is not a string.",
    "oip_member_missing": "A required member is missing from the message.",
    "oip_member_type": "A member of the message has the wrong JSON type.",
    "oip_name": "A name is empty or has control characters.",
    "oip_not_an_object": "The message is not a JSON object.",
    "oip_not_json": "The message is not JSON text in UTF-8.",
    "oip_parameter_type": "A parameter is not a string, a boolean or a finite number.",
    "oip_shape": "A dimension of a tensor's shape is negative or not an integer.",
    "oip_too_deep": "The message or a tensor's shape has more levels than are read.",
    "oip_too_long_name": "A name is longer than the limit.",
    "oip_too_many_bytes": "A tensor, or all of a message together, has more bytes than the limit.",
    "oip_too_many_digits": "A JSON number has more digits than are read.",
    "oip_too_many_elements": "The tensors of a message have more elements than the limit.",
    "oip_too_many_parameters": "A message has more parameters than are read.",
    "oip_too_many_tensors": "A message has more tensors than the limit.",
    "oip_value_range": "A number is out of range for the tensor's datatype.",
    "oip_value_type": "A value is not of the kind that the tensor's datatype needs.",
    # client and command line
    "answer_encoded": "The server's answer came with a content coding (gzip bombs are such answers).",
    "answer_late": "The server's answer did not come, or not wholly, in time.",
    "answer_redirect": "The server redirected; no redirect is followed.",
    "answer_too_large": "The server's answer is longer than this client takes; what was asked for may have been done.",
    "answer_truncated": "The connection ended before the answer did.",
    "answer_unframed": "The server's answer does not say where it ends, so its truncation could not be seen.",
    "channel_tls": "The TLS handshake failed: no TLS 1.3 server of ours is there.",
    "client_closed": "The client was closed.",
    "connection_lost": "The connection ended after the request was sent: it may have been carried out.",
    "evidence_status": "The server answered the question for evidence with an error.",
    "input_dtype": "An input's values do not fit the model's datatype.",
    "input_names": "The inputs are not those of the model.",
    "input_not_2d": "predict takes a table of rows and columns.",
    "input_unreadable": "A file with inputs cannot be read, or does not hold what its name says.",
    "key_exists": "The file for a new key exists already.",
    "key_unreadable": "The key file cannot be read.",
    "not_attested": "Nothing was verified yet, so nothing may be sent.",
    "output_unwritable": "A file for results cannot be written, or its form cannot hold them.",
    "policy_missing": "No policy was given, so no server can be accepted.",
    "policy_unreadable": "The policy file cannot be read.",
    "server_changing": "The server changed its key again and again.",
    "server_unreachable": "There is no server at the address, or the network is down.",
    "upload_changed": "The model's file changed while it was sent.",
    "upload_unreadable": "The model cannot be read.",
    "usage_invalid": "The command line has an option or argument that the command does not take, or lacks one.",
    "url_invalid": "The server's address is not https://host:port.",
    # sealed store (docs/spec/sealed.md, part 8)
    "seal_header": "A sealed file does not begin with the header of this format, or with another chunk size.",
    "seal_other_file": "A sealed file is another one than the record names.",
    "seal_commitment": "A sealed file or wrapped key was made under another key.",
    "seal_chunk": "A chunk of a sealed file was altered, moved, or taken from another file.",
    "seal_truncated": "A sealed file is shorter than what was sealed.",
    "seal_trailing": "A sealed file is longer than what was sealed.",
    "seal_wrapped": "The bytes are not a wrapped key.",
    "seal_binding": "A wrapped key was altered, or belongs to another model, version or owner.",
    "seal_digest": "A model's bytes do not have the SHA-256 in the record.",
    "seal_missing": "A data file that the record names is missing.",
    "seal_empty": "There is not one byte to seal.",
    "seal_too_long": "There are more chunks than a sealed file can count.",
    "store_other_class": "The store was sealed by a root of another class.",
    "store_other_configuration": "The store was sealed under another security configuration.",
    "store_other_measurement": "The store was sealed for other code.",
    "store_other_root": "The store was sealed under another root key.",
    "store_malformed": "The state file is not of the form that this release writes.",
    "store_tampered": "The state file was altered.",
    "store_record_malformed": "The record in the state file is not of the form that this release writes.",
    "store_state_missing": "There are data files but no state file.",
    "store_orphan": "There are files that the record does not name.",
    "store_locked": "Another process has the store open.",
    "store_closed": "The store is closed.",
    "disk_full": "The disk of the store is full.",
    "store_io": "The disk of the store failed.",
    "store_uncertain": "The disk failed at a commit: what is stored shows when the server is restarted.",
    "store_record_full": "The record of the store is as large as it may be.",
    "upload_malformed": "The name, owner, access or format of an upload cannot be used.",
    "upload_too_large": "The upload has more bytes than the limit.",
    # client and command line
    "not_connected": "connect_server was not called.",
    "simulation_by_policy": "Simulated evidence is accepted by a policy, not by an argument.",
    # admission of models
    "format_mismatch": "The model is not in the format that the uploader declares.",
    "onnx_attribute": "An operator's attribute is given twice, of another type, or a flag that is neither 0 nor 1.",
    "onnx_domain": "The model uses an operator of another domain than ai.onnx and ai.onnx.ml.",
    "onnx_external_data": "A tensor's data lies outside the model file.",
    "onnx_function": "A function of the model calls itself, is defined twice, or replaces a standard operator.",
    "onnx_graph": "A value is undefined, defined twice or used too early, or a node has the wrong number of them.",
    "onnx_io_type": "An input or output has a type that the protocol cannot carry (sequence, map, BF16, complex ...).",
    "onnx_malformed": "The bytes are not an ONNX model.",
    "onnx_name": "A name in the model is not UTF-8, or has control characters or '../' in it.",
    "onnx_operator": "The model uses an operator that its operator set does not have.",
    "onnx_sparse": "The model has sparse tensors.",
    "onnx_tensor": "A tensor's data is not what its shape and type say.",
    "onnx_too_complex": "The model has more nodes, tensors, their bytes or levels than the limit, or too long names.",
    "onnx_training_info": "The model has a training graph beside the one that runs.",
    "onnx_version": "The model's IR or operator set version is not one that is run here.",
    # inputs and engine
    "engine_interface": "The runtime sees other inputs or outputs in the model than admission did.",
    "engine_memory_busy": "There is no memory for another model while all loaded ones are in use.",
    "engine_model_too_large": "The model alone takes more memory than all models together may.",
    "engine_refused": "The runtime cannot load the model.",
    "input_not_text": "A BYTES input for a model of strings is not UTF-8.",
    "run_failed": "The model cannot be run on these inputs.",
    "input_duplicate": "A request gives an input twice.",
    "input_infinite": "An input has an infinity in it, which the model does not take.",
    "input_missing": "A request lacks one of the model's inputs.",
    "input_nan": "An input has NaN in it, which the model does not take.",
    "input_not_integer": "A category column of an input holds a fraction.",
    "input_rank": "An input has more or fewer dimensions than the model's.",
    "input_shape": "An input's shape is not the model's.",
    "input_symbol": "Two inputs have different sizes in a dimension that the model gives one name.",
    "input_unknown": "A request gives an input that the model does not have.",
    # demo
    "demo_server_ended": "A server of the demonstration ended before it was ready.",
    "demo_not_refused": "Something in the demonstration that must be refused was not.",
    "demo_answer_changed": "The restarted server of the demonstration answered differently.",
}
