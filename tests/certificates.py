"""Certificates for tests, which sign themselves."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

YEAR = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate and its private key."""

    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, Path]:
        """They as settings of the service."""
        return {"tls_cert": self.certificate, "tls_key": self.key}

    @property
    def environment(self) -> dict[str, str]:
        """They as environment variables of the service."""
        return {f"LIKENESS_{name.upper()}": str(file) for name, file in self.settings.items()}

    def replace_by(self, other: "Pair") -> None:
        """Write another pair to these files, each at once."""
        other.certificate.replace(self.certificate)
        other.key.replace(self.key)


def make_pair(
    folder: Path,
    name: str = "service",
    begins: timedelta = -YEAR,
    ends: timedelta = YEAR,
    password: bytes | None = None,
) -> Pair:
    """A certificate for 127.0.0.1 and localhost, valid between two times from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("localhost")]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption(),
        )
    )
    return pair
