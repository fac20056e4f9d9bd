#!/usr/bin/env bash
# The compose file, for real: builds the images, runs the cluster once, adds a file and reads its status back.
# No image is pulled: what debootstrap makes stands in for the base images, and this machine's Rust for rust:1-bookworm.
# Says plainly when there is no Docker here; everything it starts it also removes.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  echo "compose: $1, test skipped"
  if [ -n "${PINFOLD_SKIPPED:-}" ]; then echo "$1, 1 test skipped" > "$PINFOLD_SKIPPED/compose"; fi
  exit 0
}

for program in docker docker-compose debootstrap; do
  command -v "$program" >/dev/null || skip "$program is not on the PATH"
done
[ "$(id -u)" = 0 ] || skip "debootstrap needs root"

work=$(mktemp -d)
project=pinfoldtest$$
port=$((20000 + RANDOM % 20000))
# The build image holds what Cargo.lock names, so it is another one when that changes.
lock=$(sha256sum Cargo.lock | cut -c1-12)
# The C compiler and make are for the build image, which is made of the other one.
packages=gcc,libc6-dev,make
export BUILD_IMAGE=pinfold-test-build:$lock RUNTIME_IMAGE=pinfold-test-base:${packages//,/-} PROFILE=dev CARGO_FLAGS=--offline PINFOLD_PORT=$port
export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
daemon=

compose() { docker-compose -p "$project" "$@"; }

finish() {
  status=$?
  if [ "$status" != 0 ]; then compose logs --tail=20 2>/dev/null | tail -n 120 || true; fi
  compose down -v --remove-orphans >/dev/null 2>&1 || true
  docker rmi -f "$BUILD_IMAGE" pinfold >/dev/null 2>&1 || true
  docker image prune -f --filter label=pinfold.stage=build >/dev/null 2>&1 || true
  if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'echo "compose: failed at line $LINENO"' ERR

if ! docker info >/dev/null 2>&1; then
  command -v dockerd >/dev/null || skip "no Docker Engine runs here and there is no dockerd to start"
  dockerd >"$work/dockerd.log" 2>&1 &
  daemon=$!
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
  if ! docker info >/dev/null 2>&1; then daemon=; skip "dockerd could not be started"; fi
fi

if ! docker image inspect "$RUNTIME_IMAGE" >/dev/null 2>&1; then
  echo "compose: making a base image with debootstrap"
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null \
    | sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\(http[^ ]*\) .*/\2/p; s/^URIs: *//p' | head -n 1 || true)
  debootstrap --variant=minbase --include="$packages" bookworm "$work/base" ${mirror:+"$mirror"} \
    >"$work/debootstrap.log" 2>&1 \
    || { tail -n 5 "$work/debootstrap.log"; skip "debootstrap could not make a base image"; }
  tar -C "$work/base" -c . | docker import - "$RUNTIME_IMAGE" >/dev/null
  rm -rf "$work/base"
fi

if ! docker image inspect "$BUILD_IMAGE" >/dev/null 2>&1; then
  echo "compose: making a build image of this machine's Rust"
  sysroot=$(rustc --print sysroot)
  mkdir -p "$work/build/rust" "$work/build/cargo"
  tar -C "$sysroot" -c --exclude=./share . | tar -C "$work/build/rust" -x
  if [ ! -x "$work/build/rust/bin/cargo" ]; then cp "$(command -v cargo)" "$work/build/rust/bin/"; fi
  # All that Cargo.lock names, downloaded here; nothing is fetched inside.
  cargo fetch --locked >"$work/fetch.log" 2>&1 || { tail -n 3 "$work/fetch.log"; exit 1; }
  cp -r "${CARGO_HOME:-$HOME/.cargo}/registry" "$work/build/cargo/registry"
  cat > "$work/build/Dockerfile" <<'INNER'
ARG BASE
FROM ${BASE}
COPY rust /rust
COPY cargo /cargo
ENV PATH=/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin CARGO_HOME=/cargo
INNER
  docker build -q --build-arg BASE="$RUNTIME_IMAGE" -t "$BUILD_IMAGE" "$work/build" >/dev/null
fi

echo "compose: building the image"
docker build -q --build-arg BUILD_IMAGE="$BUILD_IMAGE" --build-arg RUNTIME_IMAGE="$RUNTIME_IMAGE" \
  --build-arg PROFILE="$PROFILE" --build-arg CARGO_FLAGS="$CARGO_FLAGS" -t pinfold . >"$work/build.log" 2>&1 \
  || { tail -n 40 "$work/build.log"; exit 1; }

echo "compose: starting the cluster"
compose up -d >"$work/up.log" 2>&1 || { tail -n 40 "$work/up.log"; exit 1; }
healthy=
for _ in $(seq 180); do
  healthy=$(docker ps -q --filter "label=com.docker.compose.project=$project" --filter health=healthy | wc -l)
  [ "$healthy" = 3 ] && break
  sleep 1
done
[ "$healthy" = 3 ] || { echo "compose: only $healthy of 3 gateways became healthy"; exit 1; }

echo "compose: adding and reading back"
head -c 1000000 /dev/zero > "$work/zeros"
target/debug/ctl --host "127.0.0.1:$port" add --wait --wait-timeout 60s -Q "$work/zeros" > "$work/cid"
cid=$(cat "$work/cid")
status=$(target/debug/ctl --host "127.0.0.1:$port" status "$cid")
echo "$status"
[ "$(grep -c ': PINNED' <<<"$status")" = 2 ] && [ "$(grep -c ': REMOTE' <<<"$status")" = 1 ]
[ "$(target/debug/ctl --host "127.0.0.1:$port" --enc json peers ls | grep -c '"peername"')" = 3 ]
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /pins/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$cid" >&3
grep -q '"status":"pinned"' <&3
echo "compose: ok"
