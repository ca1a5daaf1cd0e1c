# Two commands from a bare clone: `make demo` and `make test`. Both make their environment first.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: env demo test soak clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[app,cu12,dev]'
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

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: env
	PENSTOCK_SOAK_KILLS=50 PENSTOCK_SOAK_FLIPS=400 $(BIN)/pytest tests/test_prep_crash.py tests/test_prep_verify.py
	PENSTOCK_SOAK_LAYOUTS=2000 $(BIN)/pytest tests/test_prep_hostile_layouts.py tests/test_prep_tables_hostile.py
	PENSTOCK_SOAK_HARM=400 PENSTOCK_SOAK_ELASTIC=20 $(BIN)/pytest tests/test_loader_harm.py tests/test_loader_elastic.py
	PENSTOCK_SOAK_TRAIN_KILLS=20 $(BIN)/pytest tests/test_train_resume.py
	PENSTOCK_SOAK_CAMS=2000 PENSTOCK_SOAK_QUADRANTS=5 $(BIN)/pytest tests/test_serve_oracle.py tests/test_serve_cam.py
	PENSTOCK_SOAK_OPTIMIZERS=1 $(BIN)/pytest tests/test_train_optim.py tests/test_train_resume.py
	PENSTOCK_SOAK_FAMILIES=1 $(BIN)/pytest tests/test_train_models.py tests/test_model_families.py
	PENSTOCK_SOAK_THROUGHPUT=1 PENSTOCK_SOAK_TUNE=1 $(BIN)/pytest tests/test_throughput.py tests/test_tune_measured.py

clean:
	rm -rf .venv data/digits data/digits-source $(RUN)
