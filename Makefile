# Few words: build test race lint fuzz fuzz-long bench scale crash soak demo ci clean.
# What a word needs beyond Go it installs itself (Debian packages when root, Go
# tools into bin/), or says in one line what is missing.

BIN         := $(CURDIR)/bin
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -s -w -X main.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSITYGW   := github.com/versity/versitygw/cmd/versitygw@v1.8.0
COMPILER    := gcc libc6-dev
JUDGES      := qemu-utils libvhdi-utils libnbd-bin e2fsprogs xfsprogs ntfs-3g lvm2 fdisk dosfstools btrfs-progs fuse3 nodejs npm prometheus tmux
PEERS       := restic borgbackup e2fsprogs bindfs nbdkit libnbd-bin fuse3
FUZZTIME    ?= 2s
LONGTIME    ?= 30m
# Packages whose goroutines share memory: the race detector pays there. Long
# tests that add no concurrency of their own are left to the plain run.
RACE        := ./chunkstore ./chunkstore/index ./chunkstore/object/... ./repo ./repo/tree ./repo/view ./nbd ./xapi ./xapi/xapisim
NORACE      := ^(TestGolden|TestBlobSizes|TestStorageFails|TestNPMClient|TestXVA.*)$$
# Of these packages only the tests in which much goes on at once.
RACESOME    := ./job/backup ./job/restore ./job/lease ./job/browse ./repo/check ./repo/prune
RACETESTS   := ^(TestDayAfterDay|TestRestoreToPool|TestInterrupted|TestTrackedDays|TestLeaseIsRenewed|TestManyConcurrently|TestPublishWhileReading|TestTwoRunsOneVM|TestSRLocks.*|TestTransferLimits.*|TestQueue|TestLimits|TestRestoreInPlace|TestServeNBD|TestRunsAtOnce|TestFlushBesideDisk|TestChanged|TestKeyless|TestBudget|TestWriteOnly|TestTogether)$$

.PHONY: build test race lint fuzz fuzz-long bench scale crash soak demo ci clean
.SILENT:

# A static binary, with libzstd in it where there is a C compiler; without one
# zstd is Go's, which is slower.
build:
	scripts/need $(COMPILER)
	if command -v gcc >/dev/null; then \
		CGO_ENABLED=1 go build -trimpath -tags netgo,osusergo -ldflags '$(LDFLAGS) -linkmode external -extldflags "-static"' -o $(BIN)/xenkeep ./cmd/xenkeep; \
	else \
		CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/xenkeep ./cmd/xenkeep; \
	fi

test: $(BIN)/versitygw
	scripts/need $(COMPILER) $(JUDGES)
	go test -timeout 30m ./...

race: $(BIN)/versitygw
	scripts/need $(COMPILER) $(JUDGES)
	go test -race -short -timeout 18m -skip '$(NORACE)' $(RACE)
	go test -race -short -timeout 18m -run '$(RACETESTS)' $(RACESOME)

lint: $(BIN)/staticcheck
	test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo "gofmt would change these files" >&2; exit 1; }
	go vet ./...
	$(BIN)/staticcheck ./...
	go mod tidy -diff
	go test ./internal/lint

fuzz:
	scripts/fuzz $(FUZZTIME)

# Every fuzz target, and every format with real images that are damaged at
# random, each for LONGTIME on one core; prints how many inputs were tried.
fuzz-long:
	scripts/fuzz-long $(LONGTIME)

bench: build
	scripts/need $(PEERS)
	go run ./bench -xenkeep $(BIN)/xenkeep -scale full -json bench.json

# Repositories of 1, 2 and 4 TiB of unique data, of which only trees and index
# are there: needs 25 GB of room for a while.
scale:
	go run ./bench/scale -json scale.json

# Every kill point and every error of backups and restores, not only the sample
# of the tests: more than half an hour.
crash:
	XENKEEP_CRASH=all go test -count=1 -timeout 90m -v -run 'TestCrash|TestErrors|TestTwoRepositories' ./job

# Twenty nights of ten VMs; the tests play a few of two.
soak:
	XENKEEP_SOAK=full go test -count=1 -timeout 30m -v -run TestSoak ./job/nightly

demo: build
	scripts/need e2fsprogs
	go run ./bench/demo -xenkeep $(BIN)/xenkeep

# Nothing may be skipped here but what the kernel forbids; the last lines are go test's own.
ci: lint build
	scripts/need $(JUDGES)
	$(MAKE) race
	$(MAKE) fuzz
	CGO_ENABLED=0 go test -count=1 ./chunkstore/seal
	scripts/test-all

clean:
	rm -rf $(BIN)
	go clean -testcache

# Go tools are built outside the module, so that their dependencies are not
# ours.
$(BIN)/staticcheck:
	cd / && GOFLAGS=-mod=mod GOBIN=$(BIN) go install $(STATICCHECK)

$(BIN)/versitygw:
	cd / && GOFLAGS=-mod=mod GOBIN=$(BIN) go install $(VERSITYGW)
