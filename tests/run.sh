#!/usr/bin/env bash
# All tests, and at the end which ones need what is not here: by name and number.
set -u
cd "$(dirname "$0")/.."
cargo=${1:-cargo}
skipped=$(mktemp -d)
trap 'rm -rf "$skipped"' EXIT
export PINFOLD_SKIPPED=$skipped

status=0
"$cargo" test --workspace --no-fail-fast || status=1
tests/compose.sh || status=1

kubo=$(grep -lx kubo "$skipped"/* 2>/dev/null | wc -l)
if [ "$kubo" -gt 0 ]; then
  echo "kubo: not on the PATH, $kubo tests skipped:"
  grep -lx kubo "$skipped"/* | xargs -n1 basename | sed 's/^/  /'
fi
if [ -e "$skipped/compose" ]; then
  echo "compose: $(cat "$skipped/compose")"
fi
exit $status
