"""Keys and signatures that are the same in every run and on every machine: what vendors of the tests sign with.

Keys come from names. ECDSA is that of RFC 6979; RSA-PSS has a salt that comes from the message, which
`cryptography` cannot be asked for, so the encoding (RFC 8017 section 9.1.1) and the private operation are written here.
None of this is safe for anything but tests: whoever reads this file has every key.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
import hashlib

from cryptography.hazmat.primitives.asymmetric import ec, rsa

_OFFSETS = {
    ("ark", 4096): (955, 357),
    ("ask", 4096): (100, 69),
    ("asvk", 4096): (959, 515),
    ("mallory", 4096): (30, 429),
    ("weak", 2048): (189, 214),
    ("tiny", 1024): (204, 12),
    ("tpm ak", 1024): (157, 97),
    ("tpm ak", 2048): (104, 180),
    ("tpm ak", 3072): (353, 444),
    ("tpm ek", 2048): (406, 48),
    ("tpm ek", 3072): (146, 590),
    ("vtpm ak", 2048): (387, 463),
    ("mallory ak", 2048): (287, 394),
    ("mallory", 2048): (169, 932),
    ("ek", 2048): (74, 88),
    ("x", 2048): (560, 86),
    ("weak", 1024): (96, 153),
    ("k", 1024): (223, 10),
    ("ratls", 2048): (340, 571),
    ("ratls", 1024): (466, 126),
}
"""Name and bits -> which odd number after its start each prime is: found once by `_search`, which takes seconds."""


def ec_key(name: str, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """The EC key on `curve` that goes by `name`."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()) >> 1, curve)


@functools.cache
def rsa_key(name: str, bits: int) -> rsa.RSAPrivateKey:
    """The RSA key of `bits` that goes by `name`: its primes are the first ones after a hash of the name."""
    starts = [_start(name, letter, bits) for letter in "pq"]
    offsets = _OFFSETS.get((name, bits)) or tuple(_search(start) for start in starts)
    p, q = (start + 2 * offset for start, offset in zip(starts, offsets, strict=True))
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def _start(name: str, letter: str, bits: int) -> int:
    start = int.from_bytes(hashlib.shake_256(f"{name} {letter}".encode()).digest(bits // 16))
    return start | 3 << (bits // 2 - 2) | 1


def _search(start: int) -> int:
    """How many odd numbers after `start` the next prime is that suits the exponent 65537."""
    small = [n for n in range(3, 2000, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
    offset = 0
    while True:
        number = start + 2 * offset
        if all(number % n for n in small) and number % 65537 != 1 and _is_prime(number):
            return offset
        offset += 1


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with 24 bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 26):
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True


def _openssl() -> ctypes.CDLL | None:
    """OpenSSL's big numbers, where Python's own extension is linked to a shared libcrypto; else None."""
    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.BN_bin2bn.restype = library.BN_new.restype = library.BN_CTX_new.restype = ctypes.c_void_p
        library.BN_bin2bn.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
        library.BN_mod_exp.argtypes = [ctypes.c_void_p] * 5
        library.BN_bn2binpad.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
        library.BN_free.argtypes = library.BN_CTX_free.argtypes = [ctypes.c_void_p]
        library.BN_free.restype = library.BN_CTX_free.restype = None
    except (AttributeError, OSError):
        return None
    return library


_OPENSSL = _openssl()


def _power(base: int, exponent: int, modulus: int) -> int:
    """`pow` in a tenth of its time: it was a twentieth of all the tests'. What it gives is checked by whoever asks."""
    if _OPENSSL is None:
        return pow(base, exponent, modulus)
    size = (modulus.bit_length() + 7) // 8
    given = [_OPENSSL.BN_bin2bn(n.to_bytes(size), size, None) for n in (base % modulus, exponent, modulus)]
    made, context, out = _OPENSSL.BN_new(), _OPENSSL.BN_CTX_new(), ctypes.create_string_buffer(size)
    done = _OPENSSL.BN_mod_exp(made, *given, context) == 1 and _OPENSSL.BN_bn2binpad(made, out, size) == size
    for number in (*given, made):
        _OPENSSL.BN_free(number)
    _OPENSSL.BN_CTX_free(context)
    assert done
    return int.from_bytes(out.raw)


def rsa_raw(key: rsa.RSAPrivateKey, encoded: bytes) -> bytes:
    """RSA's private operation over an encoded message, whatever it is (RFC 8017 section 5.2.1)."""
    numbers = key.private_numbers()
    message = int.from_bytes(encoded)
    at_p, at_q = _power(message, numbers.dmp1, numbers.p), _power(message, numbers.dmq1, numbers.q)
    made = at_q + numbers.q * (numbers.iqmp * (at_p - at_q) % numbers.p)
    assert pow(made, numbers.public_numbers.e, numbers.public_numbers.n) == message
    return made.to_bytes(key.key_size // 8)


@functools.lru_cache(maxsize=4096)
def rsa_pss(key: rsa.RSAPrivateKey, message: bytes, digest: str, salt_size: int) -> bytes:
    """An RSA-PSS signature with the hash `digest` (hashlib's name), MGF1 of the same, and a salt out of the message."""
    size = hashlib.new(digest).digest_size
    salt = hashlib.shake_256(b"salt" + message).digest(salt_size)
    hashed = hashlib.new(digest, bytes(8) + hashlib.new(digest, message).digest() + salt).digest()
    length = key.key_size // 8  # of the encoding, for moduli of whole bytes
    block = bytes(length - salt_size - size - 2) + b"\x01" + salt
    mask = b"".join(
        hashlib.new(digest, hashed + count.to_bytes(4)).digest() for count in range(-(-len(block) // size))
    )
    masked = bytes(a ^ b for a, b in zip(block, mask, strict=False))
    return rsa_raw(key, bytes([masked[0] & 0x7F]) + masked[1:] + hashed + b"\xbc")
