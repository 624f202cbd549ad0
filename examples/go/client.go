// Package embedbridge embeds texts through a worker process that it starts, supervises and restarts.
//
//	client, err := embedbridge.New(embedbridge.Options{})
//	if err != nil { … }
//	defer client.Close()
//	embeddings, err := client.Embed(ctx, []string{"hello", "world"}, nil)
//
// A Client is safe for concurrent use; concurrent calls are pipelined over one worker, so many small calls at once are
// as fast as a large one. Requests that were in flight when a worker died are sent again, because embedding is a pure
// function, and every call ends exactly once: with its vectors or with one error.
package embedbridge

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Client keeps one worker alive. The worker starts with the first call.
type Client struct {
	options Options

	mu           sync.Mutex
	worker       *worker // nil before the first call, between two processes, and at the end
	queue        queue
	restarts     restarts
	wakeUp       *time.Timer       // the next start, while there is no worker
	failure      error             // what calls are refused with, while they are
	expected     *Info             // what every worker must serve, since the first was ready
	fingerprints map[string]string // by model: the vector spaces that were served
	spawned      int
	lastID       int64 // ids are never used again
	isClosing    bool
	changed      chan struct{} // closed, and replaced, when the worker becomes ready or calls are refused
	closed       chan struct{}
}

// New makes a client. Call Info to start the worker early, and to wait until it is ready.
func New(options Options) (*Client, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{
		options:      options,
		fingerprints: map[string]string{},
		changed:      make(chan struct{}),
		closed:       make(chan struct{}),
	}
	c.restarts.options = &c.options
	return c, nil
}

// Embed returns a vector for each text. A large call is cut into pieces that travel ahead of each other. options may be
// nil. The context's deadline is for the whole call; when it ends, the worker is told to drop what it has not done.
func (c *Client) Embed(ctx context.Context, texts []string, options *EmbedOptions) (*Embeddings, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	j, pieces, err := newJob(texts, options)
	if err != nil {
		return nil, err
	}
	_, j.hasDeadline = ctx.Deadline()
	c.mu.Lock()
	err = c.begin()
	if err == nil {
		for _, p := range pieces {
			c.queue.push(p)
		}
		c.dispatch()
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		c.mu.Lock()
		c.end(j, contextError(ctx))
		c.mu.Unlock()
	}
	if j.err != nil {
		return nil, j.err
	}
	return j.result, nil
}

// Info returns what the worker says of itself, as soon as it is ready.
func (c *Client) Info(ctx context.Context) (Info, error) {
	w, err := c.ready(ctx)
	if err != nil {
		return Info{}, err
	}
	return *w.info, nil
}

// Ping asks whether the worker answers; it does at once, also when it is busy.
func (c *Client) Ping(ctx context.Context) error {
	if _, hasDeadline := ctx.Deadline(); !hasDeadline {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.options.RequestTimeout)
		defer cancel()
	}
	w, err := c.ready(ctx)
	if err != nil {
		return err
	}
	pong := make(chan struct{})
	c.mu.Lock()
	c.ping(w, pong)
	c.mu.Unlock()
	select {
	case <-pong:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	case <-w.gone:
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.isClosing {
			return ErrClosed
		}
		return w.err
	}
}

// ready waits for a worker that has answered info.
func (c *Client) ready(ctx context.Context) (*worker, error) {
	for {
		c.mu.Lock()
		err := c.begin()
		w, changed := c.worker, c.changed
		isReady := err == nil && w != nil && w.info != nil && !w.isDoomed
		c.mu.Unlock()
		if err != nil || isReady {
			return w, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, contextError(ctx)
		}
	}
}

// Stats is a snapshot of a Client.
type Stats struct {
	PID      int // of the worker; 0 while there is none
	IsReady  bool
	Restarts int
	InFlight int // requests
	Queued   int // requests that wait to be sent
}

// Stats tells how the client is doing.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := Stats{Restarts: max(0, c.spawned-1)}
	for _, list := range c.queue.lists() {
		stats.Queued += len(*list)
	}
	if w := c.worker; w != nil {
		stats.PID = w.command.Process.Pid
		stats.IsReady = w.info != nil && !w.isDoomed
		stats.InFlight = len(w.pieces)
	}
	return stats
}

// Close ends the worker and returns when it is gone and reaped. Calls that wait to be sent fail with ErrClosed; those in
// flight may still get their vectors: the worker's input is closed, and it has DrainTimeout to finish, then
// TerminateTimeout after SIGTERM, before it is killed. Close may be called more than once.
func (c *Client) Close() error {
	c.mu.Lock()
	if !c.isClosing {
		c.isClosing = true
		c.refuseAll(ErrClosed)
		if c.wakeUp != nil {
			c.wakeUp.Stop()
		}
		if c.worker == nil {
			close(c.closed)
		} else {
			go c.climbLadder(c.worker)
		}
	}
	c.mu.Unlock()
	o := &c.options
	select {
	case <-c.closed:
		return nil
	case <-time.After(o.DrainTimeout + 2*o.TerminateTimeout + time.Second):
		return errors.New("embedbridge: the worker does not die")
	}
}
