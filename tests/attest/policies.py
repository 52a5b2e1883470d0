"""Policy files for tests: one entry of each format that says what an entry must, and no more."""

from __future__ import annotations

MEASUREMENT_48 = "5a" * 48
SECURITY = """
[security]
sealing = ["measurement"]
host_excluded = [true]
isolation = ["in_process", "model", "owner", "request"]
sandbox = []
admission = ["structural"]
anonymous_upload = [false]
verify_on_load = ["tags", "sha256"]
logging = ["no_content"]
"""
HEAD = 'kind = "production"\nexpires = 2027-01-01T00:00:00Z\n'
_INTEL = 'tcb_statuses = ["UpToDate"]\naccepted_advisories = []\nmin_evaluation = 17\n'
_AMD = """\
vmpls = [0]
signing_keys = ["VCEK"]
csp_ids = []
min_tcb.Milan = { bl = 3, tee = 0, snp = 8, ucode = 115 }
min_tcb.Turin = { fmc = 0, bl = 1, tee = 1, snp = 3, ucode = 20 }
"""
_REGISTERS = "".join(f'registers.rtmr{i} = ["{i + 1}{i + 1}{"0" * 94}"]\n' for i in range(4))
_PCRS = "".join(f'registers.pcr{i} = ["{i:02x}{"0" * 62}"]\n' for i in (0, 4, 7, 11))
ENTRIES = {
    "sgx": f'measurements = ["{"5a" * 32}"]\nsigners = []\nproducts = []\nmin_svn = 1\n{_INTEL}',
    "tdx": f'measurements = ["{MEASUREMENT_48}"]\n{_REGISTERS}{_INTEL}',
    "snp": f'measurements = ["{MEASUREMENT_48}"]\nsigners = []\nmin_svn = 1\n{_AMD}',
    "tpm": f'roots = ["{"ab" * 32}"]\n{_PCRS}',
    "nitro": f'measurements = ["{MEASUREMENT_48}"]\nsigners = []\nmax_evidence_age_s = 300\n',
    "azure": f'tee = "snp"\nlaunch_measurements = ["{MEASUREMENT_48}"]\n{_PCRS}{_AMD}',
}
"""Format -> the members of an entry."""
AZURE_TDX = f'tee = "tdx"\nlaunch_measurements = ["{"5a" * 240}"]\n{_PCRS}{_INTEL}'


def entry(name: str, text: str = "") -> str:
    """One entry of the format."""
    return f"[[{name}]]\n{text or ENTRIES[name]}"


def production(*entries: str, head: str = HEAD, security: str = SECURITY) -> str:
    """The text of a production policy with these entries."""
    return head + "\n".join(entries) + security


def development(name: str, *, debug: bool = False, migration: bool = False) -> str:
    """The text of a development policy with one entry of the format."""
    unsafe = f"unsafe_accept_debug = {str(debug).lower()}\n"
    if name == "snp" or (name == "azure" and 'tee = "snp"' in ENTRIES[name]):
        unsafe += f"unsafe_accept_migration = {str(migration).lower()}\n"
    head = HEAD.replace("production", "development")
    return production(entry(name, ENTRIES[name] + unsafe), head=head)
