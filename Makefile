# Every command of the project. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

UV_VERSION := 0.13.9
# A uv that is already here is used; else this checkout gets its own, from PyPI.
UV := $(shell command -v uv 2>/dev/null || echo $(CURDIR)/.uv/bin/uv)
OWN_UV := $(filter $(CURDIR)/%,$(UV))
RUN := $(UV) run --frozen
# What runs below calls uv by its name.
export PATH := $(PATH):$(CURDIR)/.uv/bin
NAME ?= llmservice
CLUSTER ?= local
# Folders with modules that the programs of e2e import
E2E_PATH := testing:charts/llmservice-operator/tests
# The Kubernetes of the local cluster: empty for the newest that it has, or 1.34.
KUBERNETES ?=
export LOCALKUBE_KUBERNETES ?= $(KUBERNETES)
export LLMSERVICE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llmservice
# Without stored bytecode, every start of a program compiles all the modules that it imports, which
# takes half of the CPU time of a short test.
unexport PYTHONDONTWRITEBYTECODE
# The images use Debian's Python too. It is compiled with more optimizations than a Python of pyenv,
# which saves a fifth of the CPU time of the unit tests.
ifneq ($(wildcard /usr/bin/python3.11),)
export UV_PYTHON ?= /usr/bin/python3.11
endif

.PHONY: help
help:  ## List the commands
	@awk -F':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Set up ------------------------------------------------------------------------------------------

.PHONY: setup
setup: .venv/.ready  ## Create the Python environment of the workspace (bootstraps uv)

.PHONY: setup-system
setup-system: setup  ## Install the Debian packages of the local cluster (needs root)
	@$(RUN) localkube setup

$(CURDIR)/.uv/bin/uv:
	@echo "==> uv $(UV_VERSION) into .uv"
	@python3 -m venv .uv 2>/dev/null || { rm -rf .uv; apt-get update -qq && apt-get install -y -qq python3-venv && python3 -m venv .uv; }
	@.uv/bin/python -m pip install -q uv==$(UV_VERSION)

.venv/.ready: $(OWN_UV) uv.lock pyproject.toml operator/pyproject.toml server_image/pyproject.toml e2e/cluster/pyproject.toml
	@echo "==> Python environment of the workspace"
	@$(UV) sync --frozen -q
	@touch $@

## See it work -------------------------------------------------------------------------------------

.PHONY: demo
demo: setup  ## Build and start everything, deploy an example and ask it a question (CLUSTER=local|kind)
	@$(if $(filter local,$(CLUSTER)),$(RUN) localkube setup)
	@PYTHONPATH=testing $(RUN) python e2e/demo.py --cluster $(CLUSTER) --name $(NAME)

.PHONY: up
up: setup-system  ## Start the local cluster (KUBERNETES=1.34 selects that version, also for demo and test)
	@$(RUN) localkube up --name $(NAME)

.PHONY: down
down: setup  ## Remove the local cluster; images and models stay cached
	@$(RUN) localkube down --name $(NAME)

.PHONY: prometheus
prometheus: setup  ## Start a real Prometheus on the local cluster, with the alerts of the chart (SOONER=10: they fire ten times as early)
	@$(RUN) localkube prometheus build
	@PYTHONPATH=$(E2E_PATH) $(RUN) python e2e/local_prometheus.py --name $(NAME) --sooner $(or $(SOONER),1)

.PHONY: images
images: setup-system  ## Build the operator's and the server's images
	@$(RUN) localkube images build all

# Libraries that only processes in a cluster import. The plugin's single file does without them.
PLUGIN_LEAVES_OUT := cryptography grpcio kopf kubernetes uvloop xds-protos

.PHONY: kubectl-llm
kubectl-llm: setup  ## Build dist/kubectl-llm, the kubectl plugin as a single file
	@UV_PROJECT_ENVIRONMENT=.tiers/plugin $(UV) sync -q --frozen --no-default-groups --no-editable \
		--package llmservice-operator --reinstall-package llmservice-operator
	@UV_PROJECT_ENVIRONMENT=.tiers/pex $(UV) sync -q --frozen --only-group kubectl-llm
	@mkdir -p dist
	@.tiers/pex/bin/pex --venv-repository .tiers/plugin llmservice-operator $(PLUGIN_LEAVES_OUT:%=--exclude=%) \
		--venv prepend --sh-boot --script kubectl-llm --output-file dist/kubectl-llm
	@echo "dist/kubectl-llm: copy it to a folder of your PATH"

