#!/usr/bin/env bash
# All tests, and at the end which ones need what is not here: by name and number.
set -u
cd "$(dirname "$0")/.."
cargo=${1:-cargo}
skipped=$(mktemp -d)
report=$(mktemp)
trap 'rm -rf "$skipped" "$report"' EXIT
export PINFOLD_SKIPPED=$skipped PINFOLD_CHAOS_REPORT=$report

status=0
"$cargo" test --workspace --no-fail-fast || status=1
tests/compose.sh || status=1

if [ -s "$report" ]; then
  echo "faults, a seeded selection (everything: make chaos):"
  sed 's/^/  /' "$report"
fi
kubo=$(grep -lx kubo "$skipped"/* 2>/dev/null | wc -l)
if [ "$kubo" -gt 0 ]; then
  echo "kubo: not on the PATH, $kubo tests skipped:"
  grep -lx kubo "$skipped"/* | xargs -n1 basename | sed 's/^/  /'
fi
faults=$(grep -l '^faults: ' "$skipped"/* 2>/dev/null | wc -l)
if [ "$faults" -gt 0 ]; then
  echo "faults: $faults scenarios skipped for what this machine lacks:"
  (cd "$skipped" && grep '^faults: ' -- * | sed 's/:faults: /: /; s/^/  /')
fi
if [ -e "$skipped/compose" ]; then
  echo "compose: $(cat "$skipped/compose")"
fi
exit $status
