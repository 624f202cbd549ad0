#!/usr/bin/env bash
# Shows and runs every line of the README's section "Debugging from a shell", in a folder of its own.
# It needs `embed-worker` on the PATH; lines with jq are left out where there is none. Ends with 1 if a line failed.
set -u

readme="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/README.md"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1

failed=0
while IFS= read -r line; do
    printf '$ %s\n' "$line"
    if [[ $line == *jq\ * ]] && ! command -v jq >/dev/null; then
        echo "(left out: there is no jq)"
        continue
    fi
    # A shell of its own, as for a reader who copies the line; its input is not this loop's.
    bash -c "$line" </dev/null || { echo "(exit status $?)"; failed=1; }
done < <(sed -n '/^## Debugging from a shell/,/^## [^D]/s/^\$ //p' "$readme")
exit "$failed"
