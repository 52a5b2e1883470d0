"""What attestation costs: examining evidence of every format, and a whole attested connect on loopback.

    .venv/bin/python bench/attest.py [--runs 200] [--json FILE] [--only snp] [--check]

1. Evidence is minted by the fakes in `tests/`, once, before anything is timed. Where recorded evidence of real
   machines is given (`--evidence`, or `../shared/evidence`), it is examined as well, under the vendors' own roots.
2. *Warm*: after `--warmups` calls in the same process, so what is remembered of certificates and collateral is there.
   *Cold*: the first examination of a fresh process, and beside it what importing the verifiers takes.
3. Where dcap-qvl verifies the same quote, the two take turns, and who begins alternates; its collateral is parsed
   beforehand. Ours runs that very library as its second opinion, so ours is never less.
4. A connect is `strongroom.connect` with a parsed policy to a server process of its own, on the simulated TEE: a new
   TCP connection, TLS 1.3, a nonce, evidence, its verification, the pin. It is split where it happens, in the same run.
5. Figures are milliseconds of the wall clock: the median, and the interquartile range as a share of it, with an
   exclamation mark where that is above 10 %. Then the machine was busy, and the least figure says more, or the median
   of the time that the thread really had a core (`CPU`). `--tries` measures such a row again once the machine is
   quieter, and keeps the try with the least median.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "attest")]

TARGETS_MS = {"sgx": 2.0, "tdx": 2.0, "snp": 2.0, "connect": 10.0}
"""Format -> the median that a warm figure must not exceed."""
NOISY = 0.10
"""Above this share of the median, an interquartile range is marked."""
COLD_RUNS = 5
EVIDENCE = ROOT.parent / "shared" / "evidence"


@dataclass(frozen=True)
class Case:
    """One piece of evidence with everything that examining it takes. `now` is in ISO 8601."""

    name: str
    format: str
    data: bytes
    endorsements: tuple[tuple[str, bytes], ...]
    roots: tuple[str, ...]
    now: str
    intel_root: bytes = b""

    def examine(self) -> Any:
        """What the format's verifier finds."""
        from strongroom.attest.verifiers import VERIFIERS

        return VERIFIERS[self.format](
            self.data,
            endorsements=self.endorsements,
            roots=self.roots,
            now=datetime.fromisoformat(self.now),
        )

    def other(self) -> Callable[[], object] | None:
        """dcap-qvl's verification of the same quote, under the same root and at the same time; None where there is
        none.
        """
        if self.format not in ("sgx", "tdx"):
            return None
        import dcap_qvl

        bundle = dcap_qvl.QuoteCollateralV3.from_json(self.endorsements[0][1].decode())
        at = int(datetime.fromisoformat(self.now).timestamp())
        if self.intel_root:
            return lambda: dcap_qvl.verify_with_root_ca(self.data, bundle, self.intel_root, at)
        return lambda: dcap_qvl.verify(self.data, bundle, at)

    def to_json(self) -> str:
        """For a fresh process."""
        stapled = [[name, base64.b64encode(data).decode()] for name, data in self.endorsements]
        coded = {"data": base64.b64encode(self.data).decode(), "intel_root": "", "endorsements": stapled}
        return json.dumps(asdict(self) | coded)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case that `to_json` wrote."""
        read = json.loads(text)
        return cls(
            name=read["name"],
            format=read["format"],
            data=base64.b64decode(read["data"]),
            endorsements=tuple((name, base64.b64decode(data)) for name, data in read["endorsements"]),
            roots=tuple(read["roots"]),
            now=read["now"],
        )


# --- what is examined ---------------------------------------------------------------------------------------


def minted() -> Iterator[Case]:
    """Evidence of every format, made by the fakes of the tests under test roots."""
    import fake_amd
    import fake_aws
    import fake_tpm
    import fake_x509
    from fake_azure import Cloud
    from fake_intel import Intel
    from worlds import NOW

    for name, version in (("sgx quote v3", 3), ("tdx quote v4", 4), ("tdx quote v5", 5)):
        intel, now = Intel(version=version), NOW.isoformat()
        yield Case(
            name, intel.format, intel.quote, intel.endorsements, intel.roots, now, intel.certificate("root")
        )
    for product, version in (("Milan", 3), ("Genoa", 3), ("Turin", 5)):
        chip = fake_amd.Machine(product=product, version=version)
        now = fake_x509.NOW.isoformat()
        yield Case(f"snp {product}", "snp", chip.report, chip.endorsements, fake_amd.roots(), now)
    tpm = fake_tpm.Tpm().but(ak={}).document
    yield Case("tpm quote", "tpm", tpm, (), (hashlib.sha256(fake_tpm.ROOT_DER).hexdigest(),), NOW.isoformat())
    yield Case("nitro document", "nitro", fake_aws.mint(), (), (fake_aws.ROOT,), fake_aws.NOW.isoformat())
    for tee in ("snp", "tdx"):
        cloud = Cloud(tee=tee)
        roots = fake_amd.roots() if tee == "snp" else cloud.intel.roots
        yield Case(f"azure {tee}", "azure", cloud.document, cloud.endorsements, roots, NOW.isoformat())


def recorded(folder: Path) -> Iterator[Case]:
    """The recorded evidence that passes, each sample once, with the newest collateral that is there for it."""
    import conftest

    conftest.SHARED = folder.resolve().parent
    import recorded as samples

    from strongroom.attest import azure
    from strongroom.attest.verifiers import PINS

    passing = {case.path: case for case in samples.CASES if not case.code and case.format in PINS}
    for path, case in sorted(passing.items(), key=lambda item: (item[1].format, item[0])):
        data = path.read_bytes()
        if case.format == "azure":
            data = azure.from_recorded({path.name: data})
        stapled = tuple((str(one), one.read_bytes()) for one in case.endorsements)
        name = f"{case.format} {path.parent.name} (recorded)"
        yield Case(name, case.format, data, stapled, PINS[case.format], case.at)


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Milliseconds of one thing. `iqr`: the interquartile range as a share of the median. `cpu_ms`: the median of the
    time on a core, None where more than one thread did it.
    """

    median_ms: float
    iqr: float
    least_ms: float
    cpu_ms: float | None
    runs: int
    noisy: bool

    @classmethod
    def of(cls, seconds: list[float], cpu: list[float] | None = None) -> Figures:
        """The figures of these runs."""
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        median = statistics.median(seconds)
        iqr = (high - low) / median if median else 0.0
        return cls(
            median_ms=round(median * 1e3, 3),
            iqr=round(iqr, 3),
            least_ms=round(min(seconds) * 1e3, 3),
            cpu_ms=round(statistics.median(cpu) * 1e3, 3) if cpu else None,
            runs=len(seconds),
            noisy=iqr > NOISY,
        )

    def __str__(self) -> str:
        return f"{self.median_ms:8.3f} {self.iqr:5.0%}{'!' if self.noisy else ' '}"


