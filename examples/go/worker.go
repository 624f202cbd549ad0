package embedbridge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

const (
	readBytes       = 256 << 10
	maxAnswerBytes  = 256 << 20
	stderrTailBytes = 8 << 10
	quotedBytes     = 200
	pipeGrace       = 250 * time.Millisecond // a grandchild may hold the pipes of a dead worker open
	outboxLines     = 1024                   // more than a full window, and a cancel for each of it
	windowPieces    = 256                    // more would not make better batches, only more suspects
	windowTokens    = 4 * pieceTokens        // of bulk work, so that time-outs measure work and not the queue
	windowBytes     = 16 << 20
	mostNonsense    = 20 // lines of a chatty library or wrapper script before the worker is ready
)

// worker is one process and the goroutines around its pipes: dropped whole when it dies, so that nothing late of it
// counts. Its fields from info on belong to the client, and to the client's lock.
type worker struct {
	command *exec.Cmd
	outbox  chan outgoing
	stderr  tail
	stdout  tail // what is not answers of it
	reaping sync.Mutex
	reaped  bool
	state   *os.ProcessState // once it is reaped, unless somebody else has done that
	gone    chan struct{}    // closed when it is dead, reaped, and has been heard to the end

	info        *Info          // once it is ready
	infoIDs     map[int64]bool // under which info was asked
	startTimer  *time.Timer
	health      *health
	pieces      map[int64]*piece       // in flight, by id
	questions   map[int64]chan members // of callers; nil for the client's own pings
	bytes       int                    // in flight
	bulkTokens  int
	onTrial     *piece // a suspect, alone in flight
	nonsense    int    // lines before it was ready
	killedFor   *WorkerError
	doomed      bool // gets nothing new
	inputEnded  bool
	lost        bool
	readySince  time.Time
	usefulSince time.Time
	err         *WorkerError // once it is gone
}

// outgoing is a line to write, or a piece to make one of.
type outgoing struct {
	line  []byte
	id    int64
	piece *piece
}

// events are what a worker's goroutines tell its owner.
type events struct {
	onLine    func(*worker, []byte)             // a line of its standard output
	onEnd     func(*worker, string)             // there can be no more of them, and why
	onTooLong func(*worker, int64, *piece, int) // a piece made so many bytes and was not written
	onGone    func(*worker)                     // last of all and once: it is reaped
}

// startWorker starts a process in which nothing is read or written yet: listen begins.
func startWorker(o *Options) (w *worker, pipes [3]*os.File, err error) {
	w = &worker{
		command:   exec.Command(o.Command[0], o.Command[1:]...),
		outbox:    make(chan outgoing, outboxLines),
		stderr:    tail{copy: o.Stderr, bytes: stderrTailBytes},
		stdout:    tail{bytes: quotedBytes},
		gone:      make(chan struct{}),
		infoIDs:   map[int64]bool{},
		pieces:    map[int64]*piece{},
		questions: map[int64]chan members{},
	}
	w.command.Env = o.environment()
	w.command.Dir = o.Dir
	ownGroup(w.command)
	// Pipes of our own: Wait would close those of the package before everything is read.
	var ours, theirs [3]*os.File
	closeAll := func(files [3]*os.File) {
		for _, file := range files {
			_ = file.Close() // also of nil
		}
	}
	defer func() { closeAll(theirs) }()
	for i := range ours {
		if ours[i], theirs[i], err = os.Pipe(); err != nil {
			closeAll(ours)
			return nil, pipes, err
		}
	}
	ours[0], theirs[0] = theirs[0], ours[0] // the worker reads from the first
	w.command.Stdin, w.command.Stdout, w.command.Stderr = theirs[0], theirs[1], theirs[2]
	if err = w.command.Start(); err != nil {
		if _, missing := os.Stat(o.Dir); o.Dir != "" && missing != nil {
			err = missing // the system's error names the program, also where its working directory is not there
		}
		closeAll(ours)
		return nil, pipes, err
	}
	return w, ours, nil
}

// listen begins to write, to read and to wait.
func (w *worker) listen(pipes [3]*os.File, on events) {
	stdin, stdout, stderr := pipes[0], pipes[1], pipes[2]
	endOfOutput, endOfStderr := make(chan struct{}), make(chan struct{})
	go w.write(stdin, on)
	go func() {
		on.onEnd(w, w.read(stdout, on))
		close(endOfOutput)
	}()
	go func() {
		_, _ = io.Copy(&w.stderr, stderr)
		close(endOfStderr)
	}()
	go func() {
		w.reap()
		grace, cancel := context.WithTimeout(context.Background(), pipeGrace) // somebody may hold the other ends for ever
		for _, end := range []chan struct{}{endOfOutput, endOfStderr} {
			select {
			case <-end:
			case <-grace.Done():
			}
		}
		cancel()
		on.onGone(w)
		_ = stdout.Close()
		_ = stderr.Close()
		_ = stdin.Close() // the writer may wait for a pipe that nobody reads
	}()
}

