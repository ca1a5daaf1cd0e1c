# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# (DALI builds its operators at run time; its stubs do not describe them)
"""The augmentation operations as a part of DALI's graph, on a GPU and, for tests, on the CPU.

Each image runs only through the branch of its operation. The operations follow the arithmetic of Pillow
(loaders/reference.py), which truncates where DALI's own operators round; docs/loading.md lists the differences that
remain. Every branch has the same three inputs: images, argument, matrix.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali
from nvidia.dali.auto_aug.core import select

from loaders.augment import FILL, Op
from loaders.plan import Plan

GREY = np.array([19595, 38470, 7471], np.int32)  # Pillow's weights of red, green and blue, in 65,536ths
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # PIL.ImageFilter.SMOOTH
EPSILON = 1 / 1024  # larger than float32's errors: keeps 3.9999 from being truncated to 3 where 4 is meant
# The element of the affine matrix that holds the operation's argument.
AFFINE_PARTS = {Op.SHEAR_X: (0, 1), Op.SHEAR_Y: (1, 0), Op.TRANSLATE_X: (0, 2), Op.TRANSLATE_Y: (1, 2)}


def augment_arrays(plan: Plan) -> list[np.ndarray]:
    """Return the graph's inputs for a batch: branches, arguments, and matrices from output to source pixels.

    Returns:
        int32 [B, L], float32 [B, L] and float32 [B, L, 2, 3]; the matrix is the identity for all operations except
        rotations, shears and translations.
    """
    branches_BL = np.empty(plan.ops_BL.shape, np.int32)
    for op, lowering in DALI_OPS.items():
        branches_BL[plan.ops_BL == op] = BRANCHES.index(lowering)
    matrices_BL23 = np.tile(np.eye(2, 3, dtype=np.float32), (*plan.ops_BL.shape, 1, 1))
    for op, (i, j) in AFFINE_PARTS.items():
        is_op_BL = plan.ops_BL == op
        matrices_BL23[is_op_BL, i, j] = plan.arguments_BL[is_op_BL]
    for b, layer in np.argwhere(plan.ops_BL == Op.ROTATE):
        matrices_BL23[b, layer] = _rotation(plan.arguments_BL[b, layer], plan.size / 2)
    return [branches_BL, plan.arguments_BL.astype(np.float32, "C"), matrices_BL23]


def _rotation(degrees: float, centre: float) -> np.ndarray:
    """Return the matrix that PIL.Image.rotate uses."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin, centre * (1 - cos + sin)], [sin, cos, centre * (1 - sin - cos)]])


def apply_ops(images: Any, branches: Any, arguments: Any, matrices: Any, num_layers: int) -> Any:
    """Return uint8 HWC images after all their operations.

    The pipeline must be defined with `enable_conditionals=True`: DALI's `select` then runs each branch for its images.

    Args:
        branches: with `arguments` and `matrices` the arrays of `augment_arrays`, on the CPU.
    """
    for layer in range(num_layers):
        argument = arguments[layer].gpu() if images.device == "gpu" else arguments[layer]
        images = select(BRANCHES, branches[layer], images, argument, matrices[layer])
    return images


def _identity(images: Any, argument: Any, matrix: Any) -> Any:
    return images


def _auto_contrast(images: Any, argument: Any, matrix: Any) -> Any:
    values = fn.cast(images, dtype=types.INT32)
    low = fn.reductions.min(values, axis_names="HW", keep_dims=True)
    high = fn.reductions.max(values, axis_names="HW", keep_dims=True)
    is_flat = high == low
    stretched = (values - low) * 255 // (high - low + is_flat)
    return fn.cast(stretched * (high > low) + values * is_flat, dtype=types.UINT8)