.PHONY: run
run: setup  ## Run the operator on this machine against the current kube context
	@LLMSERVICE_OPERATOR_NAMESPACE=$${LLMSERVICE_OPERATOR_NAMESPACE:-default} $(RUN) llmservice-operator run

.PHONY: render
render: setup  ## Print the objects of one LLMService: make render F=crds/examples/minimal.yaml
	@$(RUN) llmservice-operator render -f $(or $(F),crds/examples/minimal.yaml)

.PHONY: docs
docs: $(OWN_UV)  ## Build the site of the documents into .site/html; a broken link and a page outside the menu are errors
	@$(UV) run -q --isolated --frozen --only-group site python e2e/document_site.py

.PHONY: sbom
sbom: $(OWN_UV)  ## Write the Python packages of the images as CycloneDX into dist/sbom
	@mkdir -p dist/sbom
	@$(UV) export -q --frozen --no-dev --package llmservice-operator --format cyclonedx1.5 -o dist/sbom/operator.cdx.json
	@$(UV) run -q --isolated --frozen --only-group sbom cyclonedx-py requirements server_image/requirements/cpu.txt \
		-o dist/sbom/server-cpu.cdx.json

## Check it ----------------------------------------------------------------------------------------

.PHONY: test
test: setup  ## Run every test tier that needs no GPU; ends with a table of the tiers
	@$(RUN) localkube setup
	@$(RUN) python e2e/tiers.py

.PHONY: tier
tier: setup  ## Run a single tier: make tier T=unit (T=list lists the tiers)
	@$(RUN) python e2e/tiers.py $(T)

.PHONY: e2e
e2e: setup  ## Run the end-to-end tier; with KUBECONFIG set it runs on that cluster
	@$(RUN) python e2e/tiers.py e2e $(if $(KUBECONFIG),--on-kubeconfig)

.PHONY: lint
lint: setup  ## Check style, types, layers and generated files
	@$(RUN) python e2e/tiers.py lint

.PHONY: fmt
fmt: setup  ## Format the code and apply automatic fixes
	@$(RUN) ruff format . && $(RUN) ruff check --fix .

.PHONY: generate
generate: setup  ## Rewrite generated files (CRD and its copy in the chart, the chart's rules and dashboards, reference pages)
	@$(RUN) python e2e/generated.py

.PHONY: flag-tables
flag-tables: setup  ## Write the flags and the interface of a vLLM version from its wheel: make flag-tables V=0.33.0
	@$(RUN) python server_image/flag_tables.py $(or $(V),$(shell cat server_image/requirements/vllm-version))

.PHONY: golden
golden: setup  ## Rewrite the objects of all examples (operator/tests/golden); review the diff
	@$(RUN) pytest -q operator/tests/unit -k golden --update-golden

.PHONY: golden-chart
golden-chart: setup  ## Rewrite the chart's rendered objects and the values in its README; builds helm and promtool
	@$(RUN) localkube build --promtool
	@$(RUN) pytest -q charts/llmservice-operator/tests/render --update-golden

.PHONY: engine-env
engine-env: setup  ## Create the Python environment with vLLM for the CPU; prints its path (V=0.33.0, V=all)
	@$(RUN) python server_image/engine_env.py $(V)

.PHONY: test-keda
test-keda: setup  ## Test scaling through a real KEDA, built from its Go module (first time: about 10 minutes)
	@$(RUN) localkube setup
	@$(RUN) localkube up --api-only --name test-keda
	@$(RUN) localkube keda start --name test-keda
	@failed=0; $(RUN) localkube exec --name test-keda -- pytest operator/tests/keda || failed=1; \
	$(RUN) localkube down --name test-keda; exit $$failed

