"""Open S3 buckets with obstore: credentials, region, endpoint, certificates.

obstore finds credentials in the environment, of a container, of a web identity, and of an EC2 instance's role (IMDSv2).
It reads no profiles of ~/.aws: they come through boto3 where that is installed.
"""

import configparser
import os
import re
import ssl
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prep.errors import InputError
from prep.metadata import ENDPOINT, ask_metadata
from prep.s3_errors import EXPORT, MAX_CHARACTERS, SECRETS, explain_no_credentials, hide_secrets

INSTALL = "pip install -e '.[s3]'"
DEFAULT_REGION = "us-east-1"
# obstore's own retries, of dropped connections and of 5xx: short, because `prep.remote` waits longer and says so.
RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
CONNECT_SECONDS = 5
READ_SECONDS = 5  # without a byte, until a connection that reads is given up and the request is sent on another one
REQUEST_SECONDS = {"read": 60, "write": 300}  # of one request with its body: 16 MB, or one part of an upload
# A profile with one of these keys has credentials (botocore's `credentials.py`).
PROFILE_KEYS = {"aws_access_key_id", "role_arn", "sso_session", "sso_start_url", "credential_process", "login_session"}
OTHER_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
# obstore panics where these cannot be sent in a header, and where an endpoint is empty or no URL.
IN_HEADERS = (*SECRETS, "AWS_REGION", "AWS_DEFAULT_REGION")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the first that is set, as in obstore
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")


def open_bucket(url: str, purpose: str = "read") -> tuple[Any, str]:
    """Return obstore's store of a bucket, without a request, and the prefix in it.

    Args:
        url: s3://BUCKET or s3://BUCKET/PREFIX.
        purpose: read or write; uploads are given more time for a request.

    Raises:
        InputError: the URL is not of this form, obstore is missing, or the credentials cannot be used.
    """
    bucket, prefix = split_url(url)
    settings = find_settings(purpose)
    from obstore.exceptions import BaseError  # noqa: PLC0415
    from obstore.store import S3Store  # noqa: PLC0415

    try:
        return S3Store(bucket, **settings), prefix
    except BaseError as error:
        cause = hide_secrets(str(error).partition("\n")[0])
        raise InputError(f"{url} cannot be opened ({cause}): check the variables that begin with AWS_") from None


def split_url(url: str) -> tuple[str, str]:
    """Return the bucket and the prefix of an s3:// URL; the prefix has no slash at its ends.

    Raises:
        InputError: it is not such a URL.
    """
    protocol, _, path = url.partition("://")
    bucket, _, prefix = path.partition("/")
    prefix = prefix.strip("/")
    if protocol != "s3" or not BUCKET.fullmatch(bucket) or (prefix and not is_object_name(prefix)):
        raise InputError(f"expected a URL such as s3://BUCKET/PREFIX, got {hide_secrets(url)}")
    return bucket, prefix


def is_object_name(name: str) -> bool:
    """Return True if obstore accepts the name of an object or prefix."""
    return name.isprintable() and not {"", ".", ".."} & set(name.split("/"))


def find_settings(purpose: str = "read") -> dict[str, Any]:
    """Return the keyword arguments of obstore's S3Store, besides the bucket.

    Raises:
        InputError: obstore is missing, or the credentials are in a profile that cannot be read.
    """
    try:
        import obstore  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise InputError(f"s3:// needs obstore ({error}): {INSTALL}") from error
    settings: dict[str, Any] = {"retry_config": RETRIES}
    provider = find_profile_credentials()
    check_environment(needs_role=provider is None and not has_credentials())
    if provider is not None:
        settings["credential_provider"] = provider

    # The endpoint, whether it may be asked without TLS, and which certificates are trusted besides the system's.
    endpoint = find_endpoint()
    settings["client_options"] = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS[purpose]),
        **({"read_timeout": timedelta(seconds=READ_SECONDS)} if purpose == "read" else {}),
        **({"root_certificate": certificates} if (certificates := read_certificates()) else {}),
    }
    if endpoint is not None:
        settings["endpoint"] = endpoint

    # The region, and the address of the metadata service (obstore has another name for the variable).
    settings["region"] = find_region(getattr(provider, "config", {}).get("region"))
    if metadata := os.environ.get(ENDPOINT):
        settings["metadata_endpoint"] = metadata
    return settings


