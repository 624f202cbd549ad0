#!/usr/bin/env bash
# Runs the steps of examples/deploy/Dockerfile without a container daemon, and has systemd read the unit: `make deploy-check`.
#
# On Debian as root. The base image is a root file system of the same Debian, made once (300 MB in the cache). Each RUN of
# the first stage runs in it; then the entry point runs as the image's user, without a home, on a read-only root, without a
# network. What this cannot show: the daemon's own part (layers, seccomp, cgroups).
set -euo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
deploy=$project/examples/deploy
cache=${PLATFORMS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/embed-bridge-platforms}/deploy
root=$cache/root
dockerfile=$deploy/Dockerfile

instruction() { sed -n "s/^$1 //p" "$dockerfile"; }
suite=$(sed -n 's/^FROM debian:\([a-z]*\)-slim.*/\1/p' "$dockerfile" | head -1)
user=$(instruction USER)

if ! [ -e "$cache/done" ]; then
  command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends mmdebstrap; } >/dev/null
  echo "deploy: making the root file system of Debian $suite"
  mkdir -p "$cache" && rm -rf --one-file-system "$root"
  mmdebstrap --quiet --variant=minbase "$suite" "$root"
  touch "$cache/done"
fi
rm -rf --one-file-system "$root/src" "$root/opt/embed-bridge" && mkdir "$root/src"
(cd "$project" && git ls-files -co --exclude-standard -z | xargs -0 ls -d 2>/dev/null | tar -cf - -T -) | tar -C "$root/src" -xf -

# What a network behind a proxy needs is no part of the image.
for file in /etc/resolv.conf /etc/hosts; do
  [ ! -e "$file" ] || install -D -m 644 "$(readlink -f "$file")" "$root$file"
done
settings=(PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive)
if [ -e "${PIP_CERT:-}" ]; then # under another name, for the package ca-certificates writes its own to the usual place
  install -m 644 "$(readlink -f "$PIP_CERT")" "$root/etc/pip-cert.pem"
  settings+=(PIP_CERT=/etc/pip-cert.pem)
fi
for name in PIP_INDEX_URL http_proxy https_proxy HTTP_PROXY HTTPS_PROXY no_proxy NO_PROXY; do
  [ -z "${!name:-}" ] || settings+=("$name=${!name}")
done
# Of the second stage nothing runs but the interpreter, which the first has, too.
sed '/^FROM debian:[a-z]*-slim$/,$d' "$dockerfile" | sed -n 's/^RUN //p' | while read -r step; do
  echo "RUN $step"
  unshare --mount bash -c 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec /usr/sbin/chroot "$0" env -i "${@:2}" sh -ec "$1"' \
    "$root" "$step" "${settings[@]}" </dev/null >"$cache/step.log" 2>&1 || { tail -20 "$cache/step.log"; exit 1; }
done
rm -rf --one-file-system "$root/src"

# run COMMAND …: as `docker run --read-only --network none` does, with what ENV says.
run() {
  local environment
  read -ra environment <<<"$(instruction ENV)"
  unshare --mount --net --pid --fork bash -euc '
    mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"
    mount -t proc proc "$0/proc" && mount --rbind -o ro /dev "$0/dev"
    exec /usr/sbin/chroot --userspec="$1" "$0" env -i "${@:2}"' "$root" "$user" "${environment[@]}" "$@"
}
entry=$(instruction ENTRYPOINT | tr -d '[]"')
failed=0
expect() { # expect WHAT PATTERN TEXT
  if grep -q -- "$2" <<<"$3"; then echo "ok: $1"; else echo "FAILED: $1: $(head -c 400 <<<"$3")"; failed=1; fi
}
answer=$(printf '%s\n' '{"id": 1, "inputs": ["hello"]}' '{"method": "info"}' | run "$entry" 2>"$cache/stderr.log") ||
  { cat "$cache/stderr.log"; failed=1; }
expect "a line in, a line out, as $user on a read-only root without a home and a network" '"id":1,"status":"ok"' "$answer"
expect "info" '"model":"all-MiniLM-L6-v2"' "$answer"
expect "nothing but information on standard error" '^$' "$(grep -E 'Traceback|ERROR|WARN' "$cache/stderr.log")"
expect "it is not root" '^10001:10001$' "$(run /usr/bin/sh -c 'echo "$(id -u):$(id -g)"')"
expect "the root cannot be written" 'Read-only file system' "$(run /usr/bin/sh -c 'touch /tmp/x' 2>&1 || true)"
expect "no tool of the build is left" '^$' "$(ls "$root"/opt/embed-bridge/lib/python3*/site-packages | grep -i hatchling || true)"
du -sm "$root/opt/embed-bridge" | awk '{print "the environment has " $1 " MB"}'

# The unit, with programs in its places that exist.
command -v systemd-analyze >/dev/null || { echo "deploy: no systemd-analyze, so the unit is not read"; exit $failed; }
for unit in "$deploy"/*.service; do
  sed -E "s#^(Exec[A-Za-z]*=)/[^ ]+#\1$(command -v true)#" "$unit" >"$cache/$(basename "$unit")"
  if told=$(systemd-analyze verify --man=no "$cache/$(basename "$unit")" 2>&1) && ! grep -q "$(basename "$unit")" <<<"$told"; then
    echo "ok: systemd-analyze verify $(basename "$unit")"
  else
    echo "FAILED: $told"; failed=1
  fi
  systemd-analyze security --offline=true "$cache/$(basename "$unit")" 2>/dev/null | tail -1 || true
done
exit $failed
