# What a developer and CI run. Everything needs Go; the tests in real namespaces need root and the programs that
# .ci/run installs, and say so where one is missing.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION)
BENCH   ?= full
FUZZTIME ?= 60s

STATICCHECK = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0

.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/lvsd, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/lvsd ./cmd/lvsd

demo: build ## clients, a director and servers in namespaces; watch them work
	bin/lvsd demo

test: build ## all tests; what is missing for some is listed at the end
	@.ci/go-test ./...

race: ## all tests but those of whole programs, with the race detector
	@.ci/go-test -race -short ./...

fuzz: ## every fuzz target for FUZZTIME (60s)
	@.ci/fuzz $(FUZZTIME)

bench: build ## speed beside the peers, in ratios; BENCH=quick for a first look
	$(GO) run ./integration/bench -lvsd bin/lvsd -mode $(BENCH) -out bench-out

format: ## fails if gofmt would change a file
	@files=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$files" ] || { echo "gofmt would change: $$files"; exit 1; }

lint: format ## gofmt, go vet, staticcheck
	$(GO) vet ./...
	$(STATICCHECK) ./...

vuln: ## known vulnerabilities, where the database can be reached
	@.ci/vuln $(GOVULNCHECK)

cover: ## cover.out, and how much of each package the tests reach
	$(GO) test -short -coverprofile cover.out ./...
	$(GO) tool cover -func cover.out | tail -1

check: lint vuln race test ## what CI runs

.PHONY: help build demo test race fuzz bench format lint vuln cover check