def check_environment(needs_role: bool) -> None:
    """Check the variables that obstore reads by itself, and which it does not check.

    Args:
        needs_role: the environment names no credentials, so that they have to be those of the instance's role.

    Raises:
        InputError: a variable cannot be used, or no credentials are found.
    """
    for name in IN_HEADERS:
        if not re.fullmatch(r"[!-~]*", os.environ.get(name, "")):
            raise InputError(
                f"{name} has a space, a line break or another character that cannot be in it: set it again"
            )
    for name in ENDPOINTS:
        if os.environ.get(name) == "":
            raise InputError(f"{name} is empty: set or unset it")
    if needs_role and is_metadata_disabled():
        raise InputError(explain_no_credentials())
    if needs_role and "AWS_ACCESS_KEY_ID" in os.environ:
        raise InputError("AWS_ACCESS_KEY_ID is empty: set it, or unset it where the instance's role is meant")


def read_certificates() -> bytes | None:
    """Return the certificates (PEM) that AWS_CA_BUNDLE names; None if it is not set. (obstore reads SSL_CERT_FILE.)

    Raises:
        InputError: the file cannot be read, or holds no certificates.
    """
    path = os.environ.get("AWS_CA_BUNDLE")
    if not path:
        return None
    try:
        ssl.create_default_context(cafile=path)  # obstore ignores what is not a certificate
        return Path(path).read_bytes()
    except OSError as error:
        cause = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise InputError(f"AWS_CA_BUNDLE={path} cannot be used ({cause}): give a file of certificates (PEM)") from None


def find_endpoint() -> str | None:
    """Return the endpoint that the environment names; None for AWS itself.

    Raises:
        InputError: it is not a URL.
    """
    name = next((each for each in ENDPOINTS if os.environ.get(each)), None)
    if name is None:
        return None
    endpoint = os.environ[name]
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not re.fullmatch(r"[!-~]+", endpoint):
        raise InputError(f"{name} must be a URL such as https://HOST:PORT, got {hide_secrets(endpoint)}")
    return endpoint


def find_region(of_profile: str | None = None) -> str:
    """Return the region: of the environment, of a profile, of this EC2 instance, or us-east-1."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or of_profile
    if named or find_endpoint() is not None or is_metadata_disabled():
        return named or DEFAULT_REGION
    return find_own_region() or DEFAULT_REGION


def has_credentials() -> bool:
    """Return True if the environment names credentials other than a profile or the instance's role."""
    return any(os.environ.get(name) for name in OTHER_CREDENTIALS)


def is_metadata_disabled() -> bool:
    """Return True if the user forbids requests to EC2's metadata service."""
    return os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"


def find_profile_credentials() -> Any:
    """Return boto3's credentials of a profile; None if none is meant.

    Raises:
        InputError: a profile has the credentials, and boto3 is missing or cannot read it.
    """
    profile = os.environ.get("AWS_PROFILE")
    if has_credentials() or not (profile or is_profile_there("default")):
        return None
    shown = profile or "default"
    try:
        import boto3  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - not a dependency of ours
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
    except ImportError:
        raise InputError(
            f"the credentials are in the profile {shown}, which only boto3 can read: run `{EXPORT}`, or install boto3"
        ) from None
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=profile))
    except Exception as error:
        cause = hide_secrets(str(error))[:MAX_CHARACTERS]
        raise InputError(
            f"the profile {shown} has no credentials that boto3 can use ({cause}): "
            "`aws sts get-caller-identity` must work first"
        ) from None


def is_profile_there(name: str) -> bool:
    """Return True if the files of ~/.aws hold credentials of a profile."""
    home = Path.home() / ".aws"
    for variable, default, section in (
        ("AWS_SHARED_CREDENTIALS_FILE", home / "credentials", name),
        ("AWS_CONFIG_FILE", home / "config", name if name == "default" else f"profile {name}"),
    ):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            parser.read(os.environ.get(variable) or default)
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        if parser.has_section(section) and PROFILE_KEYS & set(parser.options(section)):
            return True
    return False


@cache
def find_own_region() -> str | None:
    """Return the region of this EC2 instance; None elsewhere. The answer is kept for the life of the process."""
    return ask_metadata("/latest/meta-data/placement/region")