def timed(call: Callable[[], object]) -> float:
    """Seconds that `call` takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def alternating(calls: Sequence[Callable[[], object]], *, runs: int, warmups: int) -> list[Figures]:
    """Figures of each of `calls`, which take turns; who begins changes from run to run."""
    for _ in range(warmups):
        for call in calls:
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    cpu: list[list[float]] = [[] for _ in calls]
    for run in range(runs):
        for at in range(len(calls)):
            which = (at + run) % len(calls)
            begin = time.thread_time()
            seconds[which].append(timed(calls[which]))
            cpu[which].append(time.thread_time() - begin)
    return [Figures.of(*one) for one in zip(seconds, cpu, strict=True)]


def quietest(measure: Callable[[], list[Figures]], *, tries: int) -> list[Figures]:
    """What `measure` finds, its first figures being those that count: again while they are noisy, at most `tries`
    times and each time once the machine is quieter; of all, the try with the least median.
    """
    made: list[list[Figures]] = []
    while not made or (made[-1][0].noisy and len(made) < tries):
        if tries > 1:
            _wait_for_quiet()
        made.append(measure())
    return min(made, key=lambda figures: figures[0].median_ms)


def _wait_for_quiet() -> None:
    """Until others leave half of the cores' time, or ten seconds are over."""
    for _ in range(10):
        if (_busy(1.0) or 0.0) <= 0.5:
            return


