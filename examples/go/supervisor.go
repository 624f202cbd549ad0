package embedbridge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"time"
)

// The lives of the workers. Everything here runs under the client's lock; what begins with "on", watch and climbLadder
// take it.

const (
	longestDrain = 15 * time.Second // a supervised worker allows itself 10
	pipeLost     = time.Second      // a process whose pipe is gone should be gone, too
	immortal     = 5 * time.Second  // after SIGKILL, beyond TerminateTimeout
)

func (c *Client) spawn() {
	c.failure = nil
	c.spawned++
	w, pipes, err := startWorker(&c.options)
	if err != nil {
		// What cannot be executed never will be; a system without memory or processes may recover.
		isMissing := errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist)
		isPermanent := isMissing || errors.Is(err, os.ErrPermission)
		c.after(life{}, &WorkerError{Kind: ErrWorkerStart, Detail: err.Error(), permanent: isPermanent})
		return
	}
	c.worker = w
	w.startTimer = time.AfterFunc(c.options.StartTimeout, func() { c.onNotReady(w) })
	w.listen(pipes, events{c.onLine, c.onEndOfOutput, c.onTooLong, c.onGone})
	c.askInfo(w)
}

func (c *Client) onNotReady(w *worker) {
	detail := fmt.Sprintf("not ready after %v", c.options.StartTimeout)
	if said := w.stdout.String(); said != "" {
		detail += fmt.Sprintf("; its standard output holds something else than answers: %q", said)
	}
	c.onOverdue(w, startError(detail))
}

// watch pings a ready worker when it is silent, and kills it when it hangs.
func (c *Client) watch(w *worker) {
	wait := c.options.PingEvery
	for {
		select {
		case <-w.gone:
			return
		case <-time.After(wait):
		}
		c.mu.Lock()
		now := time.Now()
		c.checkHealth(w, now)
		wait = w.health.nextCheck(len(w.pieces) > 0).Sub(now)
		doomed := w.doomed
		c.mu.Unlock()
		if doomed { // its end is on the way, and has a time limit of its own
			return
		}
	}
}

func (c *Client) checkHealth(w *worker, now time.Time) {
	if w.doomed {
		return
	}
	ping, hung := w.health.check(now, len(w.pieces) > 0)
	if ping {
		c.ping(w)
	}
	if hung != "" {
		c.kill(w, hungError(hung))
	}
}

func (c *Client) onEndOfOutput(w *worker, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doom(w, pipeLost, why)
}

// doom sends nothing more to a worker that is about to end, and kills it if it does not.
func (c *Client) doom(w *worker, grace time.Duration, why string) {
	w.doomed = true
	time.AfterFunc(grace, func() { c.onOverdue(w, &WorkerError{Kind: ErrWorkerDied, Detail: why}) })
}

func (c *Client) onOverdue(w *worker, cause *WorkerError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill(w, cause)
}

// kill ends a worker; onGone will follow, for a process that does not die, too. The first cause counts.
func (c *Client) kill(w *worker, cause *WorkerError) {
	w.doomed = true
	if w.killedFor != nil || w.lost {
		return
	}
	w.killedFor = cause
	w.signal(killGroup)
	time.AfterFunc(c.options.TerminateTimeout+immortal, func() { c.onGone(w) })
}

func (c *Client) onGone(w *worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.lost {
		return
	}
	w.lost = true
	ended, err := w.describe()
	w.err = err
	w.startTimer.Stop()
	w.endInput()
	close(w.gone)
	pieces := w.inFlight()
	c.worker = nil
	if c.closing {
		for _, p := range pieces {
			c.end(p.job, ErrClosed)
		}
		if !w.isReaped() {
			c.closeError = errImmortal
		}
		close(c.closed)
		return
	}
	was := life{readySince: w.readySince, usefulSince: w.usefulSince}
	was.recycle = ended == recycled
	was.investigation = len(pieces) == 1 && !pieces[0].job.over && err.BlamesInput && c.options.MaxAttempts > 1
	if was.investigation {
		was.free = c.investigated
		c.investigated = true
	}
	c.takeBack(pieces, err, was.recycle)
	c.after(was, err)
}

// takeBack puts what was in flight in front of the queue, or fails what was sent often enough.
func (c *Client) takeBack(pieces []*piece, err *WorkerError, isRecycle bool) {
	for i := len(pieces) - 1; i >= 0; i-- {
		switch p := pieces[i]; {
		case p.job.over:
		case isRecycle:
			p.attempts--
			c.queue.pushFront(p)
		case p.attempts >= c.options.MaxAttempts:
			c.end(p.job, err)
		default:
			p.suspect = true
			c.queue.pushFront(p)
		}
	}
}

// after decides what follows on a worker that is gone, or did not start.
func (c *Client) after(was life, err *WorkerError) {
	if err.permanent {
		c.refuseAll(err)
		return
	}
	wait, open := c.restarts.after(was, time.Now(), 2*rand.Float64()-1)
	if open {
		c.refuseAll(&CircuitOpenError{RetryAt: time.Now().Add(wait), Last: err})
	}
	c.wakeUp = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closing {
			c.spawn()
		}
	})
}

// refuseAll fails what waits, and every call until the next start.
func (c *Client) refuseAll(err error) {
	c.failure = err
	waiting := c.queue
	c.queue = queue{}
	for _, list := range waiting.lists() {
		for _, p := range *list {
			c.end(p.job, err)
		}
	}
	c.announce()
}

// announce wakes those who wait for a worker to be ready.
func (c *Client) announce() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// climbLadder ends a worker: the end of its input, SIGTERM, SIGKILL; at once when the context ends.
func (c *Client) climbLadder(ctx context.Context, w *worker) {
	c.mu.Lock()
	w.doomed = true
	w.endInput()
	c.mu.Unlock()
	select {
	case <-w.gone:
	case <-ctx.Done():
	case <-time.After(c.options.DrainTimeout):
		w.signal(terminateGroup)
		select {
		case <-w.gone:
		case <-ctx.Done():
		case <-time.After(c.options.TerminateTimeout):
		}
	}
	c.onOverdue(w, &WorkerError{Kind: ErrWorkerDied, Detail: "it did not leave when it was asked to"})
}