# $(call on_full_cluster,NAME,TESTS,OPTIONS): run tests on a full cluster of this name, with the images of this
# checkout. OPTIONS are those of `localkube up`.
define on_full_cluster
@$(RUN) localkube setup
@$(RUN) localkube models > /dev/null
@$(RUN) localkube down --name $(1)
@images=$$($(RUN) localkube images build all --json) && $(RUN) localkube up --name $(1) $(3) && \
{ failed=0; LLMSERVICE_E2E_IMAGES="$$images" $(RUN) localkube exec --name $(1) -- $(2) || failed=1; \
$(RUN) localkube down --name $(1); exit $$failed; }
endef

.PHONY: test-autoscaling
test-autoscaling: setup  ## Test scaling with real load on a full cluster (15 minutes, uses the whole machine)
	$(call on_full_cluster,$@,pytest -sv e2e/tests/load)

.PHONY: test-upgrade
test-upgrade: setup  ## Upgrade from earlier versions, roll back, uninstall and install again under load (30 minutes; FROM=COMMIT chooses a version)
	@mkdir -p .tiers
	@$(RUN) localkube setup
	@$(RUN) python e2e/earlier_versions.py $(FROM) > .tiers/earlier-versions.json
	$(call on_full_cluster,$@,env LLMSERVICE_TEST_EARLIER=.tiers/earlier-versions.json pytest -s --timeout=0 e2e/tests/upgrade)

.PHONY: test-drain
test-drain: setup  ## Drain a node that runs all replicas of a service, under load on two nodes (5 minutes)
	$(call on_full_cluster,$@,pytest -s --timeout=0 e2e/tests/drain,--nodes 2)

.PHONY: test-monitoring
test-monitoring: setup  ## Cause faults on a full cluster, and see in a real Prometheus that alerts and panels show them (15 minutes)
	@$(RUN) localkube prometheus build
	$(call on_full_cluster,$@,pytest -s --timeout=0 e2e/tests/monitoring)

.PHONY: pictures
pictures: setup  ## Draw the pictures of docs/monitoring.md from the answers of a real Prometheus under load (15 minutes)
	@$(RUN) localkube prometheus build
	$(call on_full_cluster,$@,env PYTHONPATH=$(E2E_PATH) python e2e/pictures.py)

.PHONY: drill
drill: setup  ## Cause a fault on a full cluster and print the alerts, to find the cause by the runbooks (FAULT=full-node; default: at random)
	@PYTHONPATH=$(E2E_PATH) $(RUN) python e2e/drill.py --check $(FAULT)
	@$(RUN) localkube prometheus build
	$(call on_full_cluster,$@,env PYTHONPATH=$(E2E_PATH) python e2e/drill.py $(FAULT))

.PHONY: test-serving-long
test-serving-long: $(addprefix long-,$(or $(PART),hostile bodies rollouts deaths adapters versions stock))  ## Test the server for long: hostile requests, hurtful bodies, rollouts, engine deaths, adapters, every vLLM version, stock vLLM (80 minutes; PART=hostile runs one part)

.PHONY: long-hostile long-bodies long-rollouts long-deaths long-adapters long-versions long-stock long-models
long-hostile: long-models
	@LLMSERVICE_TEST_REQUESTS=20000 $(RUN) pytest -s server_image/tests/engine -k "hostile" --timeout=0
long-bodies: long-models
	@LLMSERVICE_TEST_REQUESTS=2000 $(RUN) pytest -s server_image/tests/engine -k "delay_nobody" --timeout=0
long-rollouts: long-models
	@LLMSERVICE_TEST_ROUNDS=100 $(RUN) pytest -s server_image/tests/engine -k "rollout_cuts" --timeout=0
long-deaths: long-models
	@LLMSERVICE_TEST_ROUNDS=50 $(RUN) pytest -s server_image/tests/engine -k "death_of_the_engine" --timeout=0
long-adapters: long-models
	@LLMSERVICE_TEST_REQUESTS=5000 $(RUN) pytest -s server_image/tests/engine/test_engine_adapters_change.py --timeout=0
