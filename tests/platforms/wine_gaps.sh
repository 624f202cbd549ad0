# What Wine 8 lacks for this project's run on Windows programs, and what stands in for it; read by windows.sh, which has set
# $prefix (Wine's), $python (the folder of the Windows CPython) and $work (scratch). What the tests meet is in wine_gaps.py.

# The newest numpy needs crealf() and the like of ucrtbase, which Wine 8 does not have.
wine_numpy='numpy==2.0.2'

# Wine takes itself for Windows 7, which CPython and numpy refuse.
say_windows_10() { wine winecfg -v win10 </dev/null 2>&1 | cat; }

# `_wmi` crashes Wine 8; without it `platform` reads the environment.
leave_out_wmi() { if [ -e "$python/lib/_wmi.pyd" ]; then mv "$python/lib/_wmi.pyd" "$python/lib/_wmi.pyd.off"; fi; }

# abi3 wheels want python3.dll, which the CPython used here lacks: every name of it is passed on to python312.dll.
make_python3_dll() {
  { echo 'LIBRARY python3.dll'; echo EXPORTS; x86_64-w64-mingw32-objdump -p "$python/python312.dll" |
    sed -nE 's/^[[:space:]]+\[ *[0-9]+\].*[[:space:]](_?Py[A-Za-z0-9_]*)$/  \1=python312.\1/p' | sort -u; } >"$work/python3.def"
  echo 'int __stdcall DllMain(void *a, unsigned b, void *c) { return 1; }' >"$work/dll.c"
  x86_64-w64-mingw32-gcc -shared -nostdlib -e DllMain -o "$python/python3.dll" "$work/dll.c" "$work/python3.def"
}

# Rust's standard library takes random numbers from ProcessPrng of bcryptprimitives.dll, which Wine 8 lacks.
make_process_prng() {
  cat >"$work/prng.c" <<'C'
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n) { return SystemFunction036(p, (ULONG)n); }
C
  x86_64-w64-mingw32-gcc -shared -o "$prefix/drive_c/windows/system32/bcryptprimitives.dll" "$work/prng.c" -ladvapi32
}

# onnxruntime asks DXGI for graphics cards and complains on standard error that Wine without a display has none: this one has
# a factory, and no card. Programs take it instead of Wine's with "dxgi=n" in WINEDLLOVERRIDES.
make_dxgi() {
  cat >"$work/dxgi.c" <<'C'
#include <windows.h>
static HRESULT WINAPI query(void *self, REFIID id, void **out) { *out = self; return S_OK; }
static ULONG WINAPI count(void *self) { return 1; }
static HRESULT WINAPI not_found(void) { return 0x887A0002; }
static void *methods[48] = {query, count, count};
static void **factory = methods;
__declspec(dllexport) HRESULT WINAPI CreateDXGIFactory(REFIID id, void **out) { *out = &factory; return S_OK; }
__declspec(dllexport) HRESULT WINAPI CreateDXGIFactory1(REFIID id, void **out) { *out = &factory; return S_OK; }
__declspec(dllexport) HRESULT WINAPI CreateDXGIFactory2(UINT flags, REFIID id, void **out) { *out = &factory; return S_OK; }
BOOL WINAPI DllMain(HINSTANCE self, DWORD why, LPVOID more) { for (int n = 3; n < 48; n++) methods[n] = not_found; return TRUE; }
C
  x86_64-w64-mingw32-gcc -shared -o "$python/dxgi.dll" "$work/dxgi.c"
}

# The first process that needs a desktop starts Wine's explorer.exe, which inherits its pipes and holds them open: let it
# be this one, which nobody waits for.
start_desktop() {
  (timeout 7200 wine 'C:\Python312\python.exe' -c \
    'import ctypes, time; ctypes.WinDLL("user32").GetDesktopWindow(); time.sleep(7100)' </dev/null 2>&1 | cat >/dev/null) &
  sleep 5
}

# A Unix *file* reaches a Windows program as an invalid handle: its standard descriptors must be pipes or the null device.
# It may leave a console helper behind, which holds the pipe: whoever calls this waits for the program and not for its pipe.
windows_python() { nice -n 5 wine 'C:\Python312\python.exe' "$@" </dev/null > >(cat) 2>&1; }
