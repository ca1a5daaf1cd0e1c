"""Tell obstore's errors in one line, without credentials.

obstore's own have up to 5,000 characters, with the server's XML, the key id and the string to sign in them.
"""

import html
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prep.errors import InputError, one_line

EXPORT = 'eval "$(aws configure export-credentials --format env)"'
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN", "AWS_ACCESS_KEY_ID")
REGION_SECONDS = 5.0  # to ask which region a bucket is in
MAX_CHARACTERS = 300  # of a store's own message
# What an action needs, for the line about a policy that forbids it.
PERMISSIONS = {
    "read": "s3:GetObject",
    "list": "s3:ListBucket",
    "write": "s3:PutObject",
    "delete": "s3:DeleteObject",
}
# What to do about the codes of S3 (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
FIXES = {
    "NoSuchBucket": "check the bucket's name",
    "InvalidBucketName": "check the bucket's name",
    "NoSuchKey": "check the prefix",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "ExpiredToken": f"the credentials have expired: get new ones ({EXPORT}), or use the instance's role",
    "InvalidToken": f"AWS_SESSION_TOKEN does not belong to the key: get new ones ({EXPORT})",
    "RequestTimeTooSkewed": "set this machine's clock (timedatectl set-ntp true)",
    "InvalidObjectState": "the object is archived (Glacier): restore it first",
}
TRANSIENT_CODES = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"}
TRANSIENT_STATUS = {408, 429, *range(500, 600)} - {501, 505}  # "not implemented" stays so
# Words of an error without an answer, the reason, and what to do. The URL, which is in the error, has no spaces.
REFUSED_TLS = "plain HTTP is used only where AWS_ENDPOINT_URL begins with http://"
TLS_PROBLEMS = {
    "BadScheme": ("the endpoint has no TLS", REFUSED_TLS),
    "InvalidContentType": ("the endpoint has no TLS", REFUSED_TLS),
    "InvalidCertificate(": (
        "the endpoint's TLS certificate is not trusted",
        "set AWS_CA_BUNDLE to the file of the certificate that signed it",
    ),
}
NO_ANSWER = {
    "dns error": "its name cannot be resolved",
    "kind: ConnectionRefused": "connection refused",
    "TimedOut": "timed out",
}


class ForbiddenError(InputError):
    """A request that a policy forbids, or one about an object that does not exist and whose absence is hidden."""


@contextmanager
def explain_errors(url: str, action: str, absent_passes: bool = False) -> Iterator[None]:
    """Raise the errors of obstore as an InputError of one line, a ForbiddenError if S3 answered 403.

    Args:
        url: of the object, or the prefix that is listed.
        action: read, list, write or delete.
        absent_passes: leave the FileNotFoundError of an object that does not exist as it is.
    """
    try:
        yield
    except Exception as error:
        if not is_of_obstore(error) or (absent_passes and is_absent(error)):
            raise
        is_forbidden = find_status(str(error)) == http.client.FORBIDDEN or find_code(str(error)) == "AccessDenied"
        kind = ForbiddenError if is_forbidden else InputError
        raise kind(describe_error(error, action, url)) from None


def is_of_obstore(error: BaseException) -> bool:
    """Return True for an error about an object or a request, and not about a local file."""
    from obstore.exceptions import BaseError  # noqa: PLC0415 - an extra

    # Some of obstore's errors are OSErrors. Those of the operating system have a number, or no word of a store.
    is_request = isinstance(error, OSError) and error.errno is None
    return isinstance(error, BaseError) or (
        is_request and re.search("S3 error|Object at location|Error performing", str(error)) is not None
    )


def is_absent(error: BaseException) -> bool:
    """Return True if an object does not exist; False if its bucket does not."""
    return isinstance(error, FileNotFoundError) and find_code(str(error)) != "NoSuchBucket"


def is_transient(error: BaseException) -> bool:
    """Return True if the same request may succeed later: no answer, a server's own fault, too many requests."""
    text = str(error)
    status, code = find_status(text), find_code(text)
    if is_about_credentials(text) or find_words(text, TLS_PROBLEMS):
        return False
    return status in TRANSIENT_STATUS or code in TRANSIENT_CODES or (not (status or code) and "HTTP error" in text)


def is_about_credentials(text: str) -> bool:
    """Return True if obstore asked for the credentials of this instance's role, and there were none."""
    return "/latest/api/token" in text or "/latest/meta-data/iam" in text