long-versions: long-models
	@$(RUN) python server_image/engine_env.py all
	@LLMSERVICE_TEST_VERSIONS=all $(RUN) pytest -s $(addprefix server_image/tests/engine/test_engine_,versions.py object_store.py cache_salt.py adapters.py) --timeout=0
long-stock: long-models
	@LLMSERVICE_TEST_ROUNDS=10 $(RUN) pytest -s server_image/tests/long --timeout=0
long-models: setup
	@$(RUN) localkube models > /dev/null

.PHONY: test-clients
test-clients: long-models  ## Compare whole replies to real clients with those of stock vLLM; writes docs/clients.md (CLIENT=openai_node runs one)
	@PYTHONPATH=server_image:server_image/tests:testing $(RUN) python -m clients $(CLIENT)

# Each part takes at most 45 minutes.
faults-watches: ALSO := operator/tests/unit/test_faulty_events.py
FAULT_PARTS := crash kills outage watches storm drift leader hostile rollouts
.PHONY: test-faults $(FAULT_PARTS:%=faults-%)
test-faults: $(or $(PART:%=faults-%),$(FAULT_PARTS:%=faults-%))  ## Try the operator under faults of every kind (PART=crash, kills, outage, watches, storm, drift, leader, hostile, rollouts)
$(patsubst %,faults-%,$(filter-out rollouts,$(FAULT_PARTS))): faults-%: setup
	@$(RUN) localkube setup
	@$(RUN) localkube down --name test-faults
	@$(RUN) localkube up --api-only --name test-faults
	@failed=0; LLMSERVICE_TEST_LONG=true $(RUN) localkube exec --name test-faults -- pytest -s operator/tests/api/faults/test_faults_$*.py $(ALSO) --timeout=0 || failed=1; \
	$(RUN) localkube down --name test-faults; exit $$failed
faults-rollouts: setup
	$(call on_full_cluster,test-faults,pytest -s --timeout=0 e2e/tests/failed_rollouts)

ROUTING_PARTS := kills rollouts scale zero zero-faults
.PHONY: test-routing routing-gateway routing-limits routing-zero-services $(ROUTING_PARTS:%=routing-%)
test-routing: $(or $(PART:%=routing-%),$(ROUTING_PARTS:%=routing-%) routing-gateway routing-limits routing-zero-services)  ## Kill, replace and scale the parts of a service behind a router on a full cluster, also to zero, kill the pickers of a Gateway, and exceed the limits of API keys (PART=kills, rollouts, scale, zero, zero-faults, zero-services, gateway, limits)
routing-gateway $(ROUTING_PARTS:%=routing-%): export LLMSERVICE_TEST_ROUNDS ?= 20
$(ROUTING_PARTS:%=routing-%): routing-%: setup
	$(call on_full_cluster,test-routing,pytest -s --timeout=0 e2e/tests/routing/test_e2e_routing_$(subst -,_,$*).py)
routing-gateway: setup
	@$(RUN) localkube gateway-api > /dev/null
	@$(RUN) localkube down --name test-routing
	@$(RUN) localkube up --api-only --name test-routing
	@failed=0; $(RUN) localkube exec --name test-routing -- pytest -s --timeout=0 \
	operator/tests/router operator/tests/api/test_api_gateway.py -k gateway || failed=1; \
	$(RUN) localkube down --name test-routing; exit $$failed
routing-zero-services: setup
	@$(RUN) localkube setup
	@$(RUN) localkube down --name test-routing
	@$(RUN) localkube up --api-only --name test-routing
	@failed=0; $(RUN) localkube exec --name test-routing -- pytest -s --timeout=0 operator/tests/zero_figures || failed=1; \
	$(RUN) localkube down --name test-routing; exit $$failed
routing-limits: setup
	@$(RUN) pytest -s --timeout=0 operator/tests/router_figures

.PHONY: test-mutation
# An environment of its own, because mutmut is not in the default groups.
test-mutation: setup  ## Change the pure core at random places and count the changes that no test notices (SEED=1, COUNT=200)
	@$(UV) run --isolated --frozen --group mutation python e2e/mutation.py --seed $(or $(SEED),1) --count $(or $(COUNT),200) $(MUTANTS)

