"""Find the slow tests by what they do: they start a process or run a command. `make check` leaves them out.

Also the order in which files run, and the files that one worker of pytest-xdist runs together.
"""

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

# Names of modules, functions and classes that start processes, run whole commands or train.
STARTERS = frozenset(
    ["subprocess", "runpy", "Popen", "Ranks", "sync_playwright", "run_here", "run_hub", "serving", "learn"]
)
# Files of tests that take seconds each without a process: they train, compile, export or compare whole datasets.
SLOW_FILES = frozenset(
    [
        *("test_bare", "test_commands", "test_foreign_file_systems", "test_model_families"),
        *("test_determinism", "test_hostile_layouts", "test_object_store", "test_ray", "test_readers", "test_remote"),
        *("test_restart_shards", "test_roots", "test_s3", "test_segment_files", "test_stage"),
        *("test_tables_hostile", "test_verify"),
        *("test_adapter", "test_augment", "test_augment_dali", "test_launchers", "test_leaks", "test_parity"),
        *("test_through", "test_through_failures", "test_through_splices", "test_through_training"),
        *("test_augment_backends", "test_geometry", "test_gpu_graph", "test_quarantine", "test_strips"),
        *("test_splice", "test_splice_dali", "test_splice_harm", "test_splice_photographs"),
        *(
            "test_blur",
            "test_curves",
            "test_damaged_data",
            "test_data_parts",
            "test_elastic_nodes",
            "test_elastic_runs",
        ),
        *("test_evaluate", "test_evaluate_units", "test_export", "test_fused", "test_graphs", "test_guard"),
        *("test_export_portable", "test_models", "test_optim"),
        *("test_mirror", "test_mirror_store", "test_mirror_trouble"),
        *(
            "test_preemption",
            "test_resume",
            "test_speed",
            "test_start",
            "test_training_refusals",
            "test_tuned_training",
        ),
        *(
            "test_app_api",
            "test_app_http",
            "test_app_queue",
            "test_app_soak",
            "test_browser",
            "test_cam",
            "test_gallery",
            "test_oracle",
            "test_outputs",
        ),
        *("test_publish", "test_publish_hub", "test_report", "test_report_browser", "test_served_blur", "test_staging"),
        *("test_architectures", "test_checkpoint_kinds", "test_hub_models", "test_reference_command"),
        *("test_certify", "test_gpu_model", "test_gpu_model_kernels", "test_gpu_suite", "test_gpu_suite_cases"),
        "test_gpu_speed",
        *("test_compare", "test_prepare", "test_throughput", "test_throughput_placement"),
        *("test_throughput_stages", "test_tune_measured", "test_prove", "test_restart_records"),
        *("test_nvme", "test_policy", "test_policy_run", "test_run_script", "test_setup_script", "test_spot_run"),
        *("test_spot_stack", "test_templates"),
    ]
)
# Files that share one S3 server, so that one worker runs them.
SAME_WORKER = {
    "test_ray": "object store",
    "test_object_store": "object store",
    "test_stage": "object store",
    "test_remote": "object store",
    "test_s3": "object store",
    "test_mirror": "mirror",
    "test_mirror_store": "mirror",
    "test_mirror_trouble": "mirror",
    "test_through": "object store",
    "test_through_failures": "object store",
    "test_through_splices": "object store",
    "test_through_training": "object store",
    "test_spot_run": "mirror",
    "test_app_http": "app",
    "test_app_queue": "app",
    "test_app_soak": "app",
    "test_browser": "app",
}
# The files that take longest, in the order in which they start.
LONGEST = (
    *("test_preemption", "test_ray", "test_object_store", "test_elastic_nodes", "test_commands", "test_bare"),
    *("test_spot_run", "test_fused", "test_stage", "test_policy_run", "test_through"),
    *("test_mirror", "test_mirror_trouble", "test_mirror_store"),
    *("test_compare", "test_throughput", "test_state", "test_app_http", "test_evaluate", "test_damaged_data"),
    *("test_launchers", "test_prepare", "test_adapter", "test_publish", "test_training_refusals"),
    *("test_app_queue", "test_parity", "test_models", "test_tune_measured", "test_certify", "test_gpu_model"),
    *("test_run_script", "test_templates"),
)


def is_slow(item: pytest.Item) -> bool:
    """Return True if a test, one of its fixtures, or a function of tests/ that these call, starts a process."""
    if item.path.stem in SLOW_FILES:
        return True
    if not isinstance(item, pytest.Function):
        return False
    fixtures = [each.func for found in item._fixtureinfo.name2fixturedefs.values() for each in found]
    return any(reaches_starter(function, set()) for function in (item.function, *fixtures))


def reaches_starter(function: Any, seen: set[CodeType]) -> bool:
    """Return True if a function uses a name of STARTERS, itself or through functions of tests/."""
    if (
        not isinstance(function, FunctionType)
        or function.__code__ in seen
        or "/tests/" not in function.__code__.co_filename
    ):
        return False
    seen.add(function.__code__)
    names = set(list_names(function.__code__))
    return bool(names & STARTERS) or any(reaches_starter(function.__globals__.get(name), seen) for name in names)


def list_names(code: CodeType) -> Iterator[str]:
    """Yield the global names and attributes that a function uses, also in the functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from list_names(constant)
