package embedbridge

import (
	"bytes"
	"fmt"
	"time"
)

// A call's way to the worker and back. Everything here runs under the client's lock, but for what begins with "on",
// which takes it. Lines are made and read outside of it: they are large.

// begin refuses a call that cannot be served, and starts the first worker.
func (c *Client) begin() error {
	if c.closing {
		return ErrClosed
	}
	if c.failure == nil && c.spawned == 0 {
		c.spawn()
	}
	return c.failure
}

// end settles a call; the worker is told to drop what it has of it. Late answers are ignored.
func (c *Client) end(j *job, err error) {
	if j.over {
		return
	}
	j.settle(err)
	c.queue.remove(j)
	if w := c.worker; w != nil {
		for id, p := range w.pieces {
			if p.job == j {
				c.control(w, controlRequest{Method: "cancel", Target: id})
			}
		}
	}
}

func (c *Client) dispatch() {
	w := c.worker
	for w.accepts() {
		p := c.queue.next(w)
		switch {
		case p == nil:
			if len(c.queue.suspects) == 0 && w.onTrial == nil {
				c.investigated = false
			}
			return
		case p.count() > w.info.Limits.MaxInputs:
			c.queue.pushFront(p.halves())
		default:
			c.send(w, p)
		}
	}
}

func (c *Client) send(w *worker, p *piece) {
	j := p.job
	p.attempts++
	if p.timer == nil && !j.hasDeadline {
		p.timer = time.AfterFunc(c.options.RequestTimeout, func() { c.onTimeout(j) })
		j.timers = append(j.timers, p.timer)
	}
	if len(w.pieces) == 0 {
		w.health.workBegan(time.Now())
	}
	c.lastID++
	w.load(c.lastID, p)
	c.write(w, outgoing{id: c.lastID, piece: p})
}

// onTooLong takes back a piece that is too long for a line: halved, or refused if it is one input.
func (c *Client) onTooLong(w *worker, id int64, p *piece, length int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.pieces[id] != p {
		return
	}
	w.unload(id, p)
	p.attempts--
	if !p.job.over && p.count() > 1 {
		c.queue.pushFront(p.halves())
	} else {
		limit := w.info.Limits.MaxLineBytes
		message := fmt.Sprintf("a line of %d bytes for input %d, the limit is %d", length, p.start, limit)
		c.end(p.job, &RequestError{Code: "input_too_long", Message: message, Index: p.start})
	}
	c.dispatch()
}

func (c *Client) onTimeout(j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(j, timeoutError())
	c.dispatch()
}

func (c *Client) ping(w *worker) {
	w.questions[c.control(w, controlRequest{Method: "ping"})] = nil
}

// control sends a request that waits in no queue, and returns its id.
func (c *Client) control(w *worker, request controlRequest) int64 {
	c.lastID++
	request.ID = c.lastID
	var line bytes.Buffer
	encodeLine(&line, request)
	c.write(w, outgoing{line: line.Bytes()})
	return request.ID
}

func (c *Client) write(w *worker, out outgoing) {
	if !w.send(out) {
		c.kill(w, hungError("it stopped reading"))
	}
}

// Answers -----------------------------------------------------------------------------------------------------------

