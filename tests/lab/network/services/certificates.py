"""Self-signed certificates, valid and expired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.lab.network.daemons import folder
from tests.lab.network.endpoint import Certificate


def make_certificate(certificate: Certificate) -> Path:
    """Write ``NAME.crt`` and ``NAME.key`` (RSA 2048) and return their common path without the suffix.

    An expired certificate ended 35 days ago. The command line of OpenSSL 3.0 cannot set a date in the past, so a
    library creates it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, certificate.common_name)])
    now = datetime.now(UTC)
    start, end = (now - timedelta(400), now - timedelta(35)) if certificate.expired else (now, now + timedelta(365))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(certificate.common_name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder("tls") / certificate.common_name
    pem = serialization.Encoding.PEM
    Path(f"{files}.crt").write_bytes(signed.public_bytes(pem))
    Path(f"{files}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    return files
