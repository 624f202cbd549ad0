package embedbridge

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	readBytes    = 256 << 10
	maxLineBytes = 256 << 20 // of an answer
	stderrKept   = 8 << 10
	pipeGrace    = 250 * time.Millisecond // a grandchild may hold the pipes of a dead worker open
	outboxLines  = 1024                   // more than a full window, and a cancel for each of it
	windowPieces = 256                    // more would not make better batches, only more suspects
	windowTokens = 4 * pieceTokens        // of bulk work, so that time-outs measure work and not the queue
	windowBytes  = 16 << 20
	mostNonsense = 20 // lines of a chatty library or wrapper script before the worker is ready
)

// worker is one process and the goroutines around its pipes: dropped whole when it dies, so that nothing late of it
// counts. Its fields from info on belong to the client, and to the client's lock.
type worker struct {
	command *exec.Cmd
	outbox  chan []byte
	stderr  tail
	reaped  atomic.Bool
	gone    chan struct{} // closed when it is dead, reaped, and has been heard to the end

	info        *Info // once it is ready
	infoID      int64
	startTimer  *time.Timer
	health      *health
	pieces      map[int64]*piece        // in flight, by id
	pings       map[int64]chan struct{} // of Ping; nil for the client's own
	bytes       int                     // in flight
	bulkTokens  int
	onTrial     *piece // a suspect, alone in flight
	nonsense    int    // lines before it was ready
	cause       *WorkerError
	isDoomed    bool // gets nothing new
	inputEnded  bool
	readySince  time.Time
	usefulSince time.Time
	err         *WorkerError // once it is gone
}

// startWorker starts a process. onLine hears every line of its standard output, onEnd that there can be no more of them,
// and onGone, last of all and once, that it is reaped.
func startWorker(
	o *Options, onLine func(*worker, []byte), onEnd func(*worker, string), onGone func(*worker),
) (*worker, error) {
	w := &worker{
		command: exec.Command(o.Command[0], o.Command[1:]...),
		outbox:  make(chan []byte, outboxLines),
		stderr:  tail{copy: o.Stderr},
		gone:    make(chan struct{}),
		pieces:  map[int64]*piece{},
		pings:   map[int64]chan struct{}{},
	}
	w.command.Env = o.environment()
	w.command.Dir = o.Dir
	w.command.WaitDelay = pipeGrace
	w.command.Stderr = &w.stderr
	ownGroup(w.command)
	stdin, err := w.command.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not StdoutPipe: Wait would close it before everything is read.
	stdout, childStdout, err := os.Pipe()
	if err != nil {
		_ = stdin.Close()
		return nil, err
	}
	w.command.Stdout = childStdout
	err = w.command.Start()
	_ = childStdout.Close()
	if err != nil {
		_ = stdout.Close()
		_ = stdin.Close()
		return nil, err
	}
	endOfOutput := make(chan struct{})
	go w.write(stdin)
	go func() {
		onEnd(w, w.read(stdout, onLine))
		close(endOfOutput)
	}()
	go func() {
		_ = w.command.Wait() // the state tells
		w.signal(killGroup)  // its children, if it left any
		w.reaped.Store(true)
		select {
		case <-endOfOutput:
		case <-time.After(pipeGrace):
		}
		onGone(w)
		_ = stdout.Close() // somebody else may hold the other end for ever
	}()
	return w, nil
}

func (w *worker) write(stdin io.WriteCloser) {
	for line := range w.outbox {
		if _, err := stdin.Write(line); err != nil {
			break // it is about to die, or else its silence will tell
		}
	}
	_ = stdin.Close()
	for range w.outbox {
	}
}

// read delivers complete lines until the end, and tells what the end was. A last piece without a newline is no answer.
func (w *worker) read(stdout io.Reader, onLine func(*worker, []byte)) string {
	reader := bufio.NewReaderSize(stdout, readBytes)
	var line []byte
	for {
		part, err := reader.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			if len(bytes.TrimSpace(line)) > 0 {
				onLine(w, line)
			}
			line = line[:0]
		case !errors.Is(err, bufio.ErrBufferFull):
			return "it closed its standard output but lived on"
		case len(line) > maxLineBytes:
			return fmt.Sprintf("it wrote a line of more than %d bytes", maxLineBytes)
		}
	}
}

// send queues a line; false if the worker has not read for so long that there is no room.
func (w *worker) send(line []byte) bool {
	if w.inputEnded {
		return true
	}
	select {
	case w.outbox <- line:
		return true
	default:
		return false
	}
}

// endInput closes standard input behind what is queued: the worker's sign to finish and leave.
func (w *worker) endInput() {
	if !w.inputEnded {
		w.inputEnded = true
		close(w.outbox)
	}
}

// signal reaches the worker and its children, unless the number may be somebody else's by now.
func (w *worker) signal(group func(*os.Process)) {
	if !w.reaped.Load() {
		group(w.command.Process)
	}
}

// hasRoom tells whether a piece fits into the window of what is in flight.
func (w *worker) hasRoom(p *piece) bool {
	limits := w.info.Limits
	switch {
	case len(w.pieces) == 0:
		return true
	case len(w.pieces) >= min(windowPieces, limits.MaxInFlight):
		return false
	case w.bytes+p.bytes > min(windowBytes, limits.MaxInFlightBytes/2):
		return false
	default: // only bulk work counts against bulk work
		return p.isShort() || w.bulkTokens == 0 || w.bulkTokens+p.tokens <= windowTokens
	}
}

func (w *worker) load(p *piece, sign int) {
	w.bytes += sign * p.bytes
	if !p.isShort() {
		w.bulkTokens += sign * p.tokens
	}
}

// inFlight returns its pieces in the order in which they were sent.
func (w *worker) inFlight() []*piece {
	ids := make([]int64, 0, len(w.pieces))
	for id := range w.pieces {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	pieces := make([]*piece, len(ids))
	for i, id := range ids {
		pieces[i] = w.pieces[id]
	}
	return pieces
}

// describe makes the error that tells of its end, once it is reaped.
func (w *worker) describe() *WorkerError {
	err := w.cause
	if err == nil {
		err = &WorkerError{Kind: ErrWorkerStart}
		if w.info != nil {
			err.Kind = ErrWorkerDied
		}
	}
	err.Process = w.command.ProcessState
	err.StderrTail = w.stderr.String()
	switch err.Process.ExitCode() {
	case exitUsage, exitUnusable, exitNotExecutable, exitNotFound:
		err.isPermanent = true
	}
	return err
}

// Exit statuses of the worker, and of a shell that did not find it.
const (
	exitUsage         = 2
	exitUnusable      = 78
	exitRecycled      = 79
	exitNotExecutable = 126
	exitNotFound      = 127
)

// tail keeps the end of a stream.
type tail struct {
	copy io.Writer
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(chunk []byte) (int, error) {
	t.mu.Lock()
	t.kept = append(t.kept, chunk...)
	if extra := len(t.kept) - stderrKept; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	t.mu.Unlock()
	if t.copy != nil {
		_, _ = t.copy.Write(chunk) // a host's broken log is no reason to stop reading
	}
	return len(chunk), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ToValidUTF8(bytes.TrimSpace(t.kept), []byte("?")))
}
