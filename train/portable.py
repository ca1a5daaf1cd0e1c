"""Write a network as ONNX or as a program of torch.export, and compare its logits with the network's.

Such a file contains the operations as well as the weights, so it runs without timm and without this code: `model.onnx`
in ONNX Runtime, TensorRT, OpenVINO and others, `model.pt2` in PyTorch. For `train/export.py --onnx --torch-export`.

1. `trace_network` records the operations of one forward pass, for any number of images.
2. `write_onnx` and `write_program` write them with everything that is needed to prepare an image.
3. `compare_logits` reads the file back, and runs it on real images. If the logits differ, the export stops and nothing
   is written.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from prep.errors import InputError, one_line
from prep.files import sha256_of_file
from train.real_images import RealImages

Kind = Literal["onnx", "torch_export"]
Writer = Callable[[ExportedProgram, Path, Mapping[str, Any]], None]
Runner = Callable[[Path, torch.Tensor], torch.Tensor]

FLAGS: dict[Kind, str] = {"onnx": "--onnx", "torch_export": "--torch-export"}
INPUT, OUTPUT = "images", "logits"
# torch's exporter writes its operators in opset 18, and converts them for a newer one. Servers since 2023 read it.
OPSET = 18
MOST_BYTES = 2_000_000_000  # of weights in one ONNX file: protobuf's limit is 2 GiB
SIDECAR = "metadata.json"  # in the archive model.pt2
# Relative to the largest logit. In float32 another order of summing changes logits by 2e-7 to 3e-6 (measured for
# ResNet, ResNeXt, ViT, EfficientNet and ConvNeXt); weights in half precision change them by 1.3e-3 (ResNet-50D).
TOLERANCE = 1e-4


@dataclass(frozen=True)
class PortableFile:
    """A file that was written and compared."""

    file: str  # its name
    sha256: str
    opset: int | None  # None: not ONNX
    torch: str  # version of PyTorch that wrote it
    largest_difference: float  # of its logits and the network's, relative to the largest logit
    tolerance: float
    num_images: int
    images: str  # which were compared

    def describe_comparison(self) -> str:
        """Return the result of the comparison as a sentence."""
        if self.largest_difference == 0:
            return f"The logits of {self.file} are equal to the network's, on {self.images}."
        share = f"{self.largest_difference:.1e} of the largest logit"
        return (
            f"The logits of {self.file} differ from the network's by at most {share} ({self.tolerance:.0e} allowed), "
            f"on {self.images}."
        )


def write_portable(
    folder: Path, kinds: Mapping[Kind, str], model: nn.Module, images: RealImages, metadata: Mapping[str, Any]
) -> dict[Kind, PortableFile]:
    """Write a file of each kind, and compare it with the network.

    Args:
        kinds: name of the file by its kind.
        model: in evaluation mode, on the CPU.
        metadata: stored in the files, each value as JSON.

    Raises:
        InputError: the network cannot be exported, or a file computes other logits.
        OSError: the disk failed.
    """
    program = trace_network(model, images.images_BCHW, list(kinds))
    written = {}
    for kind, name in kinds.items():
        write, run = WRITERS[kind]
        write(program, folder / name, metadata)
        written[kind] = PortableFile(
            file=name,
            sha256=sha256_of_file(folder / name),
            opset=OPSET if kind == "onnx" else None,
            torch=torch.__version__,
            largest_difference=compare_logits(folder / name, run, model, images),
            tolerance=TOLERANCE,
            num_images=len(images),
            images=images.source,
        )
    return written


def trace_network(model: nn.Module, images_BCHW: torch.Tensor, kinds: Sequence[Kind]) -> ExportedProgram:
    """Return the operations of a forward pass for images of this size and any number of them.

    Raises:
        InputError: they depend on the values or the number of images; the message names the flags of `kinds`.
    """
    # Two images, because torch.export treats a dimension of size 1 as a constant.
    example_BCHW = torch.zeros(2, *images_BCHW.shape[1:])
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example_BCHW,), dynamic_shapes=({0: Dim("N", min=1)},))
    except Exception as error:  # exporters raise all kinds of errors
        raise _cannot_export(kinds, error) from error

    # Remove the stack traces, which contain paths of this machine.
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def write_onnx(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a program as ONNX: `images` float32 [N, 3, H, W] to `logits` float32 [N, K], metadata in `metadata_props`.

    Raises:
        InputError: it has an operation that ONNX lacks, or more weights than one file can hold.
        OSError: the disk failed.
    """
    import onnx  # noqa: PLC0415 - of the extra `onnx`

    # Convert.
    num_bytes = sum(each.nbytes for each in program.state_dict.values())
    if num_bytes > MOST_BYTES:
        raise InputError(
            f"an ONNX file holds at most {MOST_BYTES / 1e9:.1f} GB of weights, and these are {num_bytes / 1e9:.1f} GB: "
            "leave out --onnx (--torch-export has no limit)"
        )
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=({0: Dim("N", min=1)},),
            external_data=False,
            verbose=False,
        )
        assert converted is not None
        proto = converted.model_proto
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # exporters raise all kinds of errors
        raise _cannot_export(["onnx"], error) from error

    # Add the metadata, and write.
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in metadata.items()})
    path.write_bytes(proto.SerializeToString(deterministic=True))


def write_program(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a program for torch.export.load, with the metadata as the extra file `metadata.json`."""
    torch.export.save(program, path, extra_files={SIDECAR: json.dumps(metadata)})


def run_onnx(path: Path, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the logits of an ONNX file, float32 [B, K], on the CPU with as many threads as torch."""
    import onnxruntime  # noqa: PLC0415 - of the extra `onnx`

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits_BK,) = session.run([OUTPUT], {INPUT: images_BCHW.numpy()})
    return torch.from_numpy(logits_BK)


def run_program(path: Path, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the logits of a file of `write_program`, float32 [B, K], on the CPU."""
    with torch.inference_mode():
        return torch.export.load(path).module()(images_BCHW)


WRITERS: dict[Kind, tuple[Writer, Runner]] = {
    "onnx": (write_onnx, run_onnx),
    "torch_export": (write_program, run_program),
}


def compare_logits(path: Path, run: Runner, model: nn.Module, images: RealImages) -> float:
    """Return the largest difference of two logits, relative to the largest logit of the network.

    All images are compared in one batch, and the first one alone.

    Args:
        run: returns the logits of the file for a batch.

    Raises:
        InputError: it is more than `TOLERANCE`.
    """
    largest = 0.0
    for images_BCHW in (images.images_BCHW, images.images_BCHW[:1]):
        with torch.inference_mode():
            logits_BK = model(images_BCHW)
        difference = (run(path, images_BCHW) - logits_BK).abs().max()
        share = float(difference / logits_BK.abs().max()) if difference != 0 else 0.0  # all logits may be 0
        # `not <=` also catches NaN.
        if not share <= TOLERANCE:
            raise InputError(
                f"{path.name} computes other logits than the network: expected a difference of at most "
                f"{TOLERANCE:.0e} of the largest logit, found {share:.2g} (on {images.source}). Nothing was written: "
                "install the versions in constraints.txt, or export without this file"
            )
        largest = max(largest, share)
    return largest


def _cannot_export(kinds: Sequence[Kind], error: Exception) -> InputError:
    reason = one_line(str(error))[:200] or type(error).__name__
    flags = " and ".join(FLAGS[kind] for kind in kinds)
    return InputError(f"torch {torch.__version__} cannot export this network ({reason}): leave out {flags}")
