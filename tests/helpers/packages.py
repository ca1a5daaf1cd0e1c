"""Optional packages: tests that need a missing one are skipped."""

from importlib.util import find_spec

# Packages that a bare GPU machine lacks, or has only from a pack. A test that needs one of them is skipped where it is
# missing; an installed checkout has all of them (tests/test_environment.py). The list names "nvidia.dali" and not
# "nvidia", because torch brings a package `nvidia`.
OPTIONAL = frozenset(
    [
        *("braceexpand", "captum", "datasets", "fastapi", "gradio", "httpx", "nvidia.dali", "playwright"),
        *(
            "obstore",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "pytorch_grad_cam",
            "ray",
            "simplejpeg",
            "starlette",
            "swift",
            "tyro",
            "uvicorn",
            "webdataset",
        ),
    ]
)


def find_missing(error: BaseException | None) -> str | None:
    """Return the optional package whose absence raised the error, directly or at the start of a chain of errors."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
            return error.name
        error = error.__cause__ or error.__context__
    return None


def is_installed(package: str) -> bool:
    """Return True if a module of this name can be found."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even its parent
        return False
