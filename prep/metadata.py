"""Ask EC2's metadata service (IMDSv2: a token first) about the instance on which this process runs.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
The requests use no proxy, since the service is on the machine itself.
"""

import http.client
import os
from urllib.parse import urlsplit

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # environment variable of its address, as boto3 reads it
DEFAULT_ENDPOINT = "http://169.254.169.254"
TOKEN = "/latest/api/token"
ANSWER_SECONDS = 2.0  # to wait for an answer


def find_endpoint() -> str:
    """Return the address of the metadata service."""
    return os.environ.get(ENDPOINT) or DEFAULT_ENDPOINT


def find_token() -> str | None:
    """Return a token for the next request; None if no metadata service answers."""
    return _request("PUT", TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": "60"})


def ask_metadata(path: str) -> str | None:
    """Return what the metadata service has under a path; None if it has nothing there or does not answer."""
    token = find_token()
    return None if token is None else _request("GET", path, {"X-aws-ec2-metadata-token": token})


def _request(method: str, path: str, headers: dict[str, str]) -> str | None:
    """Return the text of an answer with status 200, else None."""
    connection = None
    try:
        connection = http.client.HTTPConnection(urlsplit(find_endpoint()).netloc, timeout=ANSWER_SECONDS)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        return text if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        if connection is not None:
            connection.close()