def _equalize(images: Any, argument: Any, matrix: Any) -> Any:
    """Equalize as Pillow does, by an operator that follows OpenCV.

    Pillow's table counts the pixels below a value, in steps of a whole number of pixels. OpenCV's, and so DALI's,
    counts the pixels up to and including a value, in exact 255ths of the total. With the image inverted before and
    after, it counts the pixels below the value; the rest of the function repeats Pillow's rounding.
    """
    below = _invert(fn.equalize(_invert(images, argument, matrix)), argument, matrix)  # 255ths of the total
    is_highest = images == fn.reductions.max(images, axis_names="HW", keep_dims=True)
    total = fn.reductions.sum(fn.cast(is_highest ^ True, dtype=types.INT32), axis_names="HW", keep_dims=True)
    step = total // 255
    is_stepped = step > 0
    equalized = ((below * total + 127) // 255 + step // 2) // dali.max(step, 1)
    return fn.cast(is_stepped * dali.min(equalized, 255) + (is_stepped ^ True) * images, dtype=types.UINT8)


def _invert(images: Any, argument: Any, matrix: Any) -> Any:
    return types.Constant(255, dtype=types.UINT8) - images


def _posterize(images: Any, argument: Any, matrix: Any) -> Any:
    step = fn.cast(dali.pow(2.0, 8.0 - argument), dtype=types.INT32)
    return fn.cast(images // step * step, dtype=types.UINT8)


def _solarize(images: Any, argument: Any, matrix: Any) -> Any:
    return fn.cast(images + (images >= argument) * (255 - 2 * images), dtype=types.UINT8)


def _solarize_add(images: Any, argument: Any, matrix: Any) -> Any:
    return fn.cast(dali.min(255, images + (images < 128) * argument), dtype=types.UINT8)


def _color(images: Any, argument: Any, matrix: Any) -> Any:
    return _blend(_grey(images), images, argument)


def _contrast(images: Any, argument: Any, matrix: Any) -> Any:
    mean = fn.reductions.mean(fn.cast(_grey(images), dtype=types.FLOAT), axis_names="HW", keep_dims=True)
    return _blend(dali.floor(mean + 0.5), images, argument)


def _brightness(images: Any, argument: Any, matrix: Any) -> Any:
    return _blend(0, images, argument)


def _sharpness(images: Any, argument: Any, matrix: Any) -> Any:
    """Blend with the smoothed image. Pillow leaves the outermost pixels, where 3 x 3 does not fit."""
    smooth = fn.filter(images, types.Constant(SMOOTH, device=images.device), dtype=types.UINT8)
    ones = types.Constant(np.ones((3, 3), np.float32), device=images.device)
    is_inside = fn.filter(_whiten(images), ones, border="constant", dtype=types.FLOAT) > 8.5 * 255
    return _blend(images + is_inside * (smooth - fn.cast(images, dtype=types.INT32)), images, argument)


def _warp(images: Any, argument: Any, matrix: Any) -> Any:
    """Warp as Pillow does: the outermost pixels are repeated up to the image's edge, and outside is the fill colour."""
    warped = fn.warp_affine(images, matrix=matrix, dtype=types.FLOAT)
    is_inside = fn.warp_affine(_whiten(images), matrix=matrix, interp_type=types.INTERP_NN, fill_value=0) > 0
    fill = types.Constant(np.array(FILL, np.int32), device=images.device)
    return _truncate(fill + is_inside * (warped + EPSILON - fill))


def _whiten(images: Any) -> Any:
    return images | types.Constant(255, dtype=types.UINT8)


def _grey(images: Any) -> Any:
    """Return int32 [H, W, 1], as Pillow converts to L."""
    weighted = images * types.Constant(GREY, device=images.device)
    return (fn.reductions.sum(weighted, axis_names="C", keep_dims=True) + (1 << 15)) // (1 << 16)


def _blend(others: Any, images: Any, share: Any) -> Any:
    """Blend as PIL.Image.blend does."""
    return _truncate(others + share * (images - others))


def _truncate(values: Any) -> Any:
    return fn.cast(dali.floor(dali.clamp(values, 0.0, 255.0)), dtype=types.UINT8)


DALI_OPS: dict[Op, Callable[[Any, Any, Any], Any]] = {
    Op.IDENTITY: _identity,
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: _invert,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.COLOR: _color,
    Op.CONTRAST: _contrast,
    Op.BRIGHTNESS: _brightness,
    Op.SHARPNESS: _sharpness,
    **dict.fromkeys((Op.ROTATE, *AFFINE_PARTS), _warp),
}
BRANCHES = list(dict.fromkeys(DALI_OPS.values()))
