"""Serve an exported model: galleries of its mistakes, a report, a web page, and a Hugging Face Space.

This package reads files alone: the artifact that train/export.py writes, and labelled images. It imports neither train
nor loaders nor DALI, so that an assembled Space needs none of them; of prep it imports the modules that all packages
share (prep.errors, prep.files, prep.calibration, prep.preprocess).
"""

DEFAULT_ARCHITECTURE = "resnet50d"  # timm's name for the network of bare weights
