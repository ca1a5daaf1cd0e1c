"""Write the model card, README.md of an export: what the weights are, and their measured accuracy."""

import json
from collections.abc import Mapping

from huggingface_hub import EvalResult, ModelCardData

from prep.errors import list_some
from train.artifact import Accuracy, Provenance, put_in_words
from train.config import NOT_COMPARED, Recipe
from train.model import size_options
from train.portable import Kind, PortableFile

LICENSE = "apache-2.0"
TITLES: dict[Kind, str] = {"onnx": "ONNX", "torch_export": "torch.export"}
WORDS = {"ema": "the averaged (EMA) weights", "model": "the weights as trained, not averaged"}


def write_card(facts: Provenance, portable: Mapping[Kind, PortableFile]) -> str:
    """Return the card as Markdown, with the front matter that the hub reads."""
    sections = [
        f"---\n{_describe_for_hub(facts).to_yaml()}\n---",
        f"# {facts.recipe.model.name}, {facts.recipe.name}",
        f"An image classifier trained with Penstock: {WORDS[facts.which]} after {facts.clock:,} images.",
        f"## Accuracy\n\n{_describe_accuracy(facts)}",
        f"## Use\n\n{_describe_use(facts.recipe)}",
        *(f"## {TITLES[kind]}\n\n{_describe_portable(file, facts.recipe)}" for kind, file in portable.items()),
        f"## Data\n\n{_describe_data(facts)}",
        f"## Recipe\n\n```json\n{_show_recipe(facts.recipe)}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_for_hub(facts: Provenance) -> ModelCardData:
    is_on_hub = facts.source is not None and facts.source.name.count("/") == 1
    is_timms = not facts.recipe.model.blur_first
    results = _list_results(facts.accuracy)
    return ModelCardData(
        license=LICENSE,
        library_name="timm" if is_timms else None,  # the hub then shows how timm loads it
        pipeline_tag="image-classification",
        tags=["image-classification", *(["timm"] if is_timms else [])],
        datasets=[facts.source.name] if facts.source and is_on_hub else None,
        metrics=["accuracy"],
        model_name=f"{facts.recipe.model.name}.{facts.recipe.name}" if results else None,
        eval_results=results,
    )


def _list_results(accuracy: Accuracy | None) -> list[EvalResult] | None:
    """Return the figures in the hub's form, which requires the name of the dataset; None without it."""
    if accuracy is None or accuracy.dataset is None:
        return None
    figures = {"top-1 accuracy, percent": accuracy.top1, "top-5 accuracy, percent": accuracy.top5}
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=accuracy.dataset,
            dataset_name=accuracy.dataset,
            dataset_split=accuracy.split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=value,
        )
        for name, value in figures.items()
    ]


def _describe_accuracy(facts: Provenance) -> str:
    accuracy, transform = facts.accuracy, facts.recipe.evaluation
    if accuracy is None:
        return "Not measured."
    dataset = f"{accuracy.dataset}, " if accuracy.dataset else ""
    images = f"{accuracy.num_images:,} images of {dataset}split {accuracy.split}"
    damaged = f" ({accuracy.num_damaged:,} that cannot be decoded count as wrong)" if accuracy.num_damaged else ""
    pixels = f"short side resized to {transform.resize} pixels, {transform.size} cropped from the center"
    return f"On {images}{damaged}, one crop each, {pixels}:\n\n{_make_table(accuracy)}"


def _make_table(accuracy: Accuracy) -> str:
    lines = [
        "| | |\n|---|---|",
        f"| top-1 | {accuracy.top1:.2f}% ({accuracy.num_top1:,} images) |",
        f"| top-5 | {accuracy.top5:.2f}% ({accuracy.num_top5:,} images) |",
        f"| cross-entropy | {accuracy.loss:.4f} nats |",
    ]
    if accuracy.ece_percent is not None:
        lines.append(f"| expected calibration error, 15 bins | {accuracy.ece_percent:.2f}% |")
    return "\n".join(lines)


def _describe_use(recipe: Recipe) -> str:
    transform = recipe.evaluation
    return f"""{_show_blurred_use(recipe) if recipe.model.blur_first else TIMMS_USE}

The transform resizes the short side to {transform.resize} pixels (bilinear, antialiased), crops {transform.size} from
the center and normalizes with mean {list(recipe.model.mean)} and std {list(recipe.model.std)}. `artifact.json` holds
the same settings, and logits with which to check a server."""


