# Three commands from a bare clone: `make demo`, `make check` and `make test`. Each builds its environment first.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
# The extras of pyproject.toml in .venv. A GPU machine needs fewer: make env EXTRAS=cu13,s3
INSTALLED := $(shell cat .venv/.extras 2>/dev/null || echo app,cu12,dev)
EXTRAS ?= $(INSTALLED)
# Two workers; each takes one file after another, the longest first (tests/conftest.py).
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: env always demo check test soak clean

env: .venv/.installed

# Other extras need a new environment: the packages of cu12 and cu13 own the same folder.
ifneq ($(EXTRAS),$(INSTALLED))
.venv/.installed: always
always:
CLEAR := --clear
endif

.venv/.installed: pyproject.toml constraints.txt prep/_transcode.c loaders/_read.c
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "error: Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(CLEAR) .venv
	@echo $(EXTRAS) > .venv/.extras
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: env
	$(BIN)/python prep/digits.py --out data/digits-source
	$(BIN)/python prep/shard.py --source data/digits-source --out data/digits
	$(BIN)/torchrun train/main.py demo --data.root data/digits --run.dir $(RUN)
	$(BIN)/python train/curves.py $(RUN) --out $(RUN)/curves.png
	$(BIN)/python train/export.py $(RUN) --out $(RUN)/artifact
	$(BIN)/python serve/gradcam_viz.py --checkpoint_path $(RUN)/artifact --validation_img_path data/digits/validation --all --output_path $(RUN)/gallery.png
	@echo "TensorBoard's logs: $(RUN)/tensorboard (look with: $(BIN)/tensorboard --logdir $(RUN)); curves: $(RUN)/curves.png"
	@echo "mistakes first, and where the model looked: $(RUN)/gallery.png; try it: $(BIN)/python serve/app.py --artifact $(RUN)/artifact"

# Under a minute: run it before each commit. It leaves out the tests that start processes (tests/helpers/slow.py).
check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m "not slow"

# Everything: about 14 minutes on two cores.
test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(PYTEST) --durations 10

# The same tests with many more cases, and tests that are too long for `make test`. With a folder of photographs,
# `make soak PHOTOS=DIR`, also the proofs that throughput.py names the right bottleneck and that --tune does no harm.
soak: env
	PENSTOCK_SOAK_KILLS=50 PENSTOCK_SOAK_FLIPS=400 $(BIN)/pytest tests/prep/test_crash.py tests/prep/test_verify.py
	PENSTOCK_SOAK_STAGE_KILLS=20 PENSTOCK_SOAK_STAGE_STOPPED=30 $(BIN)/pytest tests/prep/test_stage.py
	PENSTOCK_SOAK_LAYOUTS=2000 $(BIN)/pytest tests/prep/test_hostile_layouts.py tests/prep/test_tables_hostile.py
	PENSTOCK_SOAK_HARM=400 PENSTOCK_SOAK_ELASTIC=20 $(BIN)/pytest tests/loaders/test_harm.py tests/loaders/test_elastic.py
	PENSTOCK_SOAK_SPLICES=20 PENSTOCK_SOAK_SPLICE_HARM=400 $(BIN)/pytest tests/loaders/test_splice_photographs.py tests/loaders/test_splice_harm.py
	PENSTOCK_SOAK_TRAIN_KILLS=20 $(BIN)/pytest tests/train/test_resume.py
	PENSTOCK_SOAK_MIRROR_KILLS=10 $(BIN)/pytest tests/train/test_mirror.py
	PENSTOCK_SOAK_SPOT_KILLS=10 $(BIN)/pytest tests/cloud/test_spot_run.py
	PENSTOCK_SOAK_CAMS=2000 PENSTOCK_SOAK_QUADRANTS=5 $(BIN)/pytest tests/serve/test_oracle.py tests/serve/test_cam.py
	PENSTOCK_SOAK_ANSWERS=2000 PENSTOCK_SOAK_TRIES=30 PENSTOCK_SOAK_STOPPED=60 $(BIN)/pytest -s tests/serve/test_app_soak.py tests/serve/test_app_queue.py tests/serve/test_browser_trouble.py
	PENSTOCK_SOAK_OPTIMIZERS=1 $(BIN)/pytest tests/train/test_optim.py tests/train/test_resume.py
	PENSTOCK_SOAK_FAMILIES=1 $(BIN)/pytest tests/train/test_models.py tests/test_model_families.py
	PENSTOCK_SOAK_THROUGHPUT=1 PENSTOCK_SOAK_TUNE=1 $(BIN)/pytest tests/benchmarks/test_throughput.py tests/benchmarks/test_throughput_stages.py tests/benchmarks/test_tune_measured.py
	PENSTOCK_SOAK_THROUGHPUT=1 PENSTOCK_SOAK_PROOFS=$(PHOTOS) $(BIN)/pytest tests/benchmarks/test_prove.py
	PENSTOCK_SOAK_IMAGES=10007 $(BIN)/pytest tests/train/test_evaluate.py
	PENSTOCK_SOAK_FUSED=1 $(BIN)/pytest -s tests/train/test_fused.py
	PENSTOCK_SOAK_GPU_MODEL=1 $(BIN)/pytest tests/benchmarks/test_gpu_model.py tests/benchmarks/test_gpu_model_kernels.py
	PENSTOCK_SOAK_WINDOWS=100000 PENSTOCK_SOAK_COMPILE=1 $(BIN)/pytest tests/loaders/test_geometry.py tests/train/test_speed.py

clean:
	rm -rf .venv data/digits data/digits-source $(RUN)