def examined(case: Case, *, runs: int, warmups: int, tries: int) -> dict[str, Any]:
    """The row of one case: warm, beside dcap-qvl where it can, and cold."""
    found = case.examine()
    if failed := [check.id for check in found.checks if not check.passed]:
        raise SystemExit(f"{case.name}: its evidence does not pass: {', '.join(failed)}")
    other = case.other()
    calls = [case.examine, *([other] if other else [])]
    figures = quietest(lambda: alternating(calls, runs=runs, warmups=warmups), tries=tries)
    print(f"{case.name}: {figures[0]} CPU {figures[0].cpu_ms}", file=sys.stderr, flush=True)
    cold = [_in_a_fresh_process(case) for _ in range(min(COLD_RUNS, runs))]
    return {
        "name": case.name,
        "warm": figures[0],
        "dcap_qvl": figures[1] if other else None,
        "cold": Figures.of([one["first_s"] for one in cold]),
        "import": Figures.of([one["import_s"] for one in cold]),
        "target_ms": TARGETS_MS.get(case.format),
    }


def _in_a_fresh_process(case: Case) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(case.to_json())
        words = [sys.executable, __file__, "--cold", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
        return json.loads(done.stdout)


def _cold(path: Path) -> None:
    """In a fresh process: how long importing takes, and then the first examination."""
    case = Case.from_json(path.read_text())
    imported = timed(lambda: __import__("strongroom.attest.verifiers"))
    first = timed(case.examine)
    print(json.dumps({"import_s": imported, "first_s": first}))


def yardsticks(*, runs: int, warmups: int) -> dict[str, Figures]:
    """One verification of each kind of signature that evidence consists of: what this machine can do at best."""
    import fake_x509
    from cryptography.hazmat.primitives.asymmetric import ec, padding
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384

    message, calls = b"m" * 1184, []
    for curve, digest in ((ec.SECP256R1(), SHA256()), (ec.SECP384R1(), SHA384())):
        key = fake_x509.ec_key("yardstick", curve)
        made, public, scheme = key.sign(message, ec.ECDSA(digest)), key.public_key(), ec.ECDSA(digest)
        calls.append(lambda made=made, public=public, scheme=scheme: public.verify(made, message, scheme))
    rsa, pss = fake_x509.rsa_key("ark"), padding.PSS(padding.MGF1(SHA384()), 48)
    signed, rsa_public = rsa.sign(message, pss, SHA384()), rsa.public_key()
    calls.append(lambda: rsa_public.verify(signed, message, pss, SHA384()))
    names = ("ECDSA P-256", "ECDSA P-384", "RSA-4096 PSS")
    return dict(zip(names, alternating(calls, runs=runs, warmups=warmups), strict=True))


PHASES = ("set-up", "handshake", "evidence round trip", "verification", "rest")
"""`set-up`: the TLS context and HTTP client. `handshake`: TCP and TLS 1.3, both sides. `evidence round trip`: asking
and answering on the new connection, with what the server does to make evidence. `verification`: `attest.verify`.
`rest`: parsing the answer, pinning, and what else `connect` does."""


def connected(*, runs: int, warmups: int, tries: int) -> tuple[dict[str, Figures], dict[str, float]]:
    """Figures of a whole attested connect, and of its phases in the same runs; and milliseconds on a core of one
    connect, client's and server's, on the average of all tries (without the server's where nobody says).
    """
    from serving import policy_text, serving

    import strongroom
    from strongroom import attest
    from strongroom.attest.policy import parse_policy
    from strongroom.flow import Open
    from strongroom.transport import Transport

    plenty = "[limits]\nevidence_per_minute = 1000000\n"  # all of this comes from one address
    with serving(settings=plenty) as server, _split() as spent:
        policy = parse_policy(policy_text(measurement=server.measurement, root=server.root_sha256))
        spent(Transport, "perform", lambda call: "set-up" if isinstance(call[1], Open) else "sending")
        spent(socket, "create_connection", lambda _: "handshake")
        spent(ssl.SSLSocket, "do_handshake", lambda _: "handshake")
        spent(attest, "verify", lambda _: "verification")

        counted, clients, servers = 0, time.process_time(), _cpu_seconds(server.process.pid)

        def measure() -> list[Figures]:
            nonlocal counted
            seconds: dict[str, list[float]] = {name: [] for name in ("connect", *PHASES)}
            for run in range(warmups + runs):
                spent.clear()
                begin = time.perf_counter()
                client = strongroom.connect(server.url, policy=policy)
                whole = time.perf_counter() - begin
                client.close()
                counted += 1
                if run < warmups:
                    continue
                phases = {name: spent.of(name) for name in PHASES}
                phases["evidence round trip"] = spent.of("sending") - phases["handshake"]
                phases["rest"] = whole - sum(phases[name] for name in PHASES[:-1])
                for name, one in {"connect": whole, **phases}.items():
                    seconds[name].append(one)
            return [Figures.of(one) for one in seconds.values()]

        figures = dict(zip(("connect", *PHASES), quietest(measure, tries=tries), strict=True))
        cpu = {"client": (time.process_time() - clients) / counted * 1e3}
        if servers is not None and (after := _cpu_seconds(server.process.pid)) is not None:
            cpu["server"] = (after - servers) / counted * 1e3
    return figures, {name: round(one, 2) for name, one in cpu.items()}


def _cpu_seconds(pid: int) -> float | None:
    """Seconds that a process was on a core, in all its threads; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Spent:
    """Seconds by label, of functions that were wrapped in place."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self.undo: list[Callable[[], None]] = []

    def __call__(self, owner: Any, name: str, label: Callable[[tuple[Any, ...]], str]) -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                which = label(args)
                self._seconds[which] = self.of(which) + time.perf_counter() - begin

        setattr(owner, name, wrapped)
        self.undo.append(lambda: setattr(owner, name, inner))

    def of(self, label: str) -> float:
        return self._seconds.get(label, 0.0)

    def clear(self) -> None:
        self._seconds.clear()


@contextmanager
def _split() -> Iterator[_Spent]:
    spent = _Spent()
    try:
        yield spent
    finally:
        for undo in spent.undo:
            undo()


# --- what is said -------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The machine, its software, and how busy others keep it."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    packages = ("cryptography", "dcap-qvl", "httpx", "httptools")
    from cryptography.hazmat.backends.openssl import backend

    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssl": {"ssl": ssl.OPENSSL_VERSION, "cryptography": backend.openssl_version_text()},
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "busy_before": _busy(1.0),
    }


