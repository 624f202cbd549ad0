package embedbridge

import (
	"os"
	"runtime"
	"slices"
)

// cause is what the end of a process means.
type cause string

const (
	exited      cause = "exited"
	crashed     cause = "crashed"
	killed      cause = "killed" // from outside
	outOfMemory cause = "out_of_memory"
	recycled    cause = "recycled" // at its memory ceiling, all work answered
	unusable    cause = "unusable" // usage, configuration, model, or nothing to execute
	unknown     cause = "unknown"  // somebody else reaped it, or it does not die
)

// Exit statuses of the worker, and of a shell that did not find it.
const (
	statusUsage         = 2
	statusInternal      = 70
	statusOutOfMemory   = 75
	statusUnusable      = 78
	statusRecycled      = 79
	statusNotExecutable = 126
	statusNotFound      = 127
)

// Windows knows no signals. abort() ends with 3, NTSTATUS errors are access violations, stack overflows and the like, and
// from outside come Ctrl-C, a logoff, and TerminateProcess with the numbers that people pass to it.
const (
	windowsAbort       = 3
	windowsFirstCrash  = 0xC0000000
	windowsBehindCrash = 0xD0000000
)

var windowsOutside = []int64{1, 9, 15, 0xC000013A, 0xC0000142}

// causeOf tells why a process ended by itself or by somebody else's hand. signal is empty where none ended it.
func causeOf(status int64, signal string, windows bool) cause {
	isStatus := func(statuses ...int64) bool { return signal == "" && slices.Contains(statuses, status) }
	isCrash := isStatus(statusInternal)
	isOutside := slices.Contains([]string{"SIGKILL", "SIGTERM"}, signal)
	if windows {
		isCrash = isCrash || isStatus(windowsAbort) || status >= windowsFirstCrash && status < windowsBehindCrash
		isOutside = isStatus(windowsOutside...)
	} else {
		isCrash = isCrash || slices.Contains([]string{"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"}, signal)
	}
	switch {
	case isStatus(statusUsage, statusUnusable, statusNotExecutable, statusNotFound):
		return unusable
	case isOutside:
		return killed
	case isCrash:
		return crashed
	case isStatus(statusOutOfMemory):
		return outOfMemory
	case isStatus(statusRecycled):
		return recycled
	default:
		return exited
	}
}

// permanent: another start cannot help.
func (c cause) permanent() bool { return c == unusable }

// blamesInput: what was being computed can be the reason; what comes from outside never is.
func (c cause) blamesInput() bool { return c == crashed }

// causeOfEnd tells why a process ended.
func causeOfEnd(state *os.ProcessState) cause {
	if state == nil {
		return unknown
	}
	windows := runtime.GOOS == "windows"
	status := int64(state.ExitCode())
	if windows {
		status = int64(uint32(state.ExitCode())) // NTSTATUS has no sign
	}
	return causeOf(status, signalOf(state), windows)
}