func (c *Client) onLine(w *worker, line []byte) {
	m, err := parseLine(line)
	var a *answer
	if p, dimension := c.wanted(w, m); err == nil && p != nil && !m.isError() {
		a, err = m.answerTo(p, dimension)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.worker != w || w.killedFor != nil { // nothing that it still says counts
		return
	}
	if err != nil {
		c.strange(w, line, err)
		return
	}
	now := time.Now()
	if w.health != nil {
		w.health.received(now)
	}
	id := m.id()
	if p := w.pieces[id]; p != nil {
		c.answered(w, id, p, m, a, now)
	} else if caller, isQuestion := w.questions[id]; isQuestion {
		delete(w.questions, id)
		c.told(w, caller, m, now)
	} else if w.infoIDs[id] && w.info == nil {
		c.introduced(w, m, now)
	} // else: an answer to a cancel, a duplicate, or nobody's
	c.dispatch()
}

// wanted returns the piece that a line answers, if somebody still wants it, and the dimension that it must have: 0 where
// any will do. It takes the lock.
func (c *Client) wanted(w *worker, m members) (*piece, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := w.pieces[m.id()]
	switch {
	case p == nil || p.job.over:
		return nil, 0
	case p.job.tokenize != nil:
		return p, 0
	case p.job.options.Dimensions != nil:
		return p, *p.job.options.Dimensions
	case p.job.options.Model == "" || p.job.options.Model == w.info.Model:
		return p, w.info.Dimension
	case p.job.result != nil:
		return p, p.job.result.Dimension
	default:
		return p, 0
	}
}

// strange decides about a line that is no answer: before the worker is ready a library or a wrapper script may print.
func (c *Client) strange(w *worker, line []byte, why error) {
	if w.nonsense++; w.info != nil || w.nonsense > mostNonsense {
		c.kill(w, brokenProtocolError(why.Error()))
		return
	}
	_, _ = w.stdout.Write(append(bytes.TrimSpace(line), '\n'))
	c.askInfo(w) // a banner without a newline has swallowed the answer, perhaps
}

func (c *Client) answered(w *worker, id int64, p *piece, m members, a *answer, now time.Time) {
	j := p.job
	var refused *RequestError
	err := error(nil)
	switch {
	case j.over:
	case m.isError():
		refused, err = m.refusal(p.start, p.count())
	case a != nil:
		err = c.sameSpace(w, p, a)
	}
	if err != nil {
		c.kill(w, brokenProtocolError(err.Error()))
		return
	}
	w.unload(id, p)
	w.health.embedded(now)
	switch {
	case j.over:
	case refused == nil:
		if w.usefulSince.IsZero() {
			w.usefulSince = now
		}
		if p.timer != nil {
			p.timer.Stop()
		}
		j.take(p, a)
	case refused.Code == "shutting_down": // it was not begun, and the worker is about to leave
		c.doom(w, longestDrain, "it said that it would end, and did not")
		p.attempts--
		c.queue.pushFront(p)
	default:
		c.end(j, refused)
	}
}

// sameSpace compares an answer with what was promised: vectors of two spaces must not be mixed.
func (c *Client) sameSpace(w *worker, p *piece, a *answer) error {
	if p.job.options.Model == "" && a.model != w.info.Model {
		return fmt.Errorf("an answer of the model %q", a.model)
	}
	if known, isKnown := c.fingerprints[a.model]; isKnown && known != a.fingerprint {
		return fmt.Errorf("the fingerprint %q instead of %q", a.fingerprint, known)
	}
	if r := p.job.result; r != nil && (r.Dimension != a.dimension || r.Fingerprint != a.fingerprint) {
		return fmt.Errorf("%s of dimension %d behind %s of %d", a.fingerprint, a.dimension, r.Fingerprint, r.Dimension)
	}
	c.fingerprints[a.model] = a.fingerprint
	return nil
}

// told passes an answer on to the caller who asked, and notes what a pong tells of progress.
func (c *Client) told(w *worker, caller chan members, m members, now time.Time) {
	if m.isError() {
		if _, err := m.refusal(0, 0); err != nil {
			c.kill(w, brokenProtocolError(err.Error()))
			return
		}
	}
	var microBatches int64
	if m.read("micro_batches", &microBatches) == nil {
		w.health.ponged(now, microBatches, len(w.pieces) > 0)
		c.checkHealth(w, now)
	}
	if caller != nil {
		caller <- m // it has room for one
	}
}

func (c *Client) askInfo(w *worker) {
	w.infoIDs[c.control(w, controlRequest{Method: "info"})] = true
}

// introduced compares what a new worker is with what it has to be.
func (c *Client) introduced(w *worker, m members, now time.Time) {
	if m.isError() {
		refused, err := m.refusal(0, 0)
		if err != nil {
			c.kill(w, startError("it answered info with an error that is none: "+err.Error()))
			return
		}
		c.kill(w, &WorkerError{Kind: ErrWorkerStart, Detail: refused.Code + ": " + refused.Message, permanent: !refused.Retryable})
		return
	}
	info, err := m.info()
	if err != nil {
		c.kill(w, &WorkerError{Kind: ErrProtocolMismatch, Detail: err.Error(), permanent: true})
		return
	}
	if c.expected == nil {
		c.expected = info
		c.fingerprints[info.Model] = info.Fingerprint
	}
	if e := c.expected; info.Model != e.Model || info.Fingerprint != e.Fingerprint || info.Dimension != e.Dimension {
		c.kill(w, modelChangedError(info, e))
		return
	}
	w.startTimer.Stop()
	w.info = info
	w.readySince = now
	w.health = newHealth(now, &c.options)
	go c.watch(w)
	c.announce()
}
