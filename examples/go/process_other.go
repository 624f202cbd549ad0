//go:build unix && !darwin && !linux

package embedbridge

import (
	"os"
	"os/exec"
	"syscall"
)

// ownGroup gives a worker a process group of its own, where the terminal's Ctrl-C does not reach it.
func ownGroup(command *exec.Cmd) { command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// Here a process is reaped before its end is known, and its group's number may then be somebody else's: only the worker
// is signalled. Its children see the end of their pipes.

func terminateGroup(process *os.Process) { _ = process.Signal(syscall.SIGTERM) }

var killGroup = func(process *os.Process) { _ = process.Kill() }

func awaitEnd(int) bool { return false }
