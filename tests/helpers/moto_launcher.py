"""moto's server with three parts of IAM that moto leaves out. moto_server.py starts it, in moto's environment.

* A condition on `s3:prefix` (StringLike) is compared with the prefix of a listing. A statement whose condition does not
  hold says nothing; a request without a prefix has no such key, so that the condition does not hold.
* To delete several objects in one request, each of them must be allowed, as on S3. moto looks at the bucket alone.
* An object that does not exist can be told from one that is forbidden only by who may list the bucket, without a
  condition: S3 answers 403 to others.
"""

from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

from moto.iam import access_control  # pyright: ignore[reportMissingImports]
from moto.s3.models import s3_backends  # pyright: ignore[reportMissingImports]
from moto.server import main  # pyright: ignore[reportMissingImports]

Statement, Result = access_control.IAMPolicyStatement, access_control.PermissionResult
is_permitted_without_conditions = Statement.is_action_permitted


def is_action_permitted(
    self: Any, action: str, resource: str = "*", principal: Any = None, values: dict[str, str] | None = None
) -> Any:
    """Return what a statement says about an action, with its conditions; `values` are the request's keys."""
    if values is not None:
        for key, patterns in self._statement.get("Condition", {}).get("StringLike", {}).items():
            wanted = [patterns] if isinstance(patterns, str) else patterns
            if key not in values or not any(fnmatchcase(values[key], pattern) for pattern in wanted):
                return Result.NEUTRAL
    return is_permitted_without_conditions(self, action, resource, principal)


def check_action_permitted(self: Any, resource: str) -> None:
    """Raise AccessDenied unless a policy permits the action on each resource, and none denies it."""
    query = parse_qs(urlsplit(self._path).query, keep_blank_values=True)
    values = {"s3:prefix": query["prefix"][0]} if "prefix" in query else {}
    wanted = [(self._action, resource)]
    if self._method == "POST" and "delete" in query:
        keys = ElementTree.fromstring(self._body).iterfind("{*}Object/{*}Key")
        wanted = [(self._action, f"{resource}/{key.text}") for key in keys]
    elif self._action == "s3:GetObject":
        bucket, _, key = resource.removeprefix("arn:aws:s3:::").partition("/")
        if s3_backends[self.account_id]["aws"].get_object(bucket, key) is None:
            wanted.append(("s3:ListBucket", f"arn:aws:s3:::{bucket}"))
    policies = [access_control.IAMPolicy(policy) for policy in self._access_key.collect_policies()]
    for action, each in wanted:
        answers = {policy.is_action_permitted(action, each, None, values) for policy in policies}
        if Result.DENIED in answers or Result.PERMITTED not in answers:
            self._raise_access_denied()


if __name__ == "__main__":
    Statement.is_action_permitted = is_action_permitted
    access_control.S3IAMRequest.check_action_permitted = check_action_permitted
    main()
