# Pivot Edit. Needs python3.11 (or another python3), make and pip; every target does its own set-up.
#
#   make demo     edit a picture in a real ComfyUI: out/demo/grid.png and out/demo/report.json
#                 IMAGE=photo.png SOURCE="a cat on a sofa" TARGET="a dog on a sofa" CHECKPOINT=sd15.safetensors
#                 SIZE=512 PORT=8188 are optional
#   make comfy    start ComfyUI with this pack and its web page (PORT=8188)
#   make check    format, lint, types, unit and contract tests: 35 s on two slow cores, no ComfyUI
#   make test     everything, on the oldest and the newest supported ComfyUI, side by side
#   make bench        quality and speed
#   make bench-quality    does it edit, does it keep the rest: out/bench/quality.json (3 hours on two cores; goes on
#                     where it was stopped; QUALITY="--per-kind 2" for a part)
#   make tuning   the settings that bring each kind of edit nearest to the true one: bench/tuned.json (an hour)
#   make bench-speed  what control and null-text cost in time, memory and rows: out/bench/speed.json (20 min);
#                     on a GPU also seconds: out/bench/seconds.json
#   make bench-inversion  how exactly every method brings pictures back: out/bench/inversion.json (an hour)
#   make pie FOLDER=... CHECKPOINT=... METHOD=direct CONTROL=p2p_blend    PIE-Bench: out/pie/ (docs/PIE_BENCH.md)
#   make stress   300 random jobs, interrupts, deletions and bad ones among them, on the oldest and the newest ComfyUI;
#                 each picture against its run alone: out/stress/ (JOBS=30 SEED=1 are optional)
#   make help     this text
#
# COMFYUI_PATH=/path/to/ComfyUI uses your own ComfyUI (COMFYUI_PYTHON=... its Python, if it is not in a venv there).

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv/bin/python
SETUP := @$(PYTHON) tools/install.py
BENCH := @"$$($(PYTHON) tools/install.py python)"
PACKAGES := core attention features inversion guidance show
HOSTS := 0.16.3 0.30.0
TESTS := OMP_NUM_THREADS=1 $(VENV) -m pytest

IMAGE ?=
SOURCE ?=
TARGET ?=
CHECKPOINT ?=
SIZE ?=
PORT ?=
FOLDER ?=
METHOD ?=
CONTROL ?=
QUALITY ?=
JOBS ?=
SEED ?=
export IMAGE SOURCE TARGET CHECKPOINT SIZE PORT

.DEFAULT_GOAL := help
.PHONY: help demo comfy bench bench-quality bench-speed bench-inversion tuning pie stress setup-check check check-types check-pure setup-test test format

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo:
	$(SETUP) demo
	$(BENCH) -m tools.demo

comfy:
	$(SETUP) demo
	$(BENCH) -m tools.server $(if $(PORT),--port $(PORT))

bench: bench-quality bench-speed

bench-quality: export OMP_NUM_THREADS ?= 1
bench-quality:
	$(SETUP) eval
	$(BENCH) -m bench.quality $(QUALITY)
	$(BENCH) -m bench.sweeps

tuning: export OMP_NUM_THREADS ?= 1
tuning:
	$(SETUP) eval
	$(BENCH) -m bench.tuning

bench-speed: export OMP_NUM_THREADS = 1
bench-speed:
	$(SETUP) demo
	$(BENCH) -m bench.speed
	$(BENCH) -m bench.seconds

bench-inversion:
	$(SETUP) eval
	$(BENCH) -m bench.inversion --edits 21

pie:
	$(SETUP) eval
	$(BENCH) -m bench.pie "$(FOLDER)" $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") \
		$(if $(METHOD),--method $(METHOD)) $(if $(CONTROL),--control $(CONTROL))

setup-check:
	$(SETUP) check

format: setup-check
	$(VENV) -m ruff format .
	$(VENV) -m ruff check --fix .

check: setup-check
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	@$(MAKE) --no-print-directory -j2 check-types check-pure

# side by side: types keep one core busy, and the tests' start another
check-types:
	MYPYPATH=.build $(VENV) -m mypy $(foreach package,$(wildcard $(PACKAGES)),-p pivot_edit.$(package))

check-pure:
	$(TESTS) -n 2 tests/unit tests/contract

setup-test:
	$(SETUP) test

test: setup-test check
	@$(MAKE) --no-print-directory -j2 $(HOSTS:%=test-%)

stress: setup-test
	OMP_NUM_THREADS=1 $(VENV) -m bench.stress $(HOSTS:%=--host .hosts/%) $(if $(JOBS),--jobs $(JOBS)) \
		$(if $(SEED),--seed $(SEED))

.PHONY: $(HOSTS:%=test-%)
$(HOSTS:%=test-%): test-%:
	COMFYUI_PATH=.hosts/$* $(TESTS) tests/host -o cache_dir=.pytest_cache/$*
