package embedbridge

import (
	"fmt"
	"time"
)

// A call's way to the worker and back. Everything here runs under the client's lock; what begins with "on" takes it.

// begin refuses a call that cannot be served, and starts the first worker.
func (c *Client) begin() error {
	if c.isClosing {
		return ErrClosed
	}
	if c.failure == nil && c.spawned == 0 {
		c.spawn()
	}
	return c.failure
}

// end settles a call; the worker is told to drop what it has of it. Late answers are ignored.
func (c *Client) end(j *job, err error) {
	if j.isOver {
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
	for w != nil && w.info != nil && !w.isDoomed {
		p := c.queue.next(w)
		if p == nil {
			return
		}
		c.send(w, p)
	}
}

func (c *Client) send(w *worker, p *piece) {
	j := p.job
	c.lastID++
	inputs := j.texts[p.start:p.stop]
	if inputs == nil {
		inputs = []string{} // null is not a list
	}
	line := encodeLine(embedRequest{c.lastID, "embed", inputs, "base64", j.options})
	limits := w.info.Limits
	switch isLong := len(line)-1 > limits.MaxLineBytes; {
	case len(inputs) > 1 && (isLong || len(inputs) > limits.MaxInputs):
		c.queue.pushFront(p.halves())
		return
	case isLong:
		message := fmt.Sprintf("a line of %d bytes for text %d, the limit is %d", len(line), p.start, limits.MaxLineBytes)
		c.end(j, &RequestError{Code: "input_too_long", Message: message, Index: p.start})
		return
	}
	p.attempts++
	if p.timer == nil && !j.hasDeadline {
		p.timer = time.AfterFunc(c.options.RequestTimeout, func() { c.onTimeout(j) })
	}
	if len(w.pieces) == 0 {
		w.health.workBegan(time.Now())
	}
	if p.isSuspect {
		w.onTrial = p
	}
	w.pieces[c.lastID] = p
	w.load(p, 1)
	c.write(w, line)
}

func (c *Client) onTimeout(j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end(j, timeoutError())
}

func (c *Client) ping(w *worker, pong chan struct{}) {
	w.pings[c.control(w, controlRequest{Method: "ping"})] = pong
}

// control sends a request that waits in no queue, and returns its id.
func (c *Client) control(w *worker, request controlRequest) int64 {
	c.lastID++
	request.ID = c.lastID
	c.write(w, encodeLine(request))
	return request.ID
}

func (c *Client) write(w *worker, line []byte) {
	if !w.send(line) {
		c.kill(w, &WorkerError{Kind: ErrWorkerHung, Detail: "it stopped reading"})
	}
}

// Answers -----------------------------------------------------------------------------------------------------------

func (c *Client) onLine(w *worker, line []byte) {
	r, err := decodeLine(line) // large, so before the lock
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.worker != w || w.cause != nil { // nothing that it still says counts
		return
	}
	if err != nil {
		if w.nonsense++; w.info != nil || w.nonsense > mostNonsense {
			c.distrust(w, err.Error())
		}
		return
	}
	now := time.Now()
	if w.health != nil {
		w.health.received(now)
	}
	if p, isPiece := w.pieces[r.id]; isPiece {
		c.answered(w, p, r, now)
	} else if pong, isPing := w.pings[r.id]; isPing {
		delete(w.pings, r.id)
		w.health.ponged(now, r.MicroBatches, len(w.pieces) > 0)
		if pong != nil {
			close(pong)
		}
		c.checkHealth(w, now)
	} else if r.id == w.infoID && w.info == nil {
		c.introduced(w, r, now)
	} // else: an answer to a cancel, a duplicate, or nobody's
	c.dispatch()
}

func (c *Client) answered(w *worker, p *piece, r *response, now time.Time) {
	j := p.job
	if !j.isOver && r.Status == "ok" {
		if err := c.checkAnswer(w, p, r); err != nil {
			c.distrust(w, err.Error())
			return
		}
		if w.usefulSince.IsZero() {
			w.usefulSince = now
		}
	}
	delete(w.pieces, r.id)
	w.load(p, -1)
	w.health.embedded(now)
	if w.onTrial == p {
		w.onTrial = nil
	}
	switch {
	case j.isOver:
	case r.Status == "ok":
		p.stopTimer()
		j.take(p, r)
	case r.Code == "shutting_down": // no answer about the request: it was not begun, and the worker is about to leave
		c.doom(w, longestDrain, "it said that it would end, and did not")
		p.attempts--
		c.queue.pushFront(p)
	default:
		p.stopTimer()
		index := -1
		if r.Index != nil {
			index = p.start + *r.Index
		}
		c.end(j, &RequestError{Code: r.Code, Message: r.Message, Retryable: r.Retryable, Index: index})
	}
}

// checkAnswer compares an answer with what was asked for, and with what was promised.
func (c *Client) checkAnswer(w *worker, p *piece, r *response) error {
	dimension := 0
	if p.job.result != nil {
		dimension = p.job.result.Dimension // of another model, as of the call's first piece
	}
	if p.job.options.Dimensions != nil {
		dimension = *p.job.options.Dimensions
	} else if r.Model == w.info.Model {
		dimension = w.info.Dimension
	}
	if err := r.check(p.stop-p.start, dimension); err != nil {
		return err
	}
	if p.job.options.Model == "" && r.Model != w.info.Model {
		return fmt.Errorf("an answer of the model %q", r.Model)
	}
	if known, isKnown := c.fingerprints[r.Model]; isKnown && known != r.Fingerprint {
		return fmt.Errorf("the fingerprint %q instead of %q", r.Fingerprint, known)
	}
	c.fingerprints[r.Model] = r.Fingerprint
	return nil
}

// introduced compares what a new worker is with what it has to be.
func (c *Client) introduced(w *worker, r *response, now time.Time) {
	info := r.Info
	info.Limits = info.Limits.withDefaults()
	refuse := func(kind error, detail string, isPermanent bool) {
		c.kill(w, &WorkerError{Kind: kind, Detail: detail, isPermanent: isPermanent})
	}
	switch {
	case r.Status == "error":
		refuse(ErrWorkerStart, r.Code+": "+r.Message, !r.Retryable)
		return
	case info.Protocol != protocolVersion:
		refuse(ErrProtocolMismatch, fmt.Sprintf("it speaks protocol %d, not %d", info.Protocol, protocolVersion), true)
		return
	case info.Model == "" || info.Fingerprint == "" || info.Dimension < 1:
		refuse(ErrProtocolMismatch, "its info names no model, fingerprint or dimension", true)
		return
	}
	if c.expected == nil {
		c.expected = &info
		c.fingerprints[info.Model] = info.Fingerprint
	}
	if e := c.expected; info.Model != e.Model || info.Fingerprint != e.Fingerprint || info.Dimension != e.Dimension {
		refuse(ErrModelChanged, fmt.Sprintf("%s %s of dimension %d instead of %s %s of %d",
			info.Model, info.Fingerprint, info.Dimension, e.Model, e.Fingerprint, e.Dimension), true)
		return
	}
	w.startTimer.Stop()
	w.info = &info
	w.readySince = now
	w.health = newHealth(now, &c.options)
	go c.watch(w)
	c.announce()
}

func (p *piece) stopTimer() {
	if p.timer != nil {
		p.timer.Stop()
	}
}
