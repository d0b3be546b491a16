"""Certificates and keys for a federation on one machine, valid for a day."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM, SSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH
PRIVATE, PUBLIC = serialization.PrivateFormat, serialization.PublicFormat
DAY = datetime.timedelta(days=1)


def _signed(name: str, public, key, *names: x509.GeneralName) -> bytes:
    """A certificate by the authority, for itself where it has no other names."""
    now = datetime.datetime.now(datetime.UTC)
    issuer, subject = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)])
        for one in ("authority", name)
    )
    builder = (
        x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)


def authority(folder: Path) -> None:
    """An authority (ca.pem) and, signed by it, a server's certificate and key on the loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    key, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    here = x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    plain = own.private_bytes(PEM, PRIVATE.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(_signed("authority", key.public_key(), key))
    (folder / "server.pem").write_bytes(_signed("localhost", own.public_key(), key, *here))
    (folder / "server.key").write_bytes(plain)


def node(folder: Path, name: str) -> None:
    """The key pair by which a node is known: NAME.key, NAME.pub."""
    key = ec.generate_private_key(ec.SECP384R1())
    plain = key.private_bytes(PEM, PRIVATE.OpenSSH, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(plain)
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(SSH, PUBLIC.OpenSSH))
