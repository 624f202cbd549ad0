//go:build darwin || linux

package embedbridge

import (
	"os"
	"os/exec"
	"syscall"
	"unsafe"
)

// ownGroup gives a worker a process group of its own, where the terminal's Ctrl-C does not reach it. No Pdeathsig: it is
// bound to the thread that started the process, and Go's threads come and go.
func ownGroup(command *exec.Cmd) { command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func terminateGroup(process *os.Process) { _ = syscall.Kill(-process.Pid, syscall.SIGTERM) }

var killGroup = func(process *os.Process) { _ = syscall.Kill(-process.Pid, syscall.SIGKILL) }

// awaitEnd waits until a process has ended, without reaping it: its number, and its group's, are still its own. False
// where that cannot be known, because somebody else reaps this host's children.
func awaitEnd(pid int) bool {
	const byPID = 1
	var told [16]uint64 // a siginfo, of which nothing is needed
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPID, uintptr(pid), uintptr(unsafe.Pointer(&told)),
			syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno == 0
		}
	}
}
