"""Certificates for the listeners and the clients of one run: an authority, what it has signed, and a stranger."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# The common name of the client's certificate: its user name at the broker.
CLIENT_NAME = "interop-client"
LIFETIME = datetime.timedelta(days=2)


class Identity:
    """A certificate and its key, as PEM files."""

    def __init__(self, folder, name):
        self.name = name
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"

    def pkcs12(self, password):
        """Both in the form in which browsers take them."""
        certificate = x509.load_pem_x509_certificate(self.cert.read_bytes())
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        protection = serialization.BestAvailableEncryption(password)
        return pkcs12.serialize_key_and_certificates(self.name.encode(), key, certificate, None, protection)


class Authority(Identity):
    """Signs with its own key; a certificate of its own that says so."""

    def __init__(self, folder, name):
        super().__init__(folder, name)
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._subject = subject(name)
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, data_encipherment=False,
            key_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = draft(self._subject, self._subject, self._key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        write(self, builder.sign(self._key, hashes.SHA256()), self._key)

    def issue(self, name, purpose):
        """For `localhost` and 127.0.0.1 where it is a server's."""
        identity, key = Identity(self._folder, name), ec.generate_private_key(ec.SECP256R1())
        builder = draft(subject(name), self._subject, key)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(signer, critical=False)
        if purpose == ExtendedKeyUsageOID.SERVER_AUTH:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        write(identity, builder.sign(self._key, hashes.SHA256()), key)
        return identity


class Certificates:
    """All of a run."""

    def __init__(self, folder):
        folder.mkdir()
        self.authority = Authority(folder, "Interop Authority")
        self.server = self.authority.issue("interop-server", ExtendedKeyUsageOID.SERVER_AUTH)
        self.client = self.authority.issue(CLIENT_NAME, ExtendedKeyUsageOID.CLIENT_AUTH)
        # The same common name, signed by an authority that the broker does not know.
        (folder / "foreign").mkdir()
        self.foreign_authority = Authority(folder / "foreign", "Foreign Authority")
        self.foreign = self.foreign_authority.issue(CLIENT_NAME, ExtendedKeyUsageOID.CLIENT_AUTH)


def subject(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def draft(owner, issuer, key):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(owner).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    # Clocks of clients and broker are the same here; an hour is for summer time gone wrong.
    return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + LIFETIME)


def write(identity, certificate, key):
    identity.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    identity.key.touch(mode=0o600)
    form = serialization.PrivateFormat.PKCS8
    identity.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
