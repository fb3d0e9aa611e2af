"""The pin of a certificate: the same as `cryptography` finds, for every kind of key; and no certificate has none."""

from __future__ import annotations

import base64
import datetime
import hashlib
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, CertificatePublicKeyTypes
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.links._pins import public_key_pin

DER = serialization.Encoding.DER
NOON = datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.UTC)
P256 = ec.generate_private_key(ec.SECP256R1())


def issue(
    key: CertificateIssuerPrivateKeyTypes, names: int = 1, serial: int = 1, until: datetime.datetime = NOON
) -> bytes:
    """Return a certificate, as DER, that `key` signs for itself and for so many names."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server.test")] * names)
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, NOON - datetime.timedelta(days=1), until)
    no_digest = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if no_digest else hashes.SHA256()).public_bytes(DER)


def pin_of(key: CertificatePublicKeyTypes) -> str:
    spki = key.public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(spki).digest()).decode()


@pytest.mark.parametrize(
    "key",
    [
        P256,
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
        rsa.generate_private_key(65537, 3072),
        ed25519.Ed25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["P-256", "P-521", "RSA 2048", "RSA 3072", "Ed25519", "Ed448"],
)
def test_the_pin_of_every_kind_of_key_is_what_cryptography_says(key: CertificateIssuerPrivateKeyTypes) -> None:
    assert public_key_pin(issue(key)) == pin_of(key.public_key())


@given(st.integers(1, 3000), st.integers(1, 2**159 - 1), st.datetimes(NOON.replace(tzinfo=None)))
def test_the_pin_does_not_depend_on_what_comes_before_the_key(
    names: int, serial: int, until: datetime.datetime
) -> None:
    certificate = issue(P256, names, serial, until)
    assert public_key_pin(certificate) == pin_of(P256.public_key())


def test_a_certificate_of_version_1_which_does_not_say_so_has_a_pin() -> None:
    certificate = issue(P256)
    start = certificate.index(b"\xa0\x03\x02\x01\x02")  # version [0] EXPLICIT INTEGER 2, at the start of the second
    assert start < 12
    body = certificate[start + 5 :]
    without = b"\x30\x84" + len(body).to_bytes(4, "big") + body  # signatures are not looked at
    assert public_key_pin(b"\x30\x84" + len(without).to_bytes(4, "big") + without) == pin_of(P256.public_key())


CERTIFICATE = issue(P256)


@given(st.integers(0, len(CERTIFICATE) - 1))
def test_a_certificate_that_is_cut_off_has_no_pin(length: int) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        public_key_pin(CERTIFICATE[:length])


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: CERTIFICATE[:40] + rest))
def test_what_is_no_certificate_has_no_pin_or_one_of_its_own(der: bytes) -> None:
    pin = ""
    with suppress(ValueError):
        pin = public_key_pin(der)
    assert pin != pin_of(P256.public_key())
