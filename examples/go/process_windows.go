package embedbridge

import (
	"os"
	"os/exec"
	"syscall"
)

const createNoWindow = 0x08000000

// ownGroup keeps the console's Ctrl-C, and its window, away from the worker.
func ownGroup(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP | createNoWindow}
}

// There is no SIGTERM and no signal to a group: a supervised worker's children see the end of their pipes. A handle
// names its process also after its end, so nothing has to be known of that.

func terminateGroup(process *os.Process) { _ = process.Kill() }

var killGroup = func(process *os.Process) { _ = process.Kill() }

func awaitEnd(int) bool { return false }

func signalOf(*os.ProcessState) string { return "" }