## Measure it -------------------------------------------------------------------------------------

.PHONY: bench-scaling
bench-scaling: setup  ## Simulate the autoscaler, others and an oracle; ends with a line per gate
	@PYTHONPATH=bench $(RUN) python -m scaling

.PHONY: bench-scaling-full
bench-scaling-full: setup  ## Simulate every cell; writes bench/scaling/results (CSV and plots)
	@PYTHONPATH=bench $(RUN) python -m scaling --full

.PHONY: bench-scaling-unseen
bench-scaling-unseen: setup  ## Simulate workloads for which nothing was tuned, and search for cliffs of the capacity
	@PYTHONPATH=bench $(RUN) python -m scaling --unseen

.PHONY: bench-scaling-zero
bench-scaling-zero: setup  ## Simulate a day and a night of a service with minReplicas: 0, beside minReplicas: 1 and other projects
	@PYTHONPATH=bench $(RUN) python -m scaling --zero

.PHONY: bench-serving
bench-serving: setup  ## Measure the server against stock vLLM, batching and speculation; ends with a line per gate
	@PYTHONPATH=bench $(RUN) python -m serving $(PART)

.PHONY: bench-utilization
bench-utilization: setup  ## Compare the effective GPU utilization with the true load of a real engine; ends with a line for the gate
	@PYTHONPATH=bench $(RUN) python -m utilization

.PHONY: bench-routing
bench-routing: setup  ## Simulate the choice of replicas by the router and by others, kill a picker, and measure a router pod: MOONCAKE=FILE SERVEGEN=FILE
	@PYTHONPATH=bench $(RUN) python -m routing $(if $(MOONCAKE),--mooncake $(MOONCAKE)) \
		$(if $(SERVEGEN),--servegen $(SERVEGEN))
	@PYTHONPATH=bench $(RUN) python -m routing.flood
	@PYTHONPATH=bench:operator:operator/tests:testing $(RUN) python -m routing.failover
	@PYTHONPATH=bench:operator:operator/tests:testing $(RUN) python -m routing.pod
	@PYTHONPATH=bench:operator:operator/tests:testing $(RUN) python -m routing.memory

.PHONY: bench-scrape
bench-scrape: setup  ## Measure the metrics server with up to 5,000 services; ends with a line per gate (ARGS=--help)
	@PYTHONPATH=bench:operator:operator/tests:testing $(RUN) python -m scrape $(ARGS)

.PHONY: bench-migration
bench-migration: setup  ## Count how many entries of other catalogues a spec can say: RECIPES=FILE KUBEAI=FILE
	@PYTHONPATH=bench:operator:operator/tests:server_image $(RUN) python -m migration \
	$(if $(RECIPES),--recipes $(RECIPES)) $(if $(KUBEAI),--kubeai $(KUBEAI)) $(ARGS)

.PHONY: bench-operator
# The operator runs with the packages and the variables of its image (operator/Dockerfile). The client of Kubernetes
# would import packages for tests, which take memory.
bench-operator: export LLMSERVICE_BENCH_PYTHON := $(CURDIR)/.tiers/operator/bin/python
bench-operator: setup  ## Measure the operator with 10 to 5,000 services; ends with a line per gate (ARGS=--help)
	@$(RUN) localkube setup
	@UV_PROJECT_ENVIRONMENT=.tiers/operator $(UV) sync -q --frozen --no-default-groups --package llmservice-operator
	@$(RUN) localkube down --name bench-operator
	@$(RUN) localkube up --api-only --name bench-operator
	@failed=0; MALLOC_ARENA_MAX=1 PYTHONPATH=bench:bench/operator:operator/tests:testing \
	$(RUN) localkube exec --name bench-operator -- python -m operator_bench $(ARGS) || failed=1; \
	$(RUN) localkube down --name bench-operator; exit $$failed

## Leave -------------------------------------------------------------------------------------------

.PHONY: clean
clean: setup  ## Remove clusters, images, models, caches and environments
	@$(RUN) localkube clean --cache
	@rm -rf .venv .uv .tiers .site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage* dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: clusters, caches and environments are gone; Debian packages stay installed"
