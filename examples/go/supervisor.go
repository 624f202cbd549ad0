package embedbridge

import (
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
	longestDrain  = 15 * time.Second // a supervised worker allows itself 10
	lostPipeGrace = time.Second
)

func (c *Client) spawn() {
	c.failure = nil
	c.spawned++
	w, err := startWorker(&c.options, c.onLine, c.onEndOfOutput, c.onGone)
	if err != nil {
		// What cannot be executed never will be; a system without memory or processes may recover.
		isMissing := errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist)
		isPermanent := isMissing || errors.Is(err, os.ErrPermission)
		c.lost(life{}, &WorkerError{Kind: ErrWorkerStart, Detail: err.Error(), isPermanent: isPermanent})
		return
	}
	c.worker = w
	w.startTimer = time.AfterFunc(c.options.StartTimeout, func() {
		detail := fmt.Sprintf("not ready after %v", c.options.StartTimeout)
		c.onOverdue(w, &WorkerError{Kind: ErrWorkerStart, Detail: detail})
	})
	w.infoID = c.control(w, controlRequest{Method: "info"})
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
		isDoomed := w.isDoomed
		c.mu.Unlock()
		if isDoomed { // its end is on the way, and has a time limit of its own
			return
		}
	}
}

func (c *Client) checkHealth(w *worker, now time.Time) {
	if w.isDoomed {
		return
	}
	ping, hung := w.health.check(now, len(w.pieces) > 0)
	if ping {
		c.ping(w, nil)
	}
	if hung != "" {
		c.kill(w, &WorkerError{Kind: ErrWorkerHung, Detail: hung})
	}
}

// distrust kills a worker that broke the protocol.
func (c *Client) distrust(w *worker, why string) {
	c.kill(w, &WorkerError{Kind: ErrWorkerDied, Detail: "it was killed because it broke the protocol: " + why})
}

func (c *Client) onEndOfOutput(w *worker, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doom(w, lostPipeGrace, why)
}

// doom sends nothing more to a worker that is about to end, and kills it if it does not.
func (c *Client) doom(w *worker, grace time.Duration, why string) {
	w.isDoomed = true
	time.AfterFunc(grace, func() { c.onOverdue(w, &WorkerError{Kind: ErrWorkerDied, Detail: why}) })
}

func (c *Client) onOverdue(w *worker, cause *WorkerError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kill(w, cause)
}

// kill ends a worker; onGone will follow. The first cause counts.
func (c *Client) kill(w *worker, cause *WorkerError) {
	if w.cause == nil {
		w.cause = cause
	}
	w.isDoomed = true
	w.signal(killGroup)
}

func (c *Client) onGone(w *worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.err = w.describe()
	w.startTimer.Stop()
	w.endInput()
	close(w.gone)
	pieces := w.inFlight()
	c.worker = nil
	if c.isClosing {
		for _, p := range pieces {
			c.end(p.job, ErrClosed)
		}
		close(c.closed)
		return
	}
	isRecycle := w.cause == nil && w.err.Process.ExitCode() == exitRecycled
	c.takeBack(pieces, w.err, isRecycle)
	c.lost(life{readySince: w.readySince, usefulSince: w.usefulSince, isRecycle: isRecycle}, w.err)
}

// takeBack puts what was in flight in front of the queue, or fails what was sent often enough.
func (c *Client) takeBack(pieces []*piece, err *WorkerError, isRecycle bool) {
	for i := len(pieces) - 1; i >= 0; i-- {
		switch p := pieces[i]; {
		case p.job.isOver:
		case isRecycle:
			p.attempts--
			c.queue.pushFront(p)
		case p.attempts >= c.options.MaxAttempts:
			p.stopTimer()
			c.end(p.job, err)
		default:
			p.isSuspect = true
			c.queue.pushFront(p)
		}
	}
}

// lost decides what follows on a worker that is gone, or did not start.
func (c *Client) lost(was life, err *WorkerError) {
	if err.isPermanent {
		c.refuseAll(err)
		return
	}
	wait, isOpen := c.restarts.after(was, time.Now(), 2*rand.Float64()-1)
	if isOpen {
		c.refuseAll(&CircuitOpenError{RetryAt: time.Now().Add(wait), Last: err})
	}
	c.wakeUp = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.isClosing {
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

// climbLadder ends a worker: the end of its input, SIGTERM, SIGKILL.
func (c *Client) climbLadder(w *worker) {
	c.mu.Lock()
	w.isDoomed = true
	w.endInput()
	c.mu.Unlock()
	for _, rung := range []struct {
		patience time.Duration
		signal   func(*os.Process)
	}{{c.options.DrainTimeout, terminateGroup}, {c.options.TerminateTimeout, killGroup}} {
		select {
		case <-w.gone:
			return
		case <-time.After(rung.patience):
			w.signal(rung.signal)
		}
	}
}