def find_status(text: str) -> int | None:
    """Return the HTTP status in an error of obstore; None if there was no answer."""
    if "redirect without LOCATION" in text:  # S3's answer for a bucket of another region
        return http.client.MOVED_PERMANENTLY
    found = re.search(r"non-2xx status code: (\d+)", text)
    return int(found[1]) if found else None


def find_code(text: str) -> str | None:
    """Return S3's code in an error of obstore, such as NoSuchBucket."""
    found = re.search(r"<Code>(\w+)</Code>|\(code: (\w+)\)", text)
    return found[1] or found[2] if found else None


def find_words(text: str, table: dict[str, Any]) -> Any:
    """Return the value of the first key that occurs in a text; None if none does."""
    return next((value for words, value in table.items() if words in text), None)


def describe_error(error: BaseException, action: str, url: str) -> str:
    """Return an error of obstore in one line: what, S3's code, what to do.

    Args:
        action: read, list, write or delete.
        url: of the object, or the prefix that was listed.
    """
    done = {"read": "read", "list": "listed", "write": "written", "delete": "deleted"}[action]
    reason, fix = explain_error(str(error), action, url.removeprefix("s3://").partition("/")[0])
    return f"{url} cannot be {done} ({reason}): {fix}"


def explain_error(text: str, action: str, bucket: str) -> tuple[str, str]:
    """Return the reason for an error of obstore and what to do about it."""
    code, status = find_code(text), find_status(text)

    # There was no answer of S3.
    if is_about_credentials(text):
        return "no credentials", explain_no_credentials()
    if problem := find_words(text, TLS_PROBLEMS):
        return problem
    if status is None and code is None:
        return find_reason(text), "check the network and AWS_ENDPOINT_URL"

    # What the code, or the status without one, means.
    message = re.search(r"<Message>(.*?)</Message>|request failed for key .*?: (.*) \(code: ", text, re.DOTALL)
    said = hide_secrets(html.unescape(message[1] or message[2] or ""))[:MAX_CHARACTERS].rstrip(".") if message else ""
    reason, fix = f"{code or status}", "check the bucket, the credentials, the region and the network"
    if region := find_right_region(text, bucket, status):
        return reason, f"the bucket is in the region {region}: set AWS_REGION={region}"
    if code in FIXES:
        fix = FIXES[code]
    elif status == http.client.FORBIDDEN or code == "AccessDenied":
        other = ", or it does not exist and listing is not allowed either" if action == "read" else ""
        fix = f"the policy must allow {PERMISSIONS[action]} there{other}"
    return f"{reason}: {said}" if said else reason, fix


def find_reason(text: str) -> str:
    """Return why there was no answer, or none that obstore understands."""
    if reason := find_words(text, NO_ANSWER):
        return f"no answer, {reason}"
    if "HTTP error" in text:
        return "no answer, connection lost"
    return hide_secrets(text.partition("\n")[0])[:MAX_CHARACTERS].rstrip(".")


def find_right_region(text: str, bucket: str, status: int | None) -> str | None:
    """Return the region of a bucket if an error says that another one was asked, None for other errors."""
    if named := re.search(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'", text):
        return named[1] or named[2]
    if status not in (http.client.MOVED_PERMANENTLY, http.client.TEMPORARY_REDIRECT):
        return None
    # S3 names the region in the header of any answer about the bucket, without credentials too.
    endpoint = re.search(r"https?://[^/\s]+", text)
    if not endpoint:
        return None
    address = f"{endpoint[0]}/{bucket}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REGION_SECONDS) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
    except (OSError, ValueError):
        return None
    region = headers.get("x-amz-bucket-region", "")
    return region if re.fullmatch(r"[\w-]+", region) else None


def explain_no_credentials() -> str:
    """Return what to do where no credentials are found."""
    return (
        "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the EC2 instance a role, "
        f"or, for a profile, run `{EXPORT}`"
    )


def hide_secrets(text: str) -> str:
    """Return a text in one line without credentials: values of the environment, key ids, signatures of signed URLs."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    text = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", "***", text)
    text = re.sub(r"(?i)(X-Amz-(?:Credential|Signature|Security-Token)\W{1,3})[^&\s\"'<>]+", r"\1***", text)
    return one_line("".join(each if each.isprintable() else " " for each in text))
