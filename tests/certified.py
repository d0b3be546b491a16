"""Certificates and keys for a deployment on one machine, valid for a day."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

DAY = datetime.timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _signed(name: str, public, issuer: str, key, *names: x509.GeneralName) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(_named(issuer), _named(name), public, x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def authority(folder: Path) -> None:
    """An authority (ca.pem) and, signed by it, the certificate (server.pem) and key of a server on the loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    key, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    here = x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    (folder / "ca.pem").write_bytes(_signed("authority", key.public_key(), "authority", key))
    (folder / "server.pem").write_bytes(_signed("localhost", own.public_key(), "authority", key, *here))
    (folder / "server.key").write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def node(folder: Path, name: str) -> None:
    """The key pair by which a node is known: NAME.key, NAME.pub."""
    key = ec.generate_private_key(ec.SECP384R1())
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
