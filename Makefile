# Thin names for the commands that CONTRIBUTING.md explains. `make` lists them.
.POSIX:
.PHONY: help build run test race bench lint fmt golden fuzz cross image ci clean

help:
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:.*## /	/' | expand -t 10

build: ## bin/entrepot
	go build -trimpath -o bin/entrepot ./cmd/proxy

run: ## serve with the defaults
	go run ./cmd/proxy

test: ## all tests; clients that are not installed are skipped
	go test ./...

race: ## all tests with the race detector
	go test -race ./...

bench: ## the program beside nginx and others, in two minutes (go run ./e2e/bench for all)
	go run ./e2e/bench -quick

lint: ## what .ci/run checks before the tests
	.ci/run lint

fmt: ## format the code
	gofmt -w .

golden: ## write anew what is generated: golden files, the documents of commands and API
	go test ./configs -update
	go test ./cmd/proxy/app -run TestCommandsAreDocumented -update
	go test ./operator -run TestTheDocument -update

fuzz: ## every fuzz target for a minute (FUZZTIME=5m for longer)
	.ci/run fuzz

cross: ## build for every platform
	.ci/run cross

image: ## a container image
	docker build -t entrepot .

ci: ## everything, as it is checked before a change is taken (installs packages)
	.ci/run

clean: ## remove what was built
	rm -rf bin dist