// reap waits for the end, ends what the worker has left of its group, and collects the status. The group's number is
// certainly the worker's until it is reaped, and nobody's then.
func (w *worker) reap() {
	if awaitEnd(w.command.Process.Pid) {
		w.signal(killGroup)
		w.reaping.Lock()
		_ = w.command.Wait() // at once; the state tells
	} else {
		_ = w.command.Wait()
		w.reaping.Lock()
	}
	w.reaped, w.state = true, w.command.ProcessState
	w.reaping.Unlock()
}

// isReaped tells whether the process is gone. Somebody else may have collected it, and its status with it.
func (w *worker) isReaped() bool {
	w.reaping.Lock()
	defer w.reaping.Unlock()
	return w.reaped
}

// signal reaches the worker and its children, unless its number may be somebody else's by now.
func (w *worker) signal(group func(*os.Process)) {
	w.reaping.Lock()
	defer w.reaping.Unlock()
	if !w.reaped {
		group(w.command.Process)
	}
}

func (w *worker) write(stdin *os.File, on events) {
	defer stdin.Close()
	var line bytes.Buffer
	broken := false // it is about to die, or else its silence will tell
	for out := range w.outbox {
		if broken {
			continue
		}
		if out.piece == nil {
			_, err := stdin.Write(out.line)
			broken = err != nil
			continue
		}
		line.Reset()
		p := out.piece
		encodeLine(&line, p.request(out.id))
		if line.Len()-1 > w.info.Limits.MaxLineBytes {
			on.onTooLong(w, out.id, p, line.Len())
			continue
		}
		_, err := stdin.Write(line.Bytes())
		broken = err != nil
	}
}

// read delivers complete lines until the end, and tells what the end was. A last piece without a newline is no answer.
func (w *worker) read(stdout io.Reader, on events) string {
	chunk := make([]byte, readBytes)
	var partial []byte
	for {
		length, err := stdout.Read(chunk)
		rest := chunk[:length]
		for end := bytes.IndexByte(rest, '\n'); end >= 0; end = bytes.IndexByte(rest, '\n') {
			line := rest[:end]
			if len(partial) > 0 {
				partial = append(partial, line...)
				line, partial = partial, partial[:0]
				if cap(partial) > windowBytes {
					partial = nil
				}
			}
			if len(bytes.TrimSpace(line)) > 0 {
				on.onLine(w, line)
			}
			rest = rest[end+1:]
		}
		partial = append(partial, rest...)
		w.stdout.setPartial(partial)
		switch {
		case err != nil:
			return "it closed its standard output but lived on"
		case len(partial) > maxAnswerBytes:
			return fmt.Sprintf("it wrote a line of more than %d bytes", maxAnswerBytes)
		}
	}
}

// send queues something to write; false if the worker has not read for so long that there is no room.
func (w *worker) send(out outgoing) bool {
	if w.inputEnded {
		return true
	}
	select {
	case w.outbox <- out:
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

// accepts tells whether pieces may be sent.
func (w *worker) accepts() bool { return w != nil && w.info != nil && !w.doomed }

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
		return p.short() || w.bulkTokens == 0 || w.bulkTokens+p.tokens <= windowTokens
	}
}

func (w *worker) load(id int64, p *piece) {
	w.pieces[id] = p
	w.count(p, 1)
	if p.suspect {
		w.onTrial = p
	}
}

func (w *worker) unload(id int64, p *piece) {
	delete(w.pieces, id)
	w.count(p, -1)
	if w.onTrial == p {
		w.onTrial = nil
	}
}

func (w *worker) count(p *piece, sign int) {
	w.bytes += sign * p.bytes
	if !p.short() {
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

// describe returns what its end means, and the error that tells of it.
func (w *worker) describe() (cause, *WorkerError) {
	w.reaping.Lock()
	state := w.state
	w.reaping.Unlock()
	ended := causeOfEnd(state)
	err := errorOfEnd(ended, w.killedFor, w.info != nil)
	err.Process = state
	err.StderrTail = w.stderr.String()
	return ended, err
}

// tail keeps the end of a stream.
type tail struct {
	copy    io.Writer
	bytes   int
	mu      sync.Mutex
	kept    []byte
	partial []byte
}

func (t *tail) Write(chunk []byte) (int, error) {
	t.mu.Lock()
	t.kept = append(t.kept, chunk...)
	if extra := len(t.kept) - t.bytes; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	t.mu.Unlock()
	if t.copy != nil {
		_, _ = t.copy.Write(chunk) // a host's broken log is no reason to stop reading
	}
	return len(chunk), nil
}

// setPartial notes what a line that has no end yet begins with.
func (t *tail) setPartial(line []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.partial = append(t.partial[:0], line[:min(len(line), t.bytes)]...)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	said := bytes.TrimSpace(append(slices.Clone(t.kept), t.partial...))
	for _, end := range []string{"\r\n", "\r"} { // of Windows, and of a progress bar
		said = bytes.ReplaceAll(said, []byte(end), []byte("\n"))
	}
	return string(bytes.ToValidUTF8(said, []byte("?")))
}