TIMMS_USE = """```python
import timm
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("local-dir:DIR", pretrained=True).eval()  # DIR: this folder; from the hub "hf-hub:OWNER/NAME"
transform = create_transform(**resolve_model_data_config(model))
logits = model(transform(image.convert("RGB"))[None])
```"""


def _show_blurred_use(recipe: Recipe) -> str:
    """Return how to load a network with blur: with timm and nothing of ours, since the kernels are saved."""
    options = "".join(f", {name}={value}" for name, value in size_options(recipe.model, recipe.image_sizes()).items())
    return f"""The network blurs before each convolution that has a stride and at least 16 input channels (BlurPool,
arXiv 1904.11486). timm has no setting for it and refuses this folder, so these lines add the blurs; their kernels are
saved with the weights.

```python
import json
from pathlib import Path

import timm
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from torch.nn import functional

folder = Path("DIR")  # this folder; from the hub Path(huggingface_hub.snapshot_download("OWNER/NAME"))
config = json.loads((folder / "config.json").read_text())
weights = load_file(folder / "model.safetensors")
model = timm.create_model("{recipe.model.name}", num_classes=config["num_classes"]{options}).eval()


def blur(convolution, inputs):
    return functional.conv2d(inputs[0], convolution.blur_kernel, padding=1, groups=convolution.in_channels)


for name, kernel in weights.items():
    if name.endswith(".blur_kernel"):
        convolution = model.get_submodule(name.removesuffix(".blur_kernel"))
        convolution.register_buffer("blur_kernel", kernel)
        convolution.register_forward_pre_hook(blur)
model.load_state_dict(weights)
transform = create_transform(**resolve_data_config(pretrained_cfg=config["pretrained_cfg"]))
logits = model(transform(image.convert("RGB"))[None])
```

With Penstock: `load_artifact(Path("DIR")).model` of `serve.artifact`."""


def _describe_portable(file: PortableFile, recipe: Recipe) -> str:
    """Return how to use a file that runs without timm, and how its logits were compared."""
    size = recipe.evaluation.size
    made = f"opset {file.opset}" if file.opset else f"of PyTorch {file.torch}"
    return f"""`{file.file}` ({made}) computes `logits`, float32 [N, K] before softmax, from `images`, float32
[N, 3, {size}, {size}], for any N. It contains the settings of the transform and the class names.

{(ONNX_USE if file.opset else PROGRAM_USE).replace("NAME", file.file)}

{file.describe_comparison()}"""


ONNX_USE = """```python
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("DIR/NAME", providers=["CPUExecutionProvider"])
settings = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
image = Image.open("PICTURE").convert("RGB")
size = [settings["resize"] * side // min(image.size) for side in image.size]
left, top = (round((side - settings["crop"]) / 2) for side in size)
crop = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + settings["crop"], top + settings["crop"]))
pixels_HWC = (np.asarray(crop) / 255 - settings["mean"]) / settings["std"]
(logits,) = session.run(["logits"], {"images": pixels_HWC.transpose(2, 0, 1)[None].astype(np.float32)})
label = logits[0].argmax()
print(label, settings["class_names"] and settings["class_names"][label])
```"""

PROGRAM_USE = """```python
import json

import torch

extra = {"metadata.json": ""}
model = torch.export.load("DIR/NAME", extra_files=extra).module()
settings = json.loads(extra["metadata.json"])
logits = model(torch.zeros(1, 3, settings["crop"], settings["crop"]))
```"""


def _describe_data(facts: Provenance) -> str:
    if facts.source is None:
        return "The source of the data was not available when this was exported."
    classes = ""
    if facts.class_names:
        words = put_in_words(facts.class_names)
        shown = [words.get(name, name).split(",")[0] for name in facts.class_names]  # the first of several synonyms
        classes = f", {len(shown):,} classes: {list_some(shown)}"
    return f"{facts.source.name}, revision {facts.source.revision}, split {facts.recipe.data.train}{classes}."


def _show_recipe(recipe: Recipe) -> str:
    """Return what was trained, not where and how fast: JSON with one line per section."""
    fields = recipe.to_dict()
    data = {name: value for name, value in fields["data"].items() if name not in ("root", "cache")}
    shown = {name: value for name, value in fields.items() if name not in NOT_COMPARED} | {"data": data}
    return "{\n " + ",\n ".join(f'"{name}": {json.dumps(value)}' for name, value in shown.items()) + "\n}"
