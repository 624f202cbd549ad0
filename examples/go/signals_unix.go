//go:build unix

package embedbridge

import (
	"os"
	"syscall"
)

// signalOf returns the name of the signal that ended a process, if one did.
func signalOf(state *os.ProcessState) string {
	status, isKnown := state.Sys().(syscall.WaitStatus)
	if !isKnown || !status.Signaled() {
		return ""
	}
	if name, isKnown := signalNames[status.Signal()]; isKnown {
		return name
	}
	return status.Signal().String()
}

var signalNames = map[syscall.Signal]string{
	syscall.SIGSEGV: "SIGSEGV", syscall.SIGABRT: "SIGABRT", syscall.SIGBUS: "SIGBUS", syscall.SIGILL: "SIGILL",
	syscall.SIGFPE: "SIGFPE", syscall.SIGKILL: "SIGKILL", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP",
}
