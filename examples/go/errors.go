package embedbridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// What a call can end with, beside its vectors, context.Canceled and a *RequestError. Branch with errors.Is and
// errors.As, never on messages.
var (
	// ErrClosed: Close came first.
	ErrClosed = errors.New("embedbridge: the client is closed")
	// ErrTimeout: the call's time is over. The worker was told, and lives on: slow is not hung. Such an error is
	// context.DeadlineExceeded, too.
	ErrTimeout = errors.New("embedbridge: no answer in time")
	// ErrWorkerStart: no worker could be started with this command (a *WorkerError).
	ErrWorkerStart = errors.New("embedbridge: the worker did not start")
	// ErrWorkerDied: workers died with this request as often as it may be sent (a *WorkerError).
	ErrWorkerDied = errors.New("embedbridge: the worker died")
	// ErrWorkerHung: the last worker with this request stopped answering or working, and was killed (a *WorkerError).
	ErrWorkerHung = errors.New("embedbridge: the worker hung and was killed")
	// ErrProtocolMismatch: the worker speaks another version of the protocol (a *WorkerError).
	ErrProtocolMismatch = errors.New("embedbridge: the worker cannot be used")
	// ErrModelChanged: a restarted worker serves another vector space, which must not be mixed with the earlier
	// (a *WorkerError). A new Client accepts it; embed everything again.
	ErrModelChanged = errors.New("embedbridge: the worker came back with another model")
	// ErrCircuitOpen: the worker failed too often; calls are refused for a while (a *CircuitOpenError).
	ErrCircuitOpen = errors.New("embedbridge: the worker failed too often")

	errImmortal = errors.New("embedbridge: the worker does not die")
)

// RequestError is the worker's own answer to a request that it cannot serve.
type RequestError struct {
	Code      string // one of the protocol's error codes, or one of a newer worker
	Message   string
	Retryable bool // whether the same request may succeed when it is sent again
	Index     int  // the input that is to blame, -1 where it is not known
}

func (e *RequestError) Error() string { return "embedbridge: " + e.Code + ": " + e.Message }

// WorkerError tells how a worker ended or why it cannot be used; errors.Is says which of the above it is.
type WorkerError struct {
	Kind       error            // ErrWorkerStart, ErrWorkerDied, ErrWorkerHung, ErrProtocolMismatch or ErrModelChanged
	Detail     string           // one clause where the exit status alone does not tell
	Process    *os.ProcessState // how it ended; nil when there was no process
	StderrTail string           // the end of what it wrote to standard error

	// BlamesInput: what was being computed can be the reason, as it cannot for a signal from outside. A host that sees
	// it again and again for one input does well to leave that out.
	BlamesInput bool

	permanent bool // another start cannot help
}

func (e *WorkerError) Error() string {
	text := e.Kind.Error()
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.Process != nil {
		text += fmt.Sprintf(" (%v)", e.Process)
	}
	if e.StderrTail != "" {
		text += fmt.Sprintf("; the end of its standard error: %q", e.StderrTail)
	}
	return text
}

// Unwrap makes errors.Is see the kind.
func (e *WorkerError) Unwrap() error { return e.Kind }

// CircuitOpenError refuses a call without a worker.
type CircuitOpenError struct {
	RetryAt time.Time    // when the next start is tried
	Last    *WorkerError // the last failure
}

func (e *CircuitOpenError) Error() string {
	return fmt.Sprintf("%v, again at %s; last: %v", ErrCircuitOpen, e.RetryAt.Format(time.TimeOnly), e.Last)
}

// Unwrap makes errors.Is see ErrCircuitOpen, and not the kind of the last failure.
func (e *CircuitOpenError) Unwrap() error { return ErrCircuitOpen }

// timeoutError is ErrTimeout and context.DeadlineExceeded at once.
func timeoutError() error { return fmt.Errorf("%w: %w", ErrTimeout, context.DeadlineExceeded) }

func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return timeoutError()
	}
	return ctx.Err()
}

// What workers are killed for.

func hungError(detail string) *WorkerError {
	return &WorkerError{Kind: ErrWorkerHung, Detail: detail, BlamesInput: true}
}

func brokenProtocolError(why string) *WorkerError {
	return &WorkerError{Kind: ErrWorkerDied, Detail: "it was killed because it broke the protocol: " + why}
}

func startError(detail string) *WorkerError {
	return &WorkerError{Kind: ErrWorkerStart, Detail: detail}
}

func modelChangedError(info, expected *Info) *WorkerError {
	detail := fmt.Sprintf("%s %s of dimension %d instead of %s %s of %d",
		info.Model, info.Fingerprint, info.Dimension, expected.Model, expected.Fingerprint, expected.Dimension)
	return &WorkerError{Kind: ErrModelChanged, Detail: detail, permanent: true}
}

// errorOfEnd tells of an end; what the worker was killed for counts unless it had ended in its own way before.
func errorOfEnd(ended cause, killedFor *WorkerError, wasReady bool) *WorkerError {
	if killedFor != nil && (ended == killed || ended == unknown) {
		return killedFor
	}
	kind := ErrWorkerStart
	if wasReady {
		kind = ErrWorkerDied
	}
	return &WorkerError{Kind: kind, permanent: ended.permanent(), BlamesInput: ended.blamesInput()}
}
