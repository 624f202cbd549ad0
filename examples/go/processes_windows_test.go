package embedbridge

import "syscall"

func isAlive(pid int) bool {
	process, err := syscall.OpenProcess(syscall.SYNCHRONIZE, false, uint32(pid))
	if err != nil {
		return false
	}
	defer func() { _ = syscall.CloseHandle(process) }()
	event, err := syscall.WaitForSingleObject(process, 0)
	return err == nil && event == syscall.WAIT_TIMEOUT
}

// sigkill ends a process, with the status that the Task Manager gives it.
func sigkill(pid int) bool {
	process, err := syscall.OpenProcess(syscall.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return false
	}
	defer func() { _ = syscall.CloseHandle(process) }()
	return syscall.TerminateProcess(process, 1) == nil
}