def _busy(seconds: float) -> float | None:
    """The share of all cores' time that something ran while this process slept; None where nobody says."""

    def read() -> tuple[int, int]:
        numbers = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    try:
        before = read()
        time.sleep(seconds)
        total, idle = (after - earlier for after, earlier in zip(read(), before, strict=True))
    except (OSError, ValueError):
        return None
    return round(1 - idle / total, 2) if total else None


def shown(report: dict[str, Any]) -> str:
    """The report as tables."""
    about = report["machine"]
    busy = about["busy_before"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['system']}, Python {about['python']}, "
        f"{about['openssl']['cryptography']} (cryptography), {about['openssl']['ssl']} (ssl), "
        f"dcap-qvl {about['packages']['dcap-qvl']}",
        f"{report['warmups']} warm-ups, {report['runs']} runs; milliseconds, median and interquartile range"
        + (f", the least of up to {report['tries']} tries" if report["tries"] > 1 else "")
        + ("" if busy is None else f"; before it began, {busy:.0%} of the cores' time was others'"),
        "",
        f"{'one signature':52s} {'median':>8s}   IQR  {'least':>8s} {'CPU':>8s}",
        *(
            f"{name:52s} {one} {one.least_ms:8.3f} {one.cpu_ms:8.3f}"
            for name, one in report["yardsticks"].items()
        ),
    ]
    if report["examined"]:
        lines += ["", f"{'examining evidence':52s} {'warm':>8s}   IQR  {'least':>8s} {'CPU':>8s} {'cold':>8s} "
                      f"{'import':>8s}  {'dcap-qvl':>8s}   IQR  {'CPU':>8s}   target"]  # fmt: skip
    for row in report["examined"]:
        other = f"{row['dcap_qvl']} {row['dcap_qvl'].cpu_ms:8.3f}" if row["dcap_qvl"] else " " * 24
        lines.append(
            f"{row['name'][:52]:52s} {row['warm']} {row['warm'].least_ms:8.3f} "
            f"{row['warm'].cpu_ms:8.3f} {row['cold'].median_ms:8.3f} "
            f"{row['import'].median_ms:8.1f}  {other}  {_met(row['warm'], row['target_ms'])}"
        )
    if report["connect"]:
        lines += ["", f"{'attested connect, loopback':52s} {'warm':>8s}   IQR  {'least':>8s}   target"]
        for name, one in report["connect"].items():
            met = _met(one, TARGETS_MS["connect"]) if name == "connect" else ""
            lines.append(
                f"{'  ' * (name != 'connect') + name:52s} {one} {one.least_ms:8.3f}   {met}".rstrip()
            )
        on_cores = ", ".join(f"{who} {ms:.1f}" for who, ms in report["connect_cpu_ms"].items())
        lines.append(f"  on a core, on the average: {on_cores}")
    return "\n".join(lines)


