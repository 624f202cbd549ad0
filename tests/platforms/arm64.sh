#!/usr/bin/env bash
# Runs goldens, fixture folders, conformance and kills on an emulated 64-bit ARM Linux: `make arm64`, or arm64.sh PART …
#
# On Debian 12 or a like system, as root. The first run builds a root file system (10 minutes and 2 GB in the cache); the
# parts take an hour. CPU=neoverse-n1 computes fp16 by itself (the default); cortex-a72 has neither fp16 nor dot products,
# max has what the newest have. Without an ARM machine's /proc/cpuinfo and a /sys, onnxruntime sees no features, or crashes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
root=${PLATFORMS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/embed-bridge-platforms}/arm64
cpu=${CPU:-neoverse-n1}

register_qemu() { # qemu's package does it itself only where binfmt_misc was mounted already
  mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  update-binfmts --enable qemu-aarch64
}

make_root() {
  apt-get update -qq
  apt-get install -y -qq -o DPkg::Lock::Timeout=600 --no-install-recommends qemu-user-static binfmt-support debootstrap unzip >/dev/null
  register_qemu
  rm -rf --one-file-system "$root"
  debootstrap --arch=arm64 --variant=minbase --include=python3,ca-certificates bookworm "$root" >/dev/null
  local platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64)
  python3 -m pip download -q --only-binary=:all: "${platforms[@]}" --python-version 3.11 --implementation cp -d "$root/wheels" \
    onnxruntime tokenizers numpy orjson onnx tqdm pytest pytest-timeout pytest-xdist hypothesis
  mkdir -p "$root/site"
  for wheel in "$root"/wheels/*.whl; do unzip -q -o "$wheel" -d "$root/site"; done
  touch "$root/done"
}

[ -e "$root/done" ] || { echo "arm64: making its root file system"; make_root; }
register_qemu
# Where Python finds them by itself: a client passes no PYTHONPATH on to its worker.
mkdir -p "$root/usr/local/lib/python3.11/dist-packages"
echo /site >"$root/usr/local/lib/python3.11/dist-packages/site.pth"
rm -rf "$root/embed-bridge" && mkdir "$root/embed-bridge"
(cd "$project" && git ls-files -co --exclude-standard -z | xargs -0 ls -d 2>/dev/null | tar -cf - -T -) |
  tar -C "$root/embed-bridge" -xf -
for core in 0 1; do
  printf '%s\n' "processor : $core" 'BogoMIPS : 50.00' \
    'Features : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs' \
    'CPU implementer : 0x41' 'CPU architecture: 8' 'CPU variant : 0x3' 'CPU part : 0xd0c' 'CPU revision : 1' ''
done >"$root/cpuinfo"

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(goldens "transcripts: worker" "transcripts: Python" kills)
export root cpu
# In a mount namespace of its own, so that nothing stays mounted.
unshare --mount bash -euo pipefail -c '
  mount -t proc proc "$root/proc" && mount -t sysfs -o ro sysfs "$root/sys" && mount --rbind /dev "$root/dev"
  mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"
  exec env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 ORT_DISABLE_TELEMETRY=1 EMBED_BRIDGE_PATIENCE=20 QEMU_CPU="$cpu" \
    nice -n 5 /usr/sbin/chroot "$root" /usr/bin/python3 /embed-bridge/tests/platforms/suites.py "$@"
' arm64 "${parts[@]}"
