"""A certificate authority and certificates of servers, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

OUTDATED = ("20200101000000Z", "20200201000000Z")


@dataclass(frozen=True)
class Certificate:
    """Two files: a certificate and its private key."""

    certificate: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _request(folder: Path, name: str) -> tuple[Path, Path]:
    key, request = folder / f"{name}.key", folder / f"{name}.csr"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)
    _openssl("req", "-new", *new_key, "-subj", f"/CN={name}", "-out", request)
    return key, request


def new_authority(folder: Path, name: str = "test authority") -> Certificate:
    """A certificate authority in a new folder, good for a day."""
    folder.mkdir()
    authority = Certificate(folder / "ca.crt", folder / "ca.key")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", authority.key)
    _openssl("req", "-x509", "-new", *new_key, "-days", "1", "-subj", f"/CN={name}", "-out", authority.certificate)
    # What `openssl ca` keeps its books in; unlike `x509` it takes both ends of the validity, also in 3.0.
    (folder / "index.txt").touch()
    (folder / "ca.conf").write_text(
        f"[ca]\ndefault_ca = own\n[own]\ndatabase = {folder}/index.txt\nnew_certs_dir = {folder}\nrand_serial = yes\n"
        "default_md = sha256\npolicy = any\nunique_subject = no\ncopy_extensions = copy\n[any]\ncommonName = supplied\n"
    )
    return authority


def signed(authority: Certificate, name: str, validity: tuple[str, str] | None = None) -> Certificate:
    """A server's certificate for a host name; *validity* is its first and last moment, else it is good for a day."""
    folder = authority.certificate.parent
    key, request = _request(folder, name)
    certificate = folder / f"{name}.crt"
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName = DNS:{name}\n")
    period = ("-startdate", validity[0], "-enddate", validity[1]) if validity else ("-days", "1")
    signer = ("-config", folder / "ca.conf", "-cert", authority.certificate, "-keyfile", authority.key)
    given = ("-in", request, "-out", certificate, "-extfile", extensions)
    _openssl("ca", "-batch", "-notext", *signer, *period, *given)
    return Certificate(certificate, key)