def _met(figures: Figures, target_ms: float | None) -> str:
    if target_ms is None:
        return ""
    return f"<= {target_ms:g}: {'met' if figures.median_ms <= target_ms else 'MISSED'}"


def _missed(report: dict[str, Any]) -> bool:
    rows = [(row["warm"], row["target_ms"]) for row in report["examined"]]
    rows += [(one, TARGETS_MS["connect"]) for name, one in report["connect"].items() if name == "connect"]
    return any("MISSED" in _met(figures, target) for figures, target in rows)


def main() -> int:
    """Runs what was asked for."""
    assert __doc__ is not None
    about = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    about.add_argument("--runs", type=int, default=200, help="timed runs of each thing (default 200)")
    about.add_argument("--warmups", type=int, default=5, help="runs before them (default 5)")
    about.add_argument("--tries", type=int, default=1, help="tries of a noisy row (default 1)")
    about.add_argument("--only", action="append", default=[], help="names that contain this; may be repeated")
    about.add_argument(
        "--evidence", type=Path, default=EVIDENCE, metavar="DIR",
        help="recorded evidence, a folder called `evidence` (default: ../shared/evidence where it is there)",
    )  # fmt: skip
    about.add_argument("--minted", action="store_true", help="leave recorded evidence out")
    about.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there as well")
    about.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    about.add_argument("--cold", type=Path, help=argparse.SUPPRESS)
    asked = about.parse_args()
    if asked.cold:
        _cold(asked.cold)
        return 0
    if min(asked.runs, asked.tries) < 1 or asked.warmups < 0:
        about.error("expected at least one run and one try, and 0 or more warm-ups")
    if asked.evidence != EVIDENCE and not (
        asked.evidence.is_dir() and asked.evidence.resolve().name == "evidence"
    ):
        about.error(f"{asked.evidence}: not a folder called `evidence`")

    def wanted(name: str) -> bool:
        return not asked.only or any(part in name for part in asked.only)

    often = {"runs": asked.runs, "warmups": asked.warmups}
    cases = list(minted())
    if asked.evidence.is_dir() and not asked.minted:
        cases += recorded(asked.evidence)
    report: dict[str, Any] = {
        "machine": machine(),
        **often,
        "tries": asked.tries,
        "yardsticks": yardsticks(**often),
        "examined": [examined(case, **often, tries=asked.tries) for case in cases if wanted(case.name)],
        "connect": {},
        "connect_cpu_ms": {},
    }
    if wanted("connect"):
        report["connect"], report["connect_cpu_ms"] = connected(**often, tries=asked.tries)
    print(shown(report))
    if asked.json:
        asked.json.write_text(json.dumps(report, default=asdict, indent=2) + "\n")
    return 1 if asked.check and _missed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
