"""The pin of a certificate: what of it stays the same when it is renewed, its key (RFC 7469 section 2.4)."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["public_key_pin"]

_SEQUENCE = 0x30
_VERSION = 0xA0
_BEFORE_THE_KEY = 5
"""Fields of a TBSCertificate between its version and its key (RFC 5280 section 4.1)."""


def public_key_pin(certificate: bytes) -> str:
    """Return the base64 of the SHA-256 of the SubjectPublicKeyInfo in a certificate, which is DER.

    Raises:
        ValueError: this is no certificate.
    """
    _, start, end = _element(certificate, 0, len(certificate), _SEQUENCE)
    _, start, end = _element(certificate, start, end, _SEQUENCE)
    if start < end and certificate[start] == _VERSION:
        _, _, start = _element(certificate, start, end)
    for _ in range(_BEFORE_THE_KEY):
        _, _, start = _element(certificate, start, end)
    key, _, end = _element(certificate, start, end, _SEQUENCE)
    return base64.b64encode(hashlib.sha256(certificate[key:end]).digest()).decode("ascii")


def _element(der: bytes, start: int, limit: int, tag: int | None = None) -> tuple[int, int, int]:
    """Return where the element at `start` begins, where its content does, and where it ends (X.690 section 8.1)."""
    if limit - start < 2 or (tag is not None and der[start] != tag):
        raise ValueError("no certificate: an element is missing, or is of another kind")
    length, content = der[start + 1], start + 2
    if length >= 0x80:  # the low bits say how many bytes the length has
        content += length & 0x7F
        length = int.from_bytes(der[start + 2 : content], "big")
    if content + length > limit:
        raise ValueError("no certificate: an element is longer than what it is in")
    return start, content, content + length
