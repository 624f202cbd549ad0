//go:build unix

package embedbridge

import (
	"os"
	"os/exec"
	"syscall"
)

// ownGroup gives a worker a process group of its own, where the terminal's Ctrl-C does not reach it. No Pdeathsig: it is
// bound to the thread that started the process, and Go's threads come and go.
func ownGroup(command *exec.Cmd) { command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func terminateGroup(process *os.Process) { _ = syscall.Kill(-process.Pid, syscall.SIGTERM) }

func killGroup(process *os.Process) { _ = syscall.Kill(-process.Pid, syscall.SIGKILL) }
