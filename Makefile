# make up, make check, make test, make bench, make bench-peers, make bench-state, make bench-status, make bench-large, make bench-failover, make chaos.

.PHONY: up check test bench bench-peers bench-state bench-status bench-large bench-failover chaos
CARGO ?= cargo

# A running local cluster of three peers: builds, then says where everything is. Ctrl-C stops it.
up:
	$(CARGO) build --workspace --bins
	target/debug/ctl up --peers 3 $(UP)

# What a machine can find without running anything.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# Everything, on a fresh clone: unit tests, clusters of real processes, the compose file where there is a Docker.
test:
	$(CARGO) build --workspace --bins
	tests/run.sh $(CARGO)

# Figures and ratios with pass or fail; API=http://host:port runs the REST part against any cluster of that API.
bench:
	$(CARGO) build --release --workspace --bins
	target/release/bench $(if $(API),--api $(API)) $(BENCH)

# 25 peers on this machine: 7 voters, 18 learners.
bench-peers:
	$(CARGO) build --release --workspace --bins
	target/release/bench --large 25 $(BENCH)

# Pinsets of millions: import, list, restart, a peer that joins; STATE="1000000" for one size. Some 20 GB below TMPDIR.
STATE ?= 1000000 10000000
bench-state:
	$(CARGO) build --release --workspace --bins
	target/release/bench --state $(STATE) $(BENCH)

# A million pins on each of three peers, and every question about their status; STATUS="100000" for another size.
STATUS ?= 1000000
bench-status:
	$(CARGO) build --release --workspace --bins
	target/release/bench --status $(STATUS) $(BENCH)

# All that is large: many peers, many pins, and their status.
bench-large: bench-peers bench-state bench-status

# Peers killed under a full pinset, and what became of every item; FAILOVER="seven" runs one part (`bench --help` names them). Then
# what verdicts and allocation cost among a thousand peers.
bench-failover:
	$(CARGO) build --release --workspace --bins
	target/release/bench --failover $(FAILOVER) $(BENCH)
	$(CARGO) test --release -p monitor-svc --lib -- --ignored --nocapture --test-threads=1

# Everything of the fault tests, from a fresh seed; PINFOLD_CHAOS_SEED=n replays one, FAULT=name chooses scenarios.
chaos:
	$(CARGO) build --workspace --bins
	PINFOLD_CHAOS=all $(CARGO) test --workspace --test chaos -- --nocapture --include-ignored --test-threads=2 $(FAULT)
