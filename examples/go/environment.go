package embedbridge

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
)

// What a worker gets of its host's environment: what a locale, a home, a temporary folder, Windows, a linker and an
// accelerator need. Everything else may be a secret.
var passedEnvironment = []string{
	"PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "HOME", "XDG_*", "TMPDIR", "TEMP", "TMP",
	"USERPROFILE", "HOMEDRIVE", "HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA",
	"SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT",
	"NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "PROCESSOR_IDENTIFIER",
	"LD_LIBRARY_PATH", "DYLD_*", "CUDA_*", "ORT_*", "OMP_*", "HF_HOME", "HF_HUB_CACHE", "EMBED_WORKER_*",
}

// Set unless the host or Options.Env says otherwise: the runtime would report to its makers.
var environmentByDefault = []string{"ORT_DISABLE_TELEMETRY=1"}

func (o *Options) environment() []string {
	added := append([]string{"EMBED_WORKER_PARENT=" + thisProcess()}, o.Env...)
	return environmentOf(os.Environ(), added, runtime.GOOS == "windows")
}

// environmentOf returns what a worker gets; later entries replace earlier ones. On Windows names have no case.
func environmentOf(host, added []string, windows bool) []string {
	nameOf := func(entry string) string {
		name, _, _ := strings.Cut(entry, "=")
		if windows {
			name = strings.ToUpper(name)
		}
		return name
	}
	passed := func(entry string) bool {
		name := nameOf(entry)
		return slices.ContainsFunc(passedEnvironment, func(pattern string) bool {
			matches, _ := path.Match(pattern, name)
			return matches
		})
	}
	environment := slices.Clone(environmentByDefault)
	put := func(entry string) {
		environment = slices.DeleteFunc(environment, func(other string) bool { return nameOf(other) == nameOf(entry) })
		environment = append(environment, entry)
	}
	for _, entry := range host {
		if passed(entry) {
			put(entry)
		}
	}
	for _, entry := range added {
		put(entry)
	}
	return environment
}

// thisProcess names this process to the worker, which watches it whatever launcher stands between the two; on Linux with
// the time of its start, which tells a number apart that was given away again.
func thisProcess() string {
	pid := os.Getpid()
	var stat []byte
	if runtime.GOOS == "linux" { // a program of Windows could read it, too, under Wine, and mean another process
		// Of the first thread, which is as old as the process: qemu makes up what a process reads of itself.
		stat, _ = os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", pid))
	}
	behindName := string(stat[bytes.LastIndexByte(stat, ')')+1:]) // the name may hold blanks and brackets
	const start = 22 - 3                                          // the first field behind the name is the third of all
	if fields := strings.Fields(behindName); len(fields) > start {
		return fmt.Sprintf("%d:%s", pid, fields[start])
	}
	return fmt.Sprint(pid)
}
